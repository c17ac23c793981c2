//! The public interface of this module: [`LayerReader`].

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::blob::Blob;
use super::decompress::Unpacker;
use super::feed::Feed;
use super::mapping::{self, MemberPath};
use super::stream::{BUFFER_SIZE, TarStream};
use super::{
    BlobCompression, ContentPart, DeviceNumber, EntryError, EntryKind, LayerEntry, LayerError, Limit, Limits, Loss,
    LossKind, Losses, NodeKind, xattrs,
};
use crate::image::{DiffId, Digest};
use crate::metadata::{Metadata, Xattrs};
use crate::path::EntryPath;
use crate::tar_archive::{Archive, HeaderLimits, Member, MemberKind};

/// What the image states about a layer, verified while the layer is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpectedLayer {
    /// Digest of the blob, from the image manifest.
    pub digest: Digest,
    /// Size of the blob in bytes, from the image manifest.
    pub size: u64,
    /// Digest of the unpacked layer, from the image config. `None` if the digest is unknown and must not be verified.
    pub diff_id: Option<DiffId>,
}

/// Properties of a layer that was read completely.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerSummary {
    /// Size of the blob in bytes.
    pub blob_size: u64,
    /// Compression of the blob.
    pub compression: BlobCompression,
    /// Size of the unpacked tar stream in bytes.
    pub unpacked_size: u64,
    /// Digest of the unpacked tar stream.
    pub diff_id: DiffId,
    /// What was left out because CVMFS cannot represent it.
    pub losses: Losses,
}

/// Reads the entries of a layer in the order of the archive, and verifies the whole blob.
///
/// Needs about 600 KB of memory, plus the state of the decompressor: nothing for a plain archive, 48 KB for gzip, up to 128
/// MiB for zstd at the highest levels. One extended header or sparse map may need as much more as [`Limits`] allow.
///
/// After an error the reader must not be used any more.
pub struct LayerReader<R> {
    archive: Archive<TarStream<R>>,
    expected: ExpectedLayer,
    limits: Limits,
    /// Size of all regular files so far in bytes, including holes.
    content_size: u64,
    /// Size of all paths, link targets and extended attributes so far, in bytes.
    metadata_size: u64,
    /// Number of zero bytes of holes that the caller has written out so far.
    filled_holes: u64,
    losses: Losses,
    /// Paths whose latest entry cannot be published, with the reason.
    unpublished: HashMap<EntryPath, LossKind>,
    /// The latest extended attributes. The next entry shares them if its attributes are equal: in many images every file has
    /// the same security label.
    last_xattrs: Option<Arc<Xattrs>>,
}

impl<R: Read> LayerReader<R> {
    /// Starts to read a layer. Its compression is detected from its first bytes.
    pub fn new(blob: R, expected: ExpectedLayer, limits: Limits) -> Result<Self, LayerError> {
        let unpacker = Unpacker::new(Blob::new(blob, expected.size))?;
        Ok(Self::of_feed(Feed::Direct(unpacker), expected, limits))
    }

    fn of_feed(feed: Feed<R>, expected: ExpectedLayer, limits: Limits) -> Self {
        let Limits { headers, extended_header_size, .. } = limits;
        Self {
            archive: Archive::new(TarStream::new(feed, limits), HeaderLimits { headers, extended_header_size }),
            expected,
            limits,
            content_size: 0,
            metadata_size: 0,
            filled_holes: 0,
            losses: Losses::default(),
            unpublished: HashMap::new(),
            last_xattrs: None,
        }
    }

    /// Returns the next entry, or `None` after the last. Unread content of the previous entry is skipped.
    pub fn next_entry(&mut self) -> Result<Option<LayerEntry>, LayerError> {
        while let Some(mut member) = self.archive.next_member()? {
            self.start_content(&mut member)?;
            let entry = self.entry(member).map_err(|problem| self.failed(problem))?;
            let allowed = self.limits.metadata_size;
            self.metadata_size += entry.as_ref().map_or(0, size_of_metadata);
            Limit::MetadataSize.check(self.metadata_size, allowed).map_err(|limit| self.failed(limit))?;
            // A member that is left out, or is a whiteout, may have content in the archive, which is not that of a
            // published file.
            if !entry.as_ref().is_some_and(is_file) {
                self.archive.hide_content();
            }
            if entry.is_some() {
                return Ok(entry);
            }
        }
        Ok(None)
    }

