//! Generated stacks of layers, compared with umoci and the kernel's overlay file system.
//!
//! Entries are in random order: duplicate names, hard links to earlier and later entries and into lower layers, whiteouts and
//! opaque markers before and after the entries that they hide, entries below symbolic links. Where umoci unpacks a stack, `.flat`
//! must equal its result. For every published stack, an overlay mount of `.layers` must equal `.flat`, except at the listed masked
//! links. A seed stands for the same stack in every run; `STRATA_TEST_SEED` is the first seed (default: 1).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::{DIRECTORY, TYPE};
use crate::strict::Entry;
use crate::support::fuse::{Mount, seen_in_overlay, walk, walk_tolerating};
use crate::support::random::Random;
use crate::support::{MountNamespace, TestImage, TestLayer, TestRepository, layer_path, need, need_fuse, skip};

/// Number of stacks in a run with `STRATA_TEST_LONG=1`.
const ALL: u64 = 5_000;

/// Number of stacks in any other run.
const SHARE: u64 = ALL / 20;

/// Number of stacks in one repository.
const BATCH: u64 = 50;

type Listing = BTreeMap<Vec<u8>, Entry>;

/// Returns the path of a directory. Its components are usually names of directories, and sometimes the name of a symbolic link.
fn random_directory(random: &mut Random) -> String {
    let depth = random.below(3);
    let names: Vec<&str> = (0..depth).map(|_| random.one_of(&["a", "a", "b", "b", "a", "b", "l"])).collect();
    names.iter().map(|name| format!("{name}/")).collect()
}

/// Returns the path of an entry with one of `names`, or sometimes with a name that is usual for entries of other types.
fn random_path(random: &mut Random, names: &[&str]) -> String {
    let name =
        if random.below(12) == 0 { random.one_of(&["a", "b", "f", "g", "l", "m"]) } else { random.one_of(names) };
    format!("{}{name}", random_directory(random))
}

/// Paths of the files and hard links in the stack so far.
#[derive(Default)]
struct Named(Vec<String>);

impl Named {
    /// Chooses the target of a hard link: usually one of the latest entries.
    fn target(&self, random: &mut Random) -> String {
        match self.0.len() {
            0 => random_path(random, &["f", "g"]),
            length if random.below(6) > 0 => self.0[length - 1 - random.below(length.min(2))].clone(),
            length => self.0[random.below(length)].clone(),
        }
    }
}

/// Adds one entry to a layer.
fn add(layer: TestLayer, random: &mut Random, named: &mut Named, owner: u32) -> TestLayer {
    let owned = |layer: TestLayer| layer.owner(owner, owner);
    match random.below(24) {
        0..8 => {
            let path = random_path(random, &["f", "g", "h"]);
            named.0.push(path.clone());
            let mode = [0o644, 0o755, 0o4755][random.below(3)];
            owned(layer.file(path, random.below(5).to_string())).mode(mode)
        }
        8..12 => {
            let mode = [0o755, 0o700, 0o1777][random.below(3)];
            owned(layer.dir(random_path(random, &["a", "b"]))).mode(mode).mtime(1_400_000_000, 0)
        }
        12..14 => {
            let path = random_path(random, &["l", "m"]);
            let up = random.one_of(&["", "/", "../", "/"]);
            let target = format!("{up}{}", random_path(random, &["a", "b", "a", "b", "f"]));
            owned(layer.symlink(path, target))
        }
        14..17 if !named.0.is_empty() => {
            let (path, target) = (random_path(random, &["f", "g", "h"]), named.target(random));
            named.0.push(path.clone());
            owned(layer.hardlink(path, target))
        }
        17..22 => layer.whiteout(random_path(random, &["a", "b", "f", "g", "h", "l"])),
        22 => layer.opaque(random_directory(random).trim_end_matches('/')),
        _ => owned(layer.fifo(random_path(random, &["g", "h"]))),
    }
}

fn stack(seed: u64, owner: u32) -> TestImage {
    let mut random = Random::new(seed);
    let mut named = Named::default();
    let mut image = TestImage::new().env("SEED", &seed.to_string());
    for _ in 0..2 + random.below(3) {
        image = image.layer(|mut layer| {
            for _ in 0..1 + random.below(9) {
                layer = add(layer, &mut random, &mut named, owner);
            }
            layer
        });
    }
    image
}

