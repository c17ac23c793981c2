//! The rules for what a module may know, which no compiler checks.
//!
//! A module is a file or directory right below `src`. Code that only tests use may know everything.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// For each module, the modules that it names, each with one file that contains such a name.
type Arrows = BTreeMap<String, BTreeMap<String, PathBuf>>;

/// Forbidden dependencies: a module, the module that it must not name, and the reason.
const FORBIDDEN: [(&str, &str, &str); 16] = [
    ("store", "catalog", "a store holds objects and does not know their content"),
    ("stage", "publish", "staging is the same for every way to publish"),
    ("stage", "inventory::places", "staging does not look at the names in the head"),
    ("revise", "source", "what only changes the head needs no image"),
    ("revise", "registry", "what only changes the head needs no registry"),
    ("revise", "state", "what only changes the head needs no content index"),
    ("publish", "registry", "what only changes the head needs no registry"),
    ("layout", "consumer", "paths are the same for every container runtime"),
    ("registry", "source", "the client of registries serves more than images"),
    ("layer", "store", "a layer is read without knowing where its content goes"),
    ("tar_archive", "layer", "layers and the archives of images are read by the same code"),
    ("tar_archive", "source", "layers and the archives of images are read by the same code"),
    ("verify", "tar_archive", "a proof needs a second implementation of reading layers"),
    ("verify", "tree", "a proof needs a second implementation of applying layers"),
    ("verify", "ingest", "a proof needs a second implementation of reading layers"),
    ("verify", "stage", "a proof needs a second implementation of the published trees"),
];

/// What `verify` may use of `layer`: decompression and plain types, but nothing that parses an archive.
const SHARED_WITH_VERIFY: [&str; 12] = [
    "DeviceNumber",
    "EntryKind",
    "LayerEntry",
    "LayerError",
    "Limit",
    "LimitExceeded",
    "Limits",
    "Loss",
    "LossKind",
    "Losses",
    "NodeKind",
    "unpack",
];

#[test]
fn no_module_knows_what_it_must_not_know() {
    let arrows = arrows();
    for (module, other, reason) in FORBIDDEN {
        let known = arrows.get(module).unwrap_or_else(|| panic!("there is a module {module}"));
        let file = known.iter().find(|(path, _)| *path == other || path.starts_with(&format!("{other}::")));
        assert!(file.is_none(), "{module} must not know {other}, as {reason}: {:?}", file.unwrap().1);
    }
}

#[test]
fn verify_shares_no_parser_with_convert() {
    let arrows = arrows();
    for (path, file) in &arrows["verify"] {
        let (module, name) = path.split_once("::").unwrap_or((path, ""));
        let is_shared = module != "layer" || SHARED_WITH_VERIFY.contains(&name);
        assert!(is_shared, "verify must not use {path}, or a mistake in it goes unnoticed: {}", file.display());
    }
    assert!(arrows["verify"].contains_key("layer::unpack") && arrows["ingest"].contains_key("layer::LayerReader"));
}

#[test]
fn library_does_not_know_the_program() {
    for file in source_files().filter(|file| !file.starts_with("cli") && *file != Path::new("main.rs")) {
        let text = product_code(&file);
        assert!(!text.contains("crate::cli"), "{} names the program's modules", file.display());
        for word in ["println!", "eprintln!", "std::process::exit"] {
            assert!(!text.contains(word), "{} has {word}: only the program prints and exits", file.display());
        }
    }
}

#[test]
fn library_reports_messages_to_its_observer_only() {
    for file in source_files().filter(|file| !file.starts_with("cli") && *file != Path::new("main.rs")) {
        let code = product_code(&file);
        for word in ["tracing::error!", "tracing::warn!", "tracing::info!", "tracing::debug!", "use tracing"] {
            assert!(!code.contains(word), "{} has {word}: messages go to the reporter", file.display());
        }
    }
}

#[test]
fn no_modules_know_each_other() {
    let arrows = modules(&arrows());
    // A module that is reached from itself is part of a circle.
    for module in arrows.keys() {
        let mut reached: BTreeMap<&String, Vec<&String>> = BTreeMap::new();
        let mut waiting = vec![(module, vec![module])];
        while let Some((from, path)) = waiting.pop() {
            for next in arrows.get(from).into_iter().flatten() {
                let path: Vec<&String> = path.iter().copied().chain([next]).collect();
                assert!(next != module, "modules know each other: {path:?}");
                if !reached.contains_key(next) {
                    reached.insert(next, path.clone());
                    waiting.push((next, path));
                }
            }
        }
    }
}

#[test]
fn arrows_are_found() {
    let arrows = modules(&arrows());
    assert!(arrows["work"].contains("stage") && arrows["catalog"].contains("tree"));
    assert!(arrows.len() > 30);
}

/// Returns the modules that each module names.
fn modules(arrows: &Arrows) -> BTreeMap<String, BTreeSet<String>> {
    let module = |path: &String| path.split("::").next().unwrap_or_default().to_owned();
    let others = |(name, known): (&String, &BTreeMap<String, PathBuf>)| {
        let known = known.keys().map(module).filter(|other| other != name).collect();
        (name.clone(), known)
    };
    arrows.iter().map(others).collect()
}

/// Finds the paths of two components below `crate` that each module names.
fn arrows() -> Arrows {
    let mut arrows = Arrows::new();
    for file in source_files().filter(|file| !file.starts_with("cli") && !is_root(file)) {
        let module = file.iter().next().unwrap().to_string_lossy().trim_end_matches(".rs").to_owned();
        let known = arrows.entry(module.clone()).or_default();
        for path in named_paths(&product_code(&file)) {
            if path.split("::").next() != Some(&module) {
                known.entry(path).or_insert_with(|| file.clone());
            }
        }
    }
    arrows
}

/// Returns the first two components of every path below `crate` in a text, also of those in braces.
fn named_paths(text: &str) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    for rest in text.split("crate::").skip(1) {
        let is_of_path = |c: char| c.is_alphanumeric() || c == '_';
        let module: String = rest.chars().take_while(|&c| is_of_path(c)).collect();
        let Some(below) = rest[module.len()..].strip_prefix("::") else {
            paths.insert(module);
            continue;
        };
        let names = match below.strip_prefix('{') {
            Some(list) => list.split('}').next().unwrap_or_default(),
            None => below,
        };
        for name in names.split(',') {
            let name: String = name.trim().chars().take_while(|&c| is_of_path(c)).collect();
            paths.insert(format!("{module}::{name}"));
            if !below.starts_with('{') {
                break;
            }
        }
    }
    paths
}

/// Returns the code of a file without comments and without what only tests use.
fn product_code(file: &Path) -> String {
    let text = fs::read_to_string(Path::new("src").join(file)).unwrap();
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = code.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// Returns the files below `src` that are not only for tests, as paths from there.
fn source_files() -> impl Iterator<Item = PathBuf> {
    let mut files = Vec::new();
    let mut waiting = vec![PathBuf::from("src")];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path.strip_prefix("src").unwrap().to_owned());
            }
        }
    }
    assert!(files.len() > 200, "the sources are there");
    files.into_iter().filter(|file| !is_for_tests(file))
}

/// Returns whether a file is compiled for tests only, by its name.
fn is_for_tests(file: &Path) -> bool {
    file.iter().any(|part| {
        let part = part.to_string_lossy();
        let stem = part.trim_end_matches(".rs");
        stem == "tests" || stem.starts_with("tests_") || ["testing", "fixtures"].contains(&stem)
    })
}

fn is_root(file: &Path) -> bool {
    [Path::new("lib.rs"), Path::new("main.rs")].contains(&file)
}
