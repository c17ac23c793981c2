//! IDs and paths in the store.

use sha2::{Digest as _, Sha256};

use crate::image::{Digest, hex};
use crate::layout::PODMAN_STORE;
use crate::manifest::RepositoryName;
use crate::path::EntryPath;
use crate::repository::MOUNT_VARIABLE;

/// The layers of one image in the store, lowest first.
///
/// The number of these layers is equal to the number of real layers of the image, because builds count layers. The IDs differ
/// from those of the real layers: with equal IDs, podman would use these layers as the real ones when it pulls another image. The
/// topmost layer is the whole flat tree, and the only one with a directory. The layers below are empty and shared by all images,
/// because podman iterates over all layers for each image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlatLayers(Vec<FlatLayer>);

/// One layer of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlatLayer {
    /// ID of the layer, which depends on the layers below it.
    pub id: Digest,
    /// Substitute for its diff ID.
    pub diff: Digest,
}

impl FlatLayers {
    /// Returns the layers of the image with this config and `count` layers.
    pub fn of(config: Digest, count: usize) -> Self {
        let mut layers: Vec<FlatLayer> = Vec::with_capacity(count);
        for number in 1..=count {
            let of = if number == count { config.hex() } else { number.to_string() };
            let diff = Digest::of(format!("cvmfs-flat-layer:{of}").as_bytes());
            // The same form of ID as in containers/storage, which depends on the parent.
            let id = match layers.last() {
                Some(below) => Digest::of(format!("{}+{}", below.id.hex(), diff.hex()).as_bytes()),
                None => diff,
            };
            layers.push(FlatLayer { id, diff });
        }
        Self(layers)
    }

    /// Returns the layers, lowest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &FlatLayer> {
        self.0.iter()
    }

    /// Returns the topmost layer; `None` for an image without layers.
    pub fn top(&self) -> Option<FlatLayer> {
        self.0.last().copied()
    }
}

/// Returns the short name of a layer in mount options.
///
/// It must never change, because existing containers contain it.
pub fn link_id(layer: Digest) -> String {
    // Base32 (RFC 4648, section 6) without padding, as in containers/storage.
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let hash: [u8; 32] = Sha256::digest(format!("cvmfs-link:{}", layer.hex())).into();
    let bits = u128::from_be_bytes(*hash.first_chunk().expect("a hash has 32 bytes"));
    // 26 digits have 130 bits; the last two bits are zero.
    let digit = |place: u32| ALPHABET[((bits.rotate_left(5 * place + 5)) & 31) as usize];
    (0..25).map(digit).chain([ALPHABET[((bits & 7) << 2) as usize]]).map(char::from).collect()
}

/// Returns the content of a lock file: 64 bytes by which podman recognises that a list has changed.
pub fn lock_token(json: &[u8]) -> String {
    // podman compares the 64 bytes. If a changed list had the same ones, `podman system service` would keep the old list.
    hex(&Sha256::digest(json))
}

/// Returns the target of the link from a layer to the flat tree. Clients expand it to an absolute path.
///
/// With a relative target containers run, but no other image can be built from the image.
pub fn diff_target(repository: &RepositoryName, config: Digest) -> String {
    let flat = crate::layout::flat_root(config);
    // `podman build` and `commit` stop at a relative link with "linkpath must be absolute" (containers/storage).
    format!("$({MOUNT_VARIABLE}:-/cvmfs)/{repository}{flat}")
}

fn store(directory: &str) -> EntryPath {
    EntryPath::ROOT.join(PODMAN_STORE.as_bytes()).join(directory.as_bytes())
}

/// Returns the directory of images.
pub fn images() -> EntryPath {
    store("overlay-images")
}

/// Returns the list of images.
pub fn images_list() -> EntryPath {
    images().join(b"images.json")
}

/// Returns the lock file of the list of images.
pub fn images_lock() -> EntryPath {
    images().join(b"images.lock")
}

/// Returns the directory of the list of layers.
pub fn layers() -> EntryPath {
    store("overlay-layers")
}

/// Returns the list of layers.
pub fn layers_list() -> EntryPath {
    layers().join(b"layers.json")
}

/// Returns the lock file of the list of layers.
pub fn layers_lock() -> EntryPath {
    layers().join(b"layers.lock")
}

/// Returns the directory of an image's documents.
pub fn image_directory(config: Digest) -> EntryPath {
    images().join(config.hex().as_bytes())
}

