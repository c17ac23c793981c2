//! Images in an OCI image layout (image-spec, image-layout.md): a directory, or a tar file of such a directory.
//!
//! The layout is untrusted: paths are built only from parsed digests. A reference is only compared with annotations and digests.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::document::{self, Blob, Blobs};
use super::error::SourceError;
use super::resolve::ImageResolver;
use super::tar_index::TarArchive;
use super::{Image, ImageLayer, LayerBlob, PlatformRequest, Source, full_names};
use crate::image::{Descriptor, Digest, DocumentKind, FullName, ImageIndex, ImageManifest, Platform};
use crate::observer::Reporter;

/// Annotation with the tag or name of an entry in `index.json`. Nearly every tool writes it.
const REFERENCE_NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation with the full name of an entry in `index.json`. containerd and Docker write it.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// One image of a layout.
#[derive(Debug)]
pub struct OciLayout {
    files: LayoutFiles,
    reference: Option<String>,
    reporter: Reporter,
}

/// The files of a layout.
#[derive(Debug)]
enum LayoutFiles {
    Directory(PathBuf),
    Archive(TarArchive),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LayoutVersion {
    image_layout_version: String,
}

impl OciLayout {
    /// Opens a layout in a directory. Without a `reference` it must contain exactly one image.
    pub fn open(directory: &Path, reference: Option<&str>) -> Result<Self, SourceError> {
        let metadata = fs::metadata(directory);
        let metadata = metadata.map_err(|source| SourceError::Read { path: directory.to_owned(), source })?;
        if !metadata.is_dir() {
            let reason = "it is not a directory; use oci-archive: or docker-archive: for a tar file";
            return Err(SourceError::NotALayout { path: directory.to_owned(), reason });
        }
        Self::new(LayoutFiles::Directory(directory.to_owned()), reference)
    }

    /// Opens a layout in a tar file, which may be compressed with gzip or zstd.
    pub fn open_archive(file: &Path, reference: Option<&str>) -> Result<Self, SourceError> {
        Self::new(LayoutFiles::Archive(TarArchive::open(file)?), reference)
    }

    /// Returns the layout with an observer. Without it, messages are dropped.
    pub fn with_reporter(self, reporter: &Reporter) -> Self {
        Self { reporter: reporter.clone(), ..self }
    }

    fn new(files: LayoutFiles, reference: Option<&str>) -> Result<Self, SourceError> {
        let layout = Self { files, reference: reference.map(str::to_owned), reporter: Reporter::silent() };
        let LayoutVersion { image_layout_version: version } =
            document::parse(layout.path(), "oci-layout", &layout.read_named("oci-layout")?)?;
        if version == "1" || version.starts_with("1.") {
            Ok(layout)
        } else {
            Err(SourceError::LayoutVersion { path: layout.path().to_owned(), version })
        }
    }

    /// Reads `oci-layout` or `index.json`, which every layout must have.
    fn read_named(&self, name: &'static str) -> Result<Vec<u8>, SourceError> {
        match self.files.open(name)? {
            Some(blob) => document::read_bounded(self.path(), name, blob),
            None => {
                let reason = if self.files.open("manifest.json")?.is_some() {
                    "it has a manifest.json instead, as docker archives do; their tar files are docker-archive:FILE"
                } else if name == "oci-layout" {
                    "it has no file oci-layout"
                } else {
                    "it has no file index.json"
                };
                Err(SourceError::NotALayout { path: self.path().to_owned(), reason })
            }
        }
    }

    /// Returns the entries of `index.json` that match the reference, or all that may be images if there is no reference.
    fn entries(&self) -> Result<Vec<Descriptor>, SourceError> {
        let json = self.read_named("index.json")?;
        if document::kind(self.path(), "index.json", &json, "")? != DocumentKind::Index {
            let reason = "its index.json is not an index";
            return Err(SourceError::NotALayout { path: self.path().to_owned(), reason });
        }
        let ImageIndex { manifests, .. } = document::parse(self.path(), "index.json", &json)?;
        let Some(reference) = &self.reference else {
            return Ok(self.images_among(manifests));
        };
        let (mut selected_entries, others): (Vec<_>, Vec<_>) =
            manifests.into_iter().partition(|entry| is_named(entry, reference));
        if selected_entries.is_empty() {
            let (path, reference, names) = (self.path().to_owned(), reference.clone(), labels(&others));
            return Err(SourceError::UnknownReference { path, reference, names });
        }
        if selected_entries.len() > 1 {
            selected_entries = self.images_among(selected_entries);
        }
        Ok(selected_entries)
    }

