//! Platforms, and the choice of the image that suits a platform best.
//!
//! The variants of an architecture are ordered by level: a machine of one level runs programs for the same and lower levels.
//! An architecture without a variant means a fixed level, as in containerd (`platforms`, "Normalize").

use std::cmp::Reverse;
use std::fmt;
use std::str::FromStr;

use super::NameError;

/// A platform as in image indexes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Platform {
    /// Operating system, in Go's spelling (`linux`).
    pub os: String,
    /// Processor architecture, in Go's spelling (`amd64`).
    pub architecture: String,
    /// Variant of the architecture, such as `v7`.
    pub variant: Option<String>,
}

/// How well an image suits a platform. The smallest value suits best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Suitability(Reverse<Level>);

/// Level of a variant: its number, and the number after a point (`v8.2`).
type Level = (u32, u32);

/// Naming scheme of the variants of an architecture. A higher number requires more of the machine.
struct VariantScale {
    /// Text before the number.
    prefix: &'static str,
    /// Text after the number.
    suffix: &'static str,
    /// Level of the architecture without a variant.
    default: u32,
}

impl VariantScale {
    fn of(architecture: &str) -> Option<Self> {
        let (prefix, suffix, default) = match architecture {
            "amd64" => ("v", "", 1),
            "arm" => ("v", "", 7),
            "arm64" => ("v", "", 8),
            "ppc64" | "ppc64le" => ("power", "", 8),
            "riscv64" => ("rva", "u64", 20),
            _ => return None,
        };
        Some(Self { prefix, suffix, default })
    }

    fn level(&self, variant: Option<&str>) -> Option<Level> {
        let Some(variant) = variant else { return Some((self.default, 0)) };
        // Some image indexes contain the number without the prefix.
        let number = variant.strip_prefix(self.prefix).unwrap_or(variant);
        let number = number.strip_suffix(self.suffix).unwrap_or(number);
        let (major, minor) = number.split_once('.').unwrap_or((number, "0"));
        let parse = |text: &str| text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
        Some((parse(major)?, parse(minor)?))
    }
}

