//! The paths of an image: under its name alone, or as one of several platforms of the name.
//!
//! The public link of a name with several platforms contains the variable `CVMFS_ARCH`, which every client expands for itself.
//! Clients since 2.11 set it to the output of `uname -m`. Below `.multiarch`, each platform has a directory, which is named as in
//! image indexes. Links to this directory have the names that `uname -m` prints.

use std::fmt;

use super::{flat_root, path};
use crate::image::{Digest, ImageName, Platform};
use crate::path::EntryPath;

/// Directory of the platforms of all images with several platforms.
pub const PLATFORM_DIRECTORY: &str = ".multiarch";

/// Architecture names of `uname -m` and Debian, each with its possible platform directories; the first existing one is used.
// The names and their order are those of DUCC.
pub const ARCHITECTURE_ALIASES: [(&str, &[&str]); 7] = [
    ("x86_64", &["amd64"]),
    ("x86-64", &["amd64"]),
    ("i386", &["386"]),
    ("aarch64", &["arm64", "arm64:v8"]),
    ("arm64", &["arm64:v8"]),
    ("armhf", &["arm"]),
    ("armel", &["arm:v6"]),
];

/// The name and platform under which an image is published.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImagePlace {
    /// The public name.
    pub name: ImageName,
    /// The platform, if the name has several.
    pub platform: Option<Platform>,
}

impl ImagePlace {
    /// Returns the path of the link to the image's flat tree.
    pub fn link(&self) -> EntryPath {
        path(&self.link_path())
    }

    /// Returns the target of the link to the image's flat tree. The target is relative, so that it does not depend on the
    /// mountpoint of the repository.
    pub fn link_target(&self, config: Digest) -> Vec<u8> {
        relative(&self.link(), flat_root(config).as_bytes())
    }

    /// Returns the directory of the image's metadata.
    pub fn metadata(&self) -> EntryPath {
        path(&format!(".metadata/{}", self.link_path()))
    }

    fn link_path(&self) -> String {
        match &self.platform {
            None => self.name.public_path(),
            Some(platform) => {
                format!("{PLATFORM_DIRECTORY}/{}/{}", platform_directory(platform), self.name.public_path())
            }
        }
    }
}

impl fmt::Display for ImagePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        self.platform.iter().try_for_each(|platform| write!(f, " ({platform})"))
    }
}

/// Returns the target of the public link of a name with several platforms. Clients expand the variable in it.
pub fn variant_link_target(name: &ImageName) -> Vec<u8> {
    let link = path(&name.public_path());
    // Clients before 2.11 do not set the variable, and use the default after `:-`.
    relative(&link, format!("{PLATFORM_DIRECTORY}/$(CVMFS_ARCH:-amd64)/{}", name.public_path()).as_bytes())
}

fn relative(link: &EntryPath, target: &[u8]) -> Vec<u8> {
    let depth = link.components().count() - 1;
    [b"../".repeat(depth).as_slice(), target].concat()
}

/// Returns the name of a platform's directory: the architecture, and after a colon the variant.
fn platform_directory(platform: &Platform) -> String {
    match &platform.variant {
        // The same names as in DUCC, because jobs contain them: for example, DIRAC reads `.multiarch/<architecture>/…`.
        None => platform.architecture.clone(),
        Some(variant) => format!("{}:{variant}", platform.architecture),
    }
}

/// Returns the platform of a directory below [`PLATFORM_DIRECTORY`].
pub fn platform_of_directory(directory: &[u8]) -> Option<Platform> {
    let directory = std::str::from_utf8(directory).ok()?;
    format!("linux/{}", directory.replace(':', "/")).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_is_published_under_its_name_alone_or_by_platform() {
        let name: ImageName = "registry.example.org/library/ubuntu:latest".parse().unwrap();
        let place = |platform: Option<&str>| ImagePlace {
            name: name.clone(),
            platform: platform.map(|platform| platform.parse().unwrap()),
        };
        let config = Digest::of(b"");
        let hex = config.hex();
        for (platform, link, up) in [
            (None, "/registry.example.org/library/ubuntu:latest", "../../"),
            (Some("linux/amd64"), "/.multiarch/amd64/registry.example.org/library/ubuntu:latest", "../../../../"),
            (Some("linux/arm/v7"), "/.multiarch/arm:v7/registry.example.org/library/ubuntu:latest", "../../../../"),
        ] {
            let place = place(platform);
            assert_eq!(place.link().to_string(), link);
            assert_eq!(place.metadata().to_string(), format!("/.metadata{link}"));
            let platform = place.platform.as_ref().map(platform_directory);
            assert_eq!(platform.and_then(|directory| platform_of_directory(directory.as_bytes())), place.platform);
            let target = String::from_utf8(place.link_target(config)).unwrap();
            assert_eq!(target, format!("{up}.flat/e3/{hex}"));
        }
        let variant = String::from_utf8(variant_link_target(&name)).unwrap();
        assert_eq!(variant, "../../.multiarch/$(CVMFS_ARCH:-amd64)/registry.example.org/library/ubuntu:latest");
    }
}
