//! The content of an image's files, in unlinked temporary files that disappear with the process.
//!
//! Each layer has one such file, its pack, to which content is appended. Holes in files become holes in the pack and cost
//! nothing. In the trees, a file refers to its pack and to the offset of its content. Content that the repository already contains
//! keeps its object names.

use std::fs::File;
use std::io::{self, BufWriter, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::PreviewError;
use crate::mount::{ContentReader, ContentSource, ReadContentError};
use crate::object::{Content, ContentObjects};
use crate::store::ContentError;

/// Writes the pack of one layer.
#[derive(Debug)]
pub(super) struct PackWriter<'a> {
    number: u32,
    directory: &'a Path,
    file: BufWriter<File>,
    end: u64,
}

impl<'a> PackWriter<'a> {
    /// Creates the pack with this number in `directory`.
    pub(super) fn start(number: u32, directory: &'a Path) -> Result<Self, PreviewError> {
        let file = tempfile::tempfile_in(directory).map_err(unwritable(directory))?;
        Ok(Self { number, directory, file: BufWriter::with_capacity(1 << 20, file), end: 0 })
    }

    /// Returns the reference to the content that is appended next.
    pub(super) fn next(&self) -> Content {
        Content { raw: true, objects: ContentObjects::Unstored { file: self.number, offset: self.end } }
    }

    /// Appends data.
    pub(super) fn append(&mut self, data: &[u8]) -> Result<(), PreviewError> {
        self.end += data.len() as u64;
        self.file.write_all(data).map_err(unwritable(self.directory))
    }

    /// Appends `length` zero bytes as a hole.
    pub(super) fn append_hole(&mut self, length: u64) -> Result<(), PreviewError> {
        let failed = unwritable(self.directory);
        // File offsets are signed, so `lseek` accepts no larger one.
        let end = self.end.checked_add(length).filter(|&end| i64::try_from(end).is_ok());
        let Some(end) = end else { return Err(failed(io::ErrorKind::FileTooLarge.into())) };
        self.end = end;
        self.file.seek(SeekFrom::Start(end)).map(drop).map_err(failed)
    }

    /// Returns the file, after setting its length to that of all content.
    pub(super) fn finish(self) -> Result<File, PreviewError> {
        let file = self.file.into_inner().map_err(io::IntoInnerError::into_error);
        let sized = file.and_then(|file| file.set_len(self.end).map(|()| file));
        sized.map_err(unwritable(self.directory))
    }
}

/// Returns a conversion of errors from writing a pack in `directory`.
fn unwritable(directory: &Path) -> impl FnOnce(io::Error) -> PreviewError + use<'_> {
    |source| PreviewError::TemporaryFile { directory: directory.to_owned(), source }
}

/// Reads content from packs, and from the repository whose layers are reused.
#[derive(Debug)]
pub(super) struct Packs {
    directory: PathBuf,
    files: Vec<OnceLock<File>>,
    repository: Option<ContentReader>,
}

impl Packs {
    /// Prepares `count` packs.
    pub(super) fn new(count: usize, directory: &Path, repository: Option<ContentReader>) -> Self {
        let files = (0..count).map(|_| OnceLock::new()).collect();
        Self { directory: directory.to_owned(), files, repository }
    }

    /// Adds the file of a finished pack.
    pub(super) fn add(&self, number: u32, file: File) {
        self.files[number as usize].set(file).expect("each pack is finished once");
    }

    fn read_pack(&self, number: u32, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let file = self.files.get(number as usize).and_then(OnceLock::get);
        file.ok_or(io::ErrorKind::NotFound)?.read_exact_at(bytes, offset)
    }
}

impl ContentSource for Packs {
    fn read(&self, content: &Content, size: u64, offset: u64, length: usize) -> Result<Vec<u8>, ReadContentError> {
        match (&content.objects, &self.repository) {
            (&ContentObjects::Unstored { file, offset: start }, _) => {
                let mut bytes = vec![0; size.saturating_sub(offset).min(length as u64) as usize];
                let read = self.read_pack(file, start + offset, &mut bytes);
                read.map_err(|source| ReadContentError::TemporaryFile { directory: self.directory.clone(), source })?;
                Ok(bytes)
            }
            (_, Some(repository)) => repository.read(content, size, offset, length),
            (_, None) => Err(ContentError::Hole(offset).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::ObjectHash;

    #[test]
    fn content_with_holes_is_read_correctly() {
        let directory = tempfile::tempdir().unwrap();
        let packs = Packs::new(2, directory.path(), None);
        let mut writer = PackWriter::start(1, directory.path()).unwrap();
        let first = writer.next();
        writer.append(b"first").unwrap();
        let sparse = writer.next();
        writer.append(b"a").unwrap();
        writer.append_hole(1 << 40).unwrap();
        writer.append(b"z").unwrap();
        let end = writer.next();
        writer.append_hole(3).unwrap();
        packs.add(1, writer.finish().unwrap());
        let read = |content, size, offset, length| packs.read(content, size, offset, length).unwrap();
        assert_eq!(read(&first, 5, 1, 100), b"irst");
        let size = (1 << 40) + 2;
        assert_eq!(read(&sparse, size, 0, 3), b"a\0\0");
        assert_eq!(read(&sparse, size, size - 2, 9), b"\0z");
        assert_eq!(read(&end, 3, 0, 9), b"\0\0\0");
        assert!(
            packs.read(&Content { raw: false, objects: ContentObjects::Whole(ObjectHash::of(b"")) }, 1, 0, 1).is_err()
        );
    }
}
