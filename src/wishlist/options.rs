//! How the images of a wish are published.

use super::node::{Fault, Faults, YamlNode, YamlValue};
use crate::image::{FullName, Platform};

/// How the images of a wish are published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WishOptions {
    /// For which platforms.
    pub platforms: PlatformOption,
    /// Whether single layers are published.
    pub layers: bool,
    /// Whether the root file system and the public link are published.
    pub flat: bool,
    /// Whether podman sees the images, where the settings of the repository choose them.
    pub podman: bool,
    /// Which chains are published.
    pub chains: ChainOption,
    /// Whether images fail that CVMFS cannot hold all of.
    pub strict: bool,
    /// The name to publish the image under, if not its own. Only a wish for a single image has one.
    pub name: Option<FullName>,
}

/// For which platforms an image is published.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PlatformOption {
    /// The wishlist does not say.
    #[default]
    Unspecified,
    /// All that the image is there for.
    All,
    /// Those that are listed, at least one, each once.
    Listed(Vec<Platform>),
}

/// Which chains of an image are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ChainOption {
    /// The last one, which a later image may start from.
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
    /// The keys of a wish that [`WishOptions::read`] reads.
    pub(super) const KEYS: [&str; 6] = ["platforms", "layers", "flat", "podman", "chains", "strict"];

    /// Reads the options among the keys of `node`; those that it does not name, or names wrongly, are as they are here.
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
            Ok(_) if !text.bytes().all(is_plain) => faults.add(item.fault(format!("{text:?} is no platform"))),
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
        other => Err(node.fault(format!("{other:?} is none of final, all and none"))),
    }
}
