//! Images of the repository as command line arguments.

use std::str::FromStr;

use anyhow::bail;
use strata::image::{Digest, ImageName, ImageReference, Platform};
use strata::inventory::{self, InventoryError};
use strata::layout::ImagePlace;
use strata::repository::Repository;
use strata::source::{ArgumentError, ImageArgument};

use super::failure::UsageError;
use super::target::Target;

/// An image of the repository: `host/name:tag`, optionally with a registry prefix such as `docker://`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedImage {
    name: ImageName,
    /// The manifest or index digest that the published image must have.
    digest: Option<Digest>,
}

/// Errors from parsing the name of a published image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishedImageError {
    /// The text is not an image name.
    #[error(transparent)]
    Argument(#[from] ArgumentError),
    /// The text refers to a file or directory, which is a source of images.
    #[error("'{0}' refers to a file or directory: write the name under which the image is published, as host/name:tag")]
    Source(String),
}

impl FromStr for PublishedImage {
    type Err = PublishedImageError;

    fn from_str(text: &str) -> Result<Self, PublishedImageError> {
        match text.parse()? {
            ImageArgument::Registry { name, digest, .. } => Ok(Self { name, digest }),
            _ => Err(PublishedImageError::Source(text.to_owned())),
        }
    }
}

impl PublishedImage {
    /// Returns where the image is published. An image for several platforms has one place for each platform.
    pub fn places(&self, repository: &Repository) -> anyhow::Result<Vec<ImagePlace>> {
        let places = inventory::places(repository, &self.name)?;
        if places.is_empty() {
            return Err(InventoryError::NoImage(self.name.clone()).into());
        }
        let Some(digest) = self.digest_beside_tag() else { return Ok(places) };
        let mut found = Vec::new();
        for place in places {
            let record = inventory::record(repository, &place)?;
            if record.is_some_and(|record| record.manifest == digest || record.index == Some(digest)) {
                found.push(place);
            }
        }
        match found.is_empty() {
            true => bail!("the repository contains '{}', but not with the digest {digest}", self.name),
            false => Ok(found),
        }
    }

    /// Checks the digest that the argument states in addition to the tag. Returns an error if the image is published with another
    /// digest.
    pub fn compare_digest(&self, target: &Target) -> anyhow::Result<()> {
        if self.digest_beside_tag().is_some() {
            self.places(&target.head()?)?;
        }
        Ok(())
    }

    /// Returns the digest of an argument that has both a tag and a digest. A digest without a tag is part of the published name.
    fn digest_beside_tag(&self) -> Option<Digest> {
        self.digest.filter(|_| matches!(self.name.reference(), ImageReference::Tag(_)))
    }

    /// Returns the place of the image for one platform: the requested platform, or, if the image is published for several, the
    /// platform of this machine.
    pub fn place(&self, repository: &Repository, platform: Option<&Platform>) -> anyhow::Result<ImagePlace> {
        let mut places = self.places(repository)?;
        match (places.as_slice(), platform) {
            ([_], None) => Ok(places.remove(0)),
            ([ImagePlace { platform: None, .. }], Some(_)) => {
                Err(UsageError(format!("'{}' is published for one platform only: omit --platform", self.name)).into())
            }
            (_, platform) => {
                let wanted = platform.cloned().unwrap_or_else(Platform::of_this_machine);
                let suits = |place: &ImagePlace| Some((wanted.suits(place.platform.as_ref()?)?, place.clone()));
                let there: Vec<String> =
                    places.iter().flat_map(|place| &place.platform).map(ToString::to_string).collect();
                let missing =
                    || anyhow::anyhow!("'{}' is published for {}, but not for {wanted}", self.name, there.join(", "));
                places.iter().filter_map(suits).min().map(|(_, place)| place).ok_or_else(missing)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_image_is_named_as_in_its_registry() {
        let digest = Digest::of(b"");
        let parse = |text: &str| text.parse::<PublishedImage>().unwrap();
        for text in ["h.org/a:t", "docker://h.org/a:t", "https://h.org/a:t", "http://h.org/a:t"] {
            assert_eq!(parse(text), PublishedImage { name: "h.org/a:t".parse().unwrap(), digest: None }, "{text}");
        }
        let name = |text: String| text.parse::<ImageName>().unwrap();
        let text = format!("docker://h.org/a:t@{digest}");
        assert_eq!(parse(&text), PublishedImage { name: name("h.org/a:t".to_owned()), digest: Some(digest) });
        let text = format!("h.org/a@{digest}");
        assert_eq!(parse(&text), PublishedImage { name: name(text), digest: Some(digest) });
        for text in ["oci:dir", "docker-archive:x.tar", "a", "dir:/x"] {
            assert!(text.parse::<PublishedImage>().is_err(), "{text}");
        }
    }
}
