//! Images in archives of `docker save`, `podman save` and similar tools.
//!
//! Such an archive has no image manifest: it lists uncompressed tar files, and only the config is named by its digest. Therefore
//! a manifest is generated, always the same for the same config and layers. It lists each layer as an uncompressed tar stream,
//! whose digest is its diff ID. Some tools compress the layers nevertheless. Such a layer is decompressed once to find its
//! uncompressed size, and again when it is opened.

use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};

use super::compression::Compression;
use super::document;
use super::error::SourceError;
use super::resolve::{admit, check_layer_count, single};
use super::tar_index::{ArchivedFile, TarArchive};
use super::tar_stream::MAX_UNPACKED;
use super::{Image, ImageLayer, LayerBlob, PlatformRequest, Source, full_names};
use crate::image::{DiffId, Document, ImageConfig, Platform};

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

/// One image of an archive.
#[derive(Debug)]
pub struct DockerArchive {
    archive: TarArchive,
    /// The tags of the image that the reference selects, or all its tags.
    tags: Vec<String>,
    config: Document,
    parsed_config: ImageConfig,
    layers: Vec<ArchivedLayer>,
}

/// An entry of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ArchivedImage {
    config: String,
    #[serde(default, deserialize_with = "null_as_empty")]
    // `docker save` of an image by its ID writes `null`.
    repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "null_as_empty")]
    layers: Vec<String>,
}

/// A layer and the file that contains it.
#[derive(Debug)]
struct ArchivedLayer {
    diff_id: DiffId,
    name: String,
    member: ArchivedFile,
}

impl DockerArchive {
    /// Opens an archive, which may be compressed with gzip or zstd. Without a `reference` it must contain exactly one image.
    pub fn open(file: &Path, reference: Option<&str>) -> Result<Self, SourceError> {
        let archive = TarArchive::open(file)?;
        let image = choose(file, list(&archive)?, reference)?;
        let config = Document::new(read(&archive, &image.config)?);
        if digest_in_name(&image.config).is_some_and(|digits| digits != config.digest.hex()) {
            let (path, member) = (file.to_owned(), image.config);
            return Err(SourceError::ConfigName { path, member, actual: config.digest });
        }
        let parsed_config: ImageConfig = document::parse(file, &image.config, &config.bytes)?;
        check_layer_count(image.layers.len(), &parsed_config, &config)?;
        let layers = image.layers.into_iter().zip(&parsed_config.rootfs.diff_ids);
        let layers = layers.map(|(name, &diff_id)| {
            let member = find(&archive, &name)?;
            Ok(ArchivedLayer { diff_id, name, member })
        });
        let layers = layers.collect::<Result<_, SourceError>>()?;
        Ok(Self { archive, tags: image.repo_tags, config, parsed_config, layers })
    }

    /// Describes a layer as an uncompressed tar stream.
    fn describe(&self, layer: &ArchivedLayer) -> Result<ImageLayer, SourceError> {
        // The size in a descriptor is that of the bytes that `open_layer` returns, and these are decompressed.
        let size = match layer.member.compression {
            Compression::None => layer.member.size,
            _ => self.plain_size(layer)?,
        };
        let media_type = LAYER_TYPE.to_owned();
        let urls = Vec::new();
        Ok(ImageLayer { digest: layer.diff_id.0, size, diff_id: layer.diff_id, media_type, urls })
    }

    /// Decompresses a layer to find its uncompressed size.
    fn plain_size(&self, layer: &ArchivedLayer) -> Result<u64, SourceError> {
        let mut plain = self.open_plain(layer)?.take(MAX_UNPACKED + 1);
        let size = io::copy(&mut plain, &mut io::sink()).map_err(|source| self.unpack_failed(layer, source))?;
        if size > MAX_UNPACKED {
            let source = io::Error::other(format!("it decompresses to more than {MAX_UNPACKED} bytes"));
            return Err(self.unpack_failed(layer, source));
        }
        Ok(size)
    }