impl Platform {
    /// Returns the platform of this machine.
    pub fn of_this_machine() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", None),
            "arm" => ("arm", Some("v7")),
            "powerpc64" => ("ppc64le", None),
            other => (other, None),
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: variant.map(str::to_owned) }
    }

    /// Returns the platform with these members of an image document, or `None` if the first or second is empty.
    pub(super) fn from_parts(os: &str, architecture: &str, variant: Option<&str>) -> Option<Self> {
        let variant = variant.filter(|variant| !variant.is_empty()).map(str::to_owned);
        (!os.is_empty() && !architecture.is_empty()).then(|| Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant,
        })
    }

    /// Returns how well an image for `offered` suits this platform, or `None` if it does not run there.
    ///
    /// The highest variant that is not above the variant of this platform suits best. A platform without a variant requests
    /// the variant that every machine of its architecture runs: `amd64` means `v1`, `arm` means `v7`, `arm64` means `v8`.
    pub fn suits(&self, offered: &Self) -> Option<Suitability> {
        if !self.has_same_architecture(offered) {
            return None;
        }
        match (self.level(), offered.level()) {
            (Some(asked), Some(offered)) => (offered <= asked).then_some(Suitability(Reverse(offered))),
            // Unknown variants have no order, so only the same variant suits.
            _ => (self.variant == offered.variant).then_some(Suitability(Reverse((0, 0)))),
        }
    }

    /// Returns whether an image for `offered` runs on this platform.
    pub fn accepts(&self, offered: &Self) -> bool {
        self.suits(offered).is_some()
    }

    /// Returns whether an image for this platform runs on every machine that the same platform without a variant stands for.
    pub fn runs_without_a_variant(&self) -> bool {
        Self { variant: None, ..self.clone() }.accepts(self)
    }

    /// Returns whether both are the same platform in possibly different spellings: `amd64` is `amd64/v1`.
    pub fn is_same_as(&self, other: &Self) -> bool {
        let is_same_variant = match (self.level(), other.level()) {
            (Some(level), Some(other)) => level == other,
            _ => self.variant == other.variant,
        };
        self.has_same_architecture(other) && is_same_variant
    }

    /// Returns whether both have the same operating system and architecture.
    pub fn has_same_architecture(&self, other: &Self) -> bool {
        self.os == other.os && self.architecture == other.architecture
    }

    /// Returns whether the platform in an image config contradicts this platform, which an index states. A config without a
    /// variant contradicts none, because most configs omit it.
    pub fn is_contradicted_by(&self, config: &Self) -> bool {
        !self.has_same_architecture(config) || config.variant.is_some() && !self.is_same_as(config)
    }

    fn level(&self) -> Option<Level> {
        VariantScale::of(&self.architecture)?.level(self.variant.as_deref())
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let parts: Vec<&str> = text.split('/').collect();
        match parts.as_slice() {
            [os, architecture, variant @ ..] if variant.len() <= 1 && parts.iter().all(|part| !part.is_empty()) => {
                Ok(Self {
                    os: (*os).to_owned(),
                    architecture: (*architecture).to_owned(),
                    variant: variant.first().map(|&variant| variant.to_owned()),
                })
            }
            _ => Err(NameError::Platform(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    /// Returns those of `offered` that suit `asked`, the best first.
    fn suitable<'t>(asked: &str, offered: &[&'t str]) -> Vec<&'t str> {
        let suits = |text: &&'t str| Some((platform(asked).suits(&platform(text))?, *text));
        let mut suitable: Vec<_> = offered.iter().filter_map(suits).collect();
        suitable.sort();
        suitable.into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn higher_variant_never_suits_and_the_highest_allowed_one_is_best() {
        let amd64 =
            ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64", "linux/amd64/v4", "linux/arm64", "windows/amd64"];
        assert_eq!(suitable("linux/amd64", &amd64), ["linux/amd64"]);
        assert_eq!(suitable("linux/amd64/v1", &amd64), ["linux/amd64"]);
        assert_eq!(suitable("linux/amd64/v2", &amd64), ["linux/amd64/v2", "linux/amd64"]);
        assert_eq!(suitable("linux/amd64/v3", &amd64), ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64"]);
        assert_eq!(suitable("linux/amd64", &["linux/amd64/v1"]), ["linux/amd64/v1"]);
        let arm = ["linux/arm/v5", "linux/arm/v6", "linux/arm/v7", "linux/arm/v8", "linux/arm64"];
        assert_eq!(suitable("linux/arm", &arm), ["linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]);
        assert_eq!(suitable("linux/arm/v8", &arm), ["linux/arm/v8", "linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]);
        assert_eq!(suitable("linux/arm/v6", &arm), ["linux/arm/v6", "linux/arm/v5"]);
        assert_eq!(suitable("linux/arm/v6", &["linux/arm"]), [""; 0]);
        assert_eq!(suitable("linux/arm/v7", &["linux/arm"]), ["linux/arm"]);
        let arm64 = ["linux/arm64/v9", "linux/arm64/v8.2", "linux/arm64/v8", "linux/arm"];
        assert_eq!(suitable("linux/arm64", &arm64), ["linux/arm64/v8"]);
        assert_eq!(suitable("linux/arm64/v9", &arm64), ["linux/arm64/v9", "linux/arm64/v8.2", "linux/arm64/v8"]);
        assert_eq!(suitable("linux/ppc64le", &["linux/ppc64le/power9", "linux/ppc64le"]), ["linux/ppc64le"]);
        assert_eq!(suitable("linux/riscv64", &["linux/riscv64/rva23u64", "linux/riscv64/rva20u64"]).len(), 1);
    }

    #[test]
    fn unknown_variant_suits_only_itself() {
        assert_eq!(suitable("linux/386", &["linux/386/softfloat", "linux/386"]), ["linux/386"]);
        assert_eq!(suitable("linux/386/softfloat", &["linux/386", "linux/386/softfloat"]), ["linux/386/softfloat"]);
        assert_eq!(suitable("linux/amd64", &["linux/amd64/fast", "linux/amd64/v", "linux/amd64/v+1"]), [""; 0]);
        assert_eq!(suitable("linux/amd64/fast", &["linux/amd64/fast", "linux/amd64"]), ["linux/amd64/fast"]);
    }

    #[test]
    fn same_platform_may_have_several_spellings() {
        for (one, other, is_same) in [
            ("linux/amd64", "linux/amd64/v1", true),
            ("linux/arm64/v8", "linux/arm64", true),
            ("linux/arm", "linux/arm/v7", true),
            ("linux/arm/7", "linux/arm/v7", true),
            ("linux/amd64", "linux/amd64/v2", false),
            ("linux/arm/v6", "linux/arm", false),
            ("linux/amd64", "windows/amd64", false),
            ("linux/386", "linux/386/softfloat", false),
        ] {
            assert_eq!(platform(one).is_same_as(&platform(other)), is_same, "{one} {other}");
            assert_eq!(platform(other).is_same_as(&platform(one)), is_same, "{other} {one}");
        }
    }

    #[test]
    fn config_without_variant_contradicts_no_variant() {
        for (named, config, is_contradicted) in [
            ("linux/arm/v6", "linux/arm", false),
            ("linux/amd64/v3", "linux/amd64", false),
            ("linux/amd64", "linux/amd64/v1", false),
            ("linux/amd64", "linux/amd64/v3", true),
            ("linux/arm64", "linux/amd64", true),
            ("linux/amd64", "windows/amd64", true),
        ] {
            assert_eq!(platform(named).is_contradicted_by(&platform(config)), is_contradicted, "{named} {config}");
        }
    }

    #[test]
    fn platform_has_two_or_three_parts() {
        assert!("linux".parse::<Platform>().is_err() && "a/b/c/d".parse::<Platform>().is_err());
        assert!("linux//v7".parse::<Platform>().is_err());
        assert_eq!(platform("linux/arm/v7").to_string(), "linux/arm/v7");
    }
}
