//! Thin images, which Docker with the CVMFS graph driver pulls in place of normal images.
//!
//! A thin image has one layer with one file: `thin.json` lists the paths of the real layers in a repository. This layer is
//! byte-identical to that of DUCC. The config has the execution settings of the real image, because Docker never reads the real
//! config. DUCC omits entry point, user and working directory, so that the wrong program runs, or the program runs as the wrong
//! user.

use std::io::Write as _;

use flate2::{Compression, GzBuilder};
use serde::Serialize;
use serde_json::{Value, json};

use crate::image::{Digest, ExecutionConfig, ImageConfig, Platform};
use crate::layout;
use crate::manifest::RepositoryName;
use crate::registry::ImageUpload;
use crate::source::ImageArgument;

// The graph driver needs a version of Docker that is older than OCI images.
const MANIFEST_TYPE: &str = "application/vnd.docker.distribution.manifest.v2+json";
const CONFIG_TYPE: &str = "application/vnd.docker.container.image.v1+json";
const LAYER_TYPE: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// Variable in the config that marks an image as thin.
const MARK: &str = "CVMFS_IMAGE";

/// The content of `thin.json`.
#[derive(Serialize)]
struct ThinJson<'a> {
    version: &'static str,
    origin: &'a str,
    layers: Vec<ThinLayer>,
}

#[derive(Serialize)]
struct ThinLayer {
    /// Hexadecimal digits, without the algorithm.
    digest: String,
    url: String,
}

/// Creates the thin image for an image whose layers are in a repository. Equal input gives equal bytes.
pub fn thin_image(
    repository: &RepositoryName,
    origin: &ImageArgument,
    layers: &[Digest],
    config: &ImageConfig,
) -> ImageUpload {
    let tar = tar(&thin_json(repository, &whole_name(origin), layers));
    let layer = gzip(&tar);
    let config = config_json(config, Digest::of(&tar));
    let descriptor =
        |media_type, bytes: &[u8]| json!({"mediaType": media_type, "size": bytes.len(), "digest": Digest::of(bytes)});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": descriptor(CONFIG_TYPE, &config),
        "layers": [descriptor(LAYER_TYPE, &layer)],
    });
    ImageUpload { manifest: manifest.to_string().into_bytes(), media_type: MANIFEST_TYPE, blobs: vec![config, layer] }
}

/// Returns the name of an image in the form of DUCC: with scheme, tag and digest.
fn whole_name(image: &ImageArgument) -> String {
    let text = image.to_string();
    match text.strip_prefix("docker://") {
        Some(name) => format!("https://{name}"),
        None => text,
    }
}

fn thin_json(repository: &RepositoryName, origin: &str, layers: &[Digest]) -> Vec<u8> {
    let layer = |layer: &Digest| ThinLayer {
        digest: layer.hex(),
        url: format!("cvmfs://{repository}{}", layout::layer_root(*layer)),
    };
    let thin = ThinJson { version: "1.0", origin, layers: layers.iter().map(layer).collect() };
    // DUCC also indents by two spaces.
    serde_json::to_vec_pretty(&thin).expect("strings are valid JSON")
}

/// Returns a tar archive of `thin.json`, byte-identical to that of Go's `archive/tar`.
fn tar(content: &[u8]) -> Vec<u8> {
    let mut header = [0; 512];
    let mut set = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
    set(0, b"thin.json");
    set(100, b"0000644\0");
    for owner in [108, 116] {
        set(owner, b"0000000\0");
    }
    set(124, format!("{:011o}\0", content.len()).as_bytes());
    set(136, b"00000000000\0");
    // The checksum is computed with spaces in its own field (POSIX ustar).
    set(148, b"        ");
    set(156, b"0");
    set(257, b"ustar\x0000");
    for device in [329, 337] {
        set(device, b"0000000\0");
    }
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let padding = content.len().next_multiple_of(512) - content.len();
    // Two zero blocks end an archive (POSIX ustar).
    [&header[..], content, &vec![0; padding + 1024]].concat()
}

/// Wraps the bytes as gzip without compression, so that the digest does not depend on the version of the compressor.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    // 255 means an unknown operating system (RFC 1952, section 2.3.1): the bytes do not depend on the machine.
    let mut encoder = GzBuilder::new().mtime(0).operating_system(255).write(Vec::new(), Compression::none());
    encoder.write_all(bytes).expect("writing to a vector cannot fail");
    encoder.finish().expect("writing to a vector cannot fail")
}

fn config_json(image: &ImageConfig, diff_id: Digest) -> Vec<u8> {
    let platform = image.platform().unwrap_or_else(Platform::of_this_machine);
    let mut step = json!({"created_by": "strata"});
    let mut config = json!({"architecture": platform.architecture, "os": platform.os});
    // Docker refuses an image with an invalid time.
    if let Some(created) = image.created.as_ref().filter(|created| created.parse::<jiff::Timestamp>().is_ok()) {
        config["created"] = created.as_str().into();
        step["created"] = created.as_str().into();
    }
    config["config"] = execution_json(&image.config);
    config["rootfs"] = json!({"type": "layers", "diff_ids": [diff_id]});
    config["history"] = json!([step]);
    config.to_string().into_bytes()
}

