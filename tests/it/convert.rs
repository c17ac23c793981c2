//! `strata convert` publishes each given image once, under the right name.

use std::fs;
use std::io::Write as _;

use flate2::write::GzEncoder;
use serde_json::json;

use crate::support::{
    Compression, FQRN, NAME, Run, TestImage, TestLayer, TestRepository, chain_path, flat_path, image_of, layer_path,
    strata_command, write_oci_index,
};

fn two_layers() -> TestImage {
    TestImage::new()
        .layer(|layer| layer.dir("etc").file("etc/a", "lower").file("etc/b", "gone"))
        .layer(|layer| layer.whiteout("etc/b").file("bin/tool", "#!/bin/sh\n").mode(0o755))
        .entrypoint(["/bin/tool"])
}

/// Returns an image whose only file contains `word`.
#[test]
fn every_kind_of_source_results_in_the_same_root_file_system() {
    let image = two_layers().clone();
    let from_layout = TestRepository::publish(&image);
    let expected = from_layout.flat(&image);
    assert_eq!((expected.text("etc/a").as_str(), expected.has("etc/b")), ("lower", false));
    assert_eq!(expected.get("bin/tool").mode, 0o100_755);

    let repository = TestRepository::new();
    let (oci, docker) = (repository.beside("oci.tar"), repository.beside("docker.tar"));
    image.write_oci_archive(&oci, "latest");
    image.write_docker_archive(&docker, "registry.example.org/docker:1");
    let source = format!("oci-archive:{}", oci.display());
    repository.run(["convert", &source, "--name", NAME]).expect_code(0);
    assert_eq!(repository.flat(&image), expected);

    let repository = TestRepository::new();
    image.write_docker_archive(&repository.beside("docker.tar"), "registry.example.org/docker:1");
    let source = format!("docker-archive:{}", repository.beside("docker.tar").display());
    repository.run(["convert", &source]).expect_code(0);
    assert_eq!(repository.flat(&image), expected);
    assert!(repository.has("registry.example.org/docker:1"));
    assert_eq!(repository.json(".metadata/registry.example.org/docker:1/strata.json")["manifest-is-made"], true);
}

