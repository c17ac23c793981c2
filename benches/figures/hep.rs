//! Measures the reference image, compared with the bare work, other programs, and itself.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{env, fs, io};

use strata::object::Compression;

use super::commands::{Conversion, Scratch, best, convert, convert_on_one_core, empty, settle, time};
use super::images::{self, Layout};
use super::limit::{self, Cuts};
use super::table::{Promise, Table, plot};

use Promise::{AtLeast, AtMost};

const MODES: [Compression; 3] = [Compression::Balanced, Compression::Fast, Compression::Exact];
const MIB: u64 = 1 << 20;

/// Maximum ratio of the time of a conversion to that of the bare work.
const LIMIT: f64 = 1.15;

/// Promised ratios on an idle machine.
struct Promises {
    /// Maximum ratio to the time of the bare work.
    limit: f64,
    /// Minimum speed-up of two threads compared with one.
    threads: f64,
    /// Minimum speed-up of the rebuilt image compared with the first conversion.
    rebuild: f64,
}

/// Returns the number of conversions of the reference image for each figure.
fn runs() -> usize {
    env::var("STRATA_BENCH_RUNS").map_or(3, |runs| runs.parse().expect("STRATA_BENCH_RUNS is a number"))
}

/// Measures a small image, to detect changes of the code that make it much slower. Times of about a second vary by
/// chance, so that the promised ratios are far from the usual ones: 1.3 times the bare work, 1.6, and 2.2.
pub fn quick(directory: &Path, scratch: &mut Scratch, table: &mut Table) {
    let layout = images::base(directory);
    let promises = Promises { limit: 3.0, threads: 1.05, rebuild: 1.2 };
    let ours = compare(&layout, "base", &promises, 3, scratch, table);
    let theirs = best((0..3).map(|_| unpack(&layout, "base", scratch)));
    table.time("`convert`, balanced", ours[0], "`umoci unpack`", theirs, AtMost(2.0));
}

/// Measures the reference image, and draws the plot.
pub fn full(directory: &Path, scratch: &mut Scratch, table: &mut Table) {
    let layout = images::hep(directory);
    let size = Cuts::find(&layout.layers("hep")).size();
    let promises = Promises { limit: LIMIT, threads: 1.9, rebuild: 4.0 };
    let ours = compare(&layout, "hep", &promises, runs(), scratch, table);
    let minute_per_gb = Duration::from_secs_f64(60.0 * size as f64 / 1e9);
    let fast = if cfg!(feature = "isal") { 12.0 } else { 8.0 };
    for ((mode, ours), least) in MODES.iter().zip(&ours).zip([5.5, fast, 3.0]) {
        table.speed(&format!("`convert`, {mode}"), *ours, "a minute per GB", minute_per_gb, AtLeast(least));
    }
    let theirs = unpack(&layout, "hep", scratch);
    for (mode, ours) in MODES.iter().zip(&ours).take(2) {
        table.time(&format!("`convert`, {mode}"), *ours, "`umoci unpack`", theirs, AtMost(1.0));
    }
    layer_more(&layout, scratch, table);
    let per_minute = |time: Duration| size as f64 / 1e9 / (time.as_secs_f64() / 60.0);
    let mut speeds = vec![("a minute per GB".to_owned(), 1.0), ("umoci unpack".to_owned(), per_minute(theirs))];
    let strata =
        [(2, "exact"), (0, "balanced"), (1, "fast")].map(|(mode, name)| (mode, format!("strata convert, {name}")));
    speeds.extend(strata.map(|(mode, name)| (name, per_minute(ours[mode]))));
    plot(Path::new("docs/figures.svg"), "GB of layers in a minute, on 2 cores (more is better)", &speeds);
}

/// Compares the reference image only with the bare work.
pub fn limit(directory: &Path, scratch: &mut Scratch, table: &mut Table) {
    compare_with_limit(&images::hep(directory), "hep", LIMIT, runs(), scratch, table);
}

/// Compares `convert` in each mode with the bare work, one thread with two, and the image with itself and its rebuild.
/// Returns the time of each mode.
fn compare(
    layout: &Layout,
    tag: &str,
    promises: &Promises,
    runs: usize,
    scratch: &mut Scratch,
    table: &mut Table,
) -> Vec<Duration> {
    let modes = compare_with_limit(layout, tag, promises.limit, runs, scratch, table);
    let (image, layers) = (layout.image(tag), layout.layers(tag));
    let (mut two, mut one) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let [for_two, for_one] = [(); 2].map(|()| scratch.repository(Compression::Balanced));
        warm(&layers);
        two.push(convert(&for_two, &image, "image:1", &[]).time);
        one.push(convert_on_one_core(&for_one, &image, "image:1").time);
        [for_two, for_one].iter().for_each(|repository| empty(repository));
    }
    table.speed("2 threads", best(two), "1 thread, on one core", best(one), AtLeast(promises.threads));
    again(layout, tag, promises, runs, scratch, table);
    modes
}

