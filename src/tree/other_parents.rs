//! Compares the published form of a layer with the form that it has above other lower layers.
//!
//! A layer is published once, in the form that it has on top of the parents (lower layers) of the first image that contained
//! it. Three parts of the form depend on the parents: the metadata of directories that the archive does not name, the
//! positions of whiteouts and opaque marks, and the inodes that hard links into lower layers refer to. An image with other
//! parents may need another form.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::layer_form::LayerForm;
use super::node::{Directory, Leaf, LeafKind, Node};
use crate::metadata::Metadata;
use crate::path::EntryPath;

/// Differences between two forms of one layer, above two stacks of parents.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ParentDifferences {
    /// Hard links into lower layers that refer to different inodes.
    pub links: Vec<EntryPath>,
    /// Directories that the archive does not name and whose metadata differ, and whiteouts and opaque marks that only one form
    /// has. The entries of a directory that only one form has are not listed.
    pub marks: Vec<EntryPath>,
}

impl ParentDifferences {
    /// Compares two forms of one layer. Equal content may be stored in different objects, because the forms may come from
    /// two encoders.
    ///
    /// Modification times of directories that the archive does not name are not compared, because the archive does not state
    /// them.
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

/// The inodes of hard links into lower layers, in one form.
struct Inodes<'f> {
    form: &'f LayerForm,
    /// For each inode, the links that are its names.
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

    /// Returns the inode at a path, and the links that are its names.
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

/// Returns whether two leaves come from the same entry of the archive. Both forms are of one archive, so files of equal size and
/// metadata have equal content, even if it is stored in different objects.
fn is_same(one: &Leaf, other: &Leaf) -> bool {
    match (&one.kind, &other.kind) {
        (LeafKind::File { size: one_size, .. }, LeafKind::File { size: other_size, .. }) => {
            one_size == other_size && one.metadata == other.metadata
        }
        _ => one == other,
    }
}

fn is_same_metadata(one: &Metadata, other: &Metadata, without_time: bool) -> bool {
    // The archive does not state this time. If it were compared, an empty layer would differ above every base image.
    let mtime = if without_time { one.mtime } else { other.mtime };
    *one == Metadata { mtime, ..other.clone() }
}
