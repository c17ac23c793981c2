//! Reads files and objects for a check. Damage is added to the findings, and the check continues.

use std::error::Error;
use std::fmt;
use std::io::{self, Read};
use std::sync::atomic::Ordering;

use flate2::{Decompress, FlushDecompress, Status};

use super::Check;
use super::finding::Location;
use super::name::ObjectName;
use crate::message::causes;
use crate::object::{
    DecodeError, HashAlgorithm, ObjectHash, SizeLimit, UnsupportedCompression, ZSTD_MAGIC, decode_alone,
};
use crate::store::StoreError;

/// Finding text: the expected bytes of an object.
pub(super) const ITS_HASH: &str = "bytes that hash to its name";
/// Finding text: the expected form of a compressed object.
pub(super) const WHOLE_STREAM: &str = "one whole zlib stream and nothing else";
/// Finding text: a file is missing.
pub(super) const NOTHING: &str = "nothing";

impl Check<'_> {
    /// Returns the content of a file beside the objects, or adds a finding if it cannot be read.
    pub(super) fn read_file(&self, name: &str, limit: u64) -> Option<Vec<u8>> {
        self.read_stored(&Location::file(name), name, "a readable file", limit)
    }

    fn read_stored(&self, location: &Location, name: &str, what: &str, limit: u64) -> Option<Vec<u8>> {
        match self.store.get(name, limit) {
            Ok(Some(bytes)) => return Some(bytes),
            Ok(None) => self.findings.note(location, what, NOTHING),
            Err(StoreError::TooLarge { .. }) => {
                self.findings.note(location, format_args!("{what} of at most {limit} bytes"), "more");
            }
            Err(error) => self.note_unreadable(location, what, error),
        }
        None
    }

    /// Adds a finding for a file that cannot be read, unless the reason is not in the repository.
    pub(super) fn note_unreadable(&self, location: &Location, what: &str, error: StoreError) {
        let found = read_failure(&error);
        if !self.note_obstacle(&location.file, error) {
            self.findings.note(location, what, found);
        }
    }

    /// Records the error if its cause is not in the repository, and returns whether that is so.
    pub(super) fn note_obstacle(&self, file: &str, error: StoreError) -> bool {
        let is_obstacle = error.is_obstacle();
        if is_obstacle {
            self.end_with(file, error);
        }
        is_obstacle
    }

    /// Records an error with which the check ends.
    pub(super) fn end_with(&self, file: &str, error: impl Into<Box<dyn Error + Send + Sync>>) {
        let mut obstacle = self.obstacle.lock().expect("no thread panics while it records an error");
        obstacle.get_or_insert_with(|| (file.to_owned(), error.into()));
    }

    /// Reads a whole object into memory. If there is no valid content, adds a finding at `location` and returns `None`. An object
    /// that another program compressed is no finding, but counted.
    pub(super) fn read_object(&self, name: ObjectName, location: &Location, limit: SizeLimit) -> Option<Vec<u8>> {
        let stored = self.read_stored(location, &name.to_string(), "a readable object", limit.stored())?;
        self.progress.read.fetch_add(stored.len() as u64, Ordering::Relaxed);
        let actual = name.hash().algorithm().hash(&stored);
        if name.hash() != actual {
            self.findings.note(location, ITS_HASH, actual);
            return None;
        }
        match decode_alone(&stored, limit) {
            Ok(content) => return Some(content),
            Err(DecodeError::Unsupported(compression)) => self.count_unsupported(compression),
            Err(DecodeError::TooLarge { limit }) => {
                self.findings.note(location, format_args!("at most {limit} bytes of content"), "more");
            }
            Err(DecodeError::Damaged(_)) if stored.is_empty() => {
                self.findings.note(location, WHOLE_STREAM, "an empty file");
            }
            Err(error) => self.findings.note(location, WHOLE_STREAM, causes(&error)),
        }
        None
    }
}

/// Returns the text of a finding about a file that cannot be read.
pub(super) fn read_failure(error: &StoreError) -> String {
    match error {
        StoreError::Missing { .. } => NOTHING.to_owned(),
        StoreError::Io { source, .. } => source.to_string(),
        error => causes(error),
    }
}

/// Properties of an object after its whole file was read.
pub(super) struct Examined {
    pub(super) hash: ObjectHash,
    /// Size of the decompressed content in bytes, or the reason why the object is not a valid zlib stream.
    pub(super) unpacked: Result<u64, NoStream>,
}

/// What an object is instead of a valid zlib stream. The text form is that of a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NoStream {
    /// An object that another program compressed.
    Unsupported(UnsupportedCompression),
    /// A damaged stream, or other bytes.
    Damaged(String),
}

impl fmt::Display for NoStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported(compression) => write!(f, "an object compressed with {compression}"),
            Self::Damaged(found) => f.write_str(found),
        }
    }
}

/// Reads objects of any size through one buffer.
pub(super) struct Examiner {
    input: Vec<u8>,
    stream: StreamCounter,
}

