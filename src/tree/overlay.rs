//! Lays one layer over the tree below it, by the OCI rules for change sets (image-spec, layer.md).
//!
//! A whiteout hides what lower layers brought, never what its own layer brings, and the archive may carry the two in
//! either order. So a layer is laid in rounds: removals, all looked up in the tree below as it was; then additions in the
//! order of the archive; then hard links, which may name targets that come later.
//!
//! Where the specification is silent: of several entries for one path the last counts. A folder that the layer names
//! itself replaces a link in its place; one that it merely implies is looked up through links, inside the root. What
//! stands in the way of an implied folder gives way. A folder's attributes never change by what happens inside it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::node::{Directory, Leaf, LeafKind, Node};
use crate::layer::{EntryKind, EntryPath, LayerEntry, NodeKind};
use crate::metadata::Metadata;
use crate::object::Content;

/// Why a layer cannot be laid over the tree below it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// Folders cannot be linked.
    #[error("hard link {} names the folder {}", path.shown(), target.shown())]
    HardLinkToFolder {
        /// The link.
        path: EntryPath,
        /// What it names.
        target: EntryPath,
    },
    /// The target is neither in the layer nor below it.
    #[error("hard link {} names {}, which neither this layer nor one below it has", path.shown(), target.shown())]
    MissingHardLinkTarget {
        /// The link.
        path: EntryPath,
        /// What it names.
        target: EntryPath,
    },
    /// As Linux does it, 40 links are followed for one path.
    #[error("more than 40 symbolic links on the way to {}", .0.shown())]
    TooManyLinks(EntryPath),
    /// Links led deeper than any path may.
    #[error("{} would lie below more than {MAXIMUM_DEPTH} folders", .0.shown())]
    TooDeep(EntryPath),
    /// Nobody writes hard links to hard links to hard links…
    #[error("hard link {} waits for a chain of more than {MAXIMUM_ROUNDS} others", .0.shown())]
    LongLinkChain(EntryPath),
    /// A link on the way has a target that no folder can have as its name.
    #[error("a symbolic link on the way to {} has a name of more than 255 bytes in its target", .0.shown())]
    UnusableName(EntryPath),
    /// The root of an image is a folder.
    #[error("the layer has something else than a folder at the root")]
    RootIsNoFolder,
}

/// Lays the entries of one layer over `lower` and returns the tree with both.
pub fn apply(lower: &Arc<Directory>, entries: &[LayerEntry<Content>]) -> Result<Arc<Directory>, ApplyError> {
    let layer = Layer::sort(entries)?;
    let mut overlay = Overlay::new(without_removed(lower, &layer), None);
    overlay.add_nodes(&layer)?;
    overlay.add_links(&layer, lower)?;
    Ok(overlay.tree)
}

/// The entries of a layer, one a path, by the round that they have their turn in.
pub(super) struct Layer<'a> {
    pub(super) whiteouts: Vec<&'a EntryPath>,
    pub(super) opaques: Vec<&'a EntryPath>,
    nodes: Vec<NewNode<'a>>,
    links: Vec<(&'a EntryPath, &'a EntryPath)>,
    /// Folders that the layer names, rather than implies.
    pub(super) named: HashSet<&'a EntryPath>,
}

impl<'a> Layer<'a> {
    pub(super) fn sort(entries: &'a [LayerEntry<Content>]) -> Result<Self, ApplyError> {
        let mut last = HashMap::with_capacity(entries.len());
        for (index, entry) in entries.iter().enumerate() {
            if matches!(entry.kind, EntryKind::Node(..) | EntryKind::HardLink(_)) {
                last.insert(&entry.path, index);
            }
        }
        let mut layer =
            Self { whiteouts: vec![], opaques: vec![], nodes: vec![], links: vec![], named: HashSet::default() };
        for (index, entry) in entries.iter().enumerate() {
            let path = &entry.path;
            match &entry.kind {
                EntryKind::Whiteout => layer.whiteouts.push(path),
                EntryKind::Opaque => layer.opaques.push(path),
                _ if last[path] != index => {}
                EntryKind::Node(metadata, kind) => {
                    if *kind == NodeKind::Directory {
                        layer.named.insert(path);
                    } else if path.is_root() {
                        return Err(ApplyError::RootIsNoFolder);
                    }
                    layer.nodes.push((path, metadata, kind));
                }
                EntryKind::HardLink(_) if path.is_root() => return Err(ApplyError::RootIsNoFolder),
                EntryKind::HardLink(target) => layer.links.push((path, target)),
            }
        }
        Ok(layer)
    }

    /// Returns where a folder of lower layers really lies that this layer hides things in.
    pub(super) fn find_below(&self, lower: &Directory, folder: &EntryPath) -> Option<Place> {
        Walk::new(folder).follow(lower, Some(&self.named)).ok().flatten()
    }
}

