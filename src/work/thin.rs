//! Thin images, pushed once the images are out that they lead to.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use rayon::prelude::*;

use super::{ImageState, SyncError, SyncReport};
use crate::consumer::thin::thin_image;
use crate::directory::RepositoryDirectory;
use crate::image::{Digest, ImageConfig, ImageManifest, ImageName, ImageReference, MAX_DOCUMENT_SIZE};
use crate::layout::{self, ImagePlace};
use crate::message::causes;
use crate::registry::{ImageUpload, PushOutcome, Registries, RegistryError, Transport};
use crate::repository::{Repository, RepositoryError};
use crate::source::ImageArgument;
use crate::threads;
use crate::wishlist::{OutputFormat, ThinImages, WantedImage};

/// So many are pushed at a time; how many to one registry, its own limit says.
const AT_ONCE: usize = 16;

/// What became of a thin image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ThinState {
    /// Its registry has it now.
    Pushed,
    /// Its registry had it.
    Unchanged,
    /// There is none, for this reason.
    LeftOut(String),
    /// It could not be pushed.
    Failed(String),
}

/// One thin image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThinOutcome {
    /// The image that it leads to.
    pub image: ImageName,
    /// Its own name, as far as the recipe gives it one.
    pub name: String,
    /// What became of it.
    pub state: ThinState,
}

/// A thin image to be pushed.
struct Work<'a> {
    image: &'a WantedImage,
    name: ImageName,
    transport: Transport,
}

/// Pushes the thin image of every image that a round left published, where its registry does not have it yet.
///
/// Of an image that another program published there is none: nothing here says how it is run.
pub fn push_thin_images(
    directory: &RepositoryDirectory,
    thin: &ThinImages,
    report: &SyncReport,
) -> Result<Vec<ThinOutcome>, SyncError> {
    let settings = directory.settings().registries_in(directory.path());
    // The password is for the registry that the recipe names, never for those that its images come from.
    let login = thin.format.host().zip(thin.user.as_deref());
    let registries =
        Registries::for_pushing(settings, &|name| std::env::var_os(name), login)?.with_reporter(directory.reporter());
    let head = Repository::open(&directory.store()?, directory.name())?;
    let (mut outcomes, mut works) = (Vec::new(), Vec::new());
    let mut taken: HashMap<String, &ImageName> = HashMap::new();
    for (image, _) in
        report.images.iter().filter(|(_, state)| !matches!(state, ImageState::Failed(_) | ImageState::Artifact(_)))
    {
        let text = thin.format.thin_name(&image.argument).unwrap_or_default().trim().to_owned();
        let left_out =
            |reason| ThinOutcome { image: image.name().clone(), name: text.clone(), state: ThinState::LeftOut(reason) };
        match place(&text, &thin.format) {
            Ok((name, _)) if report.images.iter().any(|(image, _)| *image.name() == name) => {
                outcomes.push(left_out("it would replace an image of the recipe".to_owned()));
            }
            Ok((name, transport)) => match taken.entry(name.to_string()) {
                Entry::Occupied(other) => {
                    outcomes.push(left_out(format!("that of '{}' has the same name", other.get())));
                }
                Entry::Vacant(entry) => {
                    entry.insert(image.name());
                    works.push(Work { image, name, transport });
                }
            },
            Err(reason) => outcomes.push(left_out(reason)),
        }
    }
    let pool = threads::waiting_pool(AT_ONCE.min(works.len()), directory.reporter())?;
    let pushed: Vec<_> = pool.install(|| works.par_iter().filter_map(|work| work.push(&head, &registries)).collect());
    outcomes.extend(pushed);
    Ok(outcomes)
}