/// Size of the input and output buffers, in bytes.
const BUFFER_SIZE: usize = 128 << 10;

impl Examiner {
    pub(super) fn new() -> Self {
        Self { input: vec![0; BUFFER_SIZE], stream: StreamCounter::new() }
    }

    /// Reads an object, and computes its hash with `algorithm`. The bytes are decompressed only if `is_packed`.
    pub(super) fn examine(
        &mut self,
        mut file: impl Read,
        algorithm: HashAlgorithm,
        is_packed: bool,
    ) -> io::Result<Examined> {
        let mut hasher = algorithm.hasher();
        self.stream.reset();
        loop {
            let length = match file.read(&mut self.input) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            hasher.update(&self.input[..length]);
            if is_packed {
                self.stream.feed(&self.input[..length]);
            }
        }
        Ok(Examined { hash: hasher.finish(), unpacked: self.stream.end() })
    }
}

/// A zlib stream whose content is counted and discarded.
struct StreamCounter {
    inflate: Decompress,
    output: Vec<u8>,
    /// The first bytes of the object, as many as identify an unsupported compression.
    start: Vec<u8>,
    state: StreamState,
}

enum StreamState {
    Open,
    Ended { trailing: usize },
    Failed(String),
}

impl StreamCounter {
    fn new() -> Self {
        let (inflate, output) = (Decompress::new(true), vec![0; BUFFER_SIZE]);
        Self { inflate, output, start: Vec::new(), state: StreamState::Open }
    }

    fn reset(&mut self) {
        self.inflate.reset(true);
        self.start.clear();
        self.state = StreamState::Open;
    }

    fn feed(&mut self, mut input: &[u8]) {
        self.start.extend(input.iter().take(ZSTD_MAGIC.len() - self.start.len()));
        while matches!(self.state, StreamState::Open) {
            let (read, written) = (self.inflate.total_in(), self.inflate.total_out());
            let status = self.inflate.decompress(input, &mut self.output, FlushDecompress::None);
            input = &input[(self.inflate.total_in() - read) as usize..];
            match status {
                Ok(Status::StreamEnd) => self.state = StreamState::Ended { trailing: 0 },
                Ok(_) if input.is_empty() && self.inflate.total_out() - written < self.output.len() as u64 => return,
                Ok(_) => {}
                Err(error) => self.state = StreamState::Failed(error.to_string()),
            }
        }
        if let StreamState::Ended { trailing } = &mut self.state {
            *trailing += input.len();
        }
    }

    fn end(&self) -> Result<u64, NoStream> {
        let damage = match &self.state {
            StreamState::Ended { trailing: 0 } => return Ok(self.inflate.total_out()),
            StreamState::Ended { trailing } => format!("{trailing} bytes after the end of the stream"),
            StreamState::Failed(error) => error.clone(),
            StreamState::Open => format!("a truncated stream with {} bytes of content", self.inflate.total_out()),
        };
        let compression = UnsupportedCompression::of_object(&self.start);
        Err(compression.map_or(NoStream::Damaged(damage), NoStream::Unsupported))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{Compression, Encoder};

    fn examine(pieces: &[&[u8]]) -> Result<u64, NoStream> {
        let mut stream = StreamCounter::new();
        stream.reset();
        pieces.iter().for_each(|piece| stream.feed(piece));
        stream.end()
    }

    #[test]
    fn content_is_counted_for_any_split_of_the_stream() {
        for length in [0, 1, BUFFER_SIZE - 1, BUFFER_SIZE, BUFFER_SIZE + 1, 20 * BUFFER_SIZE] {
            let plain: Vec<u8> = (0..length).map(|number| (number * number / 7) as u8).collect();
            let stored = Encoder::new(Compression::Fast).encode(&plain).to_vec();
            assert_eq!(examine(&[&stored]), Ok(length as u64));
            let (a, b) = stored.split_at(stored.len() / 2);
            assert_eq!(examine(&[a, b]), Ok(length as u64));
        }
    }

    #[test]
    fn every_kind_of_damage_is_reported() {
        let stored = Encoder::new(Compression::Fast).encode(&[7; 1000]).to_vec();
        let longer = [&stored[..], b"xy"].concat();
        assert_eq!(examine(&[&longer]), Err(NoStream::Damaged("2 bytes after the end of the stream".to_owned())));
        for bad in [&stored[..stored.len() - 1], &stored[1..], b"", b"\x1f\x8b\x08"] {
            assert!(matches!(examine(&[bad]), Err(NoStream::Damaged(_))), "{bad:?}");
        }
    }

    #[test]
    fn zstd_frame_is_named_for_any_split() {
        let frame = zstd::bulk::compress(&[7; 1000], 3).unwrap();
        for at in 0..5 {
            let (a, b) = frame.split_at(at);
            let found = examine(&[a, b]);
            assert_eq!(found, Err(NoStream::Unsupported(UnsupportedCompression::ZSTD)));
            assert_eq!(found.unwrap_err().to_string(), "an object compressed with zstd");
        }
    }
}
