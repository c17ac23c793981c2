//! What a root file system gets on top of the image so that Singularity and Apptainer run it.
//!
//! This is a plan only: it knows the image's configuration, not its tree. The directories and files are DUCC's, with its
//! mistakes in quoting mended, and `labels.json`. Apptainer from 1.0 on runs actions of its own and only reads `env/`,
//! `runscript`, `startscript` and `labels.json`; Singularity 2 and early 3 run the image's `actions/`.

mod flat;
mod startup;

use std::collections::BTreeMap;

use serde::Serialize as _;

use super::{Consumer, PublishedImage};
use crate::image::ExecutionConfig;
use crate::message::shell_word;
use crate::path::EntryPath;
use crate::repository::RepositoryError;

pub use flat::flat_tree;

/// Apptainer and Singularity, which run the root file system.
pub struct Apptainer;

impl Consumer for Apptainer {
    fn name(&self) -> &'static str {
        "apptainer"
    }

    fn command(&self, image: &PublishedImage<'_>) -> Result<Option<String>, RepositoryError> {
        if !image.has_root()? || !image.has(&image.place.link())? {
            return Ok(None);
        }
        let path = format!("{}{}", image.mountpoint(), image.place.link());
        Ok(Some(format!("apptainer run {}", shell_word(&path))))
    }
}

/// Something to add to a root file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addition {
    /// A directory, made only where nothing is there: whatever is, a link that leads nowhere too, stays.
    Directory {
        /// Where it goes.
        path: EntryPath,
        /// Its permission bits.
        mode: u16,
    },
    /// A regular file.
    File {
        /// Where it goes.
        path: EntryPath,
        /// Its permission bits.
        mode: u16,
        /// Its bytes.
        content: Vec<u8>,
        /// What to do where something is there already.
        rule: Rule,
    },
    /// A symbolic link.
    Symlink {
        /// Where it goes.
        path: EntryPath,
        /// Where it leads.
        target: Vec<u8>,
        /// What to do where something is there already.
        rule: Rule,
    },
}

impl Addition {
    /// Returns where it goes.
    pub fn path(&self) -> &EntryPath {
        match self {
            Self::Directory { path, .. } | Self::File { path, .. } | Self::Symlink { path, .. } => path,
        }
    }
}

/// What to do where something is at the path already. A link at the path itself is something; it is never followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// What is there stays as it is.
    IfAbsent,
    /// A link is replaced; anything else stays as it is.
    IfAbsentOrLink,
    /// Whatever is there is replaced, a directory with all that it holds.
    Replace,
}

/// The directories, each after the one that it lies in. `libs` and those outside `.singularity.d` are bound over.
const DIRECTORIES: [&str; 13] = [
    ".singularity.d",
    ".singularity.d/actions",
    ".singularity.d/env",
    ".singularity.d/libs",
    "dev",
    "etc",
    "home",
    "proc",
    "root",
    "sys",
    "tmp",
    "var",
    "var/tmp",
];

const SYMLINKS: [(&str, &str); 6] = [
    (".exec", ".singularity.d/actions/exec"),
    (".run", ".singularity.d/actions/run"),
    (".shell", ".singularity.d/actions/shell"),
    (".test", ".singularity.d/actions/test"),
    ("environment", ".singularity.d/env/90-environment.sh"),
    ("singularity", ".singularity.d/runscript"),
];

/// Files that Apptainer binds the host's own over.
const BIND_TARGETS: [&str; 2] = ["etc/hosts", "etc/resolv.conf"];

/// The scripts that are the same for every image.
const SCRIPTS: [(&str, &str); 11] = [
    (".singularity.d/actions/exec", include_str!("apptainer/actions/exec.sh")),
    (".singularity.d/actions/run", include_str!("apptainer/actions/run.sh")),
    (".singularity.d/actions/shell", include_str!("apptainer/actions/shell.sh")),
    (".singularity.d/actions/start", include_str!("apptainer/actions/start.sh")),
    (".singularity.d/actions/test", include_str!("apptainer/actions/test.sh")),
    (".singularity.d/env/01-base.sh", include_str!("apptainer/env/01-base.sh")),
    (".singularity.d/env/90-environment.sh", include_str!("apptainer/env/90-environment.sh")),
    (".singularity.d/env/95-apps.sh", include_str!("apptainer/env/95-apps.sh")),
    (".singularity.d/env/99-base.sh", include_str!("apptainer/env/99-base.sh")),
    (".singularity.d/env/99-runtimevars.sh", include_str!("apptainer/env/99-runtimevars.sh")),
    (".singularity.d/startscript", "#!/bin/sh\n"),
];

/// Returns what an image's root file system gets, each thing after the directory that it lies in.
///
/// The directory of a path is looked up inside the root, links on the way included. Where it is then no directory, because
/// the image has a file or a link that leads nowhere in its place, the addition cannot be made and is left out.
///
/// Files below `.singularity.d` that the image brings, as one does that was made from a container of Apptainer's, are
/// replaced where they have a name of ours: DUCC does so, and scripts of another image's start would run the wrong
/// program. Others (`test`, `Singularity`, `env/91-environment.sh`) stay. As Apptainer does it, a link in the place of one of
/// ours is replaced too, wherever it leads, and anything else in its place stays.
pub fn additions(config: &ExecutionConfig) -> Vec<Addition> {
    let directories = DIRECTORIES.map(|name| Addition::Directory { path: path(name), mode: 0o755 });
    let symlinks = SYMLINKS.map(|(name, target)| Addition::Symlink {
        path: path(name),
        target: target.as_bytes().to_vec(),
        rule: Rule::IfAbsentOrLink,
    });
    let bind_targets = BIND_TARGETS.map(|name| file(name, 0o644, Vec::new(), Rule::IfAbsentOrLink));
    let scripts = SCRIPTS.map(|(name, text)| script(name, text));
    let own = [
        script(".singularity.d/env/10-docker2singularity.sh", &startup::environment(config)),
        script(".singularity.d/runscript", &startup::runscript(config)),
        file(".singularity.d/labels.json", 0o644, labels_json(&config.labels), Rule::Replace),
    ];
    directories.into_iter().chain(symlinks).chain(bind_targets).chain(scripts).chain(own).collect()
}

fn path(name: &str) -> EntryPath {
    EntryPath::normalise(name.as_bytes()).expect("the names above have neither '..' nor NUL and are short")
}

fn file(name: &str, mode: u16, content: Vec<u8>, rule: Rule) -> Addition {
    Addition::File { path: path(name), mode, content, rule }
}

fn script(name: &str, text: &str) -> Addition {
    file(name, 0o755, text.as_bytes().to_vec(), Rule::Replace)
}

/// Returns what `apptainer inspect` shows: a JSON object, indented with tabs.
fn labels_json(labels: &BTreeMap<String, String>) -> Vec<u8> {
    let mut json = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    let mut serializer = serde_json::Serializer::with_formatter(&mut json, formatter);
    labels.serialize(&mut serializer).expect("strings are JSON, and a vector takes every byte");
    json
}

#[cfg(test)]
mod tests;
