//! Files that are added to the root file system of an image so that Singularity and Apptainer can run it.
//!
//! The list of additions depends only on the image config, not on its tree. The directories and files are the same as in DUCC, but with
//! correct quoting; `labels.json` is added. Apptainer since 1.0 has its own actions and reads only `env/`, `runscript`, `startscript` and
//! `labels.json`; Singularity 2 and early versions of 3 run the `actions/` of the image.

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

/// Apptainer and Singularity, which run the flat tree.
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

/// A file, link or directory to add to a root file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addition {
    /// A directory. It is created only if its path does not exist; any existing entry is kept, even a dangling link.
    Directory {
        /// Path of the directory.
        path: EntryPath,
        /// Permission bits.
        mode: u16,
    },
    /// A regular file.
    File {
        /// Path of the file.
        path: EntryPath,
        /// Permission bits.
        mode: u16,
        /// Content.
        content: Vec<u8>,
        /// Whether an existing entry is replaced.
        rule: ReplaceRule,
    },
    /// A symbolic link.
    Symlink {
        /// Path of the link.
        path: EntryPath,
        /// Link target.
        target: Vec<u8>,
        /// Whether an existing entry is replaced.
        rule: ReplaceRule,
    },
}

impl Addition {
    /// Returns the path of the added entry.
    pub fn path(&self) -> &EntryPath {
        match self {
            Self::Directory { path, .. } | Self::File { path, .. } | Self::Symlink { path, .. } => path,
        }
    }
}

/// Treatment of an existing entry at the path. A link at the path itself counts as an existing entry; it is not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplaceRule {
    /// Any existing entry is kept.
    IfAbsent,
    /// A link is replaced; any other entry is kept.
    IfAbsentOrLink,
    /// Any existing entry is replaced, including a directory with its content.
    Replace,
}

/// The directories, parents first. `libs` and those outside `.singularity.d` are targets of bind mounts.
// Without overlay and underlay, Apptainer cannot create the targets of bind mounts in a read-only tree.
const DIRECTORIES: [&str; 13] = [
    ".singularity.d",
    ".singularity.d/actions",
    ".singularity.d/env",
    // `--nv` and `--rocm` bind libraries of the host here.
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

/// Files over which Apptainer bind-mounts those of the host.
const BIND_TARGETS: [&str; 2] = ["etc/hosts", "etc/resolv.conf"];

/// Scripts that are the same for every image.
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

/// Returns the additions to the root file system of an image, directories before their content.
///
/// The parent directory of a path is resolved inside the root, following links. If the image has a file or a dangling link in place of
/// the parent directory, the addition is omitted.
///
/// An image that was built from an Apptainer container has its own files below `.singularity.d`. Those with the name of one of our
/// scripts are replaced, as in DUCC, because the start scripts of another image would run the wrong program. Others (`test`,
/// `Singularity`, `env/91-environment.sh`) are kept. As in Apptainer, a link in place of one of our links is replaced, and any other
/// entry in its place is kept.
pub fn additions(config: &ExecutionConfig) -> Vec<Addition> {
    let directories = DIRECTORIES.map(|name| Addition::Directory { path: path(name), mode: 0o755 });
    let symlinks = SYMLINKS.map(|(name, target)| Addition::Symlink {
        path: path(name),
        target: target.as_bytes().to_vec(),
        rule: ReplaceRule::IfAbsentOrLink,
    });
    // A link is replaced and not followed: it may lead out of the tree.
    let bind_targets = BIND_TARGETS.map(|name| file(name, 0o644, Vec::new(), ReplaceRule::IfAbsentOrLink));
    let scripts = SCRIPTS.map(|(name, text)| script(name, text));
    let own = [
        script(".singularity.d/env/10-docker2singularity.sh", &startup::environment(config)),
        script(".singularity.d/runscript", &startup::runscript(config)),
        file(".singularity.d/labels.json", 0o644, labels_json(&config.labels), ReplaceRule::Replace),
    ];
    directories.into_iter().chain(symlinks).chain(bind_targets).chain(scripts).chain(own).collect()
}

fn path(name: &str) -> EntryPath {
    EntryPath::normalise(name.as_bytes()).expect("the names above have neither '..' nor NUL and are short")
}

fn file(name: &str, mode: u16, content: Vec<u8>, rule: ReplaceRule) -> Addition {
    Addition::File { path: path(name), mode, content, rule }
}

fn script(name: &str, text: &str) -> Addition {
    file(name, 0o755, text.as_bytes().to_vec(), ReplaceRule::Replace)
}

/// Returns the content of `labels.json` for `apptainer inspect`: a JSON object, indented with tabs.
fn labels_json(labels: &BTreeMap<String, String>) -> Vec<u8> {
    let mut json = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    let mut serializer = serde_json::Serializer::with_formatter(&mut json, formatter);
    labels.serialize(&mut serializer).expect("strings are valid JSON, and writing to a vector cannot fail");
    json
}

#[cfg(test)]
mod tests;
