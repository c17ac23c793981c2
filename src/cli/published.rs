//! Images of the repository, as the command line names them.

use std::str::FromStr;

use anyhow::bail;
use strata::directory::RepositoryDirectory;
use strata::image::{Digest, ImageName, ImageReference, Platform};
use strata::inventory::{self, InventoryError};
use strata::layout::ImagePlace;
use strata::repository::Repository;
use strata::source::{ArgumentError, ImageArgument};

use super::failure::UsageError;

/// An image of the repository: `host/name:tag`, with or without what names it at its registry, such as `docker://`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedImage {
    name: ImageName,
    /// What it has to be, whatever the name stands for by now.
    digest: Option<Digest>,
}

/// Why a text names no image of a repository.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishedImageError {
    /// It names none at all.
    #[error(transparent)]
    Argument(#[from] ArgumentError),
    /// It names a file or directory that an image can be read from.
    #[error("'{0}' is where an image can be read from: give the name that it is published under, as host/name:tag")]
    Place(String),
}

impl FromStr for PublishedImage {
    type Err = PublishedImageError;

    fn from_str(text: &str) -> Result<Self, PublishedImageError> {
        match text.parse()? {
            ImageArgument::Registry { name, digest, .. } => Ok(Self { name, digest }),
            _ => Err(PublishedImageError::Place(text.to_owned())),
        }
    }
}

impl PublishedImage {
    /// Returns where the image is published: one place, or several for platforms side by side.
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
            true => bail!("'{}' is in the repository, but not as {digest}", self.name),
            false => Ok(found),
        }
    }

    /// Refuses an image that is published with another digest than the one beside its tag.
    pub fn compare_digest(&self, directory: &RepositoryDirectory) -> anyhow::Result<()> {
        if self.digest_beside_tag().is_some() {
            self.places(&Repository::open(&directory.store()?, directory.name())?)?;
        }
        Ok(())
    }

    /// Returns the digest that is no part of the path which the image is published at.
    fn digest_beside_tag(&self) -> Option<Digest> {
        self.digest.filter(|_| matches!(self.name.reference(), ImageReference::Tag(_)))
    }

    /// Returns the one place for a platform: that which is asked for, or that of this machine where there are several.
    pub fn place(&self, repository: &Repository, platform: Option<&Platform>) -> anyhow::Result<ImagePlace> {
        let mut places = self.places(repository)?;
        match (places.as_slice(), platform) {
            ([_], None) => Ok(places.remove(0)),
            ([ImagePlace { platform: None, .. }], Some(_)) => {
                Err(UsageError(format!("'{}' is published for one platform only: leave out --platform", self.name))
                    .into())
            }
            (_, platform) => {
                let wanted = platform.cloned().unwrap_or_else(Platform::of_this_machine);
                let suits = |place: &ImagePlace| Some((wanted.suits(place.platform.as_ref()?)?, place.clone()));
                let there: Vec<String> =
                    places.iter().flat_map(|place| &place.platform).map(ToString::to_string).collect();
                let missing =
                    || anyhow::anyhow!("'{}' is there for {}, but not for {wanted}", self.name, there.join(", "));
                places.iter().filter_map(suits).min().map(|(_, place)| place).ok_or_else(missing)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_image_is_named_as_at_its_registry() {
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
