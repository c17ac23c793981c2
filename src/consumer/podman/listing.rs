//! Which image podman lists under a name.

use super::Refusal;
use crate::image::Platform;
use crate::layout::ImagePlace;

/// Whether podman sees an image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PodmanListing {
    /// Nobody asked for that, or it sees another platform of the same name.
    #[default]
    NotAsked,
    /// It is in the store.
    Listed,
    /// It is kept out of the store, which would be of no use with it.
    Refused(Refusal),
}

/// Returns which of the places of a name podman sees, if any: it knows one image by each name.
///
/// It is what the name leads clients to that say nothing of their platform, or else the first one in order that every machine of
/// its architecture runs.
pub(crate) fn listed_platform<'p>(places: impl Iterator<Item = &'p ImagePlace>) -> Option<usize> {
    let is_default = |place: &ImagePlace| {
        place.platform.as_ref().is_some_and(|platform| platform.architecture == "amd64" && platform.variant.is_none())
    };
    let runs_anywhere = |place: &ImagePlace| place.platform.as_ref().is_none_or(Platform::runs_without_a_variant);
    let shown = places.enumerate().filter(|(_, place)| runs_anywhere(place));
    shown.min_by_key(|(_, place)| (!is_default(place), &place.platform)).map(|(number, _)| number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::ImageName;

    #[test]
    fn podman_sees_the_platform_that_clients_get_by_default() {
        let shown = |platforms: &[&str]| {
            let name: ImageName = "h.org/a:1".parse().unwrap();
            let place = |text: &&str| ImagePlace { name: name.clone(), platform: text.parse().ok() };
            listed_platform(platforms.iter().map(place).collect::<Vec<_>>().iter())
        };
        assert_eq!(shown(&["linux/arm64", "linux/amd64", "linux/arm/v7"]), Some(1));
        assert_eq!(shown(&["linux/arm64", "linux/arm/v7"]), Some(1));
        assert_eq!(shown(&["linux/arm/v7", "linux/arm64"]), Some(0));
        assert_eq!(shown(&[""]), Some(0));
        // A variant above that which the architecture means by itself is never what the plain name leads to.
        assert_eq!(shown(&["linux/amd64/v3", "linux/amd64/v2", "linux/arm64"]), Some(2));
        assert_eq!(shown(&["linux/arm/v8", "linux/arm/v6"]), Some(1));
        assert_eq!(shown(&["linux/amd64/v3", "linux/amd64/v2"]), None);
    }
}