/// Returns the file of an image's document with this key.
pub fn document(config: Digest, key: &str) -> EntryPath {
    // The rule of containers/storage for the file names of its "big data".
    let is_plain = key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.');
    let name = if is_plain { key.to_owned() } else { format!("={}", base64(key)) };
    image_directory(config).join(name.as_bytes())
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// Returns the key of the document with the manifest of this digest.
pub fn manifest_key(manifest: Digest) -> String {
    format!("manifest-{manifest}")
}

/// Returns the directory of a layer.
pub fn layer_directory(layer: Digest) -> EntryPath {
    store("overlay").join(layer.hex().as_bytes())
}

/// Returns the link from a layer to its content.
pub fn layer_diff(layer: Digest) -> EntryPath {
    layer_directory(layer).join(b"diff")
}

/// Returns the file with the short name of a layer.
pub fn layer_link(layer: Digest) -> EntryPath {
    layer_directory(layer).join(b"link")
}

/// Returns the file with the short names of the layers below a layer.
pub fn layer_lower(layer: Digest) -> EntryPath {
    layer_directory(layer).join(b"lower")
}

/// Returns the link with this short name.
pub fn short_link(link: &str) -> EntryPath {
    store("overlay").join(b"l").join(link.as_bytes())
}

/// Returns the target of the link with a layer's short name.
pub fn short_link_target(layer: Digest) -> String {
    format!("../{}/diff", layer.hex())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_of_one_layer_has_the_same_layer_id_as_in_ducc() {
        let config = Digest::of(b"config");
        let layers = FlatLayers::of(config, 1);
        let expected = Digest::of(format!("cvmfs-flat-layer:{}", config.hex()).as_bytes());
        assert_eq!(layers.0, [FlatLayer { id: expected, diff: expected }]);
        assert_eq!(FlatLayers::of(config, 0).top(), None);
    }

    #[test]
    fn layer_ids_are_computed_as_in_containers_storage() {
        let config: Digest = format!("sha256:{}", "0123456789abcdef".repeat(4)).parse().unwrap();
        let layers = FlatLayers::of(config, 3);
        // Computed with sha256sum.
        let ids = [
            "29c0d856987057afaeffe31cc4b7c15cd49ae8706b2417ed198e851f05defda2",
            "a0807f553198a397c000bfc1ae3419dcbe948b7c66521f6457b1c4d5686d267e",
            "2566f43be1648d9474962eece8ff98bb5ffd7d9e2b59e554976df42489509c5c",
        ];
        assert_eq!(layers.iter().map(|layer| layer.id.hex()).collect::<Vec<_>>(), ids);
        let mut below: Option<Digest> = None;
        for layer in layers.iter() {
            if let Some(below) = below {
                assert_eq!(layer.id, Digest::of(format!("{}+{}", below.hex(), layer.diff.hex()).as_bytes()));
            }
            below = Some(layer.id);
        }
        assert_eq!(FlatLayers::of(Digest::of(b"other"), 3).0[..2], layers.0[..2]);
    }

    #[test]
    fn link_id_is_base32_of_a_hash() {
        let layer: Digest = format!("sha256:{}", "0123456789abcdef".repeat(4)).parse().unwrap();
        assert_eq!(link_id(layer), "KZAZ7B3S5WF2JUUZTUWOUGDNHY");
        assert_ne!(link_id(layer), link_id(Digest::of(b"other")));
    }

    #[test]
    fn documents_are_named_as_in_containers_storage() {
        let config = Digest::of(b"");
        let name = |key| String::from_utf8(document(config, key).split().unwrap().1.to_vec()).unwrap();
        assert_eq!(name("manifest"), "manifest");
        let key = format!("sha256:{}", "0".repeat(64));
        assert_eq!(
            name(&key),
            "=c2hhMjU2OjAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDA="
        );
    }

    #[test]
    fn target_of_a_layer_is_expanded_by_clients() {
        let target = diff_target(&"unpacked.example.org".parse().unwrap(), Digest::of(b""));
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(target, format!("$(CVMFS_MOUNT_DIR:-/cvmfs)/unpacked.example.org/.flat/e3/{hex}"));
    }

    #[test]
    fn token_has_64_bytes_and_changes_with_the_content() {
        assert_eq!(lock_token(b"[]").len(), 64);
        assert_ne!(lock_token(b"[]"), lock_token(b"[{}]"));
    }
}
