//! Generated images, compared with a naive model: a map from paths to entries.
//!
//! There are few names, so that entries often collide. Paths through symbolic links are left to other tests.

use std::collections::BTreeMap;

use crate::strict::Content;
use crate::support::random::Random;
use crate::support::{TestImage, TestLayer, TestRepository};

/// Number of generated images.
const IMAGES: u64 = 60;

fn random_path(random: &mut Random) -> String {
    let depth = 1 + random.below(3);
    let names: Vec<&str> = (0..depth).map(|_| random.one_of(&["a", "b", "aa", "ab", "ba", "bb"])).collect();
    names.join("/")
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Directory { mode: u32 },
    File { mode: u32, content: String },
    Link(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    Add(Node),
    Whiteout,
    Opaque,
}

type Model = BTreeMap<String, Node>;

/// Returns whether `path` is below `directory`, at any depth.
fn is_in(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
}

/// Generates the entries of a layer. None of its paths conflicts with another one.
fn generated_layer(random: &mut Random) -> Vec<(String, Change)> {
    let mut layer: Vec<(String, Change)> = Vec::new();
    for _ in 0..random.below(12) {
        let path = random_path(random);
        let change = match random.below(10) {
            0..3 => Change::Add(Node::Directory { mode: [0o755, 0o700, 0o1777][random.below(3)] }),
            3..6 => Change::Add(Node::File { mode: 0o644, content: random.below(4).to_string() }),
            6 => Change::Add(Node::Link("nowhere".to_owned())),
            7..9 => Change::Whiteout,
            _ => Change::Opaque,
        };
        let collides = |(other, is): &(String, Change)| match (is, &change) {
            (Change::Opaque, Change::Opaque) | (Change::Whiteout, Change::Whiteout) => *other == path,
            (Change::Add(Node::Directory { .. }), Change::Add(Node::Directory { .. })) => *other == path,
            // A whiteout of a directory with entries of the same layer, or below one of its entries, is left to other tests.
            (Change::Opaque, _) | (_, Change::Opaque) => false,
            (Change::Add(Node::Directory { .. }), _) => *other == path || is_in(other, &path),
            (_, Change::Add(Node::Directory { .. })) => *other == path || is_in(&path, other),
            _ => *other == path || is_in(other, &path) || is_in(&path, other),
        };
        let blocks_marker = |(other, is): &(String, Change)| match (is, &change) {
            (Change::Add(Node::Directory { .. }), Change::Opaque)
            | (Change::Opaque, Change::Add(Node::Directory { .. })) => false,
            (Change::Opaque, Change::Opaque) => false,
            (_, Change::Opaque) => *other == path || is_in(&path, other),
            (Change::Opaque, _) => *other == path || is_in(other, &path),
            _ => false,
        };
        if !layer.iter().any(|other| collides(other) || blocks_marker(other)) {
            layer.push((path, change));
        }
    }
    layer
}

/// Applies a layer to a model: first the removals, then the additions.
fn apply(model: &mut Model, layer: &[(String, Change)]) {
    for (path, change) in layer {
        match change {
            Change::Add(_) => {}
            Change::Whiteout => model.retain(|other, _| other != path && !is_in(other, path)),
            Change::Opaque => model.retain(|other, _| !is_in(other, path)),
        }
    }
    for (path, change) in layer {
        let Change::Add(node) = change else { continue };
        for (slash, _) in path.match_indices('/') {
            let directory = &path[..slash];
            if !matches!(model.get(directory), Some(Node::Directory { .. })) {
                model.insert(directory.to_owned(), Node::Directory { mode: 0o755 });
            }
        }
        if !matches!(node, Node::Directory { .. }) {
            model.retain(|other, _| !is_in(other, path));
        }
        model.insert(path.clone(), node.clone());
    }
}

/// Returns whether an entry or marker of the layer is below a symbolic link of the model.
fn leads_through_link(model: &Model, layer: &[(String, Change)]) -> bool {
    let is_no_directory = |path: &str| model.get(path).is_some_and(|node| !matches!(node, Node::Directory { .. }));
    layer.iter().any(|(path, change)| {
        let above = path.match_indices('/').any(|(slash, _)| matches!(model.get(&path[..slash]), Some(Node::Link(_))));
        above || *change == Change::Opaque && is_no_directory(path)
    })
}

fn written(layer: &[(String, Change)], owner: u32) -> impl Fn(TestLayer) -> TestLayer + '_ {
    move |empty| {
        layer.iter().fold(empty, |written, (path, change)| match change {
            Change::Add(Node::Directory { mode }) => written.dir(path).mode(*mode).owner(owner, owner),
            Change::Add(Node::File { mode, content }) => written.file(path, content).mode(*mode).owner(owner, owner),
            Change::Add(Node::Link(target)) => written.symlink(path, target).owner(owner, owner),
            Change::Whiteout => written.whiteout(path),
            Change::Opaque => written.opaque(path),
        })
    }
}