/// Compares `convert` in each mode with the bare work. Returns the time of each mode.
fn compare_with_limit(
    layout: &Layout,
    tag: &str,
    promise: f64,
    runs: usize,
    scratch: &mut Scratch,
    table: &mut Table,
) -> Vec<Duration> {
    let (image, layers) = (layout.image(tag), layout.layers(tag));
    let cuts = Cuts::find(&layers);
    let mut modes = Vec::new();
    for mode in MODES {
        let (mut ours, mut bare) = (Vec::new(), Vec::new());
        for run in 0..runs {
            let (objects, repository) = (scratch.path("objects"), scratch.repository(mode));
            fs::create_dir(&objects).expect("there is room for objects");
            // The second of two programs finds the disk busier.
            for is_bare in [run % 2 == 0, run % 2 != 0] {
                warm(&layers);
                settle();
                match is_bare {
                    true => bare.push(limit::run(&layers, &cuts, mode, 2, &objects)),
                    false => ours.push(convert(&repository, &image, "image:1", &[]).time),
                }
            }
            [objects, repository].iter().for_each(|directory| empty(directory));
        }
        let (ours, bare) = (best(ours), best(bare));
        table.time(&format!("`convert`, {mode}"), ours, "its bare kernels", bare, AtMost(promise));
        modes.push(ours);
    }
    modes
}

/// Converts an image again into its repository: under another name, and rebuilt.
fn again(layout: &Layout, tag: &str, promises: &Promises, runs: usize, scratch: &mut Scratch, table: &mut Table) {
    let (mut first, mut other, mut rebuilt) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs {
        let repository = scratch.repository(Compression::Balanced);
        warm(&layout.layers(tag));
        first.push(convert(&repository, &layout.image(tag), "image:1", &[]).time);
        other.push(convert(&repository, &layout.image(tag), "image:2", &[]).time);
        warm(&layout.layers("rebuild"));
        rebuilt.push(convert(&repository, &layout.image("rebuild"), "image:3", &[]).time);
        empty(&repository);
    }
    let (first, other, rebuilt) = (best(first), best(other), best(rebuilt));
    table.time("the same image under another name", other, "limit", Duration::from_millis(500), AtMost(1.0));
    table.speed(
        "the image built again, 5 % changed",
        rebuilt,
        "the first conversion",
        first,
        AtLeast(promises.rebuild),
    );
}

/// Reads blobs into the page cache, so that the speed of the disk is not measured.
fn warm(layers: &[PathBuf]) {
    for layer in layers {
        let mut blob = File::open(layer).expect("the layer is there");
        io::copy(&mut blob, &mut io::sink()).expect("the layer can be read");
    }
}

/// Converts an image that has one more layer than a published one.
fn layer_more(layout: &Layout, scratch: &mut Scratch, table: &mut Table) {
    let repository = scratch.repository(Compression::Balanced);
    convert(&repository, &layout.image("hep"), "image:1", &[]);
    let both = convert(&repository, &layout.image("user"), "image:2", &[]).time;
    table.time("one more layer of 20 MB", both, "1.5 s, and the layer", Duration::from_millis(1500), AtMost(1.5));
}

/// Maximum memory in bytes for each entry of a layer, in addition to `--memory` and [`BASE`].
const ENTRY: u64 = 300;

/// Memory in bytes of a conversion of any size.
const BASE: u64 = 64 * MIB;

/// Measures the memory for the reference image and for layers of many files.
pub fn memory(directory: &Path, scratch: &mut Scratch, table: &mut Table) {
    let hep = images::hep(directory).image("hep");
    let most = |scratch: &mut Scratch, image: &str, options: &[&str]| -> Conversion {
        convert(&scratch.repository(Compression::Balanced), image, "image:1", options)
    };
    let default = most(scratch, &hep, &[]);
    table.bytes("memory for the reference image", default.memory, "limit", 512 * MIB, AtMost(1.0));
    let little = most(scratch, &hep, &["--memory", "64M"]);
    table.bytes("the same with `--memory 64M`", little.memory, "with 256M", default.memory, AtMost(1.0));
    for (count, what) in [(1_000_000, "1,000,000"), (2_000_000, "2,000,000")] {
        let files = images::small_files(directory, count).image("files");
        let taken = most(scratch, &files, &[]).memory;
        let limit = 256 * MIB + ENTRY * count as u64 + BASE;
        table.bytes(&format!("memory for a layer of {what} files"), taken, "limit", limit, AtMost(1.0));
    }
}

/// Unpacks an image with umoci.
fn unpack(layout: &Layout, tag: &str, scratch: &mut Scratch) -> Duration {
    let image = layout.image(tag);
    let bundle: PathBuf = scratch.path("bundle");
    time(Command::new("umoci").args(["unpack", "--image", image.trim_start_matches("oci:")]).arg(bundle))
}