/// Unpacks an image with umoci. Returns `None` if umoci refuses it.
fn unpacked(directory: &Path, seed: u64) -> Option<PathBuf> {
    let root = directory.join(format!("umoci-{seed}"));
    let image = format!("{}:{seed}", directory.join("layout").display());
    let mut command = Command::new("umoci");
    command.args(["raw", "unpack", "--image", &image]);
    if !rustix::process::geteuid().is_root() {
        command.arg("--rootless");
    }
    command.arg(&root).output().unwrap().status.success().then_some(root)
}

/// Compares `.flat` with the result of umoci, except for times that umoci takes from the clock.
fn assert_as_umoci(flat: &Listing, unpacked: &Listing, start: i64, seed: u64) {
    let paths = |tree: &Listing| tree.keys().map(|path| path.escape_ascii().to_string()).collect::<Vec<_>>();
    assert_eq!(paths(flat), paths(unpacked), "seed {seed}: paths in .flat and of umoci");
    for (path, theirs) in unpacked {
        let mut ours = flat[path].clone();
        let is_directory = theirs.mode & TYPE == DIRECTORY;
        if is_directory && (theirs.mtime.0 >= start || path.is_empty()) {
            ours.mtime = theirs.mtime;
        }
        if is_directory && ours.mtime == (0, 0) {
            ours.mtime = theirs.mtime;
        }
        // CVMFS does not store hard links across directories, so that link counts may differ.
        (ours.linkcount, ours.link_group) = (theirs.linkcount, None);
        (ours.size, ours.hidden) = (theirs.size, false);
        assert_eq!(ours, *theirs, "seed {seed}: '{}' in .flat and of umoci", path.escape_ascii());
    }
}

/// Resolves all symbolic links of a path in a tree.
fn resolve(tree: &Listing, path: &[u8]) -> Vec<u8> {
    let mut ahead: Vec<Vec<u8>> = path.split(|&b| b == b'/').rev().map(<[u8]>::to_vec).collect();
    let mut at: Vec<Vec<u8>> = Vec::new();
    let mut left = 300;
    while let Some(name) = ahead.pop() {
        match name.as_slice() {
            b"" | b"." => {}
            b".." => drop(at.pop()),
            _ => {
                at.push(name);
                if let Some(target) = tree.get(&at.join(&b'/')).and_then(|entry| entry.target.as_ref()) {
                    left -= 1;
                    if left == 0 {
                        break;
                    }
                    at.pop();
                    if target.starts_with(b"/") {
                        at.clear();
                    }
                    ahead.extend(target.split(|&b| b == b'/').rev().map(<[u8]>::to_vec));
                }
            }
        }
    }
    at.join(&b'/')
}

/// Returns the paths of the listed losses of a kind.
fn lost(losses: &Value, kind: &str) -> Vec<Vec<u8>> {
    let paths = losses[kind]["paths"].as_array().into_iter().flatten();
    paths.map(|path| path.as_str().unwrap().as_bytes().to_vec()).collect()
}

/// Returns the paths at which listed losses allow an overlay mount to differ: masked links, their targets or missing parents of
/// their targets, and paths of a layer that was published above the layers of another image.
fn explained(repository: &TestRepository, image: &TestImage, losses: &Value) -> BTreeSet<Vec<u8>> {
    let links = lost(losses, "masked-link");
    let other_parents = ["layer-of-other-parents", "link-into-other-parents"].map(|kind| lost(losses, kind)).concat();
    let mut explained: BTreeSet<Vec<u8>> = links.iter().chain(&other_parents).cloned().collect();
    for length in 1..=image.layer_digests().len() {
        let chain = repository.tree(&crate::support::chain_path(image, length));
        for link in &links {
            let target = resolve(chain.entries(), link);
            let slashes = (0..target.len()).filter(|&at| target[at] == b'/');
            let is_missing = |path: &[u8]| chain.entries().get(path).is_none_or(|entry| entry.mode & TYPE != DIRECTORY);
            let missing = slashes.map(|slash| &target[..slash]).find(|above| is_missing(above));
            explained.insert(missing.unwrap_or(&target).to_vec());
        }
    }
    explained
}

fn is_in(path: &[u8], directory: &[u8]) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| directory.is_empty() || rest.is_empty() || rest[0] == b'/')
}

/// Numbers of stacks by result.
#[derive(Debug, Default)]
struct Tally {
    published: u64,
    unpacked_by_umoci: u64,
    mounted: u64,
    with_masked_links: u64,
}

