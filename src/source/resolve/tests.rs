use serde_json::{Value, json};

use super::super::testing::{
    CONFIG, Files, INDEX, LAYER, MANIFEST, assert_source_contract, blob_name, config, on, with,
};
use super::super::{OciLayout, Source};
use super::*;

/// Resolves the image of a layout for `platform`. A question mark before it means that the user did not request it.
fn resolve(files: &Files, platform: &str) -> Result<Image, SourceError> {
    let directory = tempfile::tempdir().unwrap();
    files.write(directory.path());
    let explicit = !platform.starts_with('?');
    let platform = platform.trim_start_matches('?').parse().unwrap();
    let source = OciLayout::open(directory.path(), None)?;
    let image = source.resolve(&PlatformRequest { platform, explicit })?;
    assert_source_contract(&source, &image);
    Ok(image)
}

/// Returns a layout with one entry, which points to an index of `manifests`.
fn index_of(mut files: Files, manifests: Value) -> Files {
    let index = files.nested(manifests);
    files.index(json!([index]))
}

/// Returns a layout of one image whose manifest `change` modifies.
fn manifest_with(change: impl Fn(&mut Value)) -> Files {
    let mut files = Files::layout();
    let descriptor = files.image("linux/amd64", &["a"]);
    let digest: Digest = descriptor["digest"].as_str().unwrap().parse().unwrap();
    let mut manifest: Value = serde_json::from_slice(&files.0[&blob_name(&digest)]).unwrap();
    change(&mut manifest);
    let changed = files.json(MANIFEST, &manifest);
    files.index(json!([changed]))
}

#[test]
fn image_for_the_platform_is_found_in_an_index_and_the_index_is_kept() {
    let mut files = Files::layout();
    let manifests = json!([
        on(files.image("linux/arm64", &["arm"]), "linux/arm64"),
        on(files.image("linux/amd64", &["amd"]), "linux/amd64"),
    ]);
    let files = index_of(files, manifests);
    let image = resolve(&files, "linux/amd64").unwrap();
    assert_eq!(image.layers[0].digest, Digest::of(b"amd"));
    let index = image.index.unwrap();
    assert_eq!(files.0[&blob_name(&index.digest)], index.bytes);
    assert_eq!(resolve(&files, "?linux/arm64").unwrap().layers[0].digest, Digest::of(b"arm"));
}