    /// Returns the entries that may be images. Signatures and other artifacts may be listed beside an image, and only their
    /// manifests reveal that. If all entries are artifacts, all are returned, so that the error can name them.
    fn images_among(&self, mut entries: Vec<Descriptor>) -> Vec<Descriptor> {
        entries.retain(Descriptor::may_be_image);
        // With a single manifest there is nothing to choose, so it need not be read here.
        let is_one = entries.iter().all(|entry| entry.digest == entries[0].digest);
        let images: Vec<Descriptor> = if is_one {
            Vec::new()
        } else {
            entries.iter().filter(|entry| !self.is_artifact(entry)).cloned().collect()
        };
        if images.is_empty() { entries } else { images }
    }

    /// Returns whether an entry points to the manifest of an artifact; false if the manifest cannot be read.
    fn is_artifact(&self, entry: &Descriptor) -> bool {
        let Ok(document) = document::read_manifest(self, entry, "index.json") else { return false };
        let name = document.digest.to_string();
        match document::kind(self.path(), &name, &document.bytes, &entry.media_type) {
            Ok(DocumentKind::Manifest) => {
                let manifest = document::parse::<ImageManifest>(self.path(), &name, &document.bytes);
                manifest.is_ok_and(|manifest| {
                    let config = || document::read_verified(self, &manifest.config, &name);
                    manifest.non_image_type().is_some()
                        || config().is_ok_and(|config| manifest.non_image_type_with_config(&config.bytes).is_some())
                })
            }
            Err(SourceError::Artifact { .. }) => true,
            Ok(DocumentKind::Index) | Err(_) => false,
        }
    }
}

impl OciLayout {
    /// Returns the entries for the image, at least one, and whether all point to the same manifest or index. If they point to
    /// several, each is the image for another platform.
    fn selected_entries(&self) -> Result<(Vec<Descriptor>, bool), SourceError> {
        let entries = self.entries()?;
        let first = entries.first().ok_or_else(|| SourceError::NoImage { path: self.path().to_owned() })?;
        if entries.iter().all(|entry| entry.digest == first.digest) {
            Ok((entries, true))
        } else if are_one_image(&entries) {
            Ok((entries, false))
        } else {
            Err(SourceError::SeveralImages { path: self.path().to_owned(), names: labels(&entries) })
        }
    }
}

/// Returns the full names in the annotations of entries.
fn names(entries: &[Descriptor]) -> Vec<FullName> {
    let names = entries.iter().flat_map(|entry| [entry.annotation(CONTAINERD_NAME), reference_name(entry)]);
    full_names(names.flatten())
}

impl Source for OciLayout {
    fn resolve(&self, request: &PlatformRequest) -> Result<Image, SourceError> {
        let (entries, are_one) = self.selected_entries()?;
        let resolver = ImageResolver::new(self, request);
        let image =
            if are_one { resolver.resolve_entries(&entries)? } else { resolver.resolve_descriptors(&entries)? };
        Ok(Image { names: names(&entries), ..image })
    }

    fn resolve_each(&self, wanted: Option<&[Platform]>) -> Result<Vec<(Platform, Image)>, SourceError> {
        let (entries, are_one) = self.selected_entries()?;
        let request = PlatformRequest::new(None);
        let resolver = ImageResolver::new(self, &request);
        let images = match are_one {
            true => resolver.resolve_each_of_entries(&entries, wanted)?,
            false => resolver.resolve_each_of_descriptors(&entries, wanted)?,
        };
        let named = |(platform, image)| (platform, Image { names: names(&entries), ..image });
        Ok(images.into_iter().map(named).collect())
    }