/// Returns `lower` without what the layer's whiteouts and opaque markers hide.
pub(super) fn without_removed(lower: &Arc<Directory>, layer: &Layer<'_>) -> Arc<Directory> {
    let mut tree = Arc::clone(lower);
    let look_up = |path: &EntryPath| layer.find_below(lower, path);
    for &path in &layer.whiteouts {
        let (parent, name) = path.split().expect("no whiteout hides the root");
        if let Some(place) = look_up(&parent)
            && lower.directory(names(&place)).is_some_and(|folder| folder.children.contains_key(name))
            && let Some(folder) = Arc::make_mut(&mut tree).directory_mut(names(&place))
        {
            folder.children.remove(name);
        }
    }
    for &path in &layer.opaques {
        if let Some(place) = look_up(path)
            && let Some(folder) = Arc::make_mut(&mut tree).directory_mut(names(&place))
        {
            folder.children.clear();
        }
    }
    tree
}

/// A place in a tree: the names of real folders from the root down.
pub(super) type Place = Vec<Box<[u8]>>;

pub(super) fn names(place: &Place) -> impl Iterator<Item = &[u8]> {
    place.iter().map(|name| &**name)
}

/// How many folders may lie in one another: as many as the archive may name, however links lead there.
const MAXIMUM_DEPTH: usize = 1_000;

/// How many hard links may wait for one another. Archives link all names to one, so that none waits.
const MAXIMUM_ROUNDS: usize = 100;

/// How many links are followed for one path, as in Linux (`MAXSYMLINKS`).
const MAXIMUM_LINKS: usize = 40;

/// The way to one folder, through links, inside the root.
struct Walk<'p> {
    path: &'p EntryPath,
    /// What is still to be walked, the next step last.
    steps: Vec<Step>,
    at: Place,
    links: usize,
}

struct Step {
    name: Box<[u8]>,
    /// Where the step is one of the path's own and not of a link's target: the path up to here.
    prefix: Option<EntryPath>,
}

impl<'p> Walk<'p> {
    fn new(path: &'p EntryPath) -> Self {
        Self::of(path, path)
    }

    /// Starts on the way to `folder`, for the sake of `path`.
    fn of(folder: &EntryPath, path: &'p EntryPath) -> Self {
        let mut prefix = EntryPath::ROOT;
        let mut steps: Vec<Step> = folder
            .components()
            .map(|name| {
                prefix = prefix.join(name);
                Step { name: name.into(), prefix: Some(prefix.clone()) }
            })
            .collect();
        steps.reverse();
        Self { path, steps, at: Place::new(), links: 0 }
    }

    /// Takes the next step that has a name, going up where the path says so.
    fn next(&mut self) -> Option<Step> {
        while let Some(step) = self.steps.pop() {
            match &*step.name {
                b"" | b"." => {}
                b".." => drop(self.at.pop()),
                _ => return Some(step),
            }
        }
        None
    }

    /// Goes on at the target of a link.
    fn enter_link(&mut self, target: &[u8]) -> Result<(), ApplyError> {
        self.links += 1;
        if self.links > MAXIMUM_LINKS {
            return Err(ApplyError::TooManyLinks(self.path.clone()));
        }
        if target.first() == Some(&b'/') {
            self.at.clear();
        }
        self.steps.extend(target.split(|&b| b == b'/').rev().map(|name| Step { name: name.into(), prefix: None }));
        Ok(())
    }

    /// Returns the folder in `tree` that the path leads to, or `None` where there is none.
    ///
    /// A link in the place of one of the `named` folders is not followed: the layer is going to replace it.
    fn follow(mut self, tree: &Directory, named: Option<&HashSet<&EntryPath>>) -> Result<Option<Place>, ApplyError> {
        // The folders on the way, so that going on from one costs nothing.
        let mut folders = vec![tree];
        while let Some(step) = self.next() {
            folders.truncate(self.at.len() + 1);
            match folders[self.at.len()].children.get(&step.name) {
                Some(Node::Directory(child)) => {
                    self.at.push(step.name);
                    folders.push(child);
                }
                Some(Node::Leaf(leaf)) => match &leaf.kind {
                    LeafKind::Symlink(target) if !is_named(&step, named) => self.enter_link(target)?,
                    _ => return Ok(None),
                },
                None => return Ok(None),
            }
        }
        Ok(Some(self.at))
    }
}

/// Returns where the folder at `path` really lies, following links inside the root; `None` where there is none.
pub fn find_folder(tree: &Directory, path: &EntryPath) -> Option<EntryPath> {
    Walk::new(path).follow(tree, None).ok().flatten().map(|place| path_of(&place))
}

