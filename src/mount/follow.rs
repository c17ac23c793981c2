//! Lets one tree take the place of another: what changed, the kernel is told to forget.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use fuser::{INodeNo, Notifier};

use super::nodes::{Nodes, ROOT};
use super::shown::Shown;
use super::view::View;
use crate::message::causes;
use crate::repository::{NamedRow, PlacedDirectory, Repository, RepositoryError, Row};

/// How often the manifest is looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// Looks at the manifest from time to time, as long as the view is mounted, and shows each new head.
pub(super) fn follow(view: Weak<View<Repository>>, mounted: Repository, notifier: Notifier) {
    let (mut mounted, mut seen, mut complaint) = (mounted, None, None);
    loop {
        let Some(view) = view.upgrade() else { return };
        let path = mounted.store().root().join(".cvmfspublished");
        let now = fs::metadata(path).ok().map(|file| (file.ino(), file.mtime(), file.mtime_nsec(), file.size()));
        if seen != now {
            match mounted.open_head().and_then(|head| show_head(&view, &mounted, head, &notifier)) {
                Ok(head) => (mounted, seen, complaint) = (head, now, None),
                // It is tried again: the objects of a copy may come after its manifest.
                Err(error) => complain(&error, &mut complaint),
            }
        }
        drop(view);
        thread::sleep(INTERVAL);
    }
}

/// Says why the head cannot be followed, once.
fn complain(error: &RepositoryError, complaint: &mut Option<String>) {
    let text = format!("cannot follow the head, what was mounted stays: {}", causes(error));
    if complaint.as_ref() != Some(&text) {
        tracing::error!("{text}");
        *complaint = Some(text);
    }
}

fn show_head(
    view: &View<Repository>,
    mounted: &Repository,
    head: Repository,
    notifier: &Notifier,
) -> Result<Repository, RepositoryError> {
    if head.root_reference() != mounted.root_reference() {
        show(view, &head, notifier)?;
        tracing::info!("revision {} is mounted", head.manifest().revision);
    }
    Ok(head)
}

/// Something that the kernel believes and that is no longer true.
#[derive(Debug, PartialEq, Eq)]
enum Outdated {
    /// What a name leads to, or that it leads to nothing.
    Name(u64, Arc<[u8]>),
    /// The attributes of a directory.
    Attributes(u64),
    /// The list of a directory.
    List(u64),
}

impl Outdated {
    /// Returns whether programs read this file to find out whether they have to read others again, as podman does.
    ///
    /// The kernel is told of such files last. A program that saw a new lock file beside an old list would keep the old list
    /// until the lock file changes again.
    fn is_lock_file(&self) -> bool {
        matches!(self, Self::Name(_, name) if name.ends_with(b".lock"))
    }
}

/// Puts another tree in the place of the one that is mounted.
pub(super) fn show<S: Shown>(view: &View<S>, head: &S, notifier: &Notifier) -> Result<(), RepositoryError> {
    let outdated = change(view, head)?;
    // Without any lock: the kernel may wait for an answer of ours before it takes these.
    for outdated in outdated {
        let told = match &outdated {
            Outdated::Name(parent, name) => notifier.inval_entry(INodeNo(*parent), OsStr::from_bytes(name)),
            Outdated::Attributes(number) => notifier.inval_inode(INodeNo(*number), -1, 0),
            Outdated::List(number) => notifier.inval_inode(INodeNo(*number), 0, 0),
        };
        if let Err(error) = told {
            tracing::debug!("the kernel did not take that {outdated:?} is outdated: {error}");
        }
    }
    Ok(())
}

/// Changes all directories at once, and returns what the kernel has to forget.
fn change<S: Shown>(view: &View<S>, head: &S) -> Result<Vec<Outdated>, RepositoryError> {
    let _changing = view.changing();
    let directories = view.nodes().directories();
    let mut changed = Vec::new();
    for (number, before) in directories {
        let Some(row) = head.row(&before.path)? else { continue };
        let Some(after) = row.directory.clone().filter(|after| after.place != before.place) else { continue };
        changed.push((number, row, changes(head, &before, &after)?));
    }
    // Only now, so that a catalog that cannot be read leaves everything as it was.
    let mut nodes = view.nodes();
    let mut outdated = vec![Outdated::Attributes(ROOT)];
    for (number, row, changes) in changed {
        nodes.replace(number, row);
        if !changes.is_empty() {
            outdated.push(Outdated::List(number));
        }
        outdated.extend(changes.into_iter().map(|(name, is)| outdated_by(&mut nodes, number, name, is)));
    }
    outdated.sort_by_key(Outdated::is_lock_file);
    Ok(outdated)
}

/// The names in a directory whose rows are not what they were, with the rows that they have now.
type Changes<P> = HashMap<Arc<[u8]>, Option<Row<P>>>;

fn changes<S: Shown>(
    head: &S,
    before: &PlacedDirectory<S::Place>,
    after: &PlacedDirectory<S::Place>,
) -> Result<Changes<S::Place>, RepositoryError> {
    let mut changes = Changes::new();
    let new = head.rows(after)?;
    let mut new: HashMap<Arc<[u8]>, Row<S::Place>> =
        new.into_iter().map(|NamedRow { name, row }| (name, row)).collect();
    for NamedRow { name, row: was } in head.rows(before)? {
        match new.remove(&name) {
            Some(is) if is.entry == was.entry => {}
            is => drop(changes.insert(name, is)),
        }
    }
    changes.extend(new.into_iter().map(|(name, row)| (name, Some(row))));
    Ok(changes)
}

fn outdated_by<P: Clone>(nodes: &mut Nodes<P>, parent: u64, name: Arc<[u8]>, is: Option<Row<P>>) -> Outdated {
    let stays_directory = is.is_some_and(|row| row.directory.is_some());
    match nodes.known(parent, &name) {
        // Its row is changed when it is its turn.
        Some(known) if known.entry.is_directory() && stays_directory => Outdated::Attributes(known.number),
        _ => {
            nodes.detach(parent, &name);
            Outdated::Name(parent, name)
        }
    }
}