    fn open_layer(&self, layer: &ImageLayer) -> Result<LayerBlob, SourceError> {
        Ok(LayerBlob::local(self.open_blob(&layer.digest)?.reader))
    }
}

impl Blobs for OciLayout {
    fn reporter(&self) -> &Reporter {
        &self.reporter
    }

    fn path(&self) -> &Path {
        match &self.files {
            LayoutFiles::Directory(directory) => directory,
            LayoutFiles::Archive(archive) => archive.path(),
        }
    }

    fn open_blob(&self, digest: &Digest) -> Result<Blob, SourceError> {
        let blob = self.files.open(&format!("blobs/sha256/{}", digest.hex()))?;
        blob.ok_or_else(|| {
            let path = match &self.files {
                LayoutFiles::Directory(directory) => directory.join("blobs/sha256").join(digest.hex()),
                LayoutFiles::Archive(archive) => archive.path().to_owned(),
            };
            SourceError::MissingBlob { digest: *digest, path }
        })
    }
}

impl LayoutFiles {
    /// Opens a file by its path in the layout. Returns `None` if it does not exist.
    fn open(&self, name: &str) -> Result<Option<Blob>, SourceError> {
        match self {
            Self::Directory(directory) => open_file(directory.join(name)),
            Self::Archive(archive) => {
                let member = archive.find(name)?;
                member.map(|member| archive.open_file(&member)).transpose()
            }
        }
    }
}

/// Opens a regular file. Returns `None` if it does not exist. The type is checked first, because opening a pipe would block.
fn open_file(path: PathBuf) -> Result<Option<Blob>, SourceError> {
    let opened = fs::metadata(&path).and_then(|metadata| match metadata.is_file() {
        true => File::open(&path).map(Some),
        false => Ok(None),
    });
    match opened {
        Ok(Some(file)) => {
            let size = file.metadata().map_err(|source| SourceError::Read { path, source })?.len();
            Ok(Some(Blob { size, reader: Box::new(file) }))
        }
        Ok(None) => Err(SourceError::NotAFile { path }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SourceError::Read { path, source }),
    }
}

fn reference_name(entry: &Descriptor) -> Option<&str> {
    entry.annotation(REFERENCE_NAME)
}

/// Returns whether the entries are one image for several platforms: they have the same name or none, and no platform twice.
///
/// Different names mean different images, because containers/image writes the platform of the current machine to each entry.
fn are_one_image(entries: &[Descriptor]) -> bool {
    let platforms: BTreeSet<_> = entries.iter().filter_map(Descriptor::platform).collect();
    platforms.len() == entries.len() && entries.iter().all(|entry| reference_name(entry) == reference_name(&entries[0]))
}

fn is_named(entry: &Descriptor, reference: &str) -> bool {
    [reference_name(entry), entry.annotation(CONTAINERD_NAME), Some(entry.digest.as_str())].contains(&Some(reference))
}

/// Returns a reference for each entry that may be an image.
fn labels(entries: &[Descriptor]) -> Vec<String> {
    entries
        .iter()
        .filter(|entry| entry.may_be_image())
        .map(|entry| reference_name(entry).or(entry.annotation(CONTAINERD_NAME)).unwrap_or(&entry.digest).to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::{Files, assert_source_contract, blob_name, gzip, named, on, read_layer, with, zstd};
    use super::*;

    /// Opens a layout in a directory that is deleted with the returned guard.
    fn open(files: &Files, reference: Option<&str>) -> (tempfile::TempDir, Result<OciLayout, SourceError>) {
        let directory = tempfile::tempdir().unwrap();
        files.write(directory.path());
        let layout = OciLayout::open(directory.path(), reference);
        (directory, layout)
    }

    fn resolve(files: &Files, reference: Option<&str>) -> Result<Image, SourceError> {
        let (_directory, layout) = open(files, reference);
        layout?.resolve(&PlatformRequest::new(Some("linux/amd64".parse().unwrap())))
    }

    fn layer_of(files: &Files, reference: Option<&str>) -> Digest {
        resolve(files, reference).unwrap().layers[0].digest
    }

    #[test]
    fn directory_and_archives_contain_the_same_image() {
        let mut files = Files::layout();
        let image = named(files.image("linux/amd64", &["lower", "upper"]), "h.org/a:1");
        let files = files.index(json!([image]));
        let (_directory, layout) = open(&files, None);
        let layout = layout.unwrap();
        let request = PlatformRequest::new(None);
        let expected = layout.resolve(&request).unwrap();
        assert_eq!(assert_source_contract(&layout, &expected), [b"lower", b"upper"]);
        assert_eq!(expected.names, ["h.org/a:1".parse().unwrap()]);
        let tar = files.tar();
        for bytes in [tar.clone(), gzip(&tar), zstd(&tar)] {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), bytes).unwrap();
            let archive = OciLayout::open_archive(file.path(), None).unwrap();
            let image = archive.resolve(&request).unwrap();
            assert_eq!(image, expected);
            assert_eq!(assert_source_contract(&archive, &image), [b"lower", b"upper"]);
        }
    }

