//! Pushes thin images after the images to which they refer were published.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use rayon::prelude::*;

use super::{ImageState, SyncError, SyncReport};
use crate::consumer::thin::thin_image;
use crate::directory::RepositoryDirectory;
use crate::image::{Digest, ImageConfig, ImageManifest, ImageName, ImageReference, MAX_DOCUMENT_SIZE};
use crate::layout::{self, ImagePlace};
use crate::message::causes;
use crate::registry::{ImageUpload, PushOutcome, Registries, Transport};
use crate::repository::{Repository, RepositoryError};
use crate::source::ImageArgument;
use crate::threads;
use crate::wishlist::{OutputFormat, ThinImages, WantedImage};

/// Maximum number of images that are pushed at the same time. The limit of connections to one registry applies in addition.
const MAX_PARALLEL_PUSHES: usize = 16;

/// Result of pushing a thin image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ThinState {
    /// It was pushed.
    Pushed,
    /// The registry had it before.
    Unchanged,
    /// It cannot be created or has no valid name, for this reason.
    LeftOut(String),
    /// It could not be pushed, for this reason.
    Failed(String),
}

/// The result for one thin image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThinOutcome {
    /// The published image to which it refers.
    pub image: ImageName,
    /// Name of the thin image according to the recipe. The name may be invalid.
    pub name: String,
    /// Its result.
    pub state: ThinState,
}

/// A thin image to push.
struct ThinUpload<'a> {
    image: &'a WantedImage,
    name: ImageName,
    transport: Transport,
}

/// Pushes the thin images of all published images in the report of a round, if their registry does not have them yet.
///
/// Images that another program published get no thin image, because the repository lacks their manifest and config.
pub fn push_thin_images(
    directory: &RepositoryDirectory,
    thin: &ThinImages,
    report: &SyncReport,
) -> Result<Vec<ThinOutcome>, SyncError> {
    let settings = directory.settings().registries_in(directory.path());
    // The password is sent only to the registry in the recipe's output format, never to the registries of its images.
    let login = thin.format.host().zip(thin.user.as_deref());
    let registries =
        Registries::for_pushing(settings, &|name| std::env::var_os(name), login)?.with_reporter(directory.reporter());
    let head = Repository::open(directory.store()?, directory.name())?;
    let (mut outcomes, mut uploads) = (Vec::new(), Vec::new());
    let mut taken: HashMap<String, &ImageName> = HashMap::new();
    for (image, _) in
        report.images.iter().filter(|(_, state)| !matches!(state, ImageState::Failed(_) | ImageState::Artifact(_)))
    {
        let text = thin.format.thin_name(&image.argument).unwrap_or_default().trim().to_owned();
        let left_out =
            |reason| ThinOutcome { image: image.name().clone(), name: text.clone(), state: ThinState::LeftOut(reason) };
        match destination(&text, &thin.format) {
            Ok((name, _)) if report.images.iter().any(|(image, _)| *image.name() == name) => {
                outcomes.push(left_out("it would replace an image of the recipe".to_owned()));
            }
            // With a template without `$(tag)`, several images would have the same thin image.
            Ok((name, transport)) => match taken.entry(name.to_string()) {
                Entry::Occupied(other) => {
                    outcomes.push(left_out(format!("the thin image of '{}' has the same name", other.get())));
                }
                Entry::Vacant(entry) => {
                    entry.insert(image.name());
                    uploads.push(ThinUpload { image, name, transport });
                }
            },
            Err(reason) => outcomes.push(left_out(reason)),
        }
    }
    let pool = threads::waiting_pool(MAX_PARALLEL_PUSHES.min(uploads.len()), directory.reporter())?;
    let pushed: Vec<_> =
        pool.install(|| uploads.par_iter().filter_map(|upload| upload.push(&head, &registries)).collect());
    outcomes.extend(pushed);
    Ok(outcomes)
}

