use serde_json::json;

use super::*;

/// Members of the config, each with a value that makes podman 4.3 list no images at all.
fn wrong_configs() -> Vec<(&'static str, Value)> {
    let mut wrong = Vec::new();
    let mut add = |member, values: &[Value]| wrong.extend(values.iter().map(|value| (member, value.clone())));
    let number = [json!(5)];
    for member in ["created", "architecture", "os", "variant", "author", "container", "docker_version", "parent", "id"]
    {
        add(member, &number);
    }
    let times = ["", "2017-07-14", "2017-07-14T02:40:00", "2017-07-14t02:40:00z", "2017-02-30T02:40:00Z"];
    add("created", &times.map(|time| json!(time)));
    add("Created", &number);
    add("os.version", &number);
    add("os.features", &[json!("a")]);
    add("config", &[json!(5), json!([])]);
    add("container_config", &[json!(5), json!({"Cmd": 5})]);
    add("rootfs", &[json!({"type": 5, "diff_ids": ["sha256:0"]})]);
    add("history", &[json!(5), json!([5])]);
    for step in [json!({"created": "x"}), json!({"created_by": 5}), json!({"empty_layer": "x"}), json!({"comment": 5})]
    {
        add("history", &[json!([step])]);
    }
    wrong
}

/// Members of the config's member `config`, each with a value that makes podman 4.3 list no images at all.
fn wrong_executions() -> Vec<(&'static str, Value)> {
    let mut wrong = Vec::new();
    let mut add = |member, values: &[Value]| wrong.extend(values.iter().map(|value| (member, value.clone())));
    for member in ["Cmd", "Entrypoint", "Env", "OnBuild", "cmd"] {
        add(member, &[json!("a"), json!([5]), json!({})]);
    }
    for member in ["User", "WorkingDir", "StopSignal", "Hostname", "Image", "Domainname", "MacAddress"] {
        add(member, &[json!(5)]);
    }
    for member in ["ExposedPorts", "Volumes"] {
        add(member, &[json!(5), json!([]), json!({"a": 5}), json!({"a": "b"}), json!({"a": []})]);
    }
    add("Labels", &[json!(5), json!([]), json!({"a": {}}), json!({"a": 5}), json!({"a": []})]);
    for member in ["AttachStdin", "Tty", "NetworkDisabled", "ArgsEscaped"] {
        add(member, &[json!(5), json!("x"), json!({})]);
    }
    add("StopTimeout", &[json!("x"), json!(true), json!({})]);
    add("Healthcheck", &[json!(5), json!("x"), json!({"Test": "x"}), json!({"Interval": "30s"})]);
    add("Healthcheck", &[json!({"Interval": 1.5e9})]);
    wrong
}

fn config() -> Value {
    json!({
        "created": "2017-07-14T02:40:00.5+02:00", "architecture": "amd64", "os": "linux", "author": null,
        "config": {
            "User": "", "Env": ["A=b", "NOTHING", ""], "Cmd": ["a"], "Entrypoint": null, "Volumes": {"/v": {}},
            "ExposedPorts": {"80/tcp": {}, "81": null}, "Labels": {"a": "b", "c": null}, "Memory": "x",
            "Healthcheck": {"Test": ["CMD", "x"], "Interval": 30_000_000_000_u64}, "Shell": ["/bin/sh"],
        },
        "rootfs": {"type": "layers", "diff_ids": ["sha256:0", "sha256:1"]},
        "history": [{"created": null, "created_by": "a"}, null, {"empty_layer": true}],
        "moby.buildkit": 5,
    })
}

fn manifest(config: &Value) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": Digest::of(config.to_string().as_bytes()), "size": 7},
        "layers": [{"mediaType": "x/y", "digest": "sha256:0", "size": 5, "urls": ["http://h.org"], "annotations": {}}],
        "annotations": {"a": "b"}, "subject": {}, "artifactType": "x", "else": 5,
    })
}

fn docker_manifest(config: &Value) -> Value {
    let mut manifest = manifest(config);
    manifest["mediaType"] = json!(DOCKER_MANIFEST);
    manifest["config"]["mediaType"] = json!("application/octet-stream");
    manifest["layers"][0]["mediaType"] = json!(DOCKER_LAYERS[1]);
    manifest
}

fn image(config: &Value, manifest: &Value) -> Result<StoreImage, Refusal> {
    StoreImage::new(manifest.to_string().as_bytes(), config.to_string().as_bytes(), 0)
}

#[test]
fn image_has_the_values_of_its_documents() {
    let mut config = config();
    let said = image(&config, &manifest(&config)).unwrap();
    assert_eq!(said.config, Digest::of(config.to_string().as_bytes()));
    assert_eq!(said.manifest, Some(Digest::of(manifest(&config).to_string().as_bytes())));
    assert_eq!(said.created, "2017-07-14T02:40:00.5+02:00");
    assert_eq!(said.layers, FlatLayers::of(said.config, 2));
    config["created"] = json!(null);
    assert_eq!(image(&config, &manifest(&config)).unwrap().created, UNKNOWN_TIME);
}

#[test]
fn types_that_podman_refuses_in_a_config_are_refused() {
    for (member, value) in wrong_configs() {
        let mut config = config();
        config[member] = value.clone();
        let refusal = image(&config, &manifest(&config)).unwrap_err().to_string();
        assert!(refusal.contains("in its config"), "{member} = {value}: {refusal}");
    }
    for (member, value) in wrong_executions() {
        let mut config = config();
        config["config"][member] = value.clone();
        let refusal = image(&config, &manifest(&config)).unwrap_err().to_string();
        assert!(refusal.to_lowercase().contains(&format!("'config.{member}").to_lowercase()), "{value}: {refusal}");
    }
}

