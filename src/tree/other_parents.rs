//! What a published layer shows otherwise than the image that uses it says.
//!
//! A layer is published once, in the form that it has above the parents of the image that brought it. What its archive
//! leaves to lower layers (attributes of directories that it does not name, where a mark belongs, what hard links into lower
//! layers lead to) may be something else above other parents.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::layer_form::LayerForm;
use super::node::{Directory, Leaf, LeafKind, Node};
use crate::metadata::Metadata;
use crate::path::EntryPath;

/// Where one layer is not the same above two stacks of parents.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ParentDifferences {
    /// Hard links into lower layers that stand for other inodes.
    pub links: Vec<EntryPath>,
    /// Directories that the archive does not name, with other attributes, and marks of what is hidden that only one form has.
    /// What lies in a directory that only one form has is not listed.
    pub marks: Vec<EntryPath>,
}

impl ParentDifferences {
    /// Compares two forms of one layer, whose content may be encoded in two ways.
    ///
    /// The times of directories that the archive does not name are nothing that it says, and are not compared.
    pub fn between(one: &LayerForm, other: &LayerForm) -> Self {
        let links: BTreeSet<&EntryPath> = one.links_below.keys().chain(other.links_below.keys()).collect();
        let inodes = [one, other].map(|form| Inodes::of(form, &links));
        let is_other = |path: &&&EntryPath| inodes[0].at(path) != inodes[1].at(path);
        let mut marks = Vec::new();
        let walk = FormComparison { forms: [one, other], links: &links };
        walk.compare(&EntryPath::ROOT, &one.tree, &other.tree, &mut marks);
        Self { links: links.iter().filter(is_other).map(|&path| path.clone()).collect(), marks }
    }
}

/// The inodes of hard links into lower layers.
struct Inodes<'f> {
    form: &'f LayerForm,
    /// The links that are names of each inode.
    names: BTreeMap<*const Leaf, BTreeSet<&'f EntryPath>>,
}

impl<'f> Inodes<'f> {
    fn of(form: &'f LayerForm, links: &BTreeSet<&'f EntryPath>) -> Self {
        let mut names: BTreeMap<_, BTreeSet<&EntryPath>> = BTreeMap::new();
        for &path in links {
            if let Some(Node::Leaf(leaf)) = form.tree.get(path) {
                names.entry(Arc::as_ptr(leaf)).or_default().insert(path);
            }
        }
        Self { form, names }
    }

    /// Returns what is at a path, and the links that are names of it.
    fn at(&self, path: &EntryPath) -> Option<(&Leaf, &BTreeSet<&'f EntryPath>)> {
        match self.form.tree.get(path) {
            Some(Node::Leaf(leaf)) => Some((leaf, &self.names[&Arc::as_ptr(leaf)])),
            _ => None,
        }
    }
}

struct FormComparison<'w> {
    forms: [&'w LayerForm; 2],
    links: &'w BTreeSet<&'w EntryPath>,
}

impl FormComparison<'_> {
    fn compare(&self, path: &EntryPath, one: &Directory, other: &Directory, marks: &mut Vec<EntryPath>) {
        let is_implied = self.forms.iter().any(|form| form.implied.contains(path));
        if !is_same_metadata(&one.metadata, &other.metadata, is_implied) {
            marks.push(path.clone());
        }
        let names: BTreeSet<&[u8]> = one.children.keys().chain(other.children.keys()).map(|name| &**name).collect();
        for name in names {
            let path = path.join(name);
            match (one.children.get(name), other.children.get(name)) {
                (Some(Node::Directory(one)), Some(Node::Directory(other))) => self.compare(&path, one, other, marks),
                (Some(Node::Leaf(one)), Some(Node::Leaf(other)))
                    if is_same(one, other) || self.links.contains(&path) => {}
                _ => marks.push(path),
            }
        }
    }
}

/// Tells whether an archive says the same of two files: the content that it brings is one, in whatever objects it is stored.
fn is_same(one: &Leaf, other: &Leaf) -> bool {
    match (&one.kind, &other.kind) {
        (LeafKind::File { size: one_size, .. }, LeafKind::File { size: other_size, .. }) => {
            one_size == other_size && one.metadata == other.metadata
        }
        _ => one == other,
    }
}

fn is_same_metadata(one: &Metadata, other: &Metadata, without_time: bool) -> bool {
    let mtime = if without_time { one.mtime } else { other.mtime };
    *one == Metadata { mtime, ..other.clone() }
}
