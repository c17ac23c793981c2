//! What the kernel knows: a number for every path that it has asked for and not yet forgotten.
//!
//! A directory keeps its number as long as its path is a directory, in whichever revision; anything else has a new one when it
//! changes, so that the kernel may keep what it has read of a number for ever.

use std::collections::HashMap;
use std::sync::Arc;

use crate::catalog::CatalogEntry;
use crate::path::EntryPath;
use crate::repository::{PlacedDirectory, Row};

/// The number of the mount's root.
pub(super) const ROOT: u64 = 1;

/// Something that was found, and the number that it has.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) number: u64,
    pub(super) entry: Arc<CatalogEntry>,
}

#[derive(Debug)]
struct Node<P> {
    row: Row<P>,
    parent: u64,
    /// One, or the hard links of a group.
    names: Vec<Arc<[u8]>>,
    /// How often the kernel was told the number and has not forgotten it since.
    lookups: u64,
    /// What is known in the directory, if anything is.
    children: Option<Box<Children>>,
}

/// The known entries of a directory.
#[derive(Debug, Default)]
struct Children {
    by_name: HashMap<Arc<[u8]>, u64>,
    by_link_group: HashMap<u32, u64>,
}

/// Everything that the kernel knows.
#[derive(Debug)]
pub(super) struct Nodes<P> {
    next: u64,
    nodes: HashMap<u64, Node<P>>,
}

impl<P: Clone> Nodes<P> {
    /// Starts with the root alone, which is never forgotten.
    pub(super) fn new(root: Row<P>) -> Self {
        let node = Node { row: root, parent: ROOT, names: Vec::new(), lookups: 1, children: None };
        Self { next: ROOT + 1, nodes: HashMap::from([(ROOT, node)]) }
    }

    /// Returns the row of a number.
    pub(super) fn row(&self, number: u64) -> Option<&Row<P>> {
        Some(&self.nodes.get(&number)?.row)
    }

    /// Returns the directory that a number lies in; the root lies in itself.
    pub(super) fn parent(&self, number: u64) -> Option<u64> {
        Some(self.nodes.get(&number)?.parent)
    }

    /// Returns one path of a number in the repository, for messages.
    pub(super) fn path(&self, number: u64) -> EntryPath {
        let Some(node) = self.nodes.get(&number) else { return EntryPath::ROOT };
        let parent = self.nodes.get(&node.parent).and_then(|parent| parent.row.directory.as_ref());
        match (&node.row.directory, parent, node.names.first()) {
            (Some(directory), ..) => directory.path.clone(),
            (None, Some(directory), Some(name)) => directory.path.join(name),
            _ => EntryPath::ROOT,
        }
    }

    /// Returns what the kernel knows by a name.
    pub(super) fn known(&self, parent: u64, name: &[u8]) -> Option<Found> {
        let number = *self.nodes.get(&parent)?.children.as_ref()?.by_name.get(name)?;
        Some(Found { number, entry: Arc::clone(&self.nodes.get(&number)?.row.entry) })
    }

    /// Gives what was read in `directory` a number, or the one that it has; `None` if the directory is another one by now.
    pub(super) fn add(
        &mut self,
        parent: u64,
        directory: &Arc<PlacedDirectory<P>>,
        name: &Arc<[u8]>,
        row: &Row<P>,
    ) -> Option<Found> {
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
        Some(Found { number, entry: Arc::clone(&row.entry) })
    }

    /// Notes that the kernel was told a number once more.
    pub(super) fn count_lookup(&mut self, number: u64) {
        if let Some(node) = self.nodes.get_mut(&number) {
            node.lookups += 1;
        }
    }

    /// Notes that the kernel forgot a number as many times.
    pub(super) fn forget(&mut self, number: u64, times: u64) {
        let Some(node) = self.nodes.get_mut(&number) else { return };
        node.lookups = node.lookups.saturating_sub(times);
        if node.lookups == 0 && number != ROOT {
            self.remove(number);
        }
    }

