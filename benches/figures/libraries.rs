//! Compares libraries with the content of the reference image: the speed of compression, and the compressed size.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use flate2::{Compress, FlushCompress};
use libdeflater::{CompressionLvl, Compressor};
use strata::layer::unpack;
use strata::object::{Compression, Encoder};

use super::images;
use super::limit::Cuts;

/// Only one of this number of pieces of content is measured.
const SAMPLED: usize = 12;

/// A library at a level: returns the compressed size of a piece.
type Pack = Box<dyn FnMut(&[u8]) -> usize>;

/// Prints a table of libraries and levels, of those that this build has.
pub fn compare(directory: &Path) {
    let layers = images::hep(directory).layers("hep");
    let pieces = Cuts::find(&layers).sample(&layers, SAMPLED);
    let size: usize = pieces.iter().map(Vec::len).sum();
    println!("{} pieces of {:.0} MB in all", pieces.len(), size as f64 / 1e6);
    println!("| library and level | MB/s on one thread | size, of zlib 6 |\n|---|--:|--:|");
    let mut zlib = None;
    for (name, mut pack) in packers() {
        let start = Instant::now();
        let packed: usize = pieces.iter().map(|piece| pack(piece)).sum();
        let time = start.elapsed();
        let zlib = *zlib.get_or_insert(packed);
        println!("| {name} | {:.0} | {:.3} |", rate(size, time), packed as f64 / zlib as f64);
    }
    let blob = &layers[0];
    println!("| unpacking a layer | {:.0} | |", rate_of_unpacking(blob));
}

fn packers() -> Vec<(String, Pack)> {
    let mut packers: Vec<(String, Pack)> = vec![("zlib 6, as `exact` has it".to_owned(), ours(Compression::Exact))];
    for level in [1, 3, 4, 5, 6, 7] {
        packers.push((format!("libdeflate {level}"), libdeflate(level)));
    }
    for level in [1, 4, 6] {
        packers.push((format!("zlib-rs {level}"), zlib_rs(level)));
    }
    for mode in [Compression::Balanced, Compression::Fast] {
        packers.push((format!("`{mode}`: {}, and what does not shrink is stored", mode.encoder_name()), ours(mode)));
    }
    packers
}

fn ours(mode: Compression) -> Pack {
    let mut encoder = Encoder::new(mode);
    Box::new(move |piece| encoder.encode(piece).len())
}

fn libdeflate(level: i32) -> Pack {
    let mut compressor = Compressor::new(CompressionLvl::new(level).expect("levels 0 to 12 exist"));
    let mut out = Vec::new();
    Box::new(move |piece| {
        out.resize(compressor.zlib_compress_bound(piece.len()), 0);
        compressor.zlib_compress(piece, &mut out).expect("the bound is enough")
    })
}

fn zlib_rs(level: u32) -> Pack {
    let mut compress = Compress::new(flate2::Compression::new(level), true);
    let mut out = Vec::new();
    Box::new(move |piece| {
        compress.reset();
        out.clear();
        out.reserve(piece.len() + piece.len() / 8 + 256);
        compress.compress_vec(piece, &mut out, FlushCompress::Finish).expect("there is room");
        out.len()
    })
}

fn rate_of_unpacking(layer: &Path) -> f64 {
    let blob = File::open(layer).expect("the layer is there");
    let size = blob.metadata().expect("the layer is there").len();
    let start = Instant::now();
    let mut stream = unpack(blob, size).expect("the layer is whole");
    let plain = io::copy(&mut stream, &mut io::sink()).expect("the layer is whole");
    rate(plain as usize, start.elapsed())
}

fn rate(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / 1e6 / time.as_secs_f64()
}
