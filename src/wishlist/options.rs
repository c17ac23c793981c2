//! Options for publishing the images of a wish.

use super::node::{Fault, Faults, YamlNode, YamlValue};
use crate::image::{FullName, Platform};

/// Options for publishing the images of a wish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WishOptions {
    /// The platforms.
    pub platforms: PlatformOption,
    /// Whether single layers are published.
    pub layers: bool,
    /// Whether the root file system and the public link are published.
    pub flat: bool,
    /// Whether podman sees the images, if the settings of the repository select them, too.
    pub podman: bool,
    /// The chains that are published.
    pub chains: ChainOption,
    /// Whether an image fails if CVMFS cannot represent all of it.
    pub strict: bool,
    /// Name under which the image is published instead of its own. Only for a wish for a single image.
    pub name: Option<FullName>,
}

/// The platforms for which an image is published.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PlatformOption {
    /// The wishlist contains no platforms.
    #[default]
    Unspecified,
    /// All platforms of the image.
    All,
    /// These platforms: at least one, without duplicates.
    Listed(Vec<Platform>),
}

/// The chains of an image that are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ChainOption {
    /// The last one, from which the conversion of a later image can start.
    #[default]
    Final,
    /// One for each layer.
    All,
    /// None.
    None,
}

impl Default for WishOptions {
    fn default() -> Self {
        Self {
            platforms: PlatformOption::default(),
            layers: true,
            flat: true,
            podman: true,
            chains: ChainOption::default(),
            strict: false,
            name: None,
        }
    }
}

impl WishOptions {
    /// The keys that [`WishOptions::read`] parses.
    pub(super) const KEYS: [&str; 6] = ["platforms", "layers", "flat", "podman", "chains", "strict"];

    /// Parses the options in `node`. Missing and invalid ones keep the values of `self`.
    pub(super) fn read(&self, node: &YamlNode, faults: &mut Faults) -> Self {
        let mut options = self.clone();
        for key in Self::KEYS {
            if let Some(value) = node.get(key) {
                options.set(key, value, faults);
            }
        }
        options
    }

    /// Sets one of the [`KEYS`](Self::KEYS).
    pub(super) fn set(&mut self, key: &str, value: &YamlNode, faults: &mut Faults) {
        let flag = match key {
            "layers" => &mut self.layers,
            "flat" => &mut self.flat,
            "podman" => &mut self.podman,
            "strict" => &mut self.strict,
            "platforms" => {
                self.platforms = platforms(value, faults);
                return;
            }
            _ => {
                self.chains = faults.take(chains(value)).unwrap_or_default();
                return;
            }
        };
        *flag = faults.take(value.flag()).unwrap_or(*flag);
    }
}

fn platforms(node: &YamlNode, faults: &mut Faults) -> PlatformOption {
    if matches!(&node.value, YamlValue::Text(text) if text == "all") {
        return PlatformOption::All;
    }
    let mut platforms = Vec::new();
    for (item, text) in node.texts(faults) {
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'_' | b'-');
        match item.parsed::<Platform>() {
            Ok(_) if !text.bytes().all(is_plain) => faults.add(item.fault(format!("{text:?} is not a valid platform"))),
            Ok(platform) if !platforms.contains(&platform) => platforms.push(platform),
            Ok(_) => {}
            Err(fault) => faults.add(fault),
        }
    }
    PlatformOption::Listed(platforms)
}

fn chains(node: &YamlNode) -> Result<ChainOption, Fault> {
    match node.text()? {
        "final" => Ok(ChainOption::Final),
        "all" => Ok(ChainOption::All),
        "none" => Ok(ChainOption::None),
        other => Err(node.fault(format!("{other:?} is not one of final, all and none"))),
    }
}