fn is_named(step: &Step, named: Option<&HashSet<&EntryPath>>) -> bool {
    step.prefix.as_ref().is_some_and(|prefix| named.is_some_and(|named| named.contains(prefix)))
}

/// Returns what is at `path` in `tree`, following links up to its last name but not there.
fn look_up<'t>(tree: &'t Directory, path: &EntryPath) -> Result<Option<&'t Node>, ApplyError> {
    let Some((parent, name)) = path.split() else { return Ok(None) };
    let place = match tree.directory(parent.components()) {
        Some(folder) => return Ok(folder.children.get(name)),
        None => Walk::new(&parent).follow(tree, None).map_err(|_| ApplyError::TooManyLinks(path.clone()))?,
    };
    Ok(place.and_then(|place| tree.directory(names(&place))).and_then(|folder| folder.children.get(name)))
}

/// A tree that entries are being added to.
pub(super) struct Overlay<'a> {
    pub(super) tree: Arc<Directory>,
    /// Where implied folders take their attributes from, if there is something at the same place.
    inherit: Option<&'a Directory>,
    /// Folders that were implied and not named since.
    pub(super) implied: BTreeSet<EntryPath>,
    /// Hard links whose inode lies in the tree below, however many links lead there, with its path in that tree.
    pub(super) links_below: Vec<(EntryPath, EntryPath)>,
    /// Those inodes, with their paths.
    inodes_below: HashMap<*const Leaf, EntryPath>,
}

impl<'a> Overlay<'a> {
    pub(super) fn new(tree: Arc<Directory>, inherit: Option<&'a Directory>) -> Self {
        Self { tree, inherit, implied: BTreeSet::new(), links_below: Vec::new(), inodes_below: HashMap::new() }
    }

    pub(super) fn add_nodes(&mut self, layer: &Layer<'_>) -> Result<(), ApplyError> {
        // Archives name what lies in one folder in a row, so that it is looked up once for all of that.
        for siblings in layer.nodes.chunk_by(|(one, ..), (other, ..)| one.is_sibling_of(other)) {
            let Some((parent, _)) = siblings[0].0.split() else {
                Arc::make_mut(&mut self.tree).metadata = siblings[0].1.clone();
                continue;
            };
            let mut left = siblings.iter();
            // Links may lead elsewhere after each of them, but a real folder stays where it is.
            while self.tree.directory(parent.components()).is_none()
                && let Some(new) = left.next()
            {
                let place = self.make_folder(&parent, new.0, &layer.named)?;
                add_node(folder_mut(&mut self.tree, &place), &mut self.implied, || path_of(&place), new);
            }
            if left.len() > 0 {
                let folder = Arc::make_mut(&mut self.tree).directory_mut(parent.components());
                let folder = folder.expect("it was seen just now");
                left.for_each(|new| add_node(folder, &mut self.implied, || parent.clone(), new));
            }
        }
        Ok(())
    }

    /// Returns where the folder `parent` of `path` really lies, after making what is missing on the way.
    pub(super) fn make_folder(
        &mut self,
        parent: &EntryPath,
        path: &EntryPath,
        named: &HashSet<&EntryPath>,
    ) -> Result<Place, ApplyError> {
        if self.tree.directory(parent.components()).is_some() {
            return Ok(parent.components().map(Into::into).collect());
        }
        if let Some(place) = Walk::of(parent, path).follow(&self.tree, Some(named))? {
            return Ok(place);
        }
        let mut walk = Walk::of(parent, path);
        while let Some(step) = walk.next() {
            let folder = self.tree.directory(names(&walk.at)).expect("the walk stands on a folder");
            match folder.children.get(&step.name) {
                Some(Node::Directory(_)) => {}
                Some(Node::Leaf(leaf)) => match &leaf.kind {
                    LeafKind::Symlink(target) if !is_named(&step, Some(named)) => {
                        let target = target.clone();
                        walk.enter_link(&target)?;
                        continue;
                    }
                    _ => self.imply(&walk.at, &step.name),
                },
                None if walk.at.len() >= MAXIMUM_DEPTH => return Err(ApplyError::TooDeep(path.clone())),
                None if step.name.len() > 255 || step.name.contains(&0) => {
                    return Err(ApplyError::UnusableName(path.clone()));
                }
                None => self.imply(&walk.at, &step.name),
            }
            walk.at.push(step.name);
        }
        Ok(walk.at)
    }

    /// Puts a folder that no entry names in the place of whatever is there.
    fn imply(&mut self, parent: &Place, name: &[u8]) {
        let below = self.inherit.and_then(|lower| lower.directory(names(parent).chain([name])));
        let metadata = below.map_or_else(Metadata::of_implied_folder, |folder| folder.metadata.clone());
        let folder = Node::Directory(Arc::new(Directory::new(metadata)));
        folder_mut(&mut self.tree, parent).children.insert(name.into(), folder);
        self.implied.insert(path_of(parent).join(name));
    }

