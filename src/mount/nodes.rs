//! The inode numbers that the kernel knows. A number belongs to one path, or to all names of a hard link group in a
//! directory.
//!
//! The number of a directory does not change with a new revision, as long as there still is a directory at its path. Any
//! other file gets a new number if the revision changes the file. Therefore the kernel may cache what it has read for such a
//! number without a time limit.

use std::collections::HashMap;
use std::sync::Arc;

use crate::catalog::CatalogEntry;
use crate::path::EntryPath;
use crate::repository::{LocatedDirectory, Row};

/// The inode number of the mount's root.
pub(super) const ROOT: u64 = 1;

/// An entry and its inode number.
#[derive(Debug, Clone)]
pub(super) struct FoundNode {
    pub(super) number: u64,
    pub(super) entry: Arc<CatalogEntry>,
}

#[derive(Debug)]
struct Node<P> {
    row: Row<P>,
    parent: u64,
    /// One name, or all names of a hard link group.
    names: Vec<Arc<[u8]>>,
    /// The kernel's lookup count: how often it received the number, minus how often it forgot it.
    lookups: u64,
    /// The known entries of a directory; `None` if there are none.
    children: Option<Box<Children>>,
}

/// The known entries of a directory.
#[derive(Debug, Default)]
struct Children {
    by_name: HashMap<Arc<[u8]>, u64>,
    by_link_group: HashMap<u32, u64>,
}

/// All nodes that the kernel knows.
#[derive(Debug)]
pub(super) struct Nodes<P> {
    next: u64,
    nodes: HashMap<u64, Node<P>>,
}

impl<P: Clone> Nodes<P> {
    /// Creates the table with the root, which is never removed.
    pub(super) fn new(root: Row<P>) -> Self {
        let node = Node { row: root, parent: ROOT, names: Vec::new(), lookups: 1, children: None };
        Self { next: ROOT + 1, nodes: HashMap::from([(ROOT, node)]) }
    }

    /// Returns the row of an inode number.
    pub(super) fn row(&self, number: u64) -> Option<&Row<P>> {
        Some(&self.nodes.get(&number)?.row)
    }

    /// Returns the number of the parent directory. The root is its own parent.
    pub(super) fn parent(&self, number: u64) -> Option<u64> {
        Some(self.nodes.get(&number)?.parent)
    }

    /// Returns one path of a node in the repository, for messages.
    pub(super) fn path(&self, number: u64) -> EntryPath {
        let Some(node) = self.nodes.get(&number) else { return EntryPath::ROOT };
        let parent = self.nodes.get(&node.parent).and_then(|parent| parent.row.directory.as_ref());
        match (&node.row.directory, parent, node.names.first()) {
            (Some(directory), ..) => directory.path.clone(),
            (None, Some(directory), Some(name)) => directory.path.join(name),
            _ => EntryPath::ROOT,
        }
    }

    /// Returns the node that the kernel knows by this name.
    pub(super) fn known(&self, parent: u64, name: &[u8]) -> Option<FoundNode> {
        let number = *self.nodes.get(&parent)?.children.as_ref()?.by_name.get(name)?;
        Some(FoundNode { number, entry: Arc::clone(&self.nodes.get(&number)?.row.entry) })
    }

    /// Returns the number of an entry that was read from `directory`, assigning one if necessary; `None` if the directory
    /// was replaced in the meantime.
    pub(super) fn add(
        &mut self,
        parent: u64,
        directory: &Arc<LocatedDirectory<P>>,
        name: &Arc<[u8]>,
        row: &Row<P>,
    ) -> Option<FoundNode> {
        if !Arc::ptr_eq(self.nodes.get(&parent)?.row.directory.as_ref()?, directory) {
            return None;
        }
        if let Some(found) = self.known(parent, name) {
            return Some(found);
        }
        let group = row.entry.link_group;
        let children = self.nodes.get_mut(&parent)?.children.get_or_insert_default();
        let linked = children.by_link_group.get(&group).copied().filter(|_| group != 0);
        let number = linked.unwrap_or(self.next);
        children.by_name.insert(Arc::clone(name), number);
        if group != 0 {
            children.by_link_group.insert(group, number);
        }
        match linked.and_then(|number| self.nodes.get_mut(&number)) {
            Some(node) => node.names.push(Arc::clone(name)),
            None => {
                let names = vec![Arc::clone(name)];
                let node = Node { row: row.clone(), parent, names, lookups: 0, children: None };
                self.nodes.insert(number, node);
                self.next += 1;
            }
        }
        Some(FoundNode { number, entry: Arc::clone(&row.entry) })
    }

    /// Increments the lookup count of a number. Must be called whenever a reply with the number is sent to the kernel.
    pub(super) fn count_lookup(&mut self, number: u64) {
        if let Some(node) = self.nodes.get_mut(&number) {
            node.lookups += 1;
        }
    }

    /// Subtracts `times` from the lookup count of a number, and removes the node if the count is then 0. The root is never
    /// removed.
    pub(super) fn forget(&mut self, number: u64, times: u64) {
        let Some(node) = self.nodes.get_mut(&number) else { return };
        node.lookups = node.lookups.saturating_sub(times);
        if node.lookups == 0 && number != ROOT {
            self.remove(number);
        }
    }

    /// Removes a node if its lookup count is 0. Called for a number that did not fit into a reply. The kernel may know the
    /// number from an earlier reply; then the node remains.
    pub(super) fn remove_if_unused(&mut self, number: u64) {
        self.forget(number, 0);
    }

