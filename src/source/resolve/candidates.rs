//! Selects the image of an index that suits a platform best. The result does not depend on the order of the index.

use std::cmp::Ordering;

use super::super::Image;
use super::super::error::SourceError;
use super::{ImageResolver, MAX_DEPTH, MAX_DOCUMENTS};
use crate::image::{Descriptor, DocumentKind, Platform};
use crate::message::quoted;

/// Annotation of containers/image for a copy of another image in the same index with another compression.
const RECOMPRESSED: &str = "io.github.containers.compression.zstd";

/// An entry of an index that may be an image.
pub(super) struct Candidate {
    descriptor: Descriptor,
    /// Platform according to the index, or else to the config.
    pub(super) platform: Platform,
    image: CandidateImage,
}

enum CandidateImage {
    Unread,
    Image(Box<Image>),
    /// The manifest has been read and is not that of an image.
    Artifact,
}

impl Candidate {
    /// Compares two candidates that suit equally well, so that the result does not depend on the order of the index.
    ///
    /// Images that every runtime accepts come first, then those whose platform is written as requested, then those without a
    /// variant.
    fn compare(&self, other: &Self, asked: &Platform) -> Ordering {
        let key = |candidate: &Self| {
            let (descriptor, platform) = (&candidate.descriptor, &candidate.descriptor.platform);
            (
                platform.needs_os_features || platform.needs_features,
                descriptor.annotation(RECOMPRESSED).is_some(),
                descriptor.non_image_type().is_some(),
                candidate.platform != *asked,
                candidate.platform.variant.clone(),
                descriptor.digest.clone(),
            )
        };
        key(self).cmp(&key(other))
    }

    /// Returns the image, if it has been read.
    pub(super) fn into_image(self) -> Option<(Platform, Image)> {
        match self.image {
            CandidateImage::Image(image) => Some((self.platform, *image)),
            CandidateImage::Unread | CandidateImage::Artifact => None,
        }
    }
}

/// Returns the indexes of the candidates that suit a platform, best first.
pub(super) fn by_suitability(candidates: &[Candidate], asked: &Platform) -> Vec<usize> {
    let suits = |(place, candidate): (usize, &Candidate)| Some((asked.suits(&candidate.platform)?, place));
    let mut suitable: Vec<_> = candidates.iter().enumerate().filter_map(suits).collect();
    suitable
        .sort_by(|(one, a), (other, b)| one.cmp(other).then_with(|| candidates[*a].compare(&candidates[*b], asked)));
    suitable.into_iter().map(|(_, place)| place).collect()
}

/// Returns whether a platform is requested.
type PlatformFilter<'a> = &'a dyn Fn(&Platform) -> bool;

