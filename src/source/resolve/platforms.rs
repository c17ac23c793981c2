//! The images of one name for several platforms, side by side.

use super::super::Image;
use super::super::document::{self, Document};
use super::super::error::{SourceError, quoted};
use super::{MAX_DEPTH, Resolver};
use crate::image::{Descriptor, DocumentKind, Platform};

impl Resolver<'_> {
    /// Returns the images for each of the platforms `wanted`, or all, of what a name stands for.
    pub(in crate::source) fn each_named(
        mut self,
        descriptor: &Descriptor,
        wanted: Option<&[Platform]>,
    ) -> Result<Vec<(Platform, Image)>, SourceError> {
        let (document, kind) = self.read(descriptor)?;
        self.each_of(document, kind, wanted)
    }

    /// Returns the images for each of the platforms `wanted`, or all, of a document that was found under a name, and under
    /// `media_type`.
    pub(in crate::source) fn each_found(
        mut self,
        document: Document,
        media_type: &str,
        wanted: Option<&[Platform]>,
    ) -> Result<Vec<(Platform, Image)>, SourceError> {
        self.documents_read += 1;
        let name = document.digest.to_string();
        let kind = document::kind(self.blobs.path(), &name, &document.bytes, media_type)?;
        self.each_of(document, kind, wanted)
    }

    fn each_of(
        mut self,
        document: Document,
        kind: DocumentKind,
        wanted: Option<&[Platform]>,
    ) -> Result<Vec<(Platform, Image)>, SourceError> {
        match kind {
            DocumentKind::Manifest => single(self.image(document)?, wanted),
            DocumentKind::Index => {
                let index = self.index(&document)?;
                let images = self.each(&index.manifests, 1, wanted)?;
                let with_index = |(platform, image)| (platform, Image { index: Some(document.clone()), ..image });
                Ok(images.into_iter().map(with_index).collect())
            }
        }
    }

    /// Returns the images for each of the platforms `wanted`, or all, among descriptors of one image.
    pub(in crate::source) fn each_among(
        mut self,
        descriptors: &[Descriptor],
        wanted: Option<&[Platform]>,
    ) -> Result<Vec<(Platform, Image)>, SourceError> {
        self.each(descriptors, 0, wanted)
    }

    fn each(
        &mut self,
        descriptors: &[Descriptor],
        depth: usize,
        wanted: Option<&[Platform]>,
    ) -> Result<Vec<(Platform, Image)>, SourceError> {
        let mut found = Vec::new();
        self.gather(descriptors, depth, wanted, &mut found)?;
        let missing = |wanted: &&Platform| !found.iter().any(|(platform, _)| wanted.accepts(platform));
        let requested = match wanted {
            Some(wanted) => wanted.iter().find(missing).map(ToString::to_string),
            None => found.is_empty().then(|| "linux".to_owned()),
        };
        match requested {
            Some(requested) => Err(SourceError::NoSuchPlatform { requested, offered: self.offered.clone() }),
            None => Ok(found),
        }
    }

    /// Adds the images that are wanted and not found yet, below `depth` indexes.
    fn gather(
        &mut self,
        descriptors: &[Descriptor],
        depth: usize,
        wanted: Option<&[Platform]>,
        found: &mut Vec<(Platform, Image)>,
    ) -> Result<(), SourceError> {
        for descriptor in descriptors.iter().filter(|descriptor| descriptor.may_be_image()) {
            let named = descriptor.platform();
            if named.as_ref().is_some_and(|platform| !self.is_wanted(platform, wanted, found)) {
                continue;
            }
            let (document, kind) = self.read(descriptor)?;
            if kind == DocumentKind::Index {
                if depth == MAX_DEPTH {
                    return Err(SourceError::NestedTooDeep { digest: document.digest, limit: MAX_DEPTH });
                }
                let index = self.index(&document)?;
                self.gather(&index.manifests, depth + 1, wanted, found)?;
                continue;
            }
            let image = match self.image(document) {
                // Nobody said that it is an image.
                Err(SourceError::Artifact { .. }) if named.is_none() => continue,
                image => image?,
            };
            let platform = named.or_else(|| image.parsed_config.platform());
            if let Some(platform) = platform.filter(|platform| self.is_wanted(platform, wanted, found)) {
                found.push((platform, image));
            }
        }
        Ok(())
    }

    /// Tells whether an image for `offered` is wanted beside those that were `found`, and notes the platform for a message.
    fn is_wanted(&mut self, offered: &Platform, wanted: Option<&[Platform]>, found: &[(Platform, Image)]) -> bool {
        let has = |wanted: &Platform| found.iter().any(|(platform, _)| wanted.accepts(platform));
        let is_new = found.iter().all(|(platform, _)| platform != offered);
        self.note(offered);
        if !is_publishable(offered) && offered.os == "linux" {
            let (path, offered) = (self.blobs.path().display(), offered.to_string());
            tracing::warn!("{path}: there is no folder for the platform {}, which is left out", quoted(&offered));
        }
        is_publishable(offered)
            && is_new
            && wanted.is_none_or(|wanted| wanted.iter().any(|wanted| wanted.accepts(offered) && !has(wanted)))
    }
}

/// What machines call their architecture, and no index should: these are links to the folders of architectures.
const MACHINE_NAMES: [&str; 6] = ["x86_64", "x86-64", "i386", "aarch64", "armhf", "armel"];

/// Tells whether the images for a platform can have a folder: those of Linux, named by the characters that names consist of.
fn is_publishable(platform: &Platform) -> bool {
    let is_plain = |text: &str| {
        let is_of_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        text.len() <= 64
            && text.starts_with(|first: char| first.is_ascii_alphanumeric())
            && text.bytes().all(is_of_name)
    };
    platform.os == "linux"
        && !MACHINE_NAMES.contains(&platform.architecture.as_str())
        && is_plain(&platform.architecture)
        && platform.variant.as_deref().is_none_or(is_plain)
}

/// Returns an image that stands alone, if that is what is wanted.
pub(in crate::source) fn single(
    image: Image,
    wanted: Option<&[Platform]>,
) -> Result<Vec<(Platform, Image)>, SourceError> {
    let platform = image.parsed_config.platform();
    let is_wanted = |platform: &Platform| {
        is_publishable(platform) && wanted.is_none_or(|wanted| wanted.iter().all(|wanted| wanted.accepts(platform)))
    };
    match platform {
        Some(platform) if is_wanted(&platform) => Ok(vec![(platform, image)]),
        other => {
            let names =
                |platforms: &[Platform]| platforms.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let requested = wanted.map_or_else(|| "linux".to_owned(), names);
            let actual = other.map_or_else(|| "an unknown platform".to_owned(), |platform| platform.to_string());
            Err(SourceError::OtherPlatform { digest: image.manifest.digest, requested, actual })
        }
    }
}
