//! Which image is converted, and what is published of it.

use std::ops::Range;

use crate::image::{Digest, FullName, ImageReference};
use crate::source::{ImageArgument, Platforms};

/// One image to convert.
#[derive(Debug, Clone)]
pub struct Request {
    /// Where it is.
    pub argument: ImageArgument,
    /// The name to publish it under, if not the one that it carries. A digest in it has to be the image's.
    pub name: Option<FullName>,
    /// What is published of it.
    pub image: ImageOptions,
}

impl Request {
    /// Returns the digest that stands beside the tag in the name to publish under, which would be lost otherwise.
    pub(crate) fn digest_beside_tag(&self) -> Option<Digest> {
        let has_tag = |name: &&FullName| matches!(name.name.reference(), ImageReference::Tag(_));
        self.name.as_ref().filter(has_tag).and_then(|name| name.digest)
    }
}

/// Which chains of an image are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Chains {
    /// The last one, which a later image may start from.
    #[default]
    Final,
    /// One for each layer.
    All,
    /// None.
    None,
}

impl Chains {
    /// Returns which chains of an image of so many layers are published, by the place of their highest layer.
    pub(super) fn of(self, layers: usize) -> Range<usize> {
        match self {
            Self::None => 0..0,
            Self::Final => layers.saturating_sub(1)..layers,
            Self::All => 0..layers,
        }
    }
}

/// What is published of an image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageOptions {
    /// The platforms that are wanted.
    pub platforms: Platforms,
    /// Do not publish single layers.
    pub skip_layers: bool,
    /// Do not publish the root file system and the public link.
    pub skip_flat: bool,
    /// Do not show the image to podman. It does not see images without a root file system anyway.
    pub skip_podman: bool,
    /// Which chains to publish.
    pub chains: Chains,
    /// Read everything anew and publish it again, but for layers, which never change.
    pub force: bool,
    /// Fail the image if CVMFS cannot hold all of it.
    pub strict: bool,
}
