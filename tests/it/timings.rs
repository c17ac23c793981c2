//! `strata convert --timings` prints how the time of a run is divided into stages.

use serde_json::Value;

use crate::support::{NAME, TestImage, TestRepository};

fn stage<'t>(timings: &'t Value, name: &str) -> &'t Value {
    let stages = timings["stages"].as_array().unwrap();
    stages.iter().find(|stage| stage["stage"] == name).unwrap_or_else(|| panic!("no stage '{name}' in {timings}"))
}

#[test]
fn stages_count_their_bytes_and_fit_into_the_time_of_the_run() {
    // Layers are read in parallel, so that only repeated content of one layer is sure to be a content index hit.
    let twice = "twice ".repeat(500);
    let image = TestImage::new().layer(|layer| layer.file("a", &twice).file("b", "once").file("c", &twice));
    let image = image.layer(|layer| layer.file("d", "more"));
    let repository = TestRepository::new();
    let options = ["--json", "--timings", "--threads", "2"];
    let timings = &repository.convert(&image, NAME, &options).json()["timings"];
    assert_eq!(stage(timings, "content hash")["bytes"], 2 * 3000 + 4 + 4);
    let manifest: Value = serde_json::from_slice(&image.manifest()).unwrap();
    let sizes: u64 = manifest["layers"].as_array().unwrap().iter().map(|layer| layer["size"].as_u64().unwrap()).sum();
    assert_eq!(stage(timings, "digest")["bytes"], sizes);
    assert_eq!(timings["index-hits"], 1);
    let seconds = |value: &Value| value.as_f64().unwrap();
    let busy: f64 = timings["stages"].as_array().unwrap().iter().map(|stage| seconds(&stage["seconds"])).sum();
    let (all, waiting) = (2.0 * seconds(&timings["seconds"]), seconds(&timings["waiting-seconds"]));
    assert!(busy > 0.0 && (busy + waiting - all).abs() < 0.01 * all, "{timings}");
    assert!(timings["peak-memory"].as_u64().unwrap() > 1 << 20, "{timings}");
}

#[test]
fn run_without_timings_prints_no_stages() {
    let (image, repository) = (TestImage::new().layer(|layer| layer.file("a", "a")), TestRepository::new());
    assert!(!repository.convert(&image, NAME, &[]).stdout().contains("compress"));
    let again = repository.convert(&image, "registry.example.org/other:1", &["--timings"]).stdout();
    assert!(again.contains("plan") && again.contains("index hits"), "{again}");
}

/// Limit of content in flight in the runs whose memory is measured.
const MEMORY: u64 = 16 << 20;

/// Publishes a layer of one file and a number of entries of one type. Panics if that takes more memory than `each` bytes an entry
/// and a fixed allowance.
fn assert_memory(entries: u64, each: u64, type_flag: tar::EntryType, path: impl Fn(u64) -> String) {
    let header = |path: &str, type_flag| {
        let mut header = tar::Header::new_ustar();
        header.set_path(path).unwrap();
        header.set_entry_type(type_flag);
        header.set_link_name("base").unwrap();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        header.set_cksum();
        *header.as_bytes()
    };
    let mut tar = header("base", tar::EntryType::Regular).to_vec();
    (0..entries).for_each(|number| tar.extend(header(&path(number), type_flag)));
    let image = TestImage::new().layer(|layer| layer.raw_bytes(&tar));
    let repository = TestRepository::new();
    let options = ["--json", "--timings", "--threads", "2", "--memory", "16M"];
    let timings = &repository.convert(&image, NAME, &options).json()["timings"];
    let (peak, allowed) = (timings["peak-memory"].as_u64().unwrap(), MEMORY + each * entries + (64 << 20));
    assert!(peak <= allowed, "{} MiB for {entries} entries, but {} are allowed", peak >> 20, allowed >> 20);
}

#[test]
fn memory_for_a_large_directory_is_that_of_one_catalog() {
    // One catalog contains the whole directory, and SQLite builds it in memory.
    assert_memory(150_000, 600, tar::EntryType::Regular, |number| format!("f{number:07}"));
}

#[test]
fn memory_for_hard_links_across_directories_is_proportional_to_entries() {
    if std::env::var_os("STRATA_TEST_LONG").is_some() {
        assert_memory(400_000, 300, tar::EntryType::Link, |number| format!("d{:03}/f{number:07}", number / 1000));
    }
}