#[test]
fn manifests_that_podman_accepts_are_accepted() {
    let config = config();
    let mut docker_without_version = docker_manifest(&config);
    docker_without_version.as_object_mut().unwrap().remove("schemaVersion");
    let mut without_type = manifest(&config);
    without_type["mediaType"] = json!(null);
    for manifest in [docker_manifest(&config), docker_without_version, without_type] {
        image(&config, &manifest).unwrap();
    }
    let ducc = json!({
        "SchemaVersion": 2, "MediaType": "", "Layers": [{"MediaType": "", "Size": 5, "Digest": "sha256:0"}],
        "Config": {"MediaType": OCI_CONFIG, "Size": 5, "Digest": Digest::of(config.to_string().as_bytes())},
    });
    assert_eq!(image(&config, &ducc).unwrap().manifest, None);
}

#[test]
fn manifests_that_podman_refuses_are_refused() {
    let config = config();
    let refused = |change: &dyn Fn(&mut Value), docker: bool| {
        let mut manifest = if docker { docker_manifest(&config) } else { manifest(&config) };
        change(&mut manifest);
        let refusal = image(&config, &manifest).unwrap_err().to_string();
        assert!(refusal.contains("in its manifest"), "{manifest}: {refusal}");
    };
    for member in ["manifests", "fsLayers", "FSLayers", "history"] {
        refused(&|manifest| manifest[member] = json!([]), false);
        refused(&|manifest| manifest[member] = json!([]), true);
    }
    for (member, value) in [
        ("mediaType", json!(5)),
        ("schemaVersion", json!("2")),
        ("layers", json!(5)),
        ("annotations", json!({"a": 5})),
        ("mediaType", json!("application/vnd.oci.image.index.v1+json")),
    ] {
        refused(&|manifest| manifest[member] = value.clone(), false);
    }
    for (member, value) in [
        ("mediaType", json!("")),
        ("mediaType", json!("application/octet-stream")),
        ("mediaType", json!(null)),
        ("mediaType", json!("application/vnd.docker.container.image.v1+json")),
        ("size", json!("7")),
        ("digest", json!(Digest::of(b"other"))),
        ("annotations", json!({"a": 5})),
    ] {
        refused(&|manifest| manifest["config"][member] = value.clone(), false);
    }
    refused(&|manifest| manifest["layers"][0]["urls"] = json!("x"), false);
    let zstd = "application/vnd.docker.image.rootfs.diff.tar.zstd";
    refused(&|manifest| manifest["layers"][0]["mediaType"] = json!(zstd), true);
    let version = |manifest: &mut Value| {
        manifest["mediaType"] = json!("");
        manifest["schemaVersion"] = json!(1);
    };
    refused(&version, false);
}

#[test]
fn documents_that_are_too_large_or_not_json_are_refused() {
    let mut config = config();
    let length = config.to_string().len() + r#","x":"""#.len();
    for (length, is_taken) in [(MAX_DOCUMENT_SIZE - length, true), (MAX_DOCUMENT_SIZE - length + 1, false)] {
        config["x"] = json!("y".repeat(length));
        assert_eq!(image(&config, &manifest(&config)).is_ok(), is_taken);
    }
    let text = config.to_string();
    assert!(StoreImage::new(b"", text.as_bytes(), 0).is_err());
    assert!(StoreImage::new(b"[]", text.as_bytes(), 0).is_err());
    assert!(StoreImage::new(b"{}", b"\xff", 0).is_err());
}

#[test]
fn image_without_layers_or_with_an_invalid_name_is_refused() {
    let mut config = config();
    let (manifest_text, text) = (manifest(&config).to_string(), config.to_string());
    let named = |name: &str| StoreImage::named(&name.parse().unwrap(), manifest_text.as_bytes(), text.as_bytes(), 0);
    assert!(named("h.org/a:1").is_ok());
    assert!(named("h_x.org/a..b:1").unwrap_err().to_string().contains("h_x.org/a..b:1"));
    config["rootfs"]["diff_ids"] = json!([]);
    assert!(image(&config, &manifest(&config)).unwrap_err().to_string().contains("no layers"));
}

#[test]
fn members_that_only_go_reads_in_a_config_are_refused() {
    let text = config().to_string();
    let image = |more: &str| {
        let text = format!("{},{more}}}", text.strip_suffix('}').unwrap());
        let manifest = manifest(&serde_json::from_str(&text).unwrap());
        let digest = json!(Digest::of(text.as_bytes()));
        let mut manifest = manifest.clone();
        manifest["config"]["digest"] = digest;
        StoreImage::new(manifest.to_string().as_bytes(), text.as_bytes(), 0)
    };
    assert!(image(r#""x":[{"a":1}]"#).is_ok());
    for hostile in
        [r#""author":5,"author":"x""#, r#""x":[{"a":1,"a":2}]"#, "\"o\u{17f}\":5", "\"\u{212a}\":1,\"\u{212a}\":2"]
    {
        assert!(image(hostile).is_err(), "{hostile}");
    }
    let mut config = config();
    config["config"]["StopTimeout"] = json!(u64::MAX);
    assert!(StoreImage::new(manifest(&config).to_string().as_bytes(), config.to_string().as_bytes(), 0).is_err());
}
