//! `strata convert --timings` says where the time of a run went.

use serde_json::Value;

use crate::support::{NAME, TestImage, TestRepository};

fn stage<'t>(timings: &'t Value, name: &str) -> &'t Value {
    let stages = timings["stages"].as_array().unwrap();
    stages.iter().find(|stage| stage["stage"] == name).unwrap_or_else(|| panic!("no stage '{name}' in {timings}"))
}

#[test]
fn stages_count_the_bytes_that_they_worked_on_and_fit_into_the_run() {
    // Layers are read side by side, so that only what one of them has twice is surely known the second time.
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
fn a_run_that_nobody_times_prints_no_stages() {
    let (image, repository) = (TestImage::new().layer(|layer| layer.file("a", "a")), TestRepository::new());
    assert!(!repository.convert(&image, NAME, &[]).stdout().contains("compress"));
    let again = repository.convert(&image, "registry.example.org/other:1", &["--timings"]).stdout();
    assert!(again.contains("plan") && again.contains("index hits"), "{again}");
}
