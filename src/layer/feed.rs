//! Supplies the unpacked bytes of a layer, unpacked by the calling thread or ahead of it by a second thread.

use std::io::Read;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use super::decompress::Unpacker;
use super::{BlobCompression, LayerError};
use crate::image::Digest;

/// Maximum number of buffers that the second thread unpacks ahead.
// Four buffers of 256 KiB are the 1 MiB that `LayerReader::ahead` promises.
const MAX_BUFFERS_AHEAD: usize = 4;

/// Source of unpacked bytes.
pub(super) enum Feed<R> {
    /// Unpacks in the calling thread.
    Direct(Unpacker<R>),
    /// Receives the bytes that a second thread unpacks.
    Ahead(Ahead),
}

/// Receiving end of a blob that another thread unpacks.
pub(super) struct Ahead {
    compression: BlobCompression,
    filled: Receiver<Result<Filled, LayerError>>,
    empty: Sender<Box<[u8]>>,
    /// Number of blob bytes that were read to produce the unpacked bytes received so far.
    blob_size: u64,
    digest: Option<Digest>,
}

/// A buffer with unpacked bytes.
struct Filled {
    buffer: Box<[u8]>,
    /// Number of unpacked bytes. Less than the buffer's size only at the end of the blob; 0 marks that end.
    length: usize,
    blob_size: u64,
    /// Digest of the blob; set only at its end.
    digest: Option<Digest>,
}

impl<R: Read> Feed<R> {
    /// Unpacks until `buffer` is full or the blob ends, and returns the number of unpacked bytes. Overwrites the content of
    /// `buffer`.
    pub(super) fn fill(&mut self, buffer: &mut Box<[u8]>) -> Result<usize, LayerError> {
        match self {
            Self::Direct(unpacker) => fill(unpacker, buffer),
            Self::Ahead(ahead) => ahead.fill(buffer),
        }
    }

    pub(super) fn compression(&self) -> BlobCompression {
        match self {
            Self::Direct(unpacker) => unpacker.compression(),
            Self::Ahead(ahead) => ahead.compression,
        }
    }

    /// Returns the number of blob bytes that were read to produce the unpacked bytes so far.
    pub(super) fn blob_size(&self) -> u64 {
        match self {
            Self::Direct(unpacker) => unpacker.blob.size(),
            Self::Ahead(ahead) => ahead.blob_size,
        }
    }

    /// Returns the digest of the blob. Must be called only after the blob was read to its end.
    pub(super) fn blob_digest(&self) -> Digest {
        match self {
            Self::Direct(unpacker) => unpacker.blob.digest(),
            Self::Ahead(ahead) => ahead.digest.expect("the blob was read to its end"),
        }
    }
}

impl<R: Read + Send + 'static> Feed<R> {
    /// Starts to unpack in a new thread, into buffers of `size` bytes. Unpacks in the calling thread if no thread can be started.
    pub(super) fn ahead(unpacker: Unpacker<R>, size: usize) -> Self {
        let (filler, filled) = mpsc::sync_channel(MAX_BUFFERS_AHEAD);
        let (empty, emptied) = mpsc::channel::<Box<[u8]>>();
        let compression = unpacker.compression();
        for _ in 0..MAX_BUFFERS_AHEAD {
            empty.send(vec![0; size].into_boxed_slice()).expect("the receiver still exists");
        }
        // The thread receives the unpacker only after it has started: a closure that owned it would be lost if no thread
        // can be started.
        let mut waiting = Some(unpacker);
        let (hand_over, handed_over) = mpsc::channel();
        let work = move || {
            let Ok(mut unpacker): Result<Unpacker<R>, _> = handed_over.recv() else { return };
            for mut buffer in emptied {
                let length = fill(&mut unpacker, &mut buffer);
                let is_last = !matches!(length, Ok(1..));
                let filled = length.map(|length| {
                    let digest = (length == 0).then(|| unpacker.blob.digest());
                    Filled { buffer, length, blob_size: unpacker.blob.size(), digest }
                });
                // The receiver is gone if the reader was dropped before the end of the blob, for example after an error.
                if filler.send(filled).is_err() || is_last {
                    return;
                }
            }
        };
        if thread::Builder::new().spawn(work).is_ok() {
            let unpacker = waiting.take().expect("the unpacker is handed over only here");
            hand_over.send(unpacker).expect("the thread waits for the unpacker");
        }
        match waiting {
            Some(unpacker) => Self::Direct(unpacker),
            None => Self::Ahead(Ahead { compression, filled, empty, blob_size: 0, digest: None }),
        }
    }
}

impl Ahead {
    fn fill(&mut self, buffer: &mut Box<[u8]>) -> Result<usize, LayerError> {
        // Callers may ask again after the end of the blob, when the thread has ended and nothing would be received.
        if self.digest.is_some() {
            return Ok(0);
        }
        let filled = self.filled.recv().expect("the thread sends an end marker or an error before it ends")?;
        // Fails if the thread has ended with the blob, and then needs no more buffers.
        self.empty.send(std::mem::replace(buffer, filled.buffer)).ok();
        (self.blob_size, self.digest) = (filled.blob_size, filled.digest);
        Ok(filled.length)
    }
}

fn fill<R: Read>(unpacker: &mut Unpacker<R>, buffer: &mut [u8]) -> Result<usize, LayerError> {
    let mut end = 0;
    while end < buffer.len() {
        match unpacker.read(&mut buffer[end..])? {
            0 => break,
            count => end += count,
        }
    }
    Ok(end)
}