/// Returns the destination of a thin image with this name.
///
/// If the output format contains the registry, it also determines the transport. Otherwise the transport is that of the image.
fn destination(text: &str, format: &OutputFormat) -> Result<(ImageName, Transport), String> {
    match text.parse() {
        Ok(ImageArgument::Registry { name, plain_http, .. }) => match name.reference() {
            ImageReference::Tag(_) => {
                let is_plain = if format.host().is_some() { format.is_plain() } else { plain_http };
                Ok((name, Transport::of(is_plain)))
            }
            ImageReference::Digest(_) => {
                Err("its name contains the digest of another image instead of a tag".to_owned())
            }
        },
        Ok(_) => Err("its name does not refer to a registry".to_owned()),
        Err(error) => Err(causes(&error)),
    }
}

impl ThinUpload<'_> {
    /// Pushes the image. Returns `None` if another program published the image to which it refers.
    fn push(&self, head: &Repository, registries: &Registries) -> Option<ThinOutcome> {
        let state = match self.prepare(head) {
            Err(error) => ThinState::Failed(causes(&error)),
            Ok(PreparedImage::NotOurs) => return None,
            Ok(PreparedImage::LeftOut(reason)) => ThinState::LeftOut(reason.to_owned()),
            Ok(PreparedImage::Image(image)) => match registries.push(&self.name, self.transport, &image) {
                Ok(PushOutcome::Pushed) => ThinState::Pushed,
                Ok(PushOutcome::AlreadyPresent) => ThinState::Unchanged,
                Err(error) => ThinState::Failed(format!("cannot push '{}': {}", self.name, causes(&error))),
            },
        };
        Some(ThinOutcome { image: self.image.name().clone(), name: self.name.to_string(), state })
    }

    fn prepare(&self, head: &Repository) -> Result<PreparedImage, RepositoryError> {
        let directory = ImagePlace { name: self.image.name().clone(), platform: None }.metadata();
        let read = |name: &[u8]| head.read(&directory.join(name), MAX_DOCUMENT_SIZE);
        let (Some(manifest), Some(config)) = (read(b"manifest.json")?, read(b"config.json")?) else {
            return Ok(PreparedImage::NotOurs);
        };
        let (Some(layers), Ok(config)) = (layers(&manifest), ImageConfig::parse(&config)) else {
            return Ok(PreparedImage::LeftOut("its published manifest or config cannot be read"));
        };
        for &layer in &layers {
            if head.get(&layout::layer_root(layer))?.is_none() {
                return Ok(PreparedImage::LeftOut("its layers are not published"));
            }
        }
        let repository = &head.manifest().name;
        Ok(PreparedImage::Image(thin_image(repository, &self.image.argument, &layers, &config)))
    }
}

/// A thin image that was created, or the reason why it was not.
enum PreparedImage {
    Image(ImageUpload),
    /// Another program published the image to which it would refer.
    NotOurs,
    /// The published image is incomplete, for this reason.
    LeftOut(&'static str),
}

fn layers(manifest: &[u8]) -> Option<Vec<Digest>> {
    let manifest: ImageManifest = serde_json::from_slice(manifest).ok()?;
    manifest.layers.iter().map(|layer| layer.digest.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destination_must_be_a_tag_at_a_registry() {
        let digest = Digest::of(b"");
        let destination = |text: &str| destination(text, &OutputFormat::default());
        let (name, transport) = destination("http://h.org:5000/thin/a:1").unwrap();
        assert_eq!((name.to_string().as_str(), transport), ("h.org:5000/thin/a:1", Transport::Plain));
        let (name, transport) = destination(&format!("https://h.org/a:1@{digest}")).unwrap();
        assert_eq!((name.to_string().as_str(), transport), ("h.org/a:1", Transport::Secure));
        for wrong in [&format!("https://h.org/a@{digest}"), "https://h.org/a_thin:", "", "oci:dir", "h.org/a"] {
            assert!(destination(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn scheme_in_the_output_format_determines_the_transport() {
        for (format, expected) in [
            ("$(scheme)://r.org/$(image)", Transport::Secure),
            ("https://r.org/$(image)", Transport::Secure),
            ("http://r.org/$(image)", Transport::Plain),
        ] {
            let format = OutputFormat::new(format);
            let name = format.thin_name(&"http://h.org/a:1".parse().unwrap()).unwrap();
            let (name, transport) = destination(&name, &format).unwrap();
            assert_eq!((name.to_string().as_str(), transport), ("r.org/a:1", expected));
        }
    }
}
