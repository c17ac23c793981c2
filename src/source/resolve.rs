//! From a descriptor down to one image: through indexes, by platform, to a manifest and its config.

mod platforms;

use super::document::{self, Blobs, Document};
use super::error::SourceError;
use super::{Image, ImageLayer, PlatformRequest};
use crate::image::{Descriptor, Digest, DocumentKind, ImageConfig, ImageIndex, ImageManifest, Platform};

pub(super) use platforms::single;

/// How many indexes may lie above one another.
const MAX_DEPTH: usize = 4;
/// How many manifests and indexes are read for one image; indexes without platforms make this grow.
const MAX_DOCUMENTS: usize = 1000;
/// How many platforms are noted for a message.
const MAX_OFFERED: usize = 100;

/// One search for an image among the blobs of a place.
pub(super) struct Resolver<'a> {
    blobs: &'a dyn Blobs,
    request: &'a PlatformRequest,
    documents_read: usize,
    offered: Vec<String>,
}

impl<'a> Resolver<'a> {
    pub(super) fn new(blobs: &'a dyn Blobs, request: &'a PlatformRequest) -> Self {
        Self { blobs, request, documents_read: 0, offered: Vec::new() }
    }

    /// Returns the image that a name stands for: `descriptor` points to its manifest or to an index.
    ///
    /// A single manifest is taken for any platform unless one was asked for.
    pub(super) fn named(mut self, descriptor: &Descriptor) -> Result<Image, SourceError> {
        let (document, kind) = self.read(descriptor)?;
        self.of(document, kind)
    }

    /// Returns the image of a document that was found under a name, and under `media_type`.
    pub(super) fn found(mut self, document: Document, media_type: &str) -> Result<Image, SourceError> {
        self.documents_read += 1;
        let name = document.digest.to_string();
        let kind = document::kind(self.blobs.path(), &name, &document.bytes, media_type)?;
        self.of(document, kind)
    }

    fn of(mut self, document: Document, kind: DocumentKind) -> Result<Image, SourceError> {
        match kind {
            DocumentKind::Manifest => {
                let image = self.image(document)?;
                admit(self.request, image.manifest.digest, &image.parsed_config)?;
                Ok(image)
            }
            DocumentKind::Index => {
                let index = self.index(&document)?;
                let image = self.choose(&index.manifests, 1)?;
                image.map(|image| Image { index: Some(document), ..image }).ok_or_else(|| self.no_such_platform())
            }
        }
    }

    /// Returns the image for the wanted platform among descriptors of one image.
    pub(super) fn among(mut self, descriptors: &[Descriptor]) -> Result<Image, SourceError> {
        self.choose(descriptors, 0)?.ok_or_else(|| self.no_such_platform())
    }