    /// Returns the next part of the content of the regular file that [`Self::next_entry`] returned last.
    ///
    /// Parts come in order and without gaps; a part with data has up to 256 KiB. Returns `None` at the end of the file, and for
    /// entries that are not regular files.
    pub fn next_part(&mut self) -> Result<Option<ContentPart<'_>>, LayerError> {
        self.archive.next_part()
    }

    /// Returns the number of blob bytes that were read to produce the unpacked bytes so far.
    pub fn blob_bytes_read(&self) -> u64 {
        self.archive.stream().blob_bytes_read()
    }

    /// Must be called when the caller writes out `length` zero bytes of a hole. Returns an error if the limit is exceeded.
    pub fn count_filled_hole(&mut self, length: u64) -> Result<(), LayerError> {
        self.filled_holes += length;
        let checked = Limit::FilledHoles.check(self.filled_holes, self.limits.filled_holes);
        checked.map_err(|limit| self.failed(limit))
    }

    /// Reads the rest of the blob to its end, and verifies size, digest and diff ID.
    ///
    /// The remaining entries are read, too, and may cause errors: success means that the whole layer is valid.
    pub fn finish(mut self) -> Result<LayerSummary, LayerError> {
        while self.next_entry()?.is_some() {}
        let mut stream = self.archive.into_stream();
        // The digests of an image cover the whole blob, including the padding after the archive. DUCC stops at the end of
        // the archive and so records other diff IDs for some layers.
        stream.drain()?;
        let (blob_size, digest, compression) = stream.blob();
        let diff_id = stream.diff_id();
        verify(&self.expected, blob_size, digest, diff_id)?;
        Ok(LayerSummary { blob_size, compression, unpacked_size: stream.size(), diff_id, losses: self.losses })
    }

    /// Prepares to read the content of a member, also of a sparse file, and counts its size.
    fn start_content(&mut self, member: &mut Member) -> Result<(), LayerError> {
        self.archive.read_map(member, self.limits.sparse_segments)?;
        self.content_size = self.content_size.saturating_add(member.size);
        let checked = Limit::ContentSize.check(self.content_size, self.limits.content_size);
        checked.map_err(|limit| self.failed(limit))
    }

    /// Returns an error about the current member.
    fn failed(&self, problem: impl Into<EntryError>) -> LayerError {
        LayerError::Entry { path: self.archive.shown_path(), problem: problem.into() }
    }

    fn entry(&mut self, member: Member) -> Result<Option<LayerEntry>, EntryError> {
        match MemberPath::of(&member.path, &self.limits)? {
            // Before the test for hard links: in cmssw/el9, a whiteout is a hard link to a file of a lower layer (smolvm
            // #401).
            MemberPath::Whiteout(path) => Ok(Some(LayerEntry { path, kind: EntryKind::Whiteout })),
            MemberPath::Opaque(path) => Ok(Some(LayerEntry { path, kind: EntryKind::Opaque })),
            MemberPath::Path(path) if member.kind == MemberKind::HardLink => self.hard_link(path, &member).map(Some),
            MemberPath::Path(path) => self.node(path, member).map(Some),
            MemberPath::Bookkeeping(path) => self.bookkeeping(path, member),
        }
    }

    /// Returns the entry of an internal file of AUFS, which is needed only as the target of hard links. If the file cannot
    /// be published, each hard link to the file is a loss, but not the file itself.
    fn bookkeeping(&mut self, path: EntryPath, member: Member) -> Result<Option<LayerEntry>, EntryError> {
        if member.kind == MemberKind::HardLink {
            return match self.unpublished.get(&mapping::hard_link_target(&member)?).copied() {
                None => self.hard_link(path, &member).map(Some),
                Some(kind) => {
                    self.unpublished.insert(path, kind);
                    Ok(None)
                }
            };
        }
        // A hard link cannot refer to a directory, so AUFS's own ones are never needed.
        if member.kind == MemberKind::Directory {
            return Ok(None);
        }
        match why_unpublishable(mapping::node_kind(&member)?.as_ref()) {
            None => self.node(path, member).map(Some),
            Some(kind) => {
                self.unpublished.insert(path, kind);
                Ok(None)
            }
        }
    }

    /// Returns the entry of a hard link. A link to an entry that cannot be published cannot be published either.
    fn hard_link(&mut self, path: EntryPath, member: &Member) -> Result<LayerEntry, EntryError> {
        let target = mapping::hard_link_target(member)?;
        if let Some(&kind) = self.unpublished.get(&target) {
            return Ok(self.leave_out(path, kind));
        }
        // Of several entries at one path the last one counts, so later links refer to this one.
        self.unpublished.remove(&path);
        Ok(LayerEntry { path, kind: EntryKind::HardLink(target) })
    }

    fn node(&mut self, path: EntryPath, member: Member) -> Result<LayerEntry, EntryError> {
        let kind = mapping::node_kind(&member)?;
        if let Some(loss) = why_unpublishable(kind.as_ref()) {
            return Ok(self.leave_out(path, loss));
        }
        let kind = kind.expect("an entry without a kind was left out above");
        self.unpublished.remove(&path);
        let metadata = mapping::metadata(&member)?;
        let xattrs = self.xattrs(&path, member);
        Ok(LayerEntry { path, kind: EntryKind::Node(Metadata { xattrs, ..metadata }, kind) })
    }

    fn leave_out(&mut self, path: EntryPath, kind: LossKind) -> LayerEntry {
        self.lose(path.clone(), kind);
        self.unpublished.insert(path.clone(), kind);
        LayerEntry { path, kind: EntryKind::Unpublished }
    }

    fn xattrs(&mut self, path: &EntryPath, mut member: Member) -> Option<Arc<Xattrs>> {
        if member.extended.has_acl {
            self.lose(path.clone(), LossKind::Acl);
        }
        let mut xattrs = member.extended.take_xattrs();
        for kind in xattrs::remove_unsupported(&mut xattrs) {
            self.lose(path.clone(), kind);
        }
        // "No attributes" has one form: CVMFS counts an empty list as having attributes.
        if xattrs.is_empty() {
            return None;
        }
        if self.last_xattrs.as_deref() != Some(&xattrs) {
            self.last_xattrs = Some(Arc::new(xattrs));
        }
        self.last_xattrs.clone()
    }

    fn lose(&mut self, path: EntryPath, kind: LossKind) {
        self.losses.add(Loss { path, kind });
    }
}