/// Returns where a thin image goes that a recipe gives this name.
///
/// How an image was read says nothing of a registry that the recipe names itself.
fn place(text: &str, format: &OutputFormat) -> Result<(ImageName, Transport), String> {
    match text.parse() {
        Ok(ImageArgument::Registry { name, plain_http, .. }) => match name.reference() {
            ImageReference::Tag(_) => {
                let is_plain = if format.host().is_some() { format.is_plain() } else { plain_http };
                Ok((name, Transport::of(is_plain)))
            }
            ImageReference::Digest(_) => Err("it would have the digest of another image for a name".to_owned()),
        },
        Ok(_) => Err("its name is none at a registry".to_owned()),
        Err(error) => Err(causes(&error)),
    }
}

impl Work<'_> {
    /// Pushes it; nothing where there is nothing to push.
    fn push(&self, head: &Repository, registries: &Registries) -> Option<ThinOutcome> {
        let state = match self.make(head) {
            Err(error) => ThinState::Failed(causes(&error)),
            Ok(Made::Nothing) => return None,
            Ok(Made::LeftOut(reason)) => ThinState::LeftOut(reason.to_owned()),
            Ok(Made::Image(image)) => match registries.push(&self.name, self.transport, &image) {
                Ok(PushOutcome::Pushed) => ThinState::Pushed,
                Ok(PushOutcome::AlreadyPresent) => ThinState::Unchanged,
                Err(error) => ThinState::Failed(self.told(&error)),
            },
        };
        Some(ThinOutcome { image: self.image.name().clone(), name: self.name.to_string(), state })
    }

    fn told(&self, error: &RegistryError) -> String {
        format!("cannot push '{}': {}", self.name, causes(error))
    }

    fn make(&self, head: &Repository) -> Result<Made, RepositoryError> {
        let directory = ImagePlace { name: self.image.name().clone(), platform: None }.metadata();
        let read = |name: &[u8]| head.read(&directory.join(name), MAX_DOCUMENT_SIZE);
        let (Some(manifest), Some(config)) = (read(b"manifest.json")?, read(b"config.json")?) else {
            return Ok(Made::Nothing);
        };
        let (Some(layers), Ok(config)) = (layers(&manifest), ImageConfig::parse(&config)) else {
            return Ok(Made::LeftOut("its published manifest or config cannot be read"));
        };
        for &layer in &layers {
            if head.get(&layout::layer_root(layer))?.is_none() {
                return Ok(Made::LeftOut("its layers are not published"));
            }
        }
        let repository = &head.manifest().name;
        Ok(Made::Image(thin_image(repository, &self.image.argument, &layers, &config)))
    }
}

/// What a thin image was made into.
enum Made {
    Image(ImageUpload),
    /// The image is not ours.
    Nothing,
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
    fn thin_image_goes_to_a_tag() {
        let digest = Digest::of(b"");
        let place = |text: &str| place(text, &OutputFormat::default());
        let (name, transport) = place("http://h.org:5000/thin/a:1").unwrap();
        assert_eq!((name.to_string().as_str(), transport), ("h.org:5000/thin/a:1", Transport::Plain));
        let (name, transport) = place(&format!("https://h.org/a:1@{digest}")).unwrap();
        assert_eq!((name.to_string().as_str(), transport), ("h.org/a:1", Transport::Secure));
        for wrong in [&format!("https://h.org/a@{digest}"), "https://h.org/a_thin:", "", "oci:dir", "h.org/a"] {
            assert!(place(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn registry_that_the_recipe_names_is_spoken_to_as_the_recipe_says() {
        for (format, expected) in [
            ("$(scheme)://r.org/$(image)", Transport::Secure),
            ("https://r.org/$(image)", Transport::Secure),
            ("http://r.org/$(image)", Transport::Plain),
        ] {
            let format = OutputFormat::new(format);
            let name = format.thin_name(&"http://h.org/a:1".parse().unwrap()).unwrap();
            let (name, transport) = place(&name, &format).unwrap();
            assert_eq!((name.to_string().as_str(), transport), ("r.org/a:1", expected));
        }
    }
}
