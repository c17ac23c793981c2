//! Tests of [`LayerReader`] on whole blobs that are built byte by byte.

mod archive;
mod blob;
mod entries;
mod hostile;

use super::*;
use crate::image::{DiffId, Digest};
use crate::path::{EntryPath, PathError};
use crate::tar_archive::testing::{Head, Tar};

/// Entries of a layer with the content of files, holes filled with zeros, and its summary.
type Read = (Vec<(LayerEntry, Vec<u8>)>, LayerSummary);

fn expected(blob: &[u8]) -> ExpectedLayer {
    ExpectedLayer { digest: Digest::of(blob), size: blob.len() as u64, diff_id: None }
}

fn read(blob: &[u8]) -> Result<Read, LayerError> {
    read_within(blob, Limits::default())
}

fn read_within(blob: &[u8], limits: Limits) -> Result<Read, LayerError> {
    read_as(blob, expected(blob), limits)
}

/// Reads a layer with one thread and with two, and asserts that both results are equal.
fn read_as(blob: &[u8], expected: ExpectedLayer, limits: Limits) -> Result<Read, LayerError> {
    let read = LayerReader::new(blob, expected, limits).and_then(read_whole);
    let ahead = LayerReader::ahead(std::io::Cursor::new(blob.to_vec()), expected, limits).and_then(read_whole);
    assert_eq!(format!("{read:?}"), format!("{ahead:?}"));
    read
}

fn read_whole<R: std::io::Read>(mut reader: LayerReader<R>) -> Result<Read, LayerError> {
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut content = Vec::new();
        while let Some(part) = reader.next_part()? {
            match part {
                ContentPart::Data(bytes) => content.extend_from_slice(bytes),
                ContentPart::Hole(length) => content.resize(content.len() + length as usize, 0),
            }
        }
        entries.push((entry, content));
    }
    Ok((entries, reader.finish()?))
}

/// Reads the entries of a valid archive.
fn entries(tar: Tar) -> Vec<(LayerEntry, Vec<u8>)> {
    read(&tar.end()).unwrap().0
}

/// Reads the only entry of a valid archive.
fn entry(tar: Tar) -> (LayerEntry, Vec<u8>) {
    let mut entries = entries(tar);
    assert_eq!(entries.len(), 1);
    entries.remove(0)
}

/// Reads an archive with an invalid entry, and returns that entry's path and error.
fn problem(tar: Tar) -> (String, EntryError) {
    problem_of(read(&tar.end()))
}

fn problem_of<T>(outcome: Result<T, LayerError>) -> (String, EntryError) {
    match outcome {
        Err(LayerError::Entry { path, problem }) => (path, problem),
        Err(other) => panic!("not about an entry: {other}"),
        Ok(_) => panic!("the archive was accepted"),
    }
}

fn path(raw: &str) -> EntryPath {
    EntryPath::normalise(raw.as_bytes()).unwrap()
}

fn metadata(entry: &LayerEntry) -> &crate::metadata::Metadata {
    match &entry.kind {
        EntryKind::Node(metadata, _) => metadata,
        other => panic!("{other:?} is not a node"),
    }
}

fn node(entry: &LayerEntry) -> &NodeKind {
    match &entry.kind {
        EntryKind::Node(_, node) => node,
        other => panic!("{other:?} is not a node"),
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).unwrap()
}