impl<R: Read + Send + 'static> LayerReader<R> {
    /// Starts to read a layer. A second thread unpacks up to 1 MiB ahead, so that the calling thread does not wait for
    /// unpacking.
    pub fn ahead(blob: R, expected: ExpectedLayer, limits: Limits) -> Result<Self, LayerError> {
        let unpacker = Unpacker::new(Blob::new(blob, expected.size))?;
        Ok(Self::of_feed(Feed::ahead(unpacker, BUFFER_SIZE), expected, limits))
    }
}

/// Returns why an inode of this type cannot be published, or `None` if it can.
fn why_unpublishable(kind: Option<&NodeKind>) -> Option<LossKind> {
    match kind {
        None => Some(LossKind::UnknownType),
        // If this device were published, it would hide a file of lower layers: an image must not give commands to overlay mounts.
        Some(NodeKind::CharacterDevice(DeviceNumber { major: 0, minor: 0 })) => Some(LossKind::OverlayDevice),
        Some(_) => None,
    }
}

/// Returns the size of an entry's paths and attributes in bytes. Shared attributes count for each entry.
fn size_of_metadata(entry: &LayerEntry) -> u64 {
    let of_node = |metadata: &Metadata, kind: &NodeKind| {
        let xattrs = metadata.xattrs.iter().flat_map(|xattrs| xattrs.iter());
        let target = if let NodeKind::Symlink(target) = kind { target.len() } else { 0 };
        target + xattrs.map(|(name, value)| name.len() + value.len()).sum::<usize>()
    };
    let own = match &entry.kind {
        EntryKind::Node(metadata, kind) => of_node(metadata, kind),
        EntryKind::HardLink(target) => target.as_bytes().len(),
        EntryKind::Unpublished | EntryKind::Whiteout | EntryKind::Opaque => 0,
    };
    (entry.path.as_bytes().len() + own) as u64
}

fn is_file(entry: &LayerEntry) -> bool {
    matches!(entry.kind, EntryKind::Node(_, NodeKind::File { .. }))
}

fn verify(expected: &ExpectedLayer, size: u64, digest: Digest, diff_id: DiffId) -> Result<(), LayerError> {
    // In this order, because a wrong size explains a wrong digest, and a wrong digest explains a wrong diff ID.
    if size != expected.size {
        return Err(LayerError::WrongSize { expected: expected.size, actual: size });
    }
    if digest != expected.digest {
        return Err(LayerError::WrongDigest { expected: expected.digest, actual: digest });
    }
    match expected.diff_id {
        Some(expected) if expected != diff_id => Err(LayerError::WrongDiffId { expected, actual: diff_id }),
        _ => Ok(()),
    }
}
