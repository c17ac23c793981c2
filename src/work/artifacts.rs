//! Leaves out what registries list beside images: charts, signatures, lists of parts and the like.
//!
//! A list of tags does not tell them from images; only manifests do, and these are read when an image is converted. What was
//! found once is remembered by its digest. Where a wish wants the newest so many, an artifact must not take the place of an
//! image: the next older image is converted in its place. What could not be converted may be an artifact, too, so that as many
//! older images are not removed.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::{ConvertError, image_options};
use crate::image::{Digest, ImageName};
use crate::source::SourceError;
use crate::stage::{Request, StageError};
use crate::state::{StateDatabase, StateError};
use crate::wishlist::{ImagePosition, NewestImages, WantedImage};

/// Returns what is to be converted for an image that is wanted.
pub(super) fn request(image: &WantedImage) -> Request {
    let (name, options) = (image.options.name.clone(), image_options(&image.options));
    Request { argument: image.argument.clone(), name, image: options }
}

/// Returns the type of the artifact that was found in the place of an image, if that is the error.
pub(super) fn artifact_type(error: &ConvertError) -> Option<&str> {
    match error {
        ConvertError::Stage(StageError::Source(SourceError::Artifact { artifact_type, .. })) => Some(artifact_type),
        _ => None,
    }
}

/// Remembers that a name stands for an artifact, as long as the registry has the same digest under it.
pub(super) fn note_artifact(
    state: &StateDatabase,
    image: &WantedImage,
    digest: Digest,
    artifact_type: &str,
) -> Result<(), StateError> {
    state.add_artifact(&image.name().to_string(), &wanted(image, digest), artifact_type)
}

/// Returns the type of the artifact that a name was found to stand for.
pub(super) fn noted_artifact(
    state: &StateDatabase,
    image: &WantedImage,
    digest: Digest,
) -> Result<Option<String>, StateError> {
    state.artifact(&image.name().to_string(), &wanted(image, digest))
}

/// Returns what is wanted of an image. An index may have an artifact for one platform and an image for another.
fn wanted(image: &WantedImage, digest: Digest) -> String {
    let platforms = image_options(&image.options).platforms.asked().unwrap_or_default();
    format!("{digest} {platforms}")
}

/// All wishes of a round for the newest images of a repository.
#[derive(Default)]
pub(super) struct NewestRules {
    rules: Vec<NewestRule>,
    artifacts: HashSet<ImageName>,
}

/// A wish for the newest images of a repository, while it is found out which these are.
struct NewestRule {
    /// How many images are wanted.
    count: usize,
    names: Vec<ImageName>,
    older: std::vec::IntoIter<WantedImage>,
    /// The place of the wish, and in it that of the first of the images.
    place: (usize, usize),
    /// How many images were put before that place.
    added: usize,
}

impl NewestRules {
    /// Adds what a wish, by its place in the wishlist, says of the newest of its images.
    ///
    /// Returns the images that take the place of known artifacts.
    pub(super) fn add(
        &mut self,
        wish: usize,
        images: &[WantedImage],
        newest: Vec<NewestImages>,
    ) -> Vec<(ImagePosition, WantedImage)> {
        let places: HashMap<&ImageName, usize> =
            images.iter().enumerate().map(|(place, image)| (image.name(), place)).collect();
        let mut older = Vec::new();
        for NewestImages { names, older: next } in newest {
            let first = names.iter().filter_map(|name| places.get(name)).min().copied().unwrap_or(images.len());
            let (count, place) = (names.len(), (wish, first));
            let mut rule = NewestRule { count, names, older: next.into_iter(), place, added: 0 };
            older.extend(rule.fill(&self.artifacts));
            self.rules.push(rule);
        }
        older
    }

    /// Notes that a name stands for an artifact. Returns the images that take its place.
    pub(super) fn note_artifact(&mut self, name: &ImageName) -> Vec<(ImagePosition, WantedImage)> {
        self.artifacts.insert(name.clone());
        self.rules.iter_mut().flat_map(|rule| rule.fill(&self.artifacts)).collect()
    }