    /// Drops a number that was given and never told.
    pub(super) fn drop_untold(&mut self, number: u64) {
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

    /// Lets a name go from its number, which stays as it is for those who have it open.
    pub(super) fn detach(&mut self, parent: u64, name: &[u8]) {
        let Some(found) = self.known(parent, name) else { return };
        let Some(node) = self.nodes.get_mut(&found.number) else { return };
        let names = std::mem::take(&mut node.names);
        self.detach_names(found.number, &names, parent, found.entry.link_group);
    }

    /// Puts another row in the place of a number's.
    pub(super) fn replace(&mut self, number: u64, row: Row<P>) {
        if let Some(node) = self.nodes.get_mut(&number) {
            node.row = row;
        }
    }

    /// Returns the known directories, each before what lies in it.
    pub(super) fn directories(&self) -> Vec<(u64, Arc<PlacedDirectory<P>>)> {
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
    use crate::repository::CatalogPlace;

    fn directory(path: &str) -> Arc<PlacedDirectory> {
        let reference = CatalogReference { hash: ObjectHash::of(b""), size: 0 };
        let place = CatalogPlace { root: EntryPath::ROOT, reference };
        Arc::new(PlacedDirectory { path: EntryPath::normalise(path.as_bytes()).unwrap(), place })
    }

    fn directory_row(path: &str) -> Row {
        let entry = CatalogEntry::of_directory(&Metadata::of_implied_directory(), 0);
        Row { entry: Arc::new(entry), directory: Some(directory(path)) }
    }

    fn link_row(group: u32) -> Row {
        let entry = CatalogEntry::of_symlink(&Metadata::of_implied_directory(), b"target");
        Row { entry: Arc::new(CatalogEntry { link_group: group, ..entry }), directory: None }
    }

    fn add(nodes: &mut Nodes<CatalogPlace>, parent: u64, name: &str, row: &Row) -> u64 {
        let directory = nodes.row(parent).unwrap().directory.clone().unwrap();
        let number = nodes.add(parent, &directory, &name.as_bytes().into(), row).unwrap().number;
        nodes.count_lookup(number);
        number
    }

    #[test]
    fn hard_links_have_one_number_until_all_are_forgotten() {
        let mut nodes = Nodes::new(directory_row(""));
        let [a, b, other] =
            [("a", 7), ("b", 7), ("c", 8)].map(|(name, group)| add(&mut nodes, ROOT, name, &link_row(group)));
        assert!(a == b && a != other);
        nodes.forget(a, 1);
        assert!(nodes.known(ROOT, b"a").is_some());
        nodes.forget(a, 1);
        assert!(nodes.known(ROOT, b"a").is_none() && nodes.known(ROOT, b"b").is_none());
        assert_ne!(add(&mut nodes, ROOT, "b", &link_row(7)), a, "numbers are not used again");
    }

    #[test]
    fn what_was_read_in_a_directory_that_changed_meanwhile_gets_no_number() {
        let mut nodes = Nodes::new(directory_row(""));
        let before = nodes.row(ROOT).unwrap().directory.clone().unwrap();
        nodes.replace(ROOT, directory_row(""));
        assert!(nodes.add(ROOT, &before, &Arc::from(*b"a"), &link_row(0)).is_none());
    }

    #[test]
    fn detached_number_stays_and_its_name_is_free() {
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
    fn paths_are_known_for_messages() {
        let mut nodes = Nodes::new(directory_row("images"));
        let a = add(&mut nodes, ROOT, "a", &directory_row("images/a"));
        let link = add(&mut nodes, a, "link", &link_row(0));
        assert_eq!(nodes.path(link).as_bytes(), b"images/a/link");
        assert_eq!(nodes.path(a).as_bytes(), b"images/a");
        assert_eq!(nodes.path(99), EntryPath::ROOT);
    }
}