    fn open_plain(&self, layer: &ArchivedLayer) -> Result<Box<dyn Read + Send>, SourceError> {
        let stored = self.archive.open_file(&layer.member)?;
        let plain = layer.member.compression.unpack(stored.reader);
        plain.map_err(|source| self.unpack_failed(layer, source))
    }

    fn unpack_failed(&self, layer: &ArchivedLayer, source: io::Error) -> SourceError {
        let (path, member) = (self.archive.path().to_owned(), layer.name.clone());
        SourceError::UnpackLayer { path, member, source }
    }
}

impl Source for DockerArchive {
    fn resolve(&self, request: &PlatformRequest) -> Result<Image, SourceError> {
        admit(request, self.config.digest, &self.parsed_config)?;
        let layers = self.layers.iter().map(|layer| self.describe(layer)).collect::<Result<Vec<_>, _>>()?;
        Ok(Image {
            names: full_names(self.tags.iter().map(String::as_str)),
            index: None,
            manifest: generate_manifest(&self.config, &layers),
            manifest_is_made: true,
            platform: self.parsed_config.platform(),
            config: self.config.clone(),
            parsed_config: self.parsed_config.clone(),
            layers,
        })
    }

    fn resolve_each(&self, wanted: Option<&[Platform]>) -> Result<Vec<(Platform, Image)>, SourceError> {
        single(self.resolve(&PlatformRequest::new(None))?, wanted)
    }

    fn open_layer(&self, layer: &ImageLayer) -> Result<LayerBlob, SourceError> {
        let stored = self.layers.iter().find(|stored| stored.diff_id.0 == layer.digest);
        let unknown = || SourceError::UnknownLayer { path: self.archive.path().to_owned(), digest: layer.digest };
        Ok(LayerBlob::local(self.open_plain(stored.ok_or_else(unknown)?)?))
    }
}

/// Reads `manifest.json`. If it is missing, the error states what the archive may be instead.
fn list(archive: &TarArchive) -> Result<Vec<ArchivedImage>, SourceError> {
    if archive.find("manifest.json")?.is_none() {
        let reason = if archive.find("oci-layout")?.is_some() {
            "it is an OCI image layout; use oci-archive: for it"
        } else if archive.find("repositories")?.is_some() {
            "it has no manifest.json, because a Docker before 1.10 wrote it; load and save it with a current version"
        } else {
            "it has no manifest.json"
        };
        return Err(SourceError::NotADockerArchive { path: archive.path().to_owned(), reason });
    }
    document::parse_list(archive.path(), "manifest.json", &read(archive, "manifest.json")?)
}

/// Returns the image that the reference selects, with only the matching tags, or the only image in the archive.
fn choose(path: &Path, images: Vec<ArchivedImage>, reference: Option<&str>) -> Result<ArchivedImage, SourceError> {
    let names: Vec<String> = images.iter().flat_map(ArchivedImage::labels).collect();
    let is_list_of_one = images.len() == 1;
    let path = path.to_owned();
    let Some(reference) = reference else {
        return match images.into_iter().next() {
            Some(image) if is_list_of_one => Ok(image),
            Some(_) => Err(SourceError::SeveralImages { path, names }),
            None => Err(SourceError::NoImage { path }),
        };
    };
    let meant = images.into_iter().find_map(|image| image.named(reference));
    meant.ok_or_else(|| SourceError::UnknownReference { path, reference: reference.to_owned(), names })
}

impl ArchivedImage {
    /// Returns the references for this image: its tags, or else the digest of its config.
    fn labels(&self) -> Vec<String> {
        if self.repo_tags.is_empty() {
            let digest = digest_in_name(&self.config).map(|digits| format!("sha256:{digits}"));
            return digest.into_iter().collect();
        }
        self.repo_tags.clone()
    }

    /// Returns this image if `reference` is one of its tags or the digest of its config.
    ///
    /// Tags are compared in their full form, because Docker writes the short form and podman the full one.
    fn named(mut self, reference: &str) -> Option<Self> {
        if reference.strip_prefix("sha256:").is_some_and(|digits| digest_in_name(&self.config) == Some(digits)) {
            return Some(self);
        }
        let wanted = full_tag(reference);
        self.repo_tags.retain(|tag| full_tag(tag) == wanted);
        (!self.repo_tags.is_empty()).then_some(self)
    }
}