#[test]
fn compression_of_a_layer_is_recognised_by_its_bytes() {
    const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
    let plain = TestLayer::new().file("a", "content ".repeat(1000)).compression(Compression::Plain);
    let tar = plain.tar();
    let gzip = |bytes: &[u8]| {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    let (half, other_half) = tar.split_at(700);
    let skippable = [&0x184D_2A50_u32.to_le_bytes()[..], &3_u32.to_le_bytes(), b"abc"].concat();
    let image = TestImage::new().layer(|_| plain.clone());
    let expected = TestRepository::publish(&image).flat(&image);
    for (packing, media_type, blob) in [
        ("gzip", GZIP, gzip(&tar)),
        ("gzip in two members", GZIP, [gzip(half), gzip(other_half)].concat()),
        ("gzip and zeros", GZIP, [gzip(&tar), vec![0; 1000]].concat()),
        ("zstd", ZSTD, zstd(&tar)),
        ("zstd in two frames", ZSTD, [zstd(half), skippable, zstd(other_half)].concat()),
        ("gzip that is called zstd", ZSTD, gzip(&tar)),
        ("zstd that is called gzip", GZIP, zstd(&tar)),
        ("gzip that is called plain", PLAIN, gzip(&tar)),
        ("plain that is called gzip", GZIP, tar.clone()),
        ("docker's media type", "application/vnd.docker.image.rootfs.diff.tar.gzip", gzip(&tar)),
    ] {
        let packed = TestImage::new().layer(|_| plain.clone().blob(media_type, &blob));
        assert_eq!(packed.config_digest(), image.config_digest());
        let repository = TestRepository::publish(&packed);
        assert_eq!(repository.flat(&packed), expected, "{packing}");
        assert_eq!(repository.layer(&packed, 0).paths(), ["", "a"], "{packing}");
    }
}

#[test]
fn platform_chooses_an_image_of_an_index() {
    let repository = TestRepository::new();
    let platforms = [image_of("amd").platform("linux", "amd64"), image_of("arm").platform("linux", "arm64")];
    let index = write_oci_index(&platforms, &repository.beside("layout"), "many");
    let source = format!("oci:{}:many", repository.beside("layout").display());
    repository.run(["convert", &source, "--name", NAME, "--platform", "linux/arm64"]).expect_code(0);
    assert_eq!(repository.flat(&platforms[1]).text("word"), "arm");
    let metadata = format!(".metadata/{NAME}");
    assert_eq!(repository.list(&metadata), ["config.json", "index.json", "manifest.json", "strata.json"]);
    assert_eq!(repository.json(&format!("{metadata}/strata.json"))["index"], index);

    let run = repository.run(["convert", &source, "--name", NAME, "--platform", "linux/s390x"]).expect_code(1);
    assert!(run.stderr().contains("linux/s390x") && run.stderr().contains("linux/amd64"), "{}", run.stderr());
}

#[test]
fn documents_of_the_image_are_kept_verbatim() {
    let image = two_layers();
    let repository = TestRepository::publish(&image);
    let reader = repository.reader();
    assert_eq!(reader.read(&format!(".metadata/{NAME}/manifest.json")), image.manifest());
    assert_eq!(reader.read(&format!(".metadata/{NAME}/config.json")), image.config());
    let record = repository.json(&format!(".metadata/{NAME}/strata.json"));
    assert_eq!(record["layers"], json!(image.layer_digests()));
    assert_eq!(
        (&record["config"], &record["manifest"]),
        (&json!(image.config_digest()), &json!(image.manifest_digest()))
    );
}

#[test]
fn public_link_leads_to_the_root_file_system() {
    let image = image_of("x");
    let repository = TestRepository::new();
    for (name, up) in [("localhost:5000/a:1", "../"), ("host.example.org/a/b/c:tag", "../../../")] {
        repository.convert(&image, name, &[]).expect_code(0);
        assert_eq!(repository.tree(name).target(""), format!("{up}{}", flat_path(&image)));
    }
    let digest = image.manifest_digest();
    repository.convert(&image, &format!("host.example.org/a@{digest}"), &[]).expect_code(0);
    assert!(repository.has(&format!("host.example.org/a:{digest}")));
    assert!(repository.has(&format!(".metadata/host.example.org/a:{digest}/manifest.json")));
}

#[test]
fn name_in_a_layout_is_used() {
    let repository = TestRepository::new();
    repository.convert_together(&[("registry.example.org/carried:3", &image_of("x"))], &[]).expect_code(0);
    assert_eq!(repository.list("registry.example.org"), [".cvmfscatalog", "carried:3"]);
}

#[test]
fn image_without_a_full_name_needs_one() {
    let repository = TestRepository::new();
    let before = repository.manifest_bytes();
    let source = repository.source(&image_of("x"));
    let run = repository.run(["convert", &source]).expect_code(1);
    assert!(run.stderr().contains("--name"), "{}", run.stderr());
    assert_eq!(repository.manifest_bytes(), before);
}

#[test]
fn images_of_one_command_become_one_revision() {
    let (a, b, c) = (image_of("a"), image_of("b"), two_layers());
    let repository = TestRepository::new();
    let images = [("h.example.org/a:1", &a), ("h.example.org/b:1", &b), ("other.example.org/c:1", &c)];
    repository.convert_together(&images, &[]).expect_code(0);
    assert_eq!(repository.reader().revision(), 2);
    assert_eq!(repository.list("h.example.org"), [".cvmfscatalog", "a:1", "b:1"]);
    assert_eq!(repository.flat(&b).text("word"), "b");
    assert_eq!(repository.flat(&c).text("etc/a"), "lower");
}

#[test]
fn name_that_is_given_twice_fails_one_image_and_publishes_the_other() {
    let (first, second) = (image_of("first"), image_of("second"));
    let repository = TestRepository::new();
    let layouts = [repository.beside("one"), repository.beside("two")];
    first.write_oci_layout(&layouts[0], NAME);
    second.write_oci_layout(&layouts[1], NAME);
    let sources = layouts.map(|layout| format!("oci:{}", layout.display()));
    let run = repository.run(["convert", &sources[0], &sources[1]]).expect_code(3);
    assert!(run.stderr().contains(NAME), "{}", run.stderr());
    assert_eq!(repository.tree(NAME).target("").rsplit('/').next(), first.config_digest().strip_prefix("sha256:"));
}

#[test]
fn failed_image_does_not_prevent_the_others() {
    let repository = TestRepository::new();
    let good = repository.beside("good");
    image_of("x").write_oci_layout(&good, NAME);
    let missing = format!("oci:{}", repository.beside("missing").display());
    let run = repository.run(["convert", &missing, &format!("oci:{}", good.display())]).expect_code(3);
    assert!(run.stderr().contains("missing"), "{}", run.stderr());
    assert!(repository.has(NAME));
}

#[test]
fn nothing_is_published_when_every_image_fails() {
    let repository = TestRepository::new();
    let before = repository.storage_files();
    let missing = format!("oci:{}", repository.beside("missing").display());
    repository.run(["convert", &missing, &missing]).expect_code(1);
    repository.assert_unchanged(&before);
}

#[test]
fn wrong_usage_and_failure_have_different_exit_codes() {
    let repository = TestRepository::new();
    let source = repository.source(&image_of("x"));
    let empty = repository.beside("empty");
    fs::create_dir(&empty).unwrap();
    let no_repository = ["--repo", empty.to_str().unwrap()];
    let in_repository = ["--repo", &repository.directory().display().to_string()].map(str::to_owned);
    let in_repository = in_repository.each_ref().map(String::as_str);
    for arguments in [
        [&["convert", &source, "--name", NAME][..], &no_repository].concat(),
        [&["info"][..], &no_repository].concat(),
        [&["list"][..], &no_repository].concat(),
        [&["convert", &source, &source, "--name", NAME][..], &in_repository].concat(),
        [&["convert"][..], &in_repository].concat(),
        [&["convert", &source, "--name", "no-host"][..], &in_repository].concat(),
        [&["convert", &source, "--name", ".layers/x:1"][..], &in_repository].concat(),
        [&["convert", &source, "--name", "podmanStore/x:1"][..], &in_repository].concat(),
        [&["convert", &source, "--name", NAME, "--chains", "some"][..], &in_repository].concat(),
        [&["convert", &source, "--name", NAME, "--threads", "0"][..], &in_repository].concat(),
        [&["convert", "dir:/tmp"][..], &in_repository].concat(),
        vec!["init", "undotted"],
        vec!["frobnicate"],
    ] {
        let run = Run::of(&mut strata_command(&arguments));
        assert!(!run.stderr().is_empty(), "{arguments:?}");
        run.expect_code(2);
    }
}

#[test]
fn current_directory_is_the_repository_where_none_is_named() {
    let repository = TestRepository::new();
    let source = repository.source(&image_of("x"));
    Run::of(strata_command(["convert", &source, "--name", NAME]).current_dir(repository.directory())).expect_code(0);
    assert!(repository.has(NAME));
    let run = Run::of(strata_command(["list"]).env("STRATA_REPO", repository.directory())).expect_code(0);
    assert_eq!(run.stdout(), format!("{NAME}  {}\n", image_of("x").manifest_digest()));
}

#[test]
fn what_is_published_already_is_not_published_again() {
    let image = two_layers();
    let repository = TestRepository::publish(&image);
    let before = repository.storage_files();
    let run = repository.convert(&image, NAME, &[]).expect_code(0);
    assert!(run.stdout().contains("nothing to do"), "{}", run.stdout());
    repository.assert_unchanged(&before);
    let json = repository.convert(&image, NAME, &["--json"]).expect_code(0).json();
    assert_eq!((&json["revision"], &json["new-objects"]), (&json!(null), &json!(0)));
}

#[test]
fn change_of_settings_changes_nothing_that_is_published() {
    let image = two_layers();
    let repository = TestRepository::publish(&image);
    let before = repository.manifest_bytes();
    for settings in ["compression = \"fast\"", "compression = \"none\"", "[catalog]\nentries = 1000"] {
        repository.set(settings);
        repository.convert(&image, NAME, &[]).expect_code(0);
        assert_eq!(repository.manifest_bytes(), before, "{settings}");
    }
}

#[test]
fn losses_of_published_trees_stay_listed() {
    let image = TestImage::new()
        .layer(|layer| layer.file("a", "").xattr("user.long", "v".repeat(256)).file("d/f", ""))
        .layer(|layer| layer.whiteout("d").hardlink("e/a", "a"));
    for options in [&[][..], &["--skip-layers"], &["--skip-flat"], &["--chains", "none"]] {
        assert_second_run_changes_nothing(&image, options);
    }
}

#[test]
fn marker_that_an_upper_layer_hides_is_the_same_loss_in_every_run() {
    let image = TestImage::new()
        .layer(|layer| layer.file("a", "").file("d/.cvmfscatalog/x", ""))
        .layer(|layer| layer.whiteout("d").file("e/.cvmfscatalog/x", ""));
    for options in [&[][..], &["--skip-layers"], &["--skip-flat"], &["--chains", "none"]] {
        assert_second_run_changes_nothing(&image, options);
    }
}

#[track_caller]
fn assert_second_run_changes_nothing(image: &TestImage, options: &[&str]) {
    let repository = TestRepository::new();
    repository.convert(image, NAME, options).expect_code(0);
    let (before, losses) = (repository.manifest_bytes(), repository.losses());
    assert!(!losses.is_empty(), "{options:?}");
    repository.convert(image, NAME, options).expect_code(0);
    assert_eq!(repository.losses(), losses, "{options:?}");
    assert_eq!(repository.manifest_bytes(), before, "{options:?}");
}

#[test]
fn moved_tag_adds_its_trees_to_the_candidates() {
    let (old, new) = (image_of("old"), image_of("new"));
    let repository = TestRepository::publish(&old);
    repository.convert(&new, NAME, &[]).expect_code(0);
    assert!(repository.tree(NAME).target("").ends_with(&flat_path(&new)));
    assert_eq!(repository.reader().read(&format!(".metadata/{NAME}/manifest.json")), new.manifest());
    let candidates = candidates(&repository);
    let layer = layer_path(&old, 0);
    let mut expected = [layer.trim_end_matches("/layerfs"), &chain_path(&old, 1), &flat_path(&old)].map(str::to_owned);
    expected.sort();
    assert_eq!(candidates, expected);
    assert_eq!(repository.flat(&old).text("word"), "old", "trees that no name leads to stay until a collection");
}

#[test]
fn tag_that_moves_back_removes_its_trees_from_the_candidates() {
    let (old, new) = (image_of("old"), image_of("new"));
    let repository = TestRepository::publish(&old);
    repository.convert(&new, NAME, &[]).expect_code(0);
    repository.convert(&old, NAME, &[]).expect_code(0);
    assert!(repository.tree(NAME).target("").ends_with(&flat_path(&old)));
    let candidates = candidates(&repository);
    assert!(candidates.contains(&flat_path(&new)) && !candidates.contains(&flat_path(&old)), "{candidates:?}");
    assert_eq!(candidates.len(), 3);
}

/// Returns the candidates for removal: sorted paths without a leading slash.
fn candidates(repository: &TestRepository) -> Vec<String> {
    let list = repository.json(".metadata/candidates.json");
    list["trees"].as_object().unwrap().keys().map(|path| path.trim_start_matches('/').to_owned()).collect()
}

#[test]
fn skipped_trees_are_not_published() {
    let image = two_layers();
    for (options, directories) in [
        (&[][..], [".chains", ".flat", ".layers", ".metadata", "podmanStore", "registry.example.org"].as_slice()),
        (&["--skip-layers", "--skip-podman"], &[".chains", ".flat", ".metadata", "registry.example.org"]),
        (&["--skip-flat"], &[".chains", ".layers", ".metadata"]),
        (&["--chains", "none"], &[".flat", ".layers", ".metadata", "podmanStore", "registry.example.org"]),
        (&["--chains", "none", "--skip-flat"], &[".layers", ".metadata"]),
    ] {
        let repository = TestRepository::new();
        repository.convert(&image, NAME, options).expect_code(0);
        let mut listed = repository.list("/");
        listed.retain(|name| name != ".cvmfscatalog");
        assert_eq!(listed, directories, "{options:?}");
    }
}

#[test]
fn skipped_trees_are_added_later_without_reading_the_image_again() {
    let image = two_layers();
    let repository = TestRepository::new();
    repository.convert(&image, NAME, &["--skip-flat", "--chains", "none"]).expect_code(0);
    let json = repository.convert(&image, NAME, &["--json"]).expect_code(0).json();
    assert_eq!(json["images"][0]["layers-read"], 0);
    assert_eq!(repository.flat(&image), TestRepository::publish(&image).flat(&image));
}

#[test]
fn chains_are_published_as_asked_for() {
    let image = two_layers().layer(|layer| layer.file("third", ""));
    for (chains, lengths) in [("final", &[3][..]), ("all", &[1, 2, 3]), ("none", &[])] {
        let repository = TestRepository::new();
        repository.convert(&image, NAME, &["--chains", chains]).expect_code(0);
        for length in 1..=3 {
            let is_there = repository.has(&chain_path(&image, length));
            assert_eq!(is_there, lengths.contains(&length), "{length} with --chains {chains}");
        }
        if chains == "all" {
            assert_eq!(repository.tree(&chain_path(&image, 1)).paths(), ["", "etc", "etc/a", "etc/b"]);
            assert_eq!(repository.tree(&chain_path(&image, 2)).paths(), ["", "bin", "bin/tool", "etc", "etc/a"]);
        }
    }
}

#[test]
fn dry_run_changes_nothing_and_lists_what_would_be_done() {
    let image = two_layers();
    let repository = TestRepository::publish(&image_of("other"));
    let before = repository.storage_files();
    let json = repository.convert(&image, "h.example.org/a:1", &["--dry-run", "--json"]).expect_code(0).json();
    assert_eq!((&json["dry-run"], &json["revision"]), (&json!(true), &json!(null)));
    let planned = &json["images"][0];
    assert_eq!((&planned["layers"], &planned["layers-read"]), (&json!(2), &json!(2)));
    assert!(planned["bytes-read"].as_u64().unwrap() > 0);
    repository.assert_unchanged(&before);
    let run = repository.convert(&image_of("other"), NAME, &["--dry-run"]).expect_code(0);
    assert!(run.stdout().contains("0 to read"), "{}", run.stdout());
}

#[test]
fn force_reads_everything_again_with_the_same_result() {
    let image = two_layers();
    let repository = TestRepository::publish(&image);
    let before = (repository.flat(&image), repository.chain(&image), repository.layer(&image, 1));
    let json = repository.convert(&image, NAME, &["--force", "--json"]).expect_code(0).json();
    assert_eq!((&json["images"][0]["layers-read"], &json["revision"]), (&json!(2), &json!(3)));
    assert_eq!((repository.flat(&image), repository.chain(&image), repository.layer(&image, 1)), before);
}

#[test]
fn strict_publishes_no_image_with_losses() {
    let lossy = TestImage::new().layer(|layer| layer.file("a", "").xattr("user.long", "v".repeat(256)));
    let repository = TestRepository::new();
    let before = repository.manifest_bytes();
    let run = repository.convert(&lossy, NAME, &["--strict"]).expect_code(1);
    assert!(run.stderr().contains("xattr-value-too-long"), "{}", run.stderr());
    assert_eq!(repository.manifest_bytes(), before);
    repository.convert(&image_of("x"), NAME, &["--strict"]).expect_code(0);
    let images = [("h.example.org/lossy:1", &lossy), ("h.example.org/good:1", &image_of("y"))];
    repository.convert_together(&images, &["--strict"]).expect_code(3);
    assert_eq!(repository.list("h.example.org"), [".cvmfscatalog", "good:1"]);
}

#[test]
fn strict_counts_the_losses_of_layers_that_another_image_published() {
    let base = |layer: TestLayer| layer.file("a", "").xattr("user.long", "v".repeat(256));
    let upper = TestImage::new().layer(base).layer(|layer| layer.file("b", ""));
    for options in [&[][..], &["--skip-layers"]] {
        let repository = TestRepository::new();
        repository.convert(&TestImage::new().layer(base), NAME, options).expect_code(0);
        repository.convert(&upper, "h.example.org/upper:1", &[options, &["--strict"]].concat()).expect_code(1);
    }
}

#[test]
fn losses_are_printed_by_convert_and_info() {
    let image = TestImage::new().layer(|layer| {
        (0..25).fold(layer, |layer, number| layer.file(format!("f{number:02}"), "").xattr("user.long", "v".repeat(256)))
    });
    let repository = TestRepository::new();
    let run = repository.convert(&image, NAME, &[]).expect_code(0);
    let text = run.stdout();
    assert!(text.contains("25 x xattr-value-too-long"), "{text}");
    assert!(text.contains("f19\n") && !text.contains("f20\n") && text.contains("and 5 more"), "{text}");
    assert_eq!(repository.losses()["xattr-value-too-long"].0, 25);
    let info = repository.run(["info", NAME]).expect_code(0).stdout();
    assert!(info.contains("25 x xattr-value-too-long"), "{info}");
}

#[test]
fn json_reports_the_result() {
    let image = two_layers();
    let repository = TestRepository::new();
    let source = repository.source(&image);
    let missing = format!("oci:{}", repository.beside("missing").display());
    let run = repository.run(["convert", &missing, "--json"]).expect_code(1);
    assert!(run.json()["images"][0]["error"].as_str().unwrap().contains("missing"));
    let json = repository.run(["convert", &source, "--name", NAME, "--json"]).expect_code(0).json();
    let members: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(members, ["repository", "dry-run", "revision", "root-catalog", "new-objects", "new-bytes", "images"]);
    assert_eq!((&json["repository"], &json["revision"]), (&json!(FQRN), &json!(2)));
    assert_eq!(json["root-catalog"], repository.reader().root_hash());
    assert!(json["new-objects"].as_u64().unwrap() > 10 && json["new-bytes"].as_u64().unwrap() > 1000);
    let expected = json!({
        "image": source,
        "name": NAME,
        "manifest": image.manifest_digest(),
        "config": image.config_digest(),
        "layers": 2,
        "layers-read": 2,
        "bytes-read": json["images"][0]["bytes-read"],
        "losses": {},
        "podman": true,
    });
    assert_eq!(json["images"], json!([expected]));
}

#[test]
fn info_and_list_report_what_is_published() {
    let (image, other) = (two_layers(), two_layers().layer(|layer| layer.file("more", "")));
    let repository = TestRepository::publish(&image);
    repository.convert(&other, "h.example.org/other:1", &[]).expect_code(0);
    repository.convert(&image, "h.example.org/same:1", &[]).expect_code(0);

    let list = repository.run(["list", "--json"]).expect_code(0).json();
    let names: Vec<&str> = list.as_array().unwrap().iter().map(|image| image["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["h.example.org/other:1", "h.example.org/same:1", NAME]);
    assert!(repository.run(["list"]).stdout().contains(&format!("{NAME}  {}", image.manifest_digest())));

    let info = repository.run(["info", "--json"]).expect_code(0).json();
    assert_eq!((&info["repository"], &info["revision"]), (&json!(FQRN), &json!(4)));
    assert_eq!(info["root-catalog"], repository.reader().root_hash());
    assert_eq!(info["catalogs"], repository.reader().catalogs().len());

    let info = repository.run(["info", NAME, "--json"]).expect_code(0).json();
    assert_eq!(info["same-flat"], json!(["h.example.org/same:1"]));
    assert_eq!(info["layers"][0]["other-images"], 2);
    assert_eq!(info["record"]["config"], image.config_digest());
    let text = repository.run(["info", NAME]).expect_code(0).stdout();
    assert!(text.contains(&image.manifest_digest()) && text.contains("other images with it: 2"), "{text}");
    let run = repository.run(["info", "h.example.org/absent:1"]).expect_code(1);
    assert!(run.stderr().contains("h.example.org/absent:1"), "{}", run.stderr());
}

#[test]
fn quiet_prints_nothing_but_results_and_errors() {
    let repository = TestRepository::new();
    let run = repository.convert(&image_of("x"), NAME, &["-q"]).expect_code(0);
    assert_eq!(run.stderr(), "");
}

#[test]
fn image_without_layers_is_published() {
    let image = TestImage::new();
    let repository = TestRepository::publish(&image);
    let flat = repository.flat(&image);
    assert!(flat.has(".singularity.d/runscript") && flat.has("etc/resolv.conf") && flat.has("tmp"));
}
