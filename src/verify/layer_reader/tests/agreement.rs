//! Both readers read generated archives alike: `convert`'s and the one of `verify`.

use std::collections::{BTreeMap, HashSet};
use std::io::Write as _;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use super::archives::{Member, any_member, archive, with_checksum};
use super::{ReadLayer, ReadLayerError, layer_of};
use crate::layer::{ContentPart, EntryKind, ExpectedLayer, LayerError, LayerReader, Limits};
use crate::source::ImageLayer;
use crate::verify::content::ContentHasher;
use crate::verify::layer_reader;

/// Reads a blob with the reader of `convert`.
fn read_by_convert(blob: &[u8], layer: &ImageLayer, limits: Limits) -> Result<ReadLayer, LayerError> {
    let expected = ExpectedLayer { digest: layer.digest, size: layer.size, diff_id: Some(layer.diff_id) };
    let mut reader = LayerReader::new(blob, expected, limits)?;
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut hasher = ContentHasher::new();
        while let Some(part) = reader.next_part()? {
            match part {
                ContentPart::Data(bytes) => hasher.data(bytes),
                ContentPart::Hole(length) => hasher.zeros(length),
            }
        }
        entries.push(entry.map_content(|()| hasher.finish()));
    }
    let summary = reader.finish()?;
    let (blob_size, unpacked_size) = (summary.blob_size, summary.unpacked_size);
    let (digest, diff_id, losses) = (layer.digest, summary.diff_id, summary.losses);
    Ok(ReadLayer { digest, blob_size, unpacked_size, diff_id, entries, losses, descriptions: HashSet::new() })
}

/// Reads a blob with both readers, and returns the result if they agree. All errors count as equal.
fn agreed(blob: &[u8], layer: &ImageLayer, limits: Limits) -> Result<Result<ReadLayer, ReadLayerError>, TestCaseError> {
    let (own, other) = (layer_reader::read(blob, layer, limits), read_by_convert(blob, layer, limits));
    match (&own, &other) {
        (Ok(own), Ok(other)) => prop_assert_eq!(own, other),
        (Err(_), Err(_)) => {}
        (own, other) => prop_assert!(false, "verify reads {:?}, convert reads {:?}", own, other),
    }
    Ok(own)
}

/// Fails unless both readers read the same in an archive, or both fail.
fn check(archive: &[u8], limits: Limits) -> Result<(), TestCaseError> {
    agreed(archive, &layer_of(archive, archive), limits).map(drop)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Changes bits and bytes of an archive.
fn damaged(mut archive: Vec<u8>, flips: &[(Index, u8)], bytes: &[(Index, u8)]) -> Vec<u8> {
    for (index, bit) in flips {
        let position = index.index(archive.len());
        archive[position] ^= 1 << (bit % 8);
    }
    for (index, byte) in bytes {
        let position = index.index(archive.len());
        archive[position] = *byte;
    }
    archive
}

/// Corrects the checksum of each block that looks like a header: otherwise it alone would reveal most damage.
fn repaired(mut archive: Vec<u8>) -> Vec<u8> {
    for block in archive.as_chunks_mut::<512>().0 {
        if block[257..262] == *b"ustar" {
            *block = with_checksum(*block);
        }
    }
    archive
}

proptest! {
    #[test]
    fn generated_archives_are_read_alike(members in vec(any_member(), 0..8), end in any::<Index>()) {
        let archive = archive(&members);
        check(&archive, Limits::default())?;
        check(&archive[..end.index(archive.len() + 1)], Limits::default())?;
    }

    #[test]
    fn damaged_archives_are_read_alike(
        members in vec(any_member(), 1..4),
        flips in vec((any::<Index>(), any::<u8>()), 0..4),
        bytes in vec((any::<Index>(), prop::sample::select(b"\0 -0179\x80\xff\n=Sxg".to_vec())), 0..4),
    ) {
        let damaged = damaged(archive(&members), &flips, &bytes);
        check(&damaged, Limits::default())?;
        check(&repaired(damaged), Limits::default())?;
    }

    #[test]
    fn small_limits_are_exceeded_by_the_same_archives(members in vec(any_member(), 1..4), limit in 0..9_usize, value in 0..2000_u64) {
        let mut limits = Limits::default();
        let chosen = [
            &mut limits.unpacked_size,
            &mut limits.headers,
            &mut limits.content_size,
            &mut limits.extended_header_size,
            &mut limits.sparse_segments,
            &mut limits.metadata_size,
            &mut limits.path_length,
            &mut limits.path_depth,
        ];
        let divisor = [1, 200, 1, 4, 100, 4, 10, 300];
        if let Some((chosen, divisor)) = chosen.into_iter().zip(divisor).nth(limit) {
            *chosen = value / divisor;
        }
        check(&archive(&members), limits)?;
    }

    #[test]
    fn compressed_blobs_are_read_alike(members in vec(any_member(), 0..4), end in any::<Index>()) {
        let archive = archive(&members);
        for blob in [gzip(&archive), zstd::encode_all(&archive[..], 1).unwrap()] {
            let layer = layer_of(&blob, &archive);
            for blob in [&blob[..], &blob[..end.index(blob.len())]] {
                agreed(blob, &layer, Limits::default()).map(drop)?;
            }
        }
    }
}

/// Reads 2,000 generated members, one per archive, and counts the results.
fn outcomes() -> BTreeMap<String, usize> {
    let mut runner = TestRunner::deterministic();
    let mut outcomes = BTreeMap::new();
    for _ in 0..2_000 {
        let member: Member = any_member().new_tree(&mut runner).unwrap().current();
        let archive = archive(std::slice::from_ref(&member));
        let outcome = agreed(&archive, &layer_of(&archive, &archive), Limits::default()).unwrap();
        let name = match &outcome {
            Ok(read) => match read.entries.first().map(|entry| &entry.kind) {
                None => "nothing".to_owned(),
                Some(EntryKind::Node(..)) => match &member.sparse {
                    Some(sparse) => format!("{:?}", sparse.form),
                    None => format!("type {}", member.flag.escape_ascii()),
                },
                Some(kind) => format!("{kind:?}").split('(').next().unwrap().to_owned(),
            },
            Err(_) => "refused".to_owned(),
        };
        *outcomes.entry(name).or_default() += 1;
    }
    outcomes
}

#[test]
fn most_generated_members_are_valid_and_every_form_occurs() {
    let outcomes = outcomes();
    println!("{outcomes:?}");
    assert!(outcomes["refused"] < 600, "{outcomes:?}");
    for form in ["OldGnu", "Pax00", "Pax01", "Pax10", "HardLink", "Whiteout", "Opaque", "Unpublished"] {
        assert!(outcomes[form] >= 5, "{form}: {outcomes:?}");
    }
    for flag in ["\\x00", "0", "2", "3", "4", "5", "6", "7"] {
        assert!(outcomes[&format!("type {flag}")] >= 5, "{flag}: {outcomes:?}");
    }
}
