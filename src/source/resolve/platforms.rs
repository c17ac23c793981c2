//! Resolves the images of several platforms that are published side by side.

use super::super::Image;
use super::super::document;
use super::super::error::SourceError;
use super::candidates::by_suitability;
use super::{ImageResolver, name_platforms};
use crate::image::{Descriptor, Document, DocumentKind, Platform};
use crate::message::quoted;

impl ImageResolver<'_> {
    /// Returns the images for the platforms `wanted`, or all platforms, for entries of `index.json` that all point to the same
    /// manifest or index.
    pub(in crate::source) fn resolve_each_of_entries(
        mut self,
        entries: &[Descriptor],
        wanted: Option<&[Platform]>,
    ) -> Result<Vec<(Platform, Image)>, SourceError> {
        let (document, kind) = self.read(&entries[0])?;
        if kind == DocumentKind::Manifest && name_platforms(entries) {
            return self.each(entries, 0, wanted);
        }
        self.each_of(document, kind, wanted)
    }

    /// Returns the images for the platforms `wanted`, or all platforms, for a document that a registry returned with `media_type`.
    pub(in crate::source) fn resolve_each_of_document(
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
                self.note_index(&document, &index);
                let images = self.each(&index.manifests, 1, wanted)?;
                let with_index = |(platform, image)| (platform, Image { index: Some(document.clone()), ..image });
                Ok(images.into_iter().map(with_index).collect())
            }
        }
    }

    /// Returns the images for the platforms `wanted`, or all platforms, among descriptors of one image.
    pub(in crate::source) fn resolve_each_of_descriptors(
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
        let is_wanted = |offered: &Platform| {
            is_publishable(offered) && wanted.is_none_or(|wanted| wanted.iter().any(|wanted| wanted.accepts(offered)))
        };
        let mut candidates = self.gather(descriptors, depth, &is_wanted)?;
        self.warn_about_skipped();
        let asked: Vec<Platform> = match wanted {
            Some(wanted) => wanted.to_vec(),
            None => distinct(candidates.iter().map(|candidate| &candidate.platform)),
        };
        let mut chosen: Vec<usize> = Vec::new();
        for platform in &asked {
            let mut suitable = by_suitability(&candidates, platform);
            suitable.retain(|&place| wanted.is_some() || platform.is_same_as(&candidates[place].platform));
            match self.first_image(&mut candidates, &suitable)? {
                Some(found) => {
                    let is_same = |place: &usize| candidates[*place].platform.is_same_as(&candidates[found].platform);
                    if !chosen.iter().any(is_same) {
                        chosen.push(found);
                    }
                }
                None if wanted.is_some() => return Err(self.nothing_for(platform)),
                None => {}
            }
        }
        if chosen.is_empty() {
            return Err(self.nothing("linux".to_owned()));
        }
        let images = candidates.into_iter().enumerate().filter(|(place, _)| chosen.contains(place));
        let images = images.filter_map(|(_, candidate)| candidate.into_image());
        Ok(images.map(|(platform, image)| (directory_platform(platform), image)).collect())
    }

    /// Reports the Linux platforms that are skipped because no directory can have their name.
    fn warn_about_skipped(&self) {
        for offered in self.offered.iter().filter(|offered| offered.os == "linux" && !is_publishable(offered)) {
            let (path, offered) = (self.blobs.path().display(), offered.to_string());
            self.blobs.reporter().warn(format_args!(
                "{path}: skipping platform {}, because its name cannot be the name of a directory",
                quoted(&offered)
            ));
        }
    }
}

/// Returns each platform once. Of several spellings of a platform, it returns the smallest, which is the one without a variant.
fn distinct<'p>(platforms: impl Iterator<Item = &'p Platform>) -> Vec<Platform> {
    platforms.fold(Vec::new(), |mut distinct: Vec<Platform>, platform| {
        match distinct.iter_mut().find(|other| other.is_same_as(platform)) {
            Some(other) => *other = other.clone().min(platform.clone()),
            None => distinct.push(platform.clone()),
        }
        distinct
    })
}

/// Returns the platform in the directory name of an image. `amd64/v1` in an index becomes `amd64`, the directory that clients
/// use by default.
fn directory_platform(platform: Platform) -> Platform {
    let plain = Platform { variant: None, ..platform.clone() };
    if plain.architecture == "amd64" && plain.is_same_as(&platform) { plain } else { platform }
}

/// Names of architectures that are not valid in an index, such as those of `uname -m` and Debian. These names are reserved for
/// links to the directories of architectures.
const MACHINE_NAMES: [&str; 6] = ["x86_64", "x86-64", "i386", "aarch64", "armhf", "armel"];

/// Returns whether images of a platform can be published side by side: the platform is a Linux one, and a valid directory name.
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

/// Returns a single image with its platform. Fails if the platform is not publishable, or does not satisfy all of the platforms
/// `wanted`.
pub(in crate::source) fn single(
    image: Image,
    wanted: Option<&[Platform]>,
) -> Result<Vec<(Platform, Image)>, SourceError> {
    let platform = image.parsed_config.platform();
    let is_wanted = |platform: &Platform| {
        is_publishable(platform) && wanted.is_none_or(|wanted| wanted.iter().all(|wanted| wanted.accepts(platform)))
    };
    match platform {
        Some(platform) if is_wanted(&platform) => Ok(vec![(directory_platform(platform), image)]),
        other => {
            let names =
                |platforms: &[Platform]| platforms.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let requested = wanted.map_or_else(|| "linux".to_owned(), names);
            let actual = other.map_or_else(|| "an unknown platform".to_owned(), |platform| platform.to_string());
            Err(SourceError::OtherPlatform { digest: image.manifest.digest, requested, actual })
        }
    }
}