/// Generates an image whose entries all belong to one user.
pub fn generated_image_of(owner: u32, seed: u64) -> TestImage {
    generate(seed, owner).0
}

/// Generates an image, and the model of its file system.
fn generated_image(seed: u64) -> (TestImage, Model) {
    generate(seed, 0)
}

fn generate(seed: u64, owner: u32) -> (TestImage, Model) {
    let mut random = Random::new(seed);
    let (mut image, mut model) = (TestImage::new().env("SEED", &seed.to_string()), Model::new());
    for _ in 0..1 + random.below(4) {
        let layer = generated_layer(&mut random);
        if leads_through_link(&model, &layer) {
            continue;
        }
        apply(&mut model, &layer);
        image = image.layer(written(&layer, owner));
    }
    (image.layer(|layer| layer.file("last", seed.to_string())), {
        model.insert("last".to_owned(), Node::File { mode: 0o644, content: seed.to_string() });
        model
    })
}

/// Returns the published tree in the form of the model, without its root.
fn published_model(repository: &TestRepository, image: &TestImage) -> Model {
    let tree = repository.chain(image);
    let entries = tree.entries().iter().filter(|(path, _)| !path.is_empty());
    let nodes = entries.map(|(path, entry)| {
        let node = match (&entry.target, &entry.content) {
            (Some(target), _) => Node::Link(String::from_utf8(target.clone()).unwrap()),
            (_, Some(Content::Whole(content))) => {
                Node::File { mode: entry.mode & 0o7777, content: String::from_utf8(content.clone()).unwrap() }
            }
            _ => Node::Directory { mode: entry.mode & 0o7777 },
        };
        (String::from_utf8(path.clone()).unwrap(), node)
    });
    nodes.collect()
}

#[test]
fn generated_images_equal_a_naive_model() {
    let images: Vec<(String, TestImage, Model)> = (1..=IMAGES)
        .map(|seed| {
            let (image, model) = generated_image(seed);
            (format!("h.example.org/generated:{seed}"), image, model)
        })
        .collect();
    let repository = TestRepository::new();
    let named: Vec<(&str, &TestImage)> = images.iter().map(|(name, image, _)| (name.as_str(), image)).collect();
    repository.convert_together(&named, &[]).expect_code(0);
    for (name, image, model) in &images {
        assert_eq!(published_model(&repository, image), *model, "{name}");
        let flat = repository.flat(image);
        assert!(model.keys().all(|path| flat.has(path)), "{name}");
    }
}

#[test]
fn generated_images_are_the_same_when_published_layers_are_read_back() {
    let (known, mut read_back) = (TestRepository::new(), 0);
    for seed in 1..=16 {
        let (image, model) = generated_image(seed);
        let name = format!("h.example.org/generated:{seed}");
        known.convert(&image, &name, &["--skip-flat", "--chains", "none"]).expect_code(0);
        let json = known.convert(&image, &name, &["--json"]).expect_code(0).json();
        // A layer whose result depends on the order of its entries is fetched again instead of read back.
        read_back += u64::from(json["images"][0]["layers-read"] == 0);
        assert_eq!(published_model(&known, &image), model, "{name}");
    }
    assert!(read_back >= 4, "only {read_back} of 16 images were built from published layers");
}