    /// Adds the layer's hard links: each once its target is there, whatever order they come in.
    ///
    /// A link to another link waits for it; a circle of links is broken at its first. What the tree lacks is taken from
    /// `lower`, the tree below before anything was removed from it.
    pub(super) fn add_links(&mut self, layer: &Layer<'_>, lower: &Directory) -> Result<(), ApplyError> {
        let mut waiting = layer.links.clone();
        for round in 0.. {
            if waiting.is_empty() {
                break;
            }
            if round == MAXIMUM_ROUNDS {
                return Err(ApplyError::LongLinkChain(waiting[0].0.clone()));
            }
            let paths: HashSet<&EntryPath> = waiting.iter().map(|&(path, _)| path).collect();
            let mut done: HashSet<&EntryPath> = HashSet::new();
            let mut held = None;
            for &(path, target) in &waiting {
                if target != path && paths.contains(target) && !done.contains(target) {
                    held = held.or(Some((path, target)));
                } else if self.add_link(path, target, layer, lower)? {
                    done.insert(path);
                }
            }
            if done.is_empty() {
                let (path, target) = held.unwrap_or(waiting[0]);
                if !self.add_link(path, target, layer, lower)? {
                    let (path, target) = (waiting[0].0.clone(), waiting[0].1.clone());
                    return Err(ApplyError::MissingHardLinkTarget { path, target });
                }
                done.insert(path);
            }
            waiting.retain(|(path, _)| !done.contains(path));
        }
        Ok(())
    }

    /// Adds one hard link and tells whether its target was there.
    fn add_link(
        &mut self,
        path: &EntryPath,
        target: &EntryPath,
        layer: &Layer<'_>,
        lower: &Directory,
    ) -> Result<bool, ApplyError> {
        let too_many = |_| ApplyError::TooManyLinks(path.clone());
        let found = match look_up(&self.tree, target).map_err(too_many)? {
            Some(node) => node.clone(),
            None => match look_up(lower, target).map_err(too_many)? {
                Some(Node::Leaf(leaf)) => {
                    self.inodes_below.insert(Arc::as_ptr(leaf), target.clone());
                    Node::Leaf(Arc::clone(leaf))
                }
                Some(node) => node.clone(),
                None => return Ok(false),
            },
        };
        if let Node::Leaf(leaf) = &found
            && let Some(below) = self.inodes_below.get(&Arc::as_ptr(leaf))
        {
            self.links_below.push((path.clone(), below.clone()));
        }
        if target.is_root() || matches!(found, Node::Directory(_)) {
            return Err(ApplyError::HardLinkToFolder { path: path.clone(), target: target.clone() });
        }
        let (parent, name) = path.split().expect("no layer has a link at the root");
        let place = self.make_folder(&parent, path, &layer.named)?;
        folder_mut(&mut self.tree, &place).children.insert(name.into(), found);
        Ok(true)
    }
}

/// A folder or inode that a layer names itself.
type NewNode<'a> = (&'a EntryPath, &'a Metadata, &'a NodeKind<Content>);

/// Puts what a layer names into its folder; `place` tells where that really lies.
fn add_node(
    folder: &mut Directory,
    implied: &mut BTreeSet<EntryPath>,
    place: impl FnOnce() -> EntryPath,
    (path, metadata, kind): &NewNode<'_>,
) {
    let name = path.name();
    let kind = match kind {
        NodeKind::Directory => {
            if !implied.is_empty() {
                implied.remove(&place().join(name));
            }
            match folder.children.get_mut(name) {
                Some(Node::Directory(there)) => Arc::make_mut(there).metadata = (*metadata).clone(),
                _ => {
                    let new = Node::Directory(Arc::new(Directory::new((*metadata).clone())));
                    folder.children.insert(name.into(), new);
                }
            }
            return;
        }
        NodeKind::File { size, content } => LeafKind::File { size: *size, content: content.clone() },
        NodeKind::Symlink(target) => LeafKind::Symlink(target.clone()),
        NodeKind::CharacterDevice(number) => LeafKind::CharacterDevice(*number),
        NodeKind::BlockDevice(number) => LeafKind::BlockDevice(*number),
        NodeKind::Fifo => LeafKind::Fifo,
    };
    let leaf = Node::Leaf(Arc::new(Leaf { metadata: (*metadata).clone(), kind }));
    folder.children.insert(name.into(), leaf);
}

fn folder_mut<'t>(tree: &'t mut Arc<Directory>, place: &Place) -> &'t mut Directory {
    Arc::make_mut(tree).directory_mut(names(place)).expect("the folder was found or made just now")
}

pub(super) fn path_of(place: &Place) -> EntryPath {
    names(place).fold(EntryPath::ROOT, |path, name| path.join(name))
}
