//! Unusual but valid images are published.

use std::time::Duration;

use crate::support::{Compression, NAME, Run, TestImage, TestRepository, flat_path};

#[test]
fn directory_of_a_quarter_of_a_million_entries_is_published() {
    const ENTRIES: usize = 250_001;
    let image = TestImage::new().layer(|layer| {
        let layer = (0..ENTRIES).fold(layer, |layer, number| layer.file(format!("huge/{number:06}"), ""));
        layer.compression(Compression::Plain)
    });
    let repository = TestRepository::new();
    let run = repository.convert(&image, NAME, &["--skip-layers", "--chains", "none"]).expect_code(0);
    assert!(run.stderr().contains("WARN") && run.stderr().contains("huge"), "{}", run.stderr());
    assert_eq!(repository.list(&format!("{}/huge", flat_path(&image))).len(), ENTRIES);
}

#[test]
fn image_whose_layers_are_all_empty_is_published() {
    let image = TestImage::new().layer(|layer| layer).layer(|layer| layer.compression(Compression::Zstd));
    let repository = TestRepository::publish(&image);
    assert_eq!(repository.layer(&image, 0).paths(), [""]);
    assert_eq!(repository.chain(&image).paths(), [""]);
    assert!(repository.flat(&image).has(".singularity.d/runscript"));
}

#[test]
fn absolute_names_and_links_out_of_the_root_stay_in_the_image() {
    let image = TestImage::new()
        .layer(|layer| {
            let layer = layer.file("/a", "absolute").file("//b//c", "").symlink("out", "../../../../etc");
            layer.symlink("absolute", "/etc").hardlink("hard", "/a").dir("etc")
        })
        .layer(|layer| layer.file("out/one", "").file("absolute/two", ""));
    let repository = TestRepository::publish(&image);
    let tree = repository.chain(&image);
    assert_eq!(tree.paths(), ["", "a", "absolute", "b", "b/c", "etc", "etc/one", "etc/two", "hard", "out"]);
    assert_eq!((tree.target("out"), tree.text("hard")), ("../../../../etc".to_owned(), "absolute".to_owned()));
}

#[test]
fn many_threads_are_accepted_and_too_many_are_refused() {
    let repository = TestRepository::new();
    let source = repository.source(&TestImage::new().layer(|layer| layer.file("a", "")));
    repository.refuse(["convert", &source, "--name", NAME, "--threads", "1025"], 2, &["--threads", "1024"]);
    let mut command = repository.command(["convert", &source, "--name", NAME, "--threads", "1024"]);
    Run::within(Duration::from_secs(60), &mut command).expect_code(0);
    assert!(repository.has(NAME));
}