fn execution_json(image: &ExecutionConfig) -> Value {
    let is_kept = |variable: &&String| variable.split_once('=').is_some_and(|(name, _)| name != MARK);
    // DUCC imports thin images with `ENV CVMFS_IMAGE true`.
    let mut environment = vec![format!("{MARK}=true")];
    environment.extend(image.env.iter().filter(is_kept).cloned());
    let mut config = json!({"Env": environment});
    for (key, words) in [("Entrypoint", &image.entrypoint), ("Cmd", &image.cmd)] {
        if !words.is_empty() {
            config[key] = json!(words);
        }
    }
    for (key, text) in [("User", &image.user), ("WorkingDir", &image.working_dir)] {
        if !text.is_empty() {
            config[key] = text.as_str().into();
        }
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::io::Read as _;

    const CONFIG: &str = r#"{"architecture":"arm64","os":"linux","created":"2020-01-01T00:00:00.5+01:00","config":{
        "Env":["A=b c","CVMFS_IMAGE=no","none","Q=\"\n"],"Entrypoint":["/run"],"Cmd":["a b"],"User":"1000","WorkingDir":"/w",
        "Labels":{"a":"b"}}}"#;

    fn make(config: &str) -> ImageUpload {
        let config = ImageConfig::parse(config.as_bytes()).unwrap();
        let origin = "https://h.org/atlas/athena:21.0".parse().unwrap();
        thin_image(&"unpacked.example.org".parse().unwrap(), &origin, &[Digest::of(b""), Digest::of(b"a")], &config)
    }

    fn config_of(config: &str) -> Value {
        serde_json::from_slice(&make(config).blobs[0]).unwrap()
    }

    #[test]
    fn layer_contains_only_the_file_for_the_graph_driver() {
        let expected = "{\n  \"version\": \"1.0\",\n  \"origin\": \"https://h.org/atlas/athena:21.0\",\n  \"layers\": [\n    {\n      \
            \"digest\": \"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\",\n      \
            \"url\": \"cvmfs://unpacked.example.org/.layers/e3/e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855/layerfs\"\n    },\n    {\n      \
            \"digest\": \"ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb\",\n      \
            \"url\": \"cvmfs://unpacked.example.org/.layers/ca/ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb/layerfs\"\n    }\n  ]\n}";
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(make(CONFIG).blobs[1].as_slice()).read_to_end(&mut plain).unwrap();
        assert_eq!(plain.len() % 512, 0);
        let mut archive = tar::Archive::new(plain.as_slice());
        let mut members = archive.entries().unwrap();
        let mut member = members.next().unwrap().unwrap();
        let header = member.header();
        assert_eq!((header.path_bytes().as_ref(), header.mode().unwrap()), (&b"thin.json"[..], 0o644));
        assert_eq!((header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap()), (0, 0, 0));
        assert!(header.entry_type().is_file() && header.as_ustar().is_some());
        let mut text = String::new();
        member.read_to_string(&mut text).unwrap();
        assert_eq!(text, expected);
        assert!(members.next().is_none());
    }

    #[test]
    fn archive_is_byte_identical_to_that_of_ducc() {
        // Digest of the output of Go 1.19, `encoding/json` and `archive/tar`, for the same layers.
        let expected = "sha256:a21260c7a8fc489021921f76d1c893193dc82b2b13eeb0e0abe944304deda954";
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(make(CONFIG).blobs[1].as_slice()).read_to_end(&mut plain).unwrap();
        assert_eq!(Digest::of(&plain).to_string(), expected);
        let shortest = "sha256:e5ee6271d4c7b56ba659e23705fea04f36dfa4cd637b856d1e138529757fff75";
        assert_eq!(Digest::of(&super::tar(b"{}")).to_string(), shortest);
    }

    #[test]
    fn config_has_the_execution_settings_of_the_image_and_the_mark() {
        let config = config_of(CONFIG);
        assert_eq!(
            config["config"],
            json!({"Env": ["CVMFS_IMAGE=true", "A=b c", "Q=\"\n"], "Entrypoint": ["/run"], "Cmd": ["a b"], "User": "1000",
                "WorkingDir": "/w"})
        );
        assert_eq!((&config["architecture"], &config["os"]), (&json!("arm64"), &json!("linux")));
        assert_eq!(config["created"], "2020-01-01T00:00:00.5+01:00");
        let bare = config_of(r#"{"created":"yesterday"}"#);
        assert_eq!(bare["config"], json!({"Env": ["CVMFS_IMAGE=true"]}));
        assert!(bare.get("created").is_none() && bare["os"] == "linux");
    }

    #[test]
    fn descriptors_have_the_digests_of_the_blobs_and_output_is_deterministic() {
        let image = make(CONFIG);
        let manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
        let config: Value = serde_json::from_slice(&image.blobs[0]).unwrap();
        let named = [&manifest["config"], &manifest["layers"][0]];
        for (descriptor, blob) in named.into_iter().zip(&image.blobs) {
            assert_eq!(descriptor["digest"], Digest::of(blob).to_string());
            assert_eq!(descriptor["size"], blob.len());
        }
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(image.blobs[1].as_slice()).read_to_end(&mut plain).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"], json!([Digest::of(&plain)]));
        assert_eq!(image, make(CONFIG));
    }

    #[test]
    fn origin_has_scheme_tag_and_digest() {
        let digest = Digest::of(b"");
        let name = |text: &str| whole_name(&text.parse().unwrap());
        assert_eq!(name("h.org/a:1"), "https://h.org/a:1");
        assert_eq!(name("http://h.org:5000/a:1"), "http://h.org:5000/a:1");
        assert_eq!(name(&format!("docker://h.org/a:1@{digest}")), format!("https://h.org/a:1@{digest}"));
        assert_eq!(name(&format!("h.org/a@{digest}")), format!("https://h.org/a@{digest}"));
    }
}
