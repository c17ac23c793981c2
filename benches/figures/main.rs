//! Measures every figure of `docs/performance.md` in one run: `cargo bench`.
//!
//! `cargo bench -- GROUP…` measures some groups only:
//! - `quick`: a Debian base system; takes two minutes (six more if an earlier run left files), and fails if a
//!   ratio is not as promised;
//! - `hep`: the reference image, 7 GB; `limit`: the part that compares it with the bare work;
//! - `memory`; `scale`: a repository of 10,000 images; `many`: 1,000 images from a registry; `registry`;
//! - `check`: a quick check compared with that of `cvmfs_swissknife`, which must be installed;
//! - `url`: mounts by URL compared with the CVMFS client, which `STRATA_TEST_CVMFS2` names or `PATH` has; needs nginx, and
//!   fails if a ratio is not as promised;
//! - `libraries`: other compression libraries.
//!
//! Without a name, all groups except `quick` and `limit` run, which takes two hours and 60 GB. The reference image is converted
//! `STRATA_BENCH_RUNS` (3) times for each figure. All files are kept in `STRATA_BENCH_DIR` (`target/figures`).
//! The benchmark requires root, and the Debian packages mmdebstrap, umoci and docker-registry.

mod commands;
mod hep;
mod images;
mod libraries;
mod limit;
mod registry;
mod scale;
mod table;
mod url;

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

use commands::Scratch;
use table::Table;

fn main() -> ExitCode {
    let directory = env::var_os("STRATA_BENCH_DIR").map_or_else(|| PathBuf::from("target/figures"), PathBuf::from);
    std::fs::create_dir_all(&directory).expect("there is room for images");
    let mut groups: Vec<String> = env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    if groups.is_empty() {
        groups = ["hep", "memory", "scale", "many", "check", "registry", "libraries", "url"].map(str::to_owned).into();
    }
    let (mut table, mut scratch) = (Table::default(), Scratch::start(&directory));
    for group in &groups {
        match group.as_str() {
            "quick" => hep::quick(&directory, &mut scratch, &mut table),
            "limit" => hep::limit(&directory, &mut scratch, &mut table),
            "hep" => hep::full(&directory, &mut scratch, &mut table),
            "memory" => hep::memory(&directory, &mut scratch, &mut table),
            "scale" => scale::large_repository(&directory, &mut scratch, &mut table),
            "many" => scale::wishlist(&directory, &mut scratch, &mut table),
            "libraries" => libraries::compare(&directory),
            "check" => scale::check(&directory, &mut scratch, &mut table),
            "url" => url::compare(&directory, &mut scratch, &mut table),
            "registry" => registry::compare_with_layout(&directory, &mut scratch, &mut table),
            _ => panic!("there is no group '{group}'"),
        }
    }
    print!("{}", table.to_text());
    let is_to_be_checked = groups.iter().any(|group| matches!(group.as_str(), "quick" | "url"));
    if is_to_be_checked && !table.is_good() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