fn try_batch(seeds: impl Iterator<Item = u64>, tally: &mut Tally) {
    let owner = rustix::process::geteuid().as_raw();
    let repository = TestRepository::new();
    let images: Vec<(u64, String, TestImage)> =
        seeds.map(|seed| (seed, format!("h.example.org/stack:{seed}"), stack(seed, owner))).collect();
    let start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let directory = repository.beside("umoci");
    for (seed, _, image) in &images {
        image.write_oci_layout(&directory.join("layout"), &seed.to_string());
    }
    let named: Vec<(&str, &TestImage)> = images.iter().map(|(_, name, image)| (name.as_str(), image)).collect();
    let report = repository.convert_together(&named, &["--chains", "all", "--skip-podman", "--json"]).json();
    let outcomes = report["images"].as_array().unwrap();
    let mount = Mount::start(&repository, &[]);
    let mut namespace = MountNamespace::new("-m", None);
    for (seed, name, image) in &images {
        let outcome = outcomes.iter().find(|outcome| outcome["name"] == **name && outcome["manifest"].is_string());
        let root = unpacked(&directory, *seed);
        let Some(outcome) = outcome else {
            assert!(root.is_none(), "seed {seed}: umoci unpacks what strata refuses: {report}");
            continue;
        };
        tally.published += 1;
        let flat = repository.chain(image);
        if let Some(root) = root {
            assert_as_umoci(flat.entries(), &walk(&root), start, *seed);
            tally.unpacked_by_umoci += 1;
            fs::remove_dir_all(root).unwrap();
        }
        if let Some(namespace) = namespace.as_mut().filter(|_| image.has_distinct_layers()) {
            let losses = &outcome["losses"];
            tally.with_masked_links += u64::from(losses["masked-link"].is_object());
            assert_mounts_as(namespace, &mount.directory, &repository, image, losses, *seed);
            tally.mounted += 1;
        }
    }
}

/// Mounts the layers of an image with overlayfs and compares the result with its root file system.
fn assert_mounts_as(
    namespace: &mut MountNamespace,
    mount: &Path,
    repository: &TestRepository,
    image: &TestImage,
    losses: &Value,
    seed: u64,
) {
    let [point, empty] = ["merged", "empty"].map(|name| repository.beside(name));
    fs::create_dir_all(&point).unwrap();
    fs::create_dir_all(&empty).unwrap();
    let layers = (0..image.layer_digests().len()).rev().map(|number| mount.join(layer_path(image, number)));
    let lower: Vec<String> = layers.map(|layer| layer.display().to_string()).collect();
    let options = format!("ro,lowerdir={}", lower.join(":"));
    namespace.run(&format!("mount -t overlay -o '{options}' overlay '{}'", point.display())).unwrap();
    let explained = explained(repository, image, losses);
    let is_explained = |path: &[u8]| explained.iter().any(|at| is_in(path, at) || !path.is_empty() && is_in(at, path));
    // Directories below masked links exist in one layer only, and Linux lists whiteouts in directories of a single layer.
    let mut found = seen_in_overlay(walk_tolerating(&namespace.path(&point), |_| losses["masked-link"].is_object()));
    let mut expected = seen_in_overlay(repository.chain(image).entries().clone());
    for tree in [&mut found, &mut expected] {
        tree.retain(|path, _| !is_explained(path));
    }
    let paths = |tree: &Listing| tree.keys().map(|path| path.escape_ascii().to_string()).collect::<Vec<_>>();
    assert_eq!(paths(&found), paths(&expected), "seed {seed}: paths in the mount and in .flat");
    for (path, entry) in &expected {
        assert_eq!(found[path], *entry, "seed {seed}: '{}' in the mount and in .flat", path.escape_ascii());
    }
    namespace.unmount(&point);
}

#[test]
fn umoci_and_overlay_mounts_agree_with_strata_on_generated_stacks() {
    if !need("umoci") || !need_fuse() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        skip("only root may mount layers");
    }
    let count = if std::env::var_os("STRATA_TEST_LONG").is_some() { ALL } else { SHARE };
    let first = std::env::var("STRATA_TEST_SEED").map_or(1, |seed| seed.parse().unwrap());
    let mut tally = Tally::default();
    for batch in (first..first + count).step_by(BATCH as usize) {
        try_batch(batch..(batch + BATCH).min(first + count), &mut tally);
    }
    println!("{count} stacks: {tally:?}");
    assert!(
        tally.published > count / 2 && tally.unpacked_by_umoci > count / 4 && tally.with_masked_links > 0,
        "{tally:?}"
    );
}