#[test]
fn error_for_a_missing_platform_lists_those_of_the_index_without_attestations() {
    let mut files = Files::layout();
    let manifests = json!([
        on(files.image("linux/amd64", &["a"]), "linux/amd64"),
        on(files.image("linux/arm64", &["b"]), "linux/arm64"),
        on(files.image("linux/amd64", &["c"]), "unknown/unknown"),
    ]);
    let files = index_of(files, manifests);
    for platform in ["linux/riscv64", "?linux/riscv64", "unknown/unknown"] {
        match resolve(&files, platform) {
            Err(SourceError::NoSuchPlatform { offered, .. }) => assert_eq!(offered, ["linux/amd64", "linux/arm64"]),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn entry_without_a_platform_has_the_platform_of_its_config() {
    let mut files = Files::layout();
    let chart = files.blob("application/vnd.cncf.helm.config.v1+json", b"{}");
    let chart = files.json(MANIFEST, &json!({"schemaVersion": 2, "config": chart, "layers": []}));
    let manifests = json!([chart, files.image("linux/arm64", &["arm"]), files.image("linux/amd64", &["amd"]),]);
    let files = index_of(files, manifests);
    assert_eq!(resolve(&files, "linux/amd64").unwrap().layers[0].digest, Digest::of(b"amd"));
    assert!(
        matches!(resolve(&files, "linux/s390x"), Err(SourceError::NoSuchPlatform { offered, .. }) if offered.len() == 2)
    );
}

#[test]
fn platform_of_an_index_outweighs_that_of_the_config() {
    let mut files = Files::layout();
    let manifests = json!([on(files.image("linux/amd64", &["mislabelled"]), "linux/arm64")]);
    assert!(resolve(&index_of(files, manifests), "linux/arm64").is_ok());
}

#[test]
fn single_image_for_another_platform_is_an_error_only_if_the_user_requested_one() {
    let mut files = Files::layout();
    let image = files.image("linux/arm64", &["arm"]);
    let files = files.index(json!([image]));
    assert!(resolve(&files, "?linux/amd64").is_ok());
    assert!(resolve(&files, "linux/arm64").is_ok());
    assert!(matches!(resolve(&files, "linux/amd64"), Err(SourceError::OtherPlatform { .. })));
    let mut silent = Files::layout();
    let image = silent.image_of(&with(config("linux/amd64", &["a"]), "os", json!("")), &["a"]);
    assert!(resolve(&silent.index(json!([image])), "linux/arm64").is_ok());
}

#[test]
fn indexes_may_be_nested_four_deep() {
    let below = |depth: usize| {
        let mut files = Files::layout();
        let mut descriptor = files.image("linux/amd64", &["a"]);
        for _ in 0..depth {
            descriptor = files.nested(json!([descriptor]));
        }
        resolve(&files.index(json!([descriptor])), "linux/amd64")
    };
    for depth in [0, 1, MAX_DEPTH - 1, MAX_DEPTH] {
        assert!(below(depth).is_ok(), "{depth} indexes");
    }
    assert!(matches!(below(MAX_DEPTH + 1), Err(SourceError::NestedTooDeep { .. })));
}

#[test]
fn number_of_documents_is_limited() {
    let mut files = Files::layout();
    let mut descriptor = files.image("linux/arm64", &["a"]);
    for _ in 0..MAX_DEPTH {
        descriptor = files.nested(Value::Array(vec![descriptor; 40]));
    }
    let files = files.index(json!([descriptor]));
    assert!(matches!(resolve(&files, "linux/amd64"), Err(SourceError::TooManyDocuments { .. })));
}

#[test]
fn docker_and_missing_media_types_are_accepted() {
    let docker = "application/vnd.docker.distribution.manifest.v2+json";
    for media_type in [json!(docker), Value::Null] {
        let files = manifest_with(|manifest| {
            manifest["mediaType"] = media_type.clone();
            manifest["config"]["mediaType"] =
                media_type.as_str().map_or(Value::Null, |_| json!("application/vnd.docker.container.image.v1+json"));
            manifest["layers"][0]["mediaType"] = Value::Null;
        });
        assert_eq!(resolve(&files, "linux/amd64").unwrap().layers[0].media_type, "");
    }
}

#[test]
fn error_for_an_unsupported_layer_contains_its_media_type() {
    for right in [
        LAYER,
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    ] {
        let files = manifest_with(|manifest| {
            manifest["layers"][0]["mediaType"] = json!(right);
            manifest["layers"][0]["urls"] = json!(["https://a.org/b"]);
        });
        let urls = if is_foreign(right) { vec!["https://a.org/b"] } else { Vec::new() };
        assert_eq!(resolve(&files, "linux/amd64").unwrap().layers[0].urls, urls, "{right}");
    }
    for wrong in
        ["application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "application/vnd.oci.image.layer.nydus.blob.v1"]
    {
        let files = manifest_with(|manifest| manifest["layers"][0]["mediaType"] = json!(wrong));
        let error = resolve(&files, "linux/amd64").unwrap_err();
        assert!(matches!(&error, SourceError::LayerType { media_type, .. } if media_type == wrong), "{error}");
    }
}

#[test]
fn error_for_an_artifact_contains_its_type() {
    let of_type = |files: &Files| match resolve(files, "linux/amd64") {
        Err(SourceError::Artifact { artifact_type, .. }) => artifact_type,
        other => panic!("{other:?}"),
    };
    const EMPTY: &str = "application/vnd.oci.empty.v1+json";
    const SPDX: &str = "application/spdx+json";
    let files = manifest_with(|manifest| manifest["config"]["mediaType"] = json!(EMPTY));
    assert_eq!(of_type(&files), EMPTY);
    let files = manifest_with(|manifest| {
        manifest["config"]["mediaType"] = json!(EMPTY);
        manifest["artifactType"] = json!(SPDX);
    });
    assert_eq!(of_type(&files), SPDX);
    let signature = "application/vnd.dev.cosign.simplesigning.v1+json";
    let files = manifest_with(|manifest| manifest["layers"][0]["mediaType"] = json!(signature));
    assert_eq!(of_type(&files), signature);
    let mut files = Files::layout();
    let former = json!({
        "mediaType": "application/vnd.oci.artifact.manifest.v1+json", "artifactType": SPDX, "blobs": [],
    });
    let entry = with(files.json("", &former), "mediaType", Value::Null);
    assert_eq!(of_type(&files.index(json!([entry]))), SPDX);
}

#[test]
fn image_with_an_artifact_type_is_an_image() {
    let model = json!("application/vnd.example.model");
    let files = manifest_with(|manifest| manifest["artifactType"] = model.clone());
    assert_eq!(resolve(&files, "linux/amd64").unwrap().layers[0].digest, Digest::of(b"a"));
    let mut files = Files::layout();
    let manifest = json!({"schemaVersion": 2, "artifactType": model, "layers": [],
        "config": files.blob(CONFIG, config("linux/amd64", &[]).to_string().as_bytes())});
    let entry = with(files.json(MANIFEST, &manifest), "artifactType", model.clone());
    assert_eq!(resolve(&files.index(json!([entry])), "linux/amd64").unwrap().layers, []);
    // Only its config has the type of an image.
    let mut emptied = Files::layout();
    let descriptor = emptied.blob(CONFIG, b"{}");
    let layer = emptied.blob(LAYER, b"a");
    let manifest = json!({"schemaVersion": 2, "artifactType": model, "config": descriptor, "layers": [layer]});
    let entry = emptied.json(MANIFEST, &manifest);
    let result = resolve(&emptied.index(json!([entry])), "linux/amd64");
    assert!(matches!(result, Err(SourceError::Artifact { .. })), "{result:?}");
}

#[test]
fn files_with_an_empty_image_config_are_an_artifact_but_a_damaged_image_is_not() {
    let under_empty_config = |media_type: &str| {
        let mut files = Files::layout();
        let (config, layer) = (files.blob(CONFIG, b"{}"), files.blob(media_type, b"a"));
        let manifest = files.json(MANIFEST, &json!({"schemaVersion": 2, "config": config, "layers": [layer]}));
        resolve(&files.index(json!([manifest])), "linux/amd64")
    };
    let result = under_empty_config("application/octet-stream");
    assert!(
        matches!(&result, Err(SourceError::Artifact { artifact_type, .. }) if artifact_type == "application/octet-stream"),
        "{result:?}"
    );
    let result = under_empty_config(LAYER);
    assert!(matches!(result, Err(SourceError::LayerCount { layers: 1, diff_ids: 0, .. })), "{result:?}");
}

#[test]
fn empty_index_is_an_artifact() {
    let mut files = Files::layout();
    let empty = files.nested(json!([]));
    let nested = files.nested(json!([empty]));
    let null = files.json(INDEX, &json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": null}));
    for index in [empty, nested, null] {
        let files = files.clone().index(json!([index]));
        let directory = tempfile::tempdir().unwrap();
        files.write(directory.path());
        let source = OciLayout::open(directory.path(), None).unwrap();
        for error in [resolve(&files, "?linux/amd64").unwrap_err(), source.resolve_each(None).unwrap_err()] {
            assert!(error.to_string().contains("empty index"), "{error}");
        }
    }
}

#[test]
fn entry_of_a_layout_with_a_platform_is_treated_like_an_entry_of_an_index() {
    let of = |listed: &str, config: &str| {
        let mut files = Files::layout();
        let image = on(files.image(config, &["a"]), listed);
        files.index(json!([image]))
    };
    let mislabelled = of("linux/arm64", "linux/amd64");
    let image = resolve(&mislabelled, "linux/arm64").unwrap();
    assert_eq!(image.platform, Some("linux/arm64".parse().unwrap()));
    assert!(matches!(resolve(&mislabelled, "linux/amd64"), Err(SourceError::NoSuchPlatform { .. })));
    let high = of("linux/amd64/v3", "linux/amd64");
    for asked in ["?linux/amd64", "linux/amd64"] {
        let result = resolve(&high, asked);
        assert!(matches!(result, Err(SourceError::VariantNeeded { .. })), "{asked}: {result:?}");
    }
    for asked in ["linux/amd64/v3", "linux/amd64/v4"] {
        assert_eq!(resolve(&high, asked).unwrap().platform, Some("linux/amd64/v3".parse().unwrap()));
    }
    let directory = tempfile::tempdir().unwrap();
    mislabelled.write(directory.path());
    let images = OciLayout::open(directory.path(), None).unwrap().resolve_each(None).unwrap();
    assert_eq!(images.iter().map(|(platform, _)| platform.to_string()).collect::<Vec<_>>(), ["linux/arm64"]);
    // The same image under two names and for two platforms.
    let mut files = Files::layout();
    let image = files.image("linux/amd64", &["a"]);
    let files = files.index(json!([on(image.clone(), "linux/amd64/v3"), on(image, "linux/amd64")]));
    assert_eq!(resolve(&files, "?linux/amd64").unwrap().platform, Some("linux/amd64".parse().unwrap()));
}

#[test]
fn schema_1_and_ambiguous_documents_are_rejected() {
    let files = manifest_with(|manifest| manifest["schemaVersion"] = json!(1));
    assert!(matches!(resolve(&files, "linux/amd64"), Err(SourceError::Schema1 { .. })));
    let files = manifest_with(|manifest| manifest["manifests"] = json!([]));
    assert!(matches!(resolve(&files, "linux/amd64"), Err(SourceError::NotAManifest { .. })));
    let files = manifest_with(|manifest| manifest["mediaType"] = json!(INDEX));
    assert!(matches!(resolve(&files, "linux/amd64"), Err(SourceError::NotAManifest { .. })));
}

#[test]
fn numbers_of_layers_and_diff_ids_must_be_equal() {
    let files = manifest_with(|manifest| manifest["layers"] = json!([]));
    let error = resolve(&files, "linux/amd64").unwrap_err();
    assert!(matches!(error, SourceError::LayerCount { layers: 0, diff_ids: 1, .. }));
    let mut files = Files::layout();
    let image = files.image("linux/amd64", &[]);
    assert_eq!(resolve(&files.index(json!([image])), "linux/amd64").unwrap().layers, []);
}

#[test]
fn digest_other_than_sha256_is_rejected_where_it_is_used() {
    let sha512 = json!({"digest": "sha512:00", "size": 2, "mediaType": LAYER});
    let files = manifest_with(|manifest| manifest["layers"] = json!([sha512]));
    assert!(matches!(resolve(&files, "linux/amd64"), Err(SourceError::UnknownDigest { .. })));
    let files = manifest_with(|manifest| manifest["config"] = with(sha512.clone(), "mediaType", json!(CONFIG)));
    assert!(matches!(resolve(&files, "linux/amd64"), Err(SourceError::UnknownDigest { .. })));
    let traversal = json!({"digest": "sha256:../../../etc/passwd", "size": 2});
    let files = Files::layout().index(json!([traversal]));
    assert!(matches!(resolve(&files, "linux/amd64"), Err(SourceError::UnknownDigest { .. })));
    let mut files = Files::layout();
    let manifests =
        json!([on(with(sha512, "mediaType", json!(MANIFEST)), "linux/arm64"), files.image("linux/amd64", &[])]);
    assert!(resolve(&index_of(files, manifests), "linux/amd64").is_ok());
}

#[test]
fn manifest_and_config_are_verified() {
    let mut files = Files::layout();
    let manifest = files.image("linux/amd64", &["a"]);
    let config = Digest::of(config("linux/amd64", &["a"]).to_string().as_bytes());
    let files = files.index(json!([manifest]));
    for digest in [manifest["digest"].as_str().unwrap().parse().unwrap(), config] {
        let name = blob_name(&digest);
        let mut damaged = files.0[&name].clone();
        damaged[5] ^= 1;
        let error = resolve(&files.clone().with(&name, &damaged), "linux/amd64").unwrap_err();
        assert!(matches!(error, SourceError::WrongDigest { expected, .. } if expected == digest), "{error}");
        damaged.pop();
        let error = resolve(&files.clone().with(&name, &damaged), "linux/amd64").unwrap_err();
        assert!(matches!(error, SourceError::WrongSize { digest: named, .. } if named == digest), "{error}");
        let error = resolve(&files.clone().without(&name), "linux/amd64").unwrap_err();
        assert!(matches!(error, SourceError::MissingBlob { digest: named, .. } if named == digest), "{error}");
    }
    let huge = with(manifest, "size", json!(crate::image::MAX_DOCUMENT_SIZE + 1));
    let error = resolve(&files.index(json!([huge])), "linux/amd64").unwrap_err();
    assert!(matches!(error, SourceError::DocumentTooLarge { .. }), "{error}");
}