impl ImageResolver<'_> {
    /// Finds the image that suits the platform best. `depth` is the number of indexes above `descriptors`.
    pub(super) fn choose(&mut self, descriptors: &[Descriptor], depth: usize) -> Result<Image, SourceError> {
        let asked = self.request.platform.clone();
        let wanted: PlatformFilter<'_> = &|offered| asked.accepts(offered);
        let mut candidates = Vec::new();
        self.gather_named(descriptors, wanted, &mut candidates);
        // An exact match that the index states makes it unnecessary to read entries without a platform.
        let mut exact = by_suitability(&candidates, &asked);
        exact.retain(|&place| candidates[place].platform.is_same_as(&asked));
        let mut best = self.first_image(&mut candidates, &exact)?;
        if best.is_none() {
            self.gather_others(descriptors, depth, wanted, &mut candidates)?;
            let suitable = by_suitability(&candidates, &asked);
            best = self.first_image(&mut candidates, &suitable)?;
        }
        let image = best.and_then(|place| candidates.swap_remove(place).into_image());
        image.map(|(_, image)| image).ok_or_else(|| self.nothing_for(&asked))
    }

    /// Returns the first of `places` (indexes into `candidates`) whose candidate is an image.
    pub(super) fn first_image(
        &mut self,
        candidates: &mut [Candidate],
        places: &[usize],
    ) -> Result<Option<usize>, SourceError> {
        for &place in places {
            if self.is_image(&mut candidates[place])? {
                return Ok(Some(place));
            }
        }
        Ok(None)
    }

    /// Returns all candidates for requested platforms, in the order of the index.
    pub(super) fn gather(
        &mut self,
        descriptors: &[Descriptor],
        depth: usize,
        wanted: PlatformFilter<'_>,
    ) -> Result<Vec<Candidate>, SourceError> {
        let mut candidates = Vec::new();
        for descriptor in descriptors {
            let descriptor = std::slice::from_ref(descriptor);
            self.gather_named(descriptor, wanted, &mut candidates);
            self.gather_others(descriptor, depth, wanted, &mut candidates)?;
            if candidates.len() > MAX_DOCUMENTS {
                return Err(SourceError::TooManyDocuments { limit: MAX_DOCUMENTS });
            }
        }
        Ok(candidates)
    }

    /// Adds the entries whose platform the index states. Their manifests are not read.
    fn gather_named(
        &mut self,
        descriptors: &[Descriptor],
        wanted: PlatformFilter<'_>,
        candidates: &mut Vec<Candidate>,
    ) {
        for descriptor in descriptors {
            if !descriptor.may_be_image() {
                self.note_artifact(descriptor);
            } else if let Some(platform) = descriptor.platform().filter(|_| is_manifest(descriptor)) {
                self.note(&platform);
                if wanted(&platform) {
                    candidates.push(Candidate {
                        descriptor: descriptor.clone(),
                        platform,
                        image: CandidateImage::Unread,
                    });
                }
            }
        }
    }

    /// Adds the images whose platform is known only from their configs, and those in nested indexes.
    fn gather_others(
        &mut self,
        descriptors: &[Descriptor],
        depth: usize,
        wanted: PlatformFilter<'_>,
        candidates: &mut Vec<Candidate>,
    ) -> Result<(), SourceError> {
        for descriptor in descriptors.iter().filter(|descriptor| descriptor.may_be_image()) {
            let named = descriptor.platform();
            if named.is_some() && is_manifest(descriptor) {
                continue;
            }
            if let Some(platform) = named.as_ref().filter(|platform| !wanted(platform)) {
                self.note(platform);
                continue;
            }
            let read = self.read(descriptor);
            let Some((document, kind)) = self.unless_artifact(read)? else { continue };
            if kind == DocumentKind::Index {
                if depth == MAX_DEPTH {
                    return Err(SourceError::NestedTooDeep { digest: document.digest, limit: MAX_DEPTH });
                }
                let index = self.index(&document)?;
                self.note_if_empty(document.digest, &index);
                candidates.extend(self.gather(&index.manifests, depth + 1, wanted)?);
                continue;
            }
            let image = self.image(document);
            let Some(image) = self.unless_artifact(image)? else { continue };
            let Some(platform) = named.or_else(|| image.platform.clone()) else { continue };
            self.note(&platform);
            if wanted(&platform) {
                let image = CandidateImage::Image(Box::new(self.named_by_index(&platform, image)));
                candidates.push(Candidate { descriptor: descriptor.clone(), platform, image });
            }
        }
        Ok(())
    }

    /// Records an artifact and returns `None` for it. Returns other results unchanged.
    fn unless_artifact<T>(&mut self, result: Result<T, SourceError>) -> Result<Option<T>, SourceError> {
        match result {
            Err(SourceError::Artifact { manifest, artifact_type }) => {
                self.artifact.get_or_insert((manifest, artifact_type));
                Ok(None)
            }
            result => result.map(Some),
        }
    }

    /// Reads a candidate unless it has been read, and returns whether it is an image.
    fn is_image(&mut self, candidate: &mut Candidate) -> Result<bool, SourceError> {
        if let CandidateImage::Unread = candidate.image {
            let (document, _) = self.read(&candidate.descriptor)?;
            candidate.image = match self.image(document) {
                Ok(image) => CandidateImage::Image(Box::new(self.named_by_index(&candidate.platform, image))),
                Err(SourceError::Artifact { manifest, artifact_type }) => {
                    self.wanted_artifact.get_or_insert((manifest, artifact_type));
                    self.offered.retain(|offered| *offered != candidate.platform);
                    CandidateImage::Artifact
                }
                Err(error) => return Err(error),
            };
        }
        Ok(matches!(candidate.image, CandidateImage::Image(_)))
    }

    /// Sets the platform of an image to that in the index. Reports a warning if the config contradicts it.
    fn named_by_index(&self, named: &Platform, image: Image) -> Image {
        if let Some(config) = image.platform.as_ref().filter(|config| named.is_contradicted_by(config)) {
            let (path, digest) = (self.blobs.path().display(), image.manifest.digest);
            let (named, config) = (quoted(&named.to_string()), quoted(&config.to_string()));
            self.blobs.reporter().warn(format_args!(
                "{path}: according to the index, {digest} is for {named}, but according to its config for {config}"
            ));
        }
        Image { platform: Some(named.clone()), ..image }
    }
}

