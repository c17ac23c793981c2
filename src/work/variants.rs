//! Warns of public names whose link has no target on some machines.

use std::collections::BTreeMap;

use crate::image::Platform;
use crate::layout::ImagePlace;
use crate::observer::Reporter;

/// Warns of architectures with images only for machines above the base level. `places` are the images of one name.
pub(crate) fn warn_of_high_variants<'p>(places: impl Iterator<Item = &'p ImagePlace>, reporter: &Reporter) {
    for (plain, images) in high_variants(places) {
        let name = &images[0].name;
        let links: Vec<String> = images.iter().map(|place| place.link().to_string()).collect();
        reporter.warn(format_args!(
            "{name}: no image runs on every {plain} machine, so the link of this name has no target on such machines; \
             available: {}",
            links.join(", ")
        ));
    }
}

/// Returns the architectures that have only images for variants above the base level, with these images.
fn high_variants<'p>(places: impl Iterator<Item = &'p ImagePlace>) -> BTreeMap<Platform, Vec<&'p ImagePlace>> {
    let mut architectures: BTreeMap<Platform, Vec<&ImagePlace>> = BTreeMap::new();
    for place in places {
        if let Some(platform) = &place.platform {
            let plain = Platform { variant: None, ..platform.clone() };
            architectures.entry(plain).or_default().push(place);
        }
    }
    let runs = |place: &&ImagePlace| place.platform.as_ref().is_some_and(Platform::runs_without_a_variant);
    architectures.retain(|_, places| !places.iter().any(runs));
    architectures
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::ImageName;

    #[test]
    fn architectures_without_an_image_for_all_machines_are_found() {
        let places = |platforms: &[&str]| -> Vec<ImagePlace> {
            let name: ImageName = "h.org/a:1".parse().unwrap();
            let place = |text: &&str| ImagePlace { name: name.clone(), platform: text.parse().ok() };
            platforms.iter().map(place).collect()
        };
        let found = |platforms: &[&str]| -> Vec<(String, usize)> {
            let places = places(platforms);
            high_variants(places.iter()).into_iter().map(|(plain, of)| (plain.to_string(), of.len())).collect()
        };
        assert_eq!(found(&["linux/amd64/v2", "linux/amd64/v3"]), [("linux/amd64".to_owned(), 2)]);
        assert_eq!(found(&["linux/arm64", "linux/amd64/v3"]), [("linux/amd64".to_owned(), 1)]);
        assert_eq!(found(&["linux/amd64/v3", "linux/amd64", "linux/arm64/v8", "linux/arm/v7", "linux/386"]), []);
        assert_eq!(found(&["linux/arm/v8"]), [("linux/arm".to_owned(), 1)]);
        assert_eq!(found(&[""]), []);
    }
}
