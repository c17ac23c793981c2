//! Reads the blob of a layer a second time, with another reader than `convert` has.
//!
//! Only decompression and plain types are shared with [`crate::layer`]: types of entries, losses and limits, and the errors of
//! blobs. Headers, PAX records, sparse maps, whiteouts, attributes, sizes and digests are read here again, by code that was
//! written from the formats. A mistake in one of the two readers thus becomes a difference between what is published and what
//! is expected.
//!
//! The `tar` crate supplies the positions of the fields in header blocks, and the types of members. Its other parts do not
//! follow Go's `archive/tar`, the reader of every container engine; each place here that does without them names the reason.
//!
//! Data passes the modules in this order: `bytes` (hashed and counted) → `blocks` → `archive` (members, with `header`, `pax` and
//! `sparse`) → `entries` (with `names` and `xattrs`).

mod archive;
mod blocks;
mod bytes;
mod entries;
mod error;
mod header;
mod names;
mod numbers;
mod pax;
mod sparse;
#[cfg(test)]
mod tests;
mod xattrs;

use std::cell::Cell;
use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read};

use super::content::ContentDigest;
use super::file_bundles::PossibleDescription;
use crate::image::{DiffId, Digest};
use crate::layer::{EntryKind, LayerEntry, LayerError, Limit, LimitExceeded, Limits, Losses, NodeKind, unpack};
use crate::source::ImageLayer;

pub use error::{EntryProblem, ReadLayerError};
pub(super) use names::is_bookkeeping;

use archive::Archive;
use bytes::{Limited, Summed};
use entries::Entries;

/// Number of bytes that are unpacked at once: as many as stay in the second-level cache until they are hashed.
const BUFFER_SIZE: usize = 256 << 10;

/// A layer whose digest, size and diff ID match the image.
#[derive(Debug, PartialEq)]
pub(super) struct ReadLayer {
    pub(super) digest: Digest,
    /// Size of the blob in bytes.
    pub(super) blob_size: u64,
    /// Size of the unpacked archive in bytes.
    pub(super) unpacked_size: u64,
    pub(super) diff_id: DiffId,
    /// Entries in the order of the archive.
    pub(super) entries: Vec<LayerEntry<ContentDigest>>,
    /// What CVMFS cannot represent of single entries.
    pub(super) losses: Losses,
    /// Digests of the files whose content describes a file bundle.
    pub(super) descriptions: HashSet<ContentDigest>,
}

/// Reads the blob of `layer` to its end. Fails if the blob does not match the image.
pub(super) fn read(blob: impl Read, layer: &ImageLayer, limits: Limits) -> Result<ReadLayer, ReadLayerError> {
    let (packed, unpacked) = (Cell::new(0), Cell::new(0));
    let mut blob = Summed::new(blob, &packed);
    let reader = Summed::new(unpack(&mut blob, layer.size)?, &unpacked);
    let reader = Limited { reader, unpacked: &unpacked, packed: &packed, limits };
    let mut archive = Archive::new(BufReader::with_capacity(BUFFER_SIZE, reader), limits);
    let mut descriptions = HashSet::new();
    let (entries, losses) = read_entries(&mut archive, &mut descriptions, limits)?;
    let reader = archive.into_drained()?.into_inner().reader;
    let diff_id = DiffId(reader.digest());
    let (digest, blob_size, unpacked_size) = (blob.digest(), packed.get(), unpacked.get());
    // In this order: a wrong size explains a wrong digest, and this one a wrong diff ID.
    if blob_size != layer.size {
        Err(LayerError::WrongSize { expected: layer.size, actual: blob_size }.into())
    } else if digest != layer.digest {
        Err(LayerError::WrongDigest { expected: layer.digest, actual: digest }.into())
    } else if diff_id != layer.diff_id {
        Err(LayerError::WrongDiffId { expected: layer.diff_id, actual: diff_id }.into())
    } else {
        Ok(ReadLayer { digest, blob_size, unpacked_size, diff_id, entries, losses, descriptions })
    }
}

fn read_entries(
    archive: &mut Archive<impl BufRead>,
    descriptions: &mut HashSet<ContentDigest>,
    limits: Limits,
) -> Result<(Vec<LayerEntry<ContentDigest>>, Losses), ReadLayerError> {
    let (mut list, mut entries) = (Vec::new(), Entries::new(limits));
    let no_content = ContentDigest::of(b"");
    while let Some(member) = archive.next_member()? {
        let entry = entries.entry(&member).map_err(|problem| archive.failed(problem))?;
        let content = match &entry {
            Some(LayerEntry { kind: EntryKind::Node(_, NodeKind::File { .. }), .. }) => {
                let mut description = PossibleDescription::new(member.content.size);
                let digest = archive.hash_content(&member.content, |bytes| description.data(bytes))?;
                descriptions.extend(description.is_description().then_some(digest));
                digest
            }
            _ => {
                archive.skip_content(&member.content)?;
                no_content
            }
        };
        list.extend(entry.map(|entry| entry.map_content(|()| content)));
    }
    Ok((list, entries.losses))
}

/// Returns an error if `value` is above a limit.
fn within(limit: Limit, value: u64, allowed: u64) -> Result<(), LimitExceeded> {
    if value > allowed { Err(LimitExceeded { limit, allowed }) } else { Ok(()) }
}
