//! Skips artifacts: entries of registries that are not images, such as Helm charts, signatures and SBOMs.
//!
//! A list of tags contains images and artifacts. Only the manifest distinguishes them, and it is read when the image is
//! converted. Artifacts are recorded with their digests in the state database. If a wish requests the newest N tags, artifacts
//! do not count: the next older image is converted instead. A tag that could not be converted may be an artifact, too.
//! Therefore, for each such tag, one older published image is not removed.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::{ConvertError, image_options};
use crate::image::{Digest, ImageName};
use crate::source::SourceError;
use crate::stage::{Request, StageError};
use crate::state::{StateDatabase, StateError};
use crate::wishlist::{ImagePosition, NewestImages, WantedImage};

/// Returns the request to convert an image of a wishlist.
pub(super) fn request(image: &WantedImage) -> Request {
    let (name, options) = (image.options.name.clone(), image_options(&image.options));
    Request { argument: image.argument.clone(), name, image: options }
}

/// Returns the type of the artifact if the error is that the image is an artifact.
pub(super) fn artifact_type(error: &ConvertError) -> Option<&str> {
    match error {
        ConvertError::Stage(StageError::Source(SourceError::Artifact { artifact_type, .. })) => Some(artifact_type),
        _ => None,
    }
}

/// Records that a name refers to an artifact, as long as the registry has the same digest for it.
pub(super) fn record_artifact(
    state: &StateDatabase,
    image: &WantedImage,
    digest: Digest,
    artifact_type: &str,
) -> Result<(), StateError> {
    state.add_artifact(&image.name().to_string(), &request_key(image, digest), artifact_type)
}

/// Returns the type of the artifact that is recorded for a name and digest.
pub(super) fn recorded_artifact(
    state: &StateDatabase,
    image: &WantedImage,
    digest: Digest,
) -> Result<Option<String>, StateError> {
    state.artifact(&image.name().to_string(), &request_key(image, digest))
}

/// Returns the key of the record. It contains the platforms, because an index may have an artifact for one platform and an image for
/// another.
fn request_key(image: &WantedImage, digest: Digest) -> String {
    let platforms = image_options(&image.options).platforms.asked().unwrap_or_default();
    format!("{digest} {platforms}")
}

/// The rules in the wishes of a round that select the newest images of a repository, and the artifacts that were found.
#[derive(Default)]
pub(super) struct NewestRules {
    rules: Vec<NewestRule>,
    artifacts: HashSet<ImageName>,
}

/// A rule that selects the newest images of a repository.
struct NewestRule {
    /// Number of images to select.
    count: usize,
    /// The selected names, without known artifacts.
    names: Vec<ImageName>,
    /// The images that follow, the newest first.
    older: std::vec::IntoIter<WantedImage>,
    /// Index of the wish, and in it the index of the first selected image.
    position: (usize, usize),
    /// Number of images that were inserted before that position.
    added: usize,
}

impl NewestRules {
    /// Adds the rules of the wish with this index. Returns the images that are selected instead of known artifacts.
    pub(super) fn add(
        &mut self,
        wish: usize,
        images: &[WantedImage],
        newest: Vec<NewestImages>,
    ) -> Vec<(ImagePosition, WantedImage)> {
        let indexes: HashMap<&ImageName, usize> =
            images.iter().enumerate().map(|(index, image)| (image.name(), index)).collect();
        let mut older = Vec::new();
        for NewestImages { names, older: next } in newest {
            let first = names.iter().filter_map(|name| indexes.get(name)).min().copied().unwrap_or(images.len());
            let (count, position) = (names.len(), (wish, first));
            let mut rule = NewestRule { count, names, older: next.into_iter(), position, added: 0 };
            older.extend(rule.fill(&self.artifacts));
            self.rules.push(rule);
        }
        older
    }

    /// Records that a name refers to an artifact. Returns the images that the rules select instead of it.
    pub(super) fn record_artifact(&mut self, name: &ImageName) -> Vec<(ImagePosition, WantedImage)> {
        self.artifacts.insert(name.clone());
        self.rules.iter_mut().flat_map(|rule| rule.fill(&self.artifacts)).collect()
    }

    /// Returns the names of published images that must not be removed, because names in `unknown` may be artifacts: for each of these,
    /// the next older image that is `published`.
    ///
    /// Older images that are not published are skipped: they may be artifacts, too, and cannot be removed anyway.
    pub(super) fn protected_names(
        &self,
        unknown: &HashSet<ImageName>,
        published: &BTreeSet<ImageName>,
    ) -> Vec<ImageName> {
        let protected = |rule: &NewestRule| {
            let count = rule.names.iter().filter(|name| unknown.contains(name)).count();
            let names = rule.older.as_slice().iter().map(WantedImage::name);
            let images = names.filter(|name| published.contains(name) && !self.artifacts.contains(name));
            images.take(count).cloned().collect::<Vec<_>>()
        };
        self.rules.iter().flat_map(protected).collect()
    }
}

impl NewestRule {
    /// Replaces artifacts in the selection by the next older images, and returns the older images.
    fn fill(&mut self, artifacts: &HashSet<ImageName>) -> Vec<(ImagePosition, WantedImage)> {
        let mut new = Vec::new();
        self.names.retain(|name| !artifacts.contains(name));
        while self.names.len() < self.count
            && let Some(image) = self.older.next()
        {
            if !artifacts.contains(image.name()) {
                self.names.push(image.name().clone());
                self.added += 1;
                new.push((ImagePosition::before(self.position, self.added), image));
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
    fn artifacts_are_replaced_by_the_next_older_images() {
        let mut rules = NewestRules::default();
        let newest = || NewestImages { names: vec![name("6"), name("7")], older: ["5", "4", "3"].map(image).into() };
        let images = [image("6"), image("7")];
        assert!(rules.add(0, &images, vec![newest()]).is_empty());
        assert!(rules.record_artifact(&name("1")).is_empty(), "it is not among the newest");
        assert_eq!(tags(rules.record_artifact(&name("7"))), ["5"]);
        assert_eq!(tags(rules.record_artifact(&name("5"))), ["4"]);
        // Another rule for the same repository uses the artifacts that were found before.
        assert_eq!(tags(rules.add(1, &images, vec![newest()])), ["4"]);
    }

    #[test]
    fn next_published_image_is_protected_for_each_name_that_may_be_an_artifact() {
        let newest = || NewestImages { names: vec![name("6"), name("7")], older: ["5", "4", "3"].map(image).into() };
        let protected = |unknown: &[&str], published: &[&str], artifacts: &[&str]| {
            let mut rules = NewestRules::default();
            artifacts.iter().for_each(|tag| drop(rules.record_artifact(&name(tag))));
            rules.add(0, &[image("6"), image("7")], vec![newest()]);
            let unknown = unknown.iter().map(|tag| name(tag)).collect();
            rules.protected_names(&unknown, &published.iter().map(|tag| name(tag)).collect())
        };
        assert_eq!(protected(&[], &["5", "4", "3"], &[]), []);
        assert_eq!(protected(&["2", "6"], &["5", "4", "3"], &[]), [name("5")]);
        assert_eq!(protected(&["6", "7"], &["5", "4", "3"], &[]), [name("5"), name("4")]);
        // Unpublished images in between are skipped.
        assert_eq!(protected(&["6"], &["3"], &[]), [name("3")]);
        assert_eq!(protected(&["6"], &["4", "3"], &[]), [name("4")]);
        // A tag that was published as an image may refer to an artifact now.
        assert_eq!(protected(&["6"], &["5", "4", "3"], &["5"]), [name("4")]);
    }
}
