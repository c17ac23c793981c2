//! Images that a generator made up, compared with a naive model: a map from paths to entries.
//!
//! Names are few, so that everything collides with everything. What layers say about links on the way to an entry is
//! left to the tests that name it: here no path leads through a symbolic link.

use std::collections::BTreeMap;

use crate::strict::Content;
use crate::support::random::Random;
use crate::support::{TestImage, TestLayer, TestRepository};

/// How many images are made up.
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
enum Said {
    Is(Node),
    Whiteout,
    Opaque,
}

type Model = BTreeMap<String, Node>;

/// Tells whether `path` lies in the directory `directory`, at any depth.
fn is_in(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
}

/// Makes up what one layer says. No path of it stands in the way of another one's.
fn made_up_layer(random: &mut Random) -> Vec<(String, Said)> {
    let mut layer: Vec<(String, Said)> = Vec::new();
    for _ in 0..random.below(12) {
        let path = random_path(random);
        let said = match random.below(10) {
            0..3 => Said::Is(Node::Directory { mode: [0o755, 0o700, 0o1777][random.below(3)] }),
            3..6 => Said::Is(Node::File { mode: 0o644, content: random.below(4).to_string() }),
            6 => Said::Is(Node::Link("nowhere".to_owned())),
            7..9 => Said::Whiteout,
            _ => Said::Opaque,
        };
        let collides = |(other, is): &(String, Said)| match (is, &said) {
            (Said::Opaque, Said::Opaque) | (Said::Whiteout, Said::Whiteout) => *other == path,
            (Said::Is(Node::Directory { .. }), Said::Is(Node::Directory { .. })) => *other == path,
            // A whiteout of a directory in which the layer has entries, or below an entry of the layer, is left to others.
            (Said::Opaque, _) | (_, Said::Opaque) => false,
            (Said::Is(Node::Directory { .. }), _) => *other == path || is_in(other, &path),
            (_, Said::Is(Node::Directory { .. })) => *other == path || is_in(&path, other),
            _ => *other == path || is_in(other, &path) || is_in(&path, other),
        };
        let blocks_marker = |(other, is): &(String, Said)| match (is, &said) {
            (Said::Is(Node::Directory { .. }), Said::Opaque) | (Said::Opaque, Said::Is(Node::Directory { .. })) => {
                false
            }
            (Said::Opaque, Said::Opaque) => false,
            (_, Said::Opaque) => *other == path || is_in(&path, other),
            (Said::Opaque, _) => *other == path || is_in(other, &path),
            _ => false,
        };
        if !layer.iter().any(|other| collides(other) || blocks_marker(other)) {
            layer.push((path, said));
        }
    }
    layer
}

/// Lays a layer over a model: first what it hides, then what it brings.
fn lay(model: &mut Model, layer: &[(String, Said)]) {
    for (path, said) in layer {
        match said {
            Said::Is(_) => {}
            Said::Whiteout => model.retain(|other, _| other != path && !is_in(other, path)),
            Said::Opaque => model.retain(|other, _| !is_in(other, path)),
        }
    }
    for (path, said) in layer {
        let Said::Is(node) = said else { continue };
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

/// Tells whether an entry of the layer lies below a link of the model, or a marker does.
fn leads_through_link(model: &Model, layer: &[(String, Said)]) -> bool {
    let is_no_directory = |path: &str| model.get(path).is_some_and(|node| !matches!(node, Node::Directory { .. }));
    layer.iter().any(|(path, said)| {
        let above = path.match_indices('/').any(|(slash, _)| matches!(model.get(&path[..slash]), Some(Node::Link(_))));
        above || *said == Said::Opaque && is_no_directory(path)
    })
}

fn written(layer: &[(String, Said)], owner: u32) -> impl Fn(TestLayer) -> TestLayer + '_ {
    move |empty| {
        layer.iter().fold(empty, |written, (path, said)| match said {
            Said::Is(Node::Directory { mode }) => written.dir(path).mode(*mode).owner(owner, owner),
            Said::Is(Node::File { mode, content }) => written.file(path, content).mode(*mode).owner(owner, owner),
            Said::Is(Node::Link(target)) => written.symlink(path, target).owner(owner, owner),
            Said::Whiteout => written.whiteout(path),
            Said::Opaque => written.opaque(path),
        })
    }
}

/// Makes up an image in which everything is one user's.
pub fn made_up_image_of(owner: u32, seed: u64) -> TestImage {
    made_up(seed, owner).0
}

/// Makes up an image and says what its file system is.
fn made_up_image(seed: u64) -> (TestImage, Model) {
    made_up(seed, 0)
}

fn made_up(seed: u64, owner: u32) -> (TestImage, Model) {
    let mut random = Random::new(seed);
    let (mut image, mut model) = (TestImage::new().env("SEED", &seed.to_string()), Model::new());
    for _ in 0..1 + random.below(4) {
        let layer = made_up_layer(&mut random);
        if leads_through_link(&model, &layer) {
            continue;
        }
        lay(&mut model, &layer);
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
fn made_up_images_are_what_a_naive_model_says() {
    let images: Vec<(String, TestImage, Model)> = (1..=IMAGES)
        .map(|seed| {
            let (image, model) = made_up_image(seed);
            (format!("h.example.org/made-up:{seed}"), image, model)
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
fn made_up_images_are_the_same_when_their_layers_are_known() {
    let (known, mut read_back) = (TestRepository::new(), 0);
    for seed in 1..=8 {
        let (image, model) = made_up_image(seed);
        let name = format!("h.example.org/made-up:{seed}");
        known.convert(&image, &name, &["--skip-flat", "--chains", "none"]).expect_code(0);
        let json = known.convert(&image, &name, &["--json"]).expect_code(0).json();
        // A layer whose entries come in an odd order is read again.
        read_back += u64::from(json["images"][0]["layers-read"] == 0);
        assert_eq!(published_model(&known, &image), model, "{name}");
    }
    assert!(read_back >= 4, "{read_back} of 8 images were made from what is published");
}
