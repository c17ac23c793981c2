//! Selects the image that podman lists under a name.

use super::Refusal;
use crate::image::Platform;
use crate::layout::ImagePlace;

/// Whether an image is listed in podman's store.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PodmanListing {
    /// The image is not requested for podman, or another platform of the same name is listed.
    #[default]
    NotAsked,
    /// The image is in the store.
    Listed,
    /// The image is not in the store, because podman would refuse a store that contains it.
    Refused(Refusal),
}

/// Returns the index of the platform of a name that podman lists, if any. podman can list only one image for each name.
///
/// The result is the platform to which the public link leads by default, or else the first platform in order that runs on every machine
/// of its architecture.
pub(crate) fn listed_platform<'p>(places: impl Iterator<Item = &'p ImagePlace>) -> Option<usize> {
    let is_default = |place: &ImagePlace| {
        place.platform.as_ref().is_some_and(|platform| platform.architecture == "amd64" && platform.variant.is_none())
    };
    // podman runs the listed image on any machine, even with `--platform` for another one: then it only warns.
    let runs_anywhere = |place: &ImagePlace| place.platform.as_ref().is_none_or(Platform::runs_without_a_variant);
    let shown = places.enumerate().filter(|(_, place)| runs_anywhere(place));
    shown.min_by_key(|(_, place)| (!is_default(place), &place.platform)).map(|(number, _)| number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::ImageName;

    #[test]
    fn podman_lists_the_default_platform_of_the_public_link() {
        let shown = |platforms: &[&str]| {
            let name: ImageName = "h.org/a:1".parse().unwrap();
            let place = |text: &&str| ImagePlace { name: name.clone(), platform: text.parse().ok() };
            listed_platform(platforms.iter().map(place).collect::<Vec<_>>().iter())
        };
        assert_eq!(shown(&["linux/arm64", "linux/amd64", "linux/arm/v7"]), Some(1));
        assert_eq!(shown(&["linux/arm64", "linux/arm/v7"]), Some(1));
        assert_eq!(shown(&["linux/arm/v7", "linux/arm64"]), Some(0));
        assert_eq!(shown(&[""]), Some(0));
        // A variant above the base level of its architecture is never listed under the plain name.
        assert_eq!(shown(&["linux/amd64/v3", "linux/amd64/v2", "linux/arm64"]), Some(2));
        assert_eq!(shown(&["linux/arm/v8", "linux/arm/v6"]), Some(1));
        assert_eq!(shown(&["linux/amd64/v3", "linux/amd64/v2"]), None);
    }
}
