//! Options for publishing the images of a wish.

use super::node::{Fault, Faults, YamlNode, YamlValue};
use crate::image::{FullName, Platform};
use crate::layout::ChainSelection;
use crate::source::{PlatformRequest, PlatformSelection};

/// Options for publishing the images of a wish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WishOptions {
    /// The platforms.
    pub platforms: PlatformSelection,
    /// Whether single layers are published.
    pub layers: bool,
    /// Whether the root file system and the public link are published.
    pub flat: bool,
    /// Whether podman sees the images, if the settings of the repository select them, too.
    pub podman: bool,
    /// The chains that are published.
    pub chains: ChainSelection,
    /// Whether an image fails if CVMFS cannot represent all of it.
    pub strict: bool,
    /// Name under which the image is published instead of its own. Only for a wish for a single image.
    pub name: Option<FullName>,
}

impl Default for WishOptions {
    fn default() -> Self {
        Self {
            platforms: PlatformSelection::default(),
            layers: true,
            flat: true,
            podman: true,
            chains: ChainSelection::default(),
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

fn platforms(node: &YamlNode, faults: &mut Faults) -> PlatformSelection {
    if matches!(&node.value, YamlValue::Text(text) if text == "all") {
        return PlatformSelection::All;
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
    match platforms.as_slice() {
        [platform] => PlatformSelection::One(PlatformRequest::new(Some(platform.clone()))),
        _ => PlatformSelection::Several(platforms),
    }
}

fn chains(node: &YamlNode) -> Result<ChainSelection, Fault> {
    let name = node.text()?;
    ChainSelection::from_name(name).ok_or_else(|| node.fault(format!("{name:?} is not one of final, all and none")))
}