    #[test]
    fn reference_is_a_name_or_a_digest() {
        let mut files = Files::layout();
        let containerd =
            json!({"io.containerd.image.name": "docker.io/library/b:2", "org.opencontainers.image.ref.name": "2"});
        let (a, b) = (files.image("linux/amd64", &["a"]), files.image("linux/amd64", &["b"]));
        let digest = a["digest"].as_str().unwrap().to_owned();
        let files = files.index(json!([named(a, "one"), with(b, "annotations", containerd)]));
        for reference in ["one", digest.as_str()] {
            assert_eq!(layer_of(&files, Some(reference)), Digest::of(b"a"), "{reference}");
        }
        for reference in ["2", "docker.io/library/b:2"] {
            assert_eq!(layer_of(&files, Some(reference)), Digest::of(b"b"), "{reference}");
        }
        assert_eq!(resolve(&files, Some("one")).unwrap().names, []);
        assert_eq!(resolve(&files, Some("2")).unwrap().names, ["docker.io/library/b:2".parse().unwrap()]);
    }

    #[test]
    fn unknown_reference_and_a_missing_one_list_the_names() {
        let mut files = Files::layout();
        let (a, b) = (files.image("linux/amd64", &["a"]), files.image("linux/amd64", &["b"]));
        let digest = b["digest"].as_str().unwrap().to_owned();
        let files = files.index(json!([named(a, "one"), b]));
        let expected = ["one".to_owned(), digest];
        for reference in [Some("two"), Some("blobs/../one"), None] {
            match resolve(&files, reference) {
                Err(SourceError::UnknownReference { names, .. } | SourceError::SeveralImages { names, .. }) => {
                    assert_eq!(names, expected);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn entries_of_one_image_are_chosen_by_platform() {
        for name in [None, Some("one")] {
            let mut files = Files::layout();
            let (arm, amd) = (files.image("linux/arm64", &["arm"]), files.image("linux/amd64", &["amd"]));
            let mut entries = [on(arm, "linux/arm64"), on(amd, "linux/amd64")];
            if let Some(name) = name {
                entries = entries.map(|entry| named(entry, name));
            }
            let files = files.index(json!(entries));
            assert_eq!(layer_of(&files, None), Digest::of(b"amd"));
            if name.is_some() {
                assert_eq!(layer_of(&files, name), Digest::of(b"amd"));
            }
            assert_eq!(resolve(&files, None).unwrap().index, None);
        }
    }

    #[test]
    fn two_images_for_one_platform_are_two_images() {
        let mut files = Files::layout();
        let entries = ["a", "b"].map(|layer| on(files.image("linux/amd64", &[layer]), "linux/amd64"));
        assert!(matches!(resolve(&files.index(json!(entries)), None), Err(SourceError::SeveralImages { .. })));
    }

    #[test]
    fn image_under_two_names_is_one_image() {
        let mut files = Files::layout();
        let image = files.image("linux/amd64", &["a"]);
        let files = files.index(json!([named(image.clone(), "h.org/a:1"), named(image, "h.org/a:latest")]));
        let names = resolve(&files, None).unwrap().names;
        assert_eq!(names, ["h.org/a:1".parse().unwrap(), "h.org/a:latest".parse().unwrap()]);
        assert_eq!(resolve(&files, Some("h.org/a:1")).unwrap().names, names[..1]);
    }

    #[test]
    fn short_name_of_docker_is_not_a_full_name() {
        let mut files = Files::layout();
        let image = named(files.image("linux/amd64", &["a"]), "bitnami/nginx:1");
        assert_eq!(resolve(&files.index(json!([image])), None).unwrap().names, []);
    }

    #[test]
    fn entries_of_other_media_types_are_ignored_unless_named() {
        let mut files = Files::layout();
        let image = files.image("linux/amd64", &["a"]);
        let xml = named(files.blob("application/xml", b"<x/>"), "xml");
        let files = files.index(json!([xml, image]));
        assert_eq!(layer_of(&files, None), Digest::of(b"a"));
        assert!(matches!(resolve(&files, Some("xml")), Err(SourceError::InvalidDocument { .. })));
        assert!(matches!(resolve(&Files::layout(), None), Err(SourceError::NoImage { .. })));
    }

    #[test]
    fn missing_layer_is_an_error_only_when_it_is_opened() {
        let mut files = Files::layout();
        let image = files.image("linux/amd64", &["gone", "there"]);
        let files = files.index(json!([image])).without(&blob_name(&Digest::of(b"gone")));
        let (directory, layout) = open(&files, None);
        let layout = layout.unwrap();
        let image = layout.resolve(&PlatformRequest::new(None)).unwrap();
        match read_layer(&layout, &image.layers[0]) {
            Err(SourceError::MissingBlob { digest, path }) => {
                assert_eq!((digest, path), (Digest::of(b"gone"), directory.path().join(blob_name(&digest))));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(read_layer(&layout, &image.layers[1]).unwrap(), b"there");
    }

    #[test]
    fn layer_that_is_a_directory_is_not_read() {
        let mut files = Files::layout();
        let image = files.image("linux/amd64", &["a"]);
        let name = blob_name(&Digest::of(b"a"));
        let files = files.index(json!([image])).without(&name).with(&format!("{name}/file"), "");
        let (_directory, layout) = open(&files, None);
        let layout = layout.unwrap();
        let image = layout.resolve(&PlatformRequest::new(None)).unwrap();
        assert!(matches!(read_layer(&layout, &image.layers[0]), Err(SourceError::NotAFile { .. })));
    }

    #[test]
    fn only_layouts_of_version_1_are_accepted() {
        let version = |json: &str| open(&Files::layout().with("oci-layout", json), None).1;
        for right in [r#"{"imageLayoutVersion":"1.0.0"}"#, r#"{"imageLayoutVersion":"1.1.0","more":1}"#] {
            assert!(version(right).is_ok(), "{right}");
        }
        for wrong in [r#"{"imageLayoutVersion":"2.0.0"}"#, r#"{"imageLayoutVersion":"10.0"}"#] {
            assert!(matches!(version(wrong), Err(SourceError::LayoutVersion { .. })), "{wrong}");
        }
        for wrong in ["", "{}", r#"{"imageLayoutVersion":1}"#] {
            assert!(matches!(version(wrong), Err(SourceError::InvalidDocument { .. })), "{wrong}");
        }
    }

    #[test]
    fn error_for_another_format_names_it() {
        let reason = |files: Files| match open(&files, None).1.and_then(|layout| layout.entries().map(drop)) {
            Err(SourceError::NotALayout { reason, .. }) => reason,
            other => panic!("{other:?}"),
        };
        assert_eq!(reason(Files::layout().without("oci-layout")), "it has no file oci-layout");
        assert_eq!(reason(Files::layout().without("index.json")), "it has no file index.json");
        assert!(reason(Files::docker(json!([]))).contains("docker-archive:"));
        assert!(reason(Files::layout().with("index.json", r#"{"layers":[]}"#)).contains("index"));
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(OciLayout::open(file.path(), None), Err(SourceError::NotALayout { .. })));
        assert!(matches!(OciLayout::open(Path::new("/nonexistent"), None), Err(SourceError::Read { .. })));
    }
}