    /// Returns the names of images that come next where it is not known of some names what they stand for: for each of these the
    /// next one that is `published`.
    ///
    /// What lies between is passed over, since it may be an artifact, too, and nothing of it can be removed.
    pub(super) fn spared(&self, unknown: &HashSet<ImageName>, published: &BTreeSet<ImageName>) -> Vec<ImageName> {
        let spared = |rule: &NewestRule| {
            let count = rule.names.iter().filter(|name| unknown.contains(name)).count();
            let names = rule.older.as_slice().iter().map(WantedImage::name);
            let images = names.filter(|name| published.contains(name) && !self.artifacts.contains(name));
            images.take(count).cloned().collect::<Vec<_>>()
        };
        self.rules.iter().flat_map(spared).collect()
    }
}

impl NewestRule {
    /// Replaces artifacts by the next older images, and returns these.
    fn fill(&mut self, artifacts: &HashSet<ImageName>) -> Vec<(ImagePosition, WantedImage)> {
        let mut new = Vec::new();
        self.names.retain(|name| !artifacts.contains(name));
        while self.names.len() < self.count
            && let Some(image) = self.older.next()
        {
            if !artifacts.contains(image.name()) {
                self.names.push(image.name().clone());
                self.added += 1;
                new.push((ImagePosition::before(self.place, self.added), image));
            }
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wishlist::WishOptions;

    fn image(tag: &str) -> WantedImage {
        let argument = format!("h.org/a:{tag}").parse().unwrap();
        WantedImage { line: 1, argument, options: WishOptions::default(), is_found: true }
    }

    fn name(tag: &str) -> ImageName {
        image(tag).name().clone()
    }

    fn tags(images: Vec<(ImagePosition, WantedImage)>) -> Vec<String> {
        images.into_iter().map(|(_, image)| image.name().to_string().replace("h.org/a:", "")).collect()
    }

    #[test]
    fn artifacts_are_replaced_by_the_next_older_images_that_are_none() {
        let mut rules = NewestRules::default();
        let newest = || NewestImages { names: vec![name("6"), name("7")], older: ["5", "4", "3"].map(image).into() };
        let images = [image("6"), image("7")];
        assert!(rules.add(0, &images, vec![newest()]).is_empty());
        assert!(rules.note_artifact(&name("1")).is_empty(), "it is not among the newest");
        assert_eq!(tags(rules.note_artifact(&name("7"))), ["5"]);
        assert_eq!(tags(rules.note_artifact(&name("5"))), ["4"]);
        // Another wish for the same knows what is known by then.
        assert_eq!(tags(rules.add(1, &images, vec![newest()])), ["4"]);
    }

    #[test]
    fn next_published_image_is_spared_for_each_name_that_may_be_an_artifact() {
        let newest = || NewestImages { names: vec![name("6"), name("7")], older: ["5", "4", "3"].map(image).into() };
        let spared = |unknown: &[&str], published: &[&str], artifacts: &[&str]| {
            let mut rules = NewestRules::default();
            artifacts.iter().for_each(|tag| drop(rules.note_artifact(&name(tag))));
            rules.add(0, &[image("6"), image("7")], vec![newest()]);
            let unknown = unknown.iter().map(|tag| name(tag)).collect();
            rules.spared(&unknown, &published.iter().map(|tag| name(tag)).collect())
        };
        assert_eq!(spared(&[], &["5", "4", "3"], &[]), []);
        assert_eq!(spared(&["2", "6"], &["5", "4", "3"], &[]), [name("5")]);
        assert_eq!(spared(&["6", "7"], &["5", "4", "3"], &[]), [name("5"), name("4")]);
        // What lies between is not known: it was never published.
        assert_eq!(spared(&["6"], &["3"], &[]), [name("3")]);
        assert_eq!(spared(&["6"], &["4", "3"], &[]), [name("4")]);
        // What was an image once may have become an artifact.
        assert_eq!(spared(&["6"], &["5", "4", "3"], &["5"]), [name("4")]);
    }
}
