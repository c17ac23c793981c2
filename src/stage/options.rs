//! Options for the conversion of one image.

use crate::image::{Digest, FullName, ImageReference};
use crate::layout::ChainSelection;
use crate::source::{ImageArgument, PlatformSelection};

/// One image to convert.
#[derive(Debug, Clone)]
pub struct Request {
    /// The location of the image.
    pub argument: ImageArgument,
    /// Name under which the image is published instead of its own. A digest in the name must be the digest of the image.
    pub name: Option<FullName>,
    /// The trees and platforms to publish.
    pub image: ImageOptions,
}

impl From<ImageArgument> for Request {
    /// Returns a request for an image under its own name, in all forms.
    fn from(argument: ImageArgument) -> Self {
        Self { argument, name: None, image: ImageOptions::default() }
    }
}

impl Request {
    /// Returns the digest in the name to publish under, if the name also has a tag. The published name contains only the tag.
    pub(crate) fn digest_beside_tag(&self) -> Option<Digest> {
        let has_tag = |name: &&FullName| matches!(name.name.reference(), ImageReference::Tag(_));
        self.name.as_ref().filter(has_tag).and_then(|name| name.digest)
    }
}

/// The trees and platforms of an image to publish.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageOptions {
    /// The platforms to convert.
    pub platforms: PlatformSelection,
    /// Do not publish single layers.
    pub skip_layers: bool,
    /// Do not publish the flat tree and the public link.
    pub skip_flat: bool,
    /// Do not list the image in podman's store. Implied by `skip_flat`.
    pub skip_podman: bool,
    /// The chains to publish.
    pub chains: ChainSelection,
    /// Read all layers again and publish all trees again, except layers, which never change.
    pub force: bool,
    /// Report an error if CVMFS cannot represent all of the image.
    pub strict: bool,
}
