//! The minimum cost of a conversion: its bare kernels, with the libraries that strata uses, and nothing else.
//!
//! Each layer is read, hashed, inflated and hashed again; each file in it is hashed, compressed, hashed and written, unless
//! the same content was written before. Nothing is parsed, scheduled, verified or remembered, no catalog is created, and how the
//! archives are divided into files is determined before the measurement.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use flate2::read::MultiGzDecoder;
use sha2::{Digest as _, Sha256};
use strata::layer::unpack;
use strata::object::{Compression, Encoder, ObjectHash};

/// The positions of content in the archive of a layer.
pub struct Cuts {
    layers: Vec<Vec<Range<u64>>>,
    size: u64,
}

/// Size in bytes of the pieces into which large files are cut: the average size of chunks.
const CHUNK: u64 = 8 << 20;

impl Cuts {
    /// Finds the files in the archives of layers.
    pub fn find(layers: &[PathBuf]) -> Self {
        let (layers, sizes): (Vec<_>, Vec<u64>) = layers.iter().map(|layer| cuts(layer)).unzip();
        Self { layers, size: sizes.iter().sum() }
    }

    /// Reads every `step`-th piece of the layers.
    pub fn sample(&self, layers: &[PathBuf], step: usize) -> Vec<Vec<u8>> {
        let mut sample = Vec::new();
        for (layer, cuts) in layers.iter().zip(&self.layers) {
            let (mut tar, mut position) = (open(layer), 0);
            for cut in cuts.iter().step_by(step) {
                let mut piece = Vec::new();
                io::copy(&mut (&mut tar).take(cut.start - position), &mut io::sink()).expect("the layer is whole");
                read_exactly(&mut tar, cut.end - cut.start, &mut piece);
                position = cut.end;
                sample.push(piece);
            }
        }
        sample
    }

    /// Returns the total size of all archives.
    pub fn size(&self) -> u64 {
        self.size
    }
}

/// Returns the positions of content in an archive, and the size of the archive.
fn cuts(layer: &Path) -> (Vec<Range<u64>>, u64) {
    let stream = MultiGzDecoder::new(io::BufReader::new(File::open(layer).expect("the layer is there")));
    let mut archive = tar::Archive::new(Counted { inner: stream, position: 0 });
    let mut cuts = Vec::new();
    for entry in archive.entries().expect("layers are archives") {
        let entry = entry.expect("layers are archives");
        if entry.header().entry_type().is_file() {
            let (mut start, end) = (entry.raw_file_position(), entry.raw_file_position() + entry.size());
            while end - start > CHUNK {
                cuts.push(start..start + CHUNK);
                start += CHUNK;
            }
            cuts.push(start..end);
        }
    }
    let mut stream = archive.into_inner();
    io::copy(&mut stream, &mut io::sink()).expect("the layer is whole");
    (cuts, stream.position)
}

/// Does the work for all layers, on all threads, into the empty directory `objects`, and returns the least time that it could
/// have taken: the busy time of all threads, divided by their number.
pub fn run(layers: &[PathBuf], cuts: &Cuts, compression: Compression, threads: usize, objects: &Path) -> Duration {
    (0..256).for_each(|number| fs::create_dir(objects.join(format!("{number:02x}"))).expect("the directory is empty"));
    let known = Mutex::new(HashSet::new());
    // The largest layers come first, so that all threads are busy for as long as possible.
    let mut order: Vec<usize> = (0..layers.len()).collect();
    order.sort_by_key(|&layer| fs::metadata(&layers[layer]).expect("the layer is there").len());
    let order = Mutex::new(order);
    let next = || order.lock().expect("no thread panics").pop();
    let work = || {
        let start = Instant::now();
        let mut encoder = Encoder::new(compression);
        while let Some(layer) = next() {
            store(&layers[layer], &cuts.layers[layer], &mut encoder, &known, objects);
        }
        start.elapsed()
    };
    let busy: Duration = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().expect("kernels do not fail")).sum()
    });
    let start = Instant::now();
    rustix::fs::syncfs(File::open(objects).expect("the directory is there")).expect("files can be synced");
    busy / u32::try_from(threads).expect("threads are few") + start.elapsed()
}

fn store(
    layer: &Path,
    cuts: &[Range<u64>],
    encoder: &mut Encoder,
    known: &Mutex<HashSet<blake3::Hash>>,
    objects: &Path,
) {
    let mut tar = Hashed { inner: open(layer), hasher: Sha256::new() };
    let (mut position, mut piece) = (0, Vec::new());
    for cut in cuts {
        // The gaps between files are short, except at the end of the archive.
        read_exactly(&mut tar, cut.start - position, &mut piece);
        read_exactly(&mut tar, cut.end - cut.start, &mut piece);
        position = cut.end;
        if known.lock().expect("no thread panics").insert(blake3::hash(&piece)) {
            let stored = encoder.encode(&piece);
            let name = ObjectHash::of(stored).to_string();
            fs::write(objects.join(&name[..2]).join(&name[2..]), stored).expect("there is room for objects");
        }
    }
    io::copy(&mut tar, &mut io::sink()).expect("the layer is whole");
}

/// Unpacks a layer.
fn open(layer: &Path) -> impl Read {
    let blob = File::open(layer).expect("the layer is there");
    let size = blob.metadata().expect("the layer is there").len();
    unpack(blob, size).expect("the layer is whole")
}

fn read_exactly(tar: &mut impl Read, length: u64, to: &mut Vec<u8>) {
    to.resize(usize::try_from(length).expect("pieces are small"), 0);
    tar.read_exact(to).expect("the layer is whole");
}

struct Counted<R> {
    inner: R,
    position: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(out)?;
        self.position += length as u64;
        Ok(length)
    }
}

struct Hashed<R> {
    inner: R,
    hasher: Sha256,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(out)?;
        self.hasher.update(&out[..length]);
        Ok(length)
    }
}