    /// Finds the first image for the wanted platform, in the order of the index, below `depth` indexes.
    fn choose(&mut self, descriptors: &[Descriptor], depth: usize) -> Result<Option<Image>, SourceError> {
        for descriptor in descriptors.iter().filter(|descriptor| descriptor.may_be_image()) {
            let platform = descriptor.platform();
            if platform.as_ref().is_some_and(|platform| !self.accepts(platform)) {
                continue;
            }
            let found = match self.candidate(descriptor, platform.is_some(), depth) {
                // Nobody said that it is an image.
                Err(SourceError::Artifact { .. }) if platform.is_none() => None,
                found => found?,
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Looks at one entry of an index: its own platform, if it has one, was found to be right.
    fn candidate(
        &mut self,
        descriptor: &Descriptor,
        platform_is_right: bool,
        depth: usize,
    ) -> Result<Option<Image>, SourceError> {
        let (document, kind) = self.read(descriptor)?;
        match kind {
            DocumentKind::Index if depth == MAX_DEPTH => {
                Err(SourceError::NestedTooDeep { digest: document.digest, limit: MAX_DEPTH })
            }
            DocumentKind::Index => {
                let index = self.index(&document)?;
                self.choose(&index.manifests, depth + 1)
            }
            DocumentKind::Manifest => {
                let image = self.image(document)?;
                let is_right =
                    platform_is_right || image.parsed_config.platform().is_some_and(|platform| self.accepts(&platform));
                Ok(is_right.then_some(image))
            }
        }
    }

    /// Tells whether an image for `offered` will do, and notes it for a message if not.
    fn accepts(&mut self, offered: &Platform) -> bool {
        if self.request.platform.accepts(offered) {
            return true;
        }
        self.note(offered);
        false
    }

    fn note(&mut self, offered: &Platform) {
        let offered = offered.to_string();
        if self.offered.len() < MAX_OFFERED && !self.offered.contains(&offered) {
            self.offered.push(offered);
        }
    }

    fn no_such_platform(&self) -> SourceError {
        SourceError::NoSuchPlatform { requested: self.request.platform.to_string(), offered: self.offered.clone() }
    }

    /// Reads a manifest or an index.
    fn read(&mut self, descriptor: &Descriptor) -> Result<(Document, DocumentKind), SourceError> {
        if self.documents_read == MAX_DOCUMENTS {
            return Err(SourceError::TooManyDocuments { limit: MAX_DOCUMENTS });
        }
        self.documents_read += 1;
        let document = document::read_manifest(self.blobs, descriptor, "the index")?;
        let name = document.digest.to_string();
        let kind = document::kind(self.blobs.path(), &name, &document.bytes, &descriptor.media_type)?;
        Ok((document, kind))
    }

    fn index(&self, document: &Document) -> Result<ImageIndex, SourceError> {
        document::parse(self.blobs.path(), &document.digest.to_string(), &document.bytes)
    }

    /// Reads the config of a manifest, and joins the two.
    fn image(&self, document: Document) -> Result<Image, SourceError> {
        let (path, name) = (self.blobs.path(), document.digest.to_string());
        let manifest: ImageManifest = document::parse(path, &name, &document.bytes)?;
        if let Some(artifact_type) = manifest.foreign_type() {
            return Err(SourceError::Artifact { manifest: document.digest, artifact_type: artifact_type.to_owned() });
        }
        let config = document::read_verified(self.blobs, &manifest.config, &name)?;
        let parsed_config: ImageConfig = document::parse(path, &config.digest.to_string(), &config.bytes)?;
        let layers = layers(&manifest, &name, &parsed_config, &config)?;
        Ok(Image {
            names: Vec::new(),
            index: None,
            manifest: document,
            manifest_is_made: false,
            config,
            parsed_config,
            layers,
        })
    }
}

/// Refuses an image that stands alone and is not for the platform that was asked for.
pub(super) fn admit(request: &PlatformRequest, digest: Digest, config: &ImageConfig) -> Result<(), SourceError> {
    match config.platform() {
        Some(actual) if request.explicit && !request.platform.accepts(&actual) => {
            let (requested, actual) = (request.platform.to_string(), actual.to_string());
            Err(SourceError::OtherPlatform { digest, requested, actual })
        }
        _ => Ok(()),
    }
}

/// Refuses a config that does not list one diff ID for each layer.
pub(super) fn check_layer_count(layers: usize, parsed: &ImageConfig, config: &Document) -> Result<(), SourceError> {
    let diff_ids = parsed.rootfs.diff_ids.len();
    if layers != diff_ids {
        return Err(SourceError::LayerCount { config: config.digest, layers, diff_ids });
    }
    Ok(())
}

/// Tells whether a layer of this type may lie elsewhere than at the registry (image-spec, layer.md, "Non-Distributable
/// Layers").
fn is_foreign(media_type: &str) -> bool {
    media_type.contains(".foreign.") || media_type.contains(".nondistributable.")
}

/// Joins the layers of a manifest with the diff IDs of its config.
fn layers(
    manifest: &ImageManifest,
    name: &str,
    parsed: &ImageConfig,
    config: &Document,
) -> Result<Vec<ImageLayer>, SourceError> {
    check_layer_count(manifest.layers.len(), parsed, config)?;
    let unknown = |source| SourceError::UnknownDigest { document: name.to_owned(), source };
    let layer = |(descriptor, &diff_id): (&Descriptor, _)| {
        if !is_layer(&descriptor.media_type) {
            let (manifest, media_type) = (name.to_owned(), descriptor.media_type.clone());
            return Err(SourceError::LayerType { manifest, layer: descriptor.digest.clone(), media_type });
        }
        Ok(ImageLayer {
            digest: descriptor.digest().map_err(unknown)?,
            size: descriptor.size,
            diff_id,
            media_type: descriptor.media_type.clone(),
            urls: if is_foreign(&descriptor.media_type) { descriptor.urls.clone() } else { Vec::new() },
        })
    };
    manifest.layers.iter().zip(&parsed.rootfs.diff_ids).map(layer).collect()
}

/// Tells whether `media_type` is one of layers that can be unpacked. Which packing it names does not matter: that shows.
fn is_layer(media_type: &str) -> bool {
    const OCI: [&str; 2] =
        ["application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.layer.nondistributable.v1.tar"];
    const DOCKER: [&str; 2] =
        ["application/vnd.docker.image.rootfs.diff.tar", "application/vnd.docker.image.rootfs.foreign.diff.tar"];
    let is_of = |kinds: [&str; 2], packings: [&str; 3]| {
        kinds.iter().filter_map(|kind| media_type.strip_prefix(kind)).any(|packing| packings.contains(&packing))
    };
    media_type.is_empty() || is_of(OCI, ["", "+gzip", "+zstd"]) || is_of(DOCKER, ["", ".gzip", ".zstd"])
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::testing::{
        CONFIG, Files, INDEX, LAYER, MANIFEST, blob_name, config, keeps_its_promises, on, with,
    };
    use super::super::{OciLayout, Source};
    use super::*;

    /// Resolves the image of a layout for `platform`; a question mark before it says that nobody asked for it.
    fn resolve(files: &Files, platform: &str) -> Result<Image, SourceError> {
        let folder = tempfile::tempdir().unwrap();
        files.write(folder.path());
        let explicit = !platform.starts_with('?');
        let platform = platform.trim_start_matches('?').parse().unwrap();
        let source = OciLayout::open(folder.path(), None)?;
        let image = source.resolve(&PlatformRequest { platform, explicit })?;
        keeps_its_promises(&source, &image);
        Ok(image)
    }

    /// A layout whose one name leads to an index of `manifests`.
    fn index_of(mut files: Files, manifests: Value) -> Files {
        let index = files.nested(manifests);
        files.index(json!([index]))
    }

    /// A layout of one image whose manifest is `change`d.
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
    fn index_gives_the_first_image_for_the_platform() {
        let mut files = Files::layout();
        let manifests = json!([
            on(files.image("linux/arm64", &["arm"]), "linux/arm64"),
            on(files.image("linux/amd64", &["first"]), "linux/amd64"),
            on(files.image("linux/amd64", &["second"]), "linux/amd64"),
        ]);
        let files = index_of(files, manifests);
        let image = resolve(&files, "linux/amd64").unwrap();
        assert_eq!(image.layers[0].digest, Digest::of(b"first"));
        let index = image.index.unwrap();
        assert_eq!(files.0[&blob_name(&index.digest)], index.bytes);
        assert_eq!(resolve(&files, "?linux/arm64").unwrap().layers[0].digest, Digest::of(b"arm"));
    }

    #[test]
    fn index_without_the_platform_lists_those_it_has_and_no_attestations() {
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
    fn entry_without_a_platform_has_that_of_its_config() {
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
    fn single_image_for_another_platform_is_an_error_only_when_one_was_asked_for() {
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
    fn index_that_repeats_itself_ends_the_search() {
        let mut files = Files::layout();
        let mut descriptor = files.image("linux/arm64", &["a"]);
        for _ in 0..MAX_DEPTH {
            descriptor = files.nested(Value::Array(vec![descriptor; 40]));
        }
        let files = files.index(json!([descriptor]));
        assert!(matches!(resolve(&files, "linux/amd64"), Err(SourceError::TooManyDocuments { .. })));
    }

    #[test]
    fn docker_and_missing_media_types_are_taken() {
        let docker = "application/vnd.docker.distribution.manifest.v2+json";
        for media_type in [json!(docker), Value::Null] {
            let files = manifest_with(|manifest| {
                manifest["mediaType"] = media_type.clone();
                manifest["config"]["mediaType"] = media_type
                    .as_str()
                    .map_or(Value::Null, |_| json!("application/vnd.docker.container.image.v1+json"));
                manifest["layers"][0]["mediaType"] = Value::Null;
            });
            assert_eq!(resolve(&files, "linux/amd64").unwrap().layers[0].media_type, "");
        }
    }

    #[test]
    fn layer_of_a_type_that_cannot_be_unpacked_is_refused_by_name() {
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
        for wrong in ["application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "application/wasm", "text/html"] {
            let files = manifest_with(|manifest| manifest["layers"][0]["mediaType"] = json!(wrong));
            let error = resolve(&files, "linux/amd64").unwrap_err();
            assert!(matches!(&error, SourceError::LayerType { media_type, .. } if media_type == wrong), "{error}");
        }
    }

    #[test]
    fn artifact_is_refused_by_its_type() {
        for member in ["artifactType", "config"] {
            let files = manifest_with(|manifest| match member {
                "config" => manifest["config"]["mediaType"] = json!("application/vnd.oci.empty.v1+json"),
                _ => manifest["artifactType"] = json!("application/spdx+json"),
            });
            assert!(matches!(resolve(&files, "linux/amd64"), Err(SourceError::Artifact { .. })), "{member}");
        }
    }

    #[test]
    fn schema_1_and_two_faced_documents_are_refused() {
        let files = manifest_with(|manifest| manifest["schemaVersion"] = json!(1));
        assert!(matches!(resolve(&files, "linux/amd64"), Err(SourceError::Schema1 { .. })));
        let files = manifest_with(|manifest| manifest["manifests"] = json!([]));
        assert!(matches!(resolve(&files, "linux/amd64"), Err(SourceError::NotAManifest { .. })));
        let files = manifest_with(|manifest| manifest["mediaType"] = json!(INDEX));
        assert!(matches!(resolve(&files, "linux/amd64"), Err(SourceError::NotAManifest { .. })));
    }

    #[test]
    fn layers_and_diff_ids_must_be_as_many() {
        let files = manifest_with(|manifest| manifest["layers"] = json!([]));
        let error = resolve(&files, "linux/amd64").unwrap_err();
        assert!(matches!(error, SourceError::LayerCount { layers: 0, diff_ids: 1, .. }));
        let mut files = Files::layout();
        let image = files.image("linux/amd64", &[]);
        assert_eq!(resolve(&files.index(json!([image])), "linux/amd64").unwrap().layers, []);
    }

    #[test]
    fn digest_other_than_sha256_is_refused_where_it_is_used() {
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
        let huge = with(manifest, "size", json!(document::MAX_DOCUMENT + 1));
        let error = resolve(&files.index(json!([huge])), "linux/amd64").unwrap_err();
        assert!(matches!(error, SourceError::DocumentTooLarge { .. }), "{error}");
    }
}