/// Returns whether the media type of an entry is that of a manifest.
fn is_manifest(descriptor: &Descriptor) -> bool {
    DocumentKind::of_media_type(&descriptor.media_type) == Some(DocumentKind::Manifest)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::super::testing::{CONFIG, Files, MANIFEST, config, on, with};
    use super::super::super::{OciLayout, PlatformRequest, Source};
    use super::*;
    use crate::image::Digest;

    /// Resolves the image of an index of `manifests` for a platform. A question mark before it means that the user did not
    /// request it.
    fn resolve(files: &Files, manifests: &[Value], platform: &str) -> Result<Image, SourceError> {
        let mut files = files.clone();
        let index = files.nested(json!(manifests));
        let directory = tempfile::tempdir().unwrap();
        files.index(json!([index])).write(directory.path());
        let explicit = !platform.starts_with('?');
        let platform = platform.trim_start_matches('?').parse().unwrap();
        OciLayout::open(directory.path(), None)?.resolve(&PlatformRequest { platform, explicit })
    }

    /// Returns the platforms and layers of the images that are published side by side, sorted.
    fn all(files: &Files, manifests: &[Value], wanted: Option<&[Platform]>) -> Result<Vec<String>, SourceError> {
        let mut files = files.clone();
        let index = files.nested(json!(manifests));
        let directory = tempfile::tempdir().unwrap();
        files.index(json!([index])).write(directory.path());
        let images = OciLayout::open(directory.path(), None)?.resolve_each(wanted)?;
        let text = |(platform, image): (Platform, Image)| format!("{platform} {}", name_of(&image));
        let mut texts: Vec<String> = images.into_iter().map(text).collect();
        texts.sort();
        Ok(texts)
    }

    /// Returns the name of an image, which is the content of its only layer.
    fn name_of(image: &Image) -> String {
        let names = ["plain", "v1", "v2", "v3", "v5", "v6", "v7", "v8", "arm64", "needy", "packed", "typed", "nested"];
        let is_of_image = |name: &&&str| image.layers[0].digest == Digest::of(name.as_bytes());
        names.iter().find(is_of_image).copied().unwrap_or("other").to_owned()
    }

    /// Returns images named after their variants. Their platforms are in the index, or with `in_config` only in their configs.
    fn variants(architecture: &str, names: &[&str], in_config: bool) -> (Files, Vec<Value>) {
        let mut files = Files::layout();
        let mut entries = Vec::new();
        for name in names {
            let variant = if *name == "plain" { String::new() } else { format!("/{name}") };
            let platform = format!("linux/{architecture}{variant}");
            let entry = files.image(&platform, &[name]);
            entries.push(if in_config { entry } else { on(entry, &platform) });
        }
        (files, entries)
    }

    /// Calls `check` with all permutations of the entries.
    fn in_every_order(entries: &[Value], check: &mut dyn FnMut(&[Value])) {
        fn go(chosen: &mut Vec<Value>, rest: &[Value], check: &mut dyn FnMut(&[Value])) {
            if rest.is_empty() {
                check(chosen);
            }
            for place in 0..rest.len() {
                let mut rest = rest.to_vec();
                chosen.push(rest.remove(place));
                go(chosen, &rest, check);
                chosen.pop();
            }
        }
        go(&mut Vec::new(), entries, check);
    }

    #[test]
    fn best_variant_is_chosen_for_any_order_of_the_index() {
        for (architecture, there, asked, expected) in [
            ("amd64", &["v3", "v2", "plain"][..], "?linux/amd64", "plain"),
            ("amd64", &["v3", "v2", "plain"], "linux/amd64", "plain"),
            ("amd64", &["v3", "v2", "plain"], "linux/amd64/v1", "plain"),
            ("amd64", &["v3", "v2", "v1"], "linux/amd64", "v1"),
            ("amd64", &["v1", "plain", "v2"], "linux/amd64", "plain"),
            ("amd64", &["v1", "plain", "v2"], "linux/amd64/v1", "v1"),
            ("amd64", &["v3", "v2", "plain"], "linux/amd64/v3", "v3"),
            ("amd64", &["plain", "v2"], "linux/amd64/v3", "v2"),
            ("amd64", &["plain"], "linux/amd64/v3", "plain"),
            ("arm", &["v8", "v7", "v6"], "linux/arm", "v7"),
            ("arm", &["v8", "v7", "v6"], "linux/arm/v8", "v8"),
            ("arm", &["v8", "v7", "v6"], "linux/arm/v6", "v6"),
            ("arm", &["v8", "v6", "v5"], "linux/arm/v7", "v6"),
            ("arm", &["plain", "v6"], "linux/arm", "plain"),
            ("arm", &["plain", "v6"], "linux/arm/v6", "v6"),
            ("arm64", &["v8"], "linux/arm64", "v8"),
            ("arm64", &["plain"], "linux/arm64/v8", "plain"),
        ] {
            for in_config in [false, true] {
                let (files, entries) = variants(architecture, there, in_config);
                in_every_order(&entries, &mut |entries| {
                    let image = resolve(&files, entries, asked).unwrap();
                    assert_eq!(name_of(&image), expected, "{there:?} for {asked} in {in_config}");
                });
            }
        }
    }

    #[test]
    fn variant_must_be_requested_if_there_are_only_higher_ones() {
        for (architecture, there) in [("amd64", &["v3", "v2"][..]), ("arm", &["v8"])] {
            let (files, entries) = variants(architecture, there, false);
            for asked in [format!("linux/{architecture}"), format!("?linux/{architecture}")] {
                let error = resolve(&files, &entries, &asked).unwrap_err();
                assert!(matches!(error, SourceError::VariantNeeded { .. }), "{error}");
                assert!(there.iter().all(|variant| error.to_string().contains(&format!("{architecture}/{variant}"))));
            }
            let named = format!("linux/{architecture}/{}", there[0]);
            assert_eq!(name_of(&resolve(&files, &entries, &named).unwrap()), there[0]);
        }
        let (files, entries) = variants("arm", &["v7", "v8"], false);
        assert!(matches!(resolve(&files, &entries, "linux/arm/v6"), Err(SourceError::NoSuchPlatform { .. })));
        assert!(matches!(resolve(&files, &entries, "linux/arm64"), Err(SourceError::NoSuchPlatform { .. })));
    }

    #[test]
    fn image_in_a_nested_index_is_compared_with_the_others() {
        let (mut files, mut entries) = variants("amd64", &["v3", "v2"], false);
        let plain = on(files.image("linux/amd64", &["nested"]), "linux/amd64");
        entries.push(files.nested(json!([plain])));
        in_every_order(&entries, &mut |entries| {
            assert_eq!(name_of(&resolve(&files, entries, "linux/amd64").unwrap()), "nested");
            assert_eq!(name_of(&resolve(&files, entries, "linux/amd64/v3").unwrap()), "v3");
        });
    }

    #[test]
    fn image_that_every_runtime_accepts_is_preferred_for_one_platform() {
        let (mut files, mut entries) = variants("amd64", &["plain"], false);
        let mut needy = on(files.image("linux/amd64", &["needy"]), "linux/amd64");
        needy["platform"]["os.features"] = json!(["nydus.remoteimage.v1"]);
        let packed = on(files.image("linux/amd64", &["packed"]), "linux/amd64");
        entries.push(with(packed, "annotations", json!({ RECOMPRESSED: "true" })));
        let typed = on(files.image("linux/amd64", &["typed"]), "linux/amd64");
        entries.extend([needy.clone(), with(typed, "artifactType", json!("application/vnd.example"))]);
        in_every_order(&entries, &mut |entries| {
            assert_eq!(name_of(&resolve(&files, entries, "linux/amd64").unwrap()), "plain");
            assert_eq!(all(&files, entries, None).unwrap(), ["linux/amd64 plain"]);
        });
        assert_eq!(name_of(&resolve(&files, &[needy], "linux/amd64").unwrap()), "needy");
        let twins = ["plain", "v1"].map(|name| on(files.image("linux/amd64", &[name]), "linux/amd64"));
        let chosen = name_of(&resolve(&files, &twins, "linux/amd64").unwrap());
        let [one, other] = twins;
        assert_eq!(name_of(&resolve(&files, &[other, one], "linux/amd64").unwrap()), chosen);
    }

    #[test]
    fn artifacts_in_an_index_are_skipped_even_with_a_platform() {
        let (mut files, mut entries) = variants("amd64", &["plain"], false);
        let image = entries[0].clone();
        let signature = |files: &mut Files, name: &str| {
            let config = files.blob(CONFIG, config("linux/amd64", &[name]).to_string().as_bytes());
            let layer = files.blob("application/vnd.dev.cosign.simplesigning.v1+json", name.as_bytes());
            files.json(MANIFEST, &json!({"schemaVersion": 2, "config": config, "layers": [layer]}))
        };
        entries.push(on(signature(&mut files, "named"), "linux/amd64/v1"));
        entries.push(signature(&mut files, "unnamed"));
        let mut attestation = on(files.image("linux/amd64", &["attestation"]), "linux/amd64");
        attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
        entries.push(attestation);
        in_every_order(&entries, &mut |entries| {
            for asked in ["linux/amd64", "linux/amd64/v1"] {
                assert_eq!(name_of(&resolve(&files, entries, asked).unwrap()), "plain");
            }
            assert_eq!(all(&files, entries, None).unwrap(), ["linux/amd64 plain"]);
        });
        entries.retain(|entry| *entry != image);
        for asked in ["linux/amd64", "linux/amd64/v3"] {
            let result = resolve(&files, &entries, asked);
            assert!(matches!(result, Err(SourceError::Artifact { .. })), "{result:?}");
        }
        assert!(matches!(all(&files, &entries, None), Err(SourceError::Artifact { .. })));
        let wasm = on(files.image("wasi/wasm", &["other"]), "wasi/wasm");
        assert!(matches!(
            resolve(&files, std::slice::from_ref(&wasm), "linux/amd64"),
            Err(SourceError::Artifact { .. })
        ));
        assert!(resolve(&files, &[wasm], "wasi/wasm").is_ok());
    }

    #[test]
    fn best_image_for_each_platform_is_published_side_by_side() {
        let (files, entries) = variants("amd64", &["v3", "v2", "plain", "v1"], false);
        in_every_order(&entries, &mut |entries| {
            assert_eq!(
                all(&files, entries, None).unwrap(),
                ["linux/amd64 plain", "linux/amd64/v2 v2", "linux/amd64/v3 v3"]
            );
            let wanted = ["linux/amd64/v4", "linux/amd64/v1"].map(|text| text.parse().unwrap());
            let both = all(&files, entries, Some(&wanted)).unwrap();
            assert_eq!(both, ["linux/amd64 v1", "linux/amd64/v3 v3"]);
        });
        // The public link of an image with several platforms points to the directory `amd64`.
        let (files, entries) = variants("amd64", &["v1"], false);
        assert_eq!(all(&files, &entries, None).unwrap(), ["linux/amd64 v1"]);
        let (files, entries) = variants("amd64", &["v2"], false);
        let wanted = ["linux/amd64".parse().unwrap(), "linux/amd64/v2".parse().unwrap()];
        assert!(matches!(all(&files, &entries, Some(&wanted)), Err(SourceError::VariantNeeded { .. })));
    }

    #[test]
    fn platform_of_the_index_is_that_of_the_image() {
        let mut files = Files::layout();
        let entry = on(files.image("linux/amd64", &["other"]), "linux/arm64");
        let image = resolve(&files, &[entry], "linux/arm64").unwrap();
        assert_eq!(image.platform, Some("linux/arm64".parse().unwrap()));
        let (files, entries) = variants("arm", &["v6"], true);
        let image = resolve(&files, &entries, "linux/arm").unwrap();
        assert_eq!(image.platform, Some("linux/arm/v6".parse().unwrap()));
    }
}