    fn remove(&mut self, number: u64) {
        let Some(node) = self.nodes.remove(&number) else { return };
        self.detach_names(number, &node.names, node.parent, node.row.entry.link_group);
    }

    fn detach_names(&mut self, number: u64, names: &[Arc<[u8]>], parent: u64, group: u32) {
        let parent = self.nodes.get_mut(&parent);
        let Some(children) = parent.and_then(|parent| parent.children.as_mut()) else { return };
        for name in names {
            if children.by_name.get(name) == Some(&number) {
                children.by_name.remove(name);
            }
        }
        if children.by_link_group.get(&group) == Some(&number) {
            children.by_link_group.remove(&group);
        }
    }

    /// Detaches the node with this name from its directory: all names of the node become free, not only this one.
    /// The node keeps its number and row for processes that have it open.
    pub(super) fn detach(&mut self, parent: u64, name: &[u8]) {
        let Some(found) = self.known(parent, name) else { return };
        let Some(node) = self.nodes.get_mut(&found.number) else { return };
        let names = std::mem::take(&mut node.names);
        self.detach_names(found.number, &names, parent, found.entry.link_group);
    }

    /// Replaces the row of a node.
    pub(super) fn replace(&mut self, number: u64, row: Row<P>) {
        if let Some(node) = self.nodes.get_mut(&number) {
            node.row = row;
        }
    }

    /// Returns the known directories that are still attached, sorted by path, so that a directory comes before its
    /// subdirectories.
    pub(super) fn directories(&self) -> Vec<(u64, Arc<LocatedDirectory<P>>)> {
        let attached = |number: &u64, node: &Node<P>| *number == ROOT || !node.names.is_empty();
        let mut directories: Vec<_> = self
            .nodes
            .iter()
            .filter(|(number, node)| attached(number, node))
            .filter_map(|(number, node)| Some((*number, Arc::clone(node.row.directory.as_ref()?))))
            .collect();
        directories.sort_by(|(_, a), (_, b)| a.path.cmp(&b.path));
        directories
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::CatalogReference;
    use crate::metadata::Metadata;
    use crate::object::ObjectHash;
    use crate::repository::CatalogLocation;

    fn directory(path: &str) -> Arc<LocatedDirectory> {
        let reference = CatalogReference { hash: ObjectHash::of(b""), size: 0 };
        let location = CatalogLocation { root: EntryPath::ROOT, reference };
        Arc::new(LocatedDirectory { path: EntryPath::normalise(path.as_bytes()).unwrap(), location })
    }

    fn directory_row(path: &str) -> Row {
        let entry = CatalogEntry::of_directory(&Metadata::of_implied_directory(), 0);
        Row { entry: Arc::new(entry), directory: Some(directory(path)) }
    }

    fn link_row(group: u32) -> Row {
        let entry = CatalogEntry::of_symlink(&Metadata::of_implied_directory(), b"target");
        Row { entry: Arc::new(CatalogEntry { link_group: group, ..entry }), directory: None }
    }

    fn add(nodes: &mut Nodes<CatalogLocation>, parent: u64, name: &str, row: &Row) -> u64 {
        let directory = nodes.row(parent).unwrap().directory.clone().unwrap();
        let number = nodes.add(parent, &directory, &name.as_bytes().into(), row).unwrap().number;
        nodes.count_lookup(number);
        number
    }

    #[test]
    fn hard_links_share_a_number_until_all_lookups_are_forgotten() {
        let mut nodes = Nodes::new(directory_row(""));
        let [a, b, other] =
            [("a", 7), ("b", 7), ("c", 8)].map(|(name, group)| add(&mut nodes, ROOT, name, &link_row(group)));
        assert!(a == b && a != other);
        nodes.forget(a, 1);
        assert!(nodes.known(ROOT, b"a").is_some());
        nodes.forget(a, 1);
        assert!(nodes.known(ROOT, b"a").is_none() && nodes.known(ROOT, b"b").is_none());
        assert_ne!(add(&mut nodes, ROOT, "b", &link_row(7)), a, "numbers are not reused");
    }

    #[test]
    fn entry_of_a_directory_that_changed_in_the_meantime_gets_no_number() {
        let mut nodes = Nodes::new(directory_row(""));
        let before = nodes.row(ROOT).unwrap().directory.clone().unwrap();
        nodes.replace(ROOT, directory_row(""));
        assert!(nodes.add(ROOT, &before, &Arc::from(*b"a"), &link_row(0)).is_none());
    }

    #[test]
    fn detached_node_keeps_its_number_and_a_new_node_at_its_name_gets_another() {
        let mut nodes = Nodes::new(directory_row(""));
        let a = add(&mut nodes, ROOT, "a", &directory_row("a"));
        nodes.detach(ROOT, b"a");
        assert!(nodes.row(a).is_some());
        assert_eq!(nodes.directories().len(), 1);
        assert_ne!(add(&mut nodes, ROOT, "a", &directory_row("a")), a);
        nodes.forget(a, 1);
        assert!(nodes.row(a).is_none() && nodes.known(ROOT, b"a").is_some());
    }

    #[test]
    fn path_of_a_node_is_found_for_messages() {
        let mut nodes = Nodes::new(directory_row("images"));
        let a = add(&mut nodes, ROOT, "a", &directory_row("images/a"));
        let link = add(&mut nodes, a, "link", &link_row(0));
        assert_eq!(nodes.path(link).as_bytes(), b"images/a/link");
        assert_eq!(nodes.path(a).as_bytes(), b"images/a");
        assert_eq!(nodes.path(99), EntryPath::ROOT);
    }
}
