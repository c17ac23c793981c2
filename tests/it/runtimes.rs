//! `strata info` prints the command by which each runtime runs an image from the repository.

use serde_json::{Map, Value};

use crate::support::{FQRN, NAME, TestImage, TestLayer, TestRepository, flat_path};

#[test]
fn info_prints_the_command_of_each_runtime_whose_trees_are_published() {
    let repository = TestRepository::new();
    for (name, options) in [
        ("h.org/team/all:1", &[][..]),
        ("h.org/team/flat:1", &["--skip-layers"]),
        ("h.org/team/layers:1", &["--skip-flat"]),
    ] {
        let image = TestImage::new().cmd(["/bin/sh"]).layer(|layer| layer.file("name", name));
        repository.convert(&image, name, options).expect_code(0);
        let json = repository.run(["info", "--json", &format!("docker://{name}")]).expect_code(0).json();
        let (has_flat, has_layers) = (!options.contains(&"--skip-flat"), !options.contains(&"--skip-layers"));
        let config = image.config_digest().replace("sha256:", "");
        let is_in_store = repository.has(&format!("/podmanStore/overlay-images/{config}"));
        let store = format!("--storage-opt additionalimagestore=/cvmfs/{FQRN}/podmanStore");
        let setting = format!("repository = \"{FQRN}\" in the settings of the snapshotter");
        let pull = format!("nerdctl --snapshotter cvmfs-snapshotter run {name}  # with {setting}");
        let bundle = format!("strata bundle {name} bundle && runc run --bundle bundle container");
        let commands = [
            (has_flat, "apptainer", format!("apptainer run /cvmfs/{FQRN}/{name}")),
            (is_in_store, "podman", format!("podman {store} run {name}")),
            (has_layers, "containerd", pull),
            (has_flat, "runc", bundle),
        ];
        let commands = commands.into_iter().filter(|(is_there, ..)| *is_there);
        let expected: Map<String, Value> =
            commands.map(|(_, runtime, text)| (runtime.to_owned(), text.into())).collect();
        assert_eq!(json["commands"], Value::Object(expected.clone()), "{name}");
        let text = repository.run(["info", name]).expect_code(0).stdout();
        for (runtime, command) in &expected {
            assert!(text.contains(&format!("\n{runtime:<11}{}\n", command.as_str().unwrap())), "{text}");
        }
        assert_eq!(repository.has(&flat_path(&image)), has_flat);
    }
}

#[test]
fn each_platform_has_commands_of_its_own() {
    let repository = TestRepository::new();
    let images = ["amd64", "arm64"]
        .map(|name| TestImage::new().layer(|layer| layer.file("name", name)).cmd([name]).platform("linux", name));
    let source = repository.source_of_index(&images);
    repository.run(["convert", &source, "--name", NAME, "--platform", "all"]).expect_code(0);
    let info = repository.run(["info", NAME]).expect_code(0).stdout();
    for name in ["amd64", "arm64"] {
        assert!(info.contains(&format!("apptainer run /cvmfs/{FQRN}/.multiarch/{name}/{NAME}\n")), "{info}");
        assert!(info.contains(&format!("strata bundle {NAME} bundle --platform linux/{name} && ")), "{info}");
    }
    let digest = images[1].manifest_digest();
    let info = repository.run(["info", &format!("{NAME}@{digest}")]).expect_code(0).stdout();
    assert!(info.contains("linux/arm64") && !info.contains("linux/amd64"), "{info}");
    repository.refuse(["info", &format!("{NAME}@{}", images[1].config_digest())], 1, &[&images[1].config_digest()]);
}

#[test]
fn info_omits_containerd_for_an_image_that_it_cannot_mount() {
    let layer = |layer: TestLayer| layer.file("again", "");
    let repository = TestRepository::publish(&TestImage::new().layer(layer).layer(layer));
    let info = repository.run(["info", "--json", NAME]).expect_code(0).json();
    let names: Vec<&String> = info["commands"].as_object().unwrap().keys().collect();
    assert_eq!(names, ["apptainer", "podman", "runc"]);
}
