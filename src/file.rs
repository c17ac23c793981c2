//! Opens and reads regular files. Any other type of file is an error.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Opens a regular file. Returns an error for any other type of file and never blocks, because a repository of unknown
/// origin may contain a named pipe.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(not_regular()) }
}

/// Returns the error for a pipe, a directory, or another file that is not a regular file.
pub(crate) fn not_regular() -> io::Error {
    io::Error::other("it is not a regular file")
}

/// Returns whether an error means that the path does not exist. After any other error the path may exist.
pub(crate) fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Reads a regular file as text.
pub(crate) fn read_regular_text(path: &Path) -> io::Result<String> {
    io::read_to_string(open_regular(path)?)
}

/// Reads a whole regular file, or returns `None` if it is longer than `limit` bytes.
pub(crate) fn read_regular_up_to(limit: u64, path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = open_regular(path)?;
    let length = file.metadata()?.len();
    if length > limit {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    // The length may exceed the memory: a sparse file can have any length.
    bytes.try_reserve_exact(usize::try_from(length).unwrap_or(usize::MAX)).map_err(io::Error::from)?;
    // The file may grow while it is read.
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}