/// Returns the full form of a tag, as in Docker: `alpine` is `docker.io/library/alpine:latest`.
fn full_tag(tag: &str) -> String {
    let (host, path) = match tag.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path.to_owned()),
        Some(_) => ("docker.io", tag.to_owned()),
        None => ("docker.io", format!("library/{tag}")),
    };
    let latest = if path.contains(':') { "" } else { ":latest" };
    format!("{host}/{path}{latest}")
}

/// Returns the hex digits of the digest in a file name: `<hex>.json`, `blobs/sha256/<hex>` or `sha256:<hex>`.
fn digest_in_name(name: &str) -> Option<&str> {
    let name = name.rsplit('/').next().unwrap_or(name);
    let name = name.strip_suffix(".json").unwrap_or(name);
    let digits = name.strip_prefix("sha256:").unwrap_or(name);
    (digits.len() == 64 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))).then_some(digits)
}

fn find(archive: &TarArchive, name: &str) -> Result<ArchivedFile, SourceError> {
    let missing = || SourceError::MissingMember { path: archive.path().to_owned(), member: name.to_owned() };
    archive.find(name)?.ok_or_else(missing)
}

fn read(archive: &TarArchive, name: &str) -> Result<Vec<u8>, SourceError> {
    document::read_bounded(archive.path(), name, archive.open_file(&find(archive, name)?)?)
}

fn null_as_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A manifest in canonical JSON: members in alphabetical order, without white space.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CanonicalManifest {
    config: CanonicalDescriptor,
    layers: Vec<CanonicalDescriptor>,
    media_type: &'static str,
    schema_version: u8,
}

/// A descriptor in canonical JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CanonicalDescriptor {
    digest: String,
    media_type: &'static str,
    size: u64,
}

/// Generates the manifest.
fn generate_manifest(config: &Document, layers: &[ImageLayer]) -> Document {
    let config = CanonicalDescriptor {
        digest: config.digest.to_string(),
        media_type: CONFIG_TYPE,
        size: config.bytes.len() as u64,
    };
    let layers = layers.iter().map(|layer| CanonicalDescriptor {
        digest: layer.digest.to_string(),
        media_type: LAYER_TYPE,
        size: layer.size,
    });
    let layers = layers.collect();
    let manifest = CanonicalManifest { config, layers, media_type: MANIFEST_TYPE, schema_version: 2 };
    Document::new(serde_json::to_vec(&manifest).expect("strings and numbers can be serialized"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::{Value, json};

    use super::super::testing::{Files, Tar, assert_source_contract, config, gzip, read_layer, zstd};
    use super::*;
    use crate::image::Digest;

    fn open(bytes: &[u8], reference: Option<&str>) -> Result<DockerArchive, SourceError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), bytes).unwrap();
        DockerArchive::open(file.path(), reference)
    }

    fn resolve(bytes: &[u8], reference: Option<&str>) -> Result<Image, SourceError> {
        open(bytes, reference)?.resolve(&PlatformRequest::new(None))
    }

    /// Returns the file name of a config in an archive of Docker.
    fn config_name(config: &Value) -> String {
        format!("{}.json", Digest::of(config.to_string().as_bytes()).hex())
    }

    /// Returns an archive of one image with the layers `lower` and `upper`. `pack` compresses the second.
    fn archive(pack: impl Fn(&[u8]) -> Vec<u8>) -> Files {
        let config = config("linux/amd64", &["lower", "upper"]);
        let image =
            json!({"Config": config_name(&config), "RepoTags": ["h.org/a:1"], "Layers": ["1/layer.tar", "2.tar"]});
        Files::docker(json!([image]))
            .with(&config_name(&config), config.to_string())
            .with("1/layer.tar", "lower")
            .with("2.tar", pack(b"upper"))
    }

    /// Returns an archive of two images, the second without a tag, and the digest of the second config.
    fn two_images() -> (Vec<u8>, String) {
        let (a, b) = (config("linux/amd64", &["a"]), config("linux/amd64", &["b"]));
        let files = Files::docker(json!([
            {"Config": config_name(&a), "RepoTags": ["alpine:3", "docker.io/bitnami/x:1"], "Layers": ["a.tar"]},
            {"Config": config_name(&b), "RepoTags": null, "Layers": ["b.tar"], "Parent": "", "LayerSources": {}},
        ]));
        let files = files.with(&config_name(&a), a.to_string()).with(&config_name(&b), b.to_string());
        let digest = Digest::of(b.to_string().as_bytes()).to_string();
        (files.with("a.tar", "a").with("b.tar", "b").tar(), digest)
    }

    #[test]
    fn manifest_is_generated_in_canonical_form() {
        let image = resolve(&archive(<[u8]>::to_vec).tar(), None).unwrap();
        let expected = format!(
            r#"{{"config":{{"digest":"{}","mediaType":"application/vnd.oci.image.config.v1+json","size":{}}},"layers":[{{"digest":"{}","mediaType":"application/vnd.oci.image.layer.v1.tar","size":5}},{{"digest":"{}","mediaType":"application/vnd.oci.image.layer.v1.tar","size":5}}],"mediaType":"application/vnd.oci.image.manifest.v1+json","schemaVersion":2}}"#,
            image.config.digest,
            image.config.bytes.len(),
            Digest::of(b"lower"),
            Digest::of(b"upper"),
        );
        assert_eq!(String::from_utf8(image.manifest.bytes).unwrap(), expected);
        assert!(image.manifest_is_made);
        assert_eq!(image.names, ["h.org/a:1".parse().unwrap()]);
    }

    #[test]
    fn compressed_layers_and_archives_contain_the_same_image() {
        let expected = resolve(&archive(<[u8]>::to_vec).tar(), None).unwrap();
        let zstd_layer = archive(zstd).tar();
        for bytes in [archive(gzip).tar(), zstd_layer.clone(), gzip(&zstd_layer), zstd(&archive(<[u8]>::to_vec).tar())]
        {
            let source = open(&bytes, None).unwrap();
            let image = source.resolve(&PlatformRequest::new(None)).unwrap();
            assert_eq!(image, expected);
            assert_eq!(assert_source_contract(&source, &image), [b"lower", b"upper"]);
        }
    }

    #[test]
    fn layers_may_be_links_to_those_of_other_images() {
        let config = config("linux/amd64", &["lower", "upper", "lower"]);
        let list = json!([{"Config": config_name(&config), "RepoTags": [], "Layers": ["a/layer.tar", "b/layer.tar", "c/layer.tar"]}]);
        let tar = Tar::new()
            .file("x/layer.tar", b"lower")
            .symlink("a/layer.tar", "../x/layer.tar")
            .file("b/layer.tar", b"upper")
            .hard_link("c/layer.tar", "x/layer.tar")
            .file(&config_name(&config), config.to_string().as_bytes())
            .file("manifest.json", list.to_string().as_bytes());
        let source = open(&tar.bytes(), None).unwrap();
        let image = source.resolve(&PlatformRequest::new(None)).unwrap();
        assert_eq!(assert_source_contract(&source, &image), [b"lower", b"upper", b"lower"]);
    }

    #[test]
    fn reference_is_a_tag_in_any_spelling_or_the_digest_of_a_config() {
        let (bytes, digest) = two_images();
        for (reference, layer) in [
            ("alpine:3", "a"),
            ("docker.io/library/alpine:3", "a"),
            ("bitnami/x:1", "a"),
            ("docker.io/bitnami/x:1", "a"),
            (&digest, "b"),
        ] {
            let image = resolve(&bytes, Some(reference)).unwrap();
            assert_eq!(image.layers[0].digest, Digest::of(layer.as_bytes()), "{reference}");
        }
        assert_eq!(resolve(&bytes, Some("alpine:3")).unwrap().names, []);
        assert_eq!(resolve(&bytes, Some("bitnami/x:1")).unwrap().names, ["docker.io/bitnami/x:1".parse().unwrap()]);
    }

    #[test]
    fn unknown_reference_and_a_missing_one_list_the_names() {
        let (bytes, digest) = two_images();
        let expected = ["alpine:3".to_owned(), "docker.io/bitnami/x:1".to_owned(), digest];
        for reference in [Some("alpine"), Some("@0"), Some("h.org/alpine:3"), None] {
            match resolve(&bytes, reference) {
                Err(SourceError::UnknownReference { names, .. } | SourceError::SeveralImages { names, .. }) => {
                    assert_eq!(names, expected);
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(resolve(&Files::docker(json!([])).tar(), None), Err(SourceError::NoImage { .. })));
    }

    #[test]
    fn config_must_have_the_digest_in_its_file_name() {
        let config = config("linux/amd64", &[]).to_string();
        let open_as = |name: &str| {
            let list = json!([{"Config": name, "RepoTags": null, "Layers": null}]);
            open(&Files::docker(list).with(name, &config).tar(), None)
        };
        let right = Digest::of(config.as_bytes());
        let wrong = Digest::of(b"other");
        for name in [format!("{}.json", right.hex()), format!("blobs/sha256/{}", right.hex()), right.to_string()] {
            assert!(open_as(&name).is_ok(), "{name}");
        }
        assert!(open_as("config.json").is_ok());
        for name in [format!("{}.json", wrong.hex()), format!("blobs/sha256/{}", wrong.hex()), wrong.to_string()] {
            assert!(matches!(open_as(&name), Err(SourceError::ConfigName { .. })), "{name}");
        }
    }

    #[test]
    fn error_for_an_incomplete_archive_states_what_is_missing() {
        let missing = |name: &str| open(&archive(<[u8]>::to_vec).without(name).tar(), None).unwrap_err();
        for name in ["2.tar", &config_name(&config("linux/amd64", &["lower", "upper"]))] {
            assert!(matches!(missing(name), SourceError::MissingMember { member, .. } if member == name));
        }
        assert!(matches!(missing("manifest.json"), SourceError::NotADockerArchive { .. }));
        let error = open(&Files::layout().tar(), None).unwrap_err();
        assert!(matches!(error, SourceError::NotADockerArchive { reason, .. } if reason.contains("oci-archive:")));
        let config = config("linux/amd64", &["a"]).to_string();
        let list = json!([{"Config": "c", "Layers": []}]);
        let error = open(&Files::docker(list).with("c", config).tar(), None).unwrap_err();
        assert!(matches!(error, SourceError::LayerCount { layers: 0, diff_ids: 1, .. }));
    }

    #[test]
    fn error_for_a_damaged_compressed_layer_names_it() {
        let bytes = archive(|layer| gzip(layer)[..15].to_vec()).tar();
        let error = resolve(&bytes, None).unwrap_err();
        assert!(matches!(error, SourceError::UnpackLayer { member, .. } if member == "2.tar"));
    }

    #[test]
    fn image_for_another_platform_than_requested_is_rejected() {
        let source = open(&archive(<[u8]>::to_vec).tar(), None).unwrap();
        let request = |platform: &str| PlatformRequest::new(Some(platform.parse().unwrap()));
        assert!(source.resolve(&request("linux/amd64")).is_ok());
        assert!(matches!(source.resolve(&request("linux/arm64")), Err(SourceError::OtherPlatform { .. })));
    }

    #[test]
    fn layer_of_another_image_is_not_opened() {
        let source = open(&archive(<[u8]>::to_vec).tar(), None).unwrap();
        let digest = Digest::of(b"foreign");
        let layer =
            ImageLayer { digest, size: 7, diff_id: DiffId(digest), media_type: String::new(), urls: Vec::new() };
        assert!(matches!(read_layer(&source, &layer), Err(SourceError::UnknownLayer { .. })));
    }
}
