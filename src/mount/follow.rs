//! Replaces the mounted tree by a new one, and notifies the kernel of all changes.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use fuser::{INodeNo, Notifier};

use super::mountable::MountableTree;
use super::nodes::{Nodes, ROOT};
use super::view::View;
use crate::message::causes;
use crate::observer::Reporter;
use crate::repository::{LocatedDirectory, NamedRow, Repository, RepositoryError, Row};

/// Checks for a new manifest at regular intervals, as long as the view is mounted, and mounts each new head.
pub(super) fn follow(view: Weak<View<Repository>>, mounted: Repository, notifier: Notifier, interval: Duration) {
    let (mut mounted, mut seen, mut complaint) = (mounted, None, None);
    loop {
        let Some(view) = view.upgrade() else { return };
        // A manifest that cannot be read is an error of `open_head`.
        let now = mounted.store().read_file(".cvmfspublished").ok().flatten();
        if now.is_none() || seen != now {
            match mounted.open_head().and_then(|head| mount_head(&view, &mounted, head, &notifier)) {
                Ok(head) => (mounted, seen, complaint) = (head, now, None),
                // The next check tries again: if the repository is a copy, the manifest may arrive before its objects.
                Err(error) => complain(&error, &mut complaint, &view.reporter),
            }
        }
        drop(view);
        thread::sleep(interval);
    }
}

/// Reports why the new head cannot be mounted, unless the previous report gave the same reason.
fn complain(error: &RepositoryError, complaint: &mut Option<String>, reporter: &Reporter) {
    let text = format!("cannot mount the new head, the previous revision stays mounted: {}", causes(error));
    if complaint.as_ref() != Some(&text) {
        reporter.error(format_args!("{text}"));
        *complaint = Some(text);
    }
}

fn mount_head(
    view: &View<Repository>,
    mounted: &Repository,
    head: Repository,
    notifier: &Notifier,
) -> Result<Repository, RepositoryError> {
    if head.root_reference() != mounted.root_reference() {
        replace_tree(view, &head, notifier)?;
        view.reporter.info(format_args!("revision {} is mounted", head.manifest().revision));
    }
    Ok(head)
}

/// A piece of cached information that the kernel must drop.
#[derive(Debug, PartialEq, Eq)]
enum Outdated {
    /// The result of looking up a name: a node, or that the name does not exist.
    Name(u64, Arc<[u8]>),
    /// The attributes of a directory.
    Attributes(u64),
    /// The listing of a directory.
    List(u64),
}

impl Outdated {
    /// Returns whether this is a lock file, which programs such as podman read to find out whether other files have changed.
    ///
    /// The kernel is notified of lock files last. A program that saw a new lock file and an old list would keep the old list
    /// until the lock file changes again.
    fn is_lock_file(&self) -> bool {
        matches!(self, Self::Name(_, name) if name.ends_with(b".lock"))
    }
}

/// Replaces the mounted tree by another one.
pub(super) fn replace_tree<S: MountableTree>(
    view: &View<S>,
    head: &S,
    notifier: &Notifier,
) -> Result<(), RepositoryError> {
    load(view, head)?;
    let outdated = change(view, head)?;
    // No lock is held here, because the kernel may wait for a reply before it processes a notification.
    for outdated in outdated {
        let told = match &outdated {
            Outdated::Name(parent, name) => notifier.inval_entry(INodeNo(*parent), OsStr::from_bytes(name)),
            // A negative offset invalidates only the attributes.
            Outdated::Attributes(number) => notifier.inval_inode(INodeNo(*number), -1, 0),
            // Length 0 means everything from the offset on.
            Outdated::List(number) => notifier.inval_inode(INodeNo(*number), 0, 0),
        };
        if let Err(error) = told {
            view.reporter.debug(format_args!("cannot notify the kernel that {outdated:?} is outdated: {error}"));
        }
    }
    Ok(())
}

/// Fetches what [`change`] will read, while requests are still answered: a server may take long.
fn load<S: MountableTree>(view: &View<S>, head: &S) -> Result<(), RepositoryError> {
    let directories = view.nodes().directories();
    for (_, before) in directories {
        let row = head.row(&before.path)?;
        let after = row.and_then(|row| row.directory).filter(|after| after.location != before.location);
        after.map_or(Ok(()), |after| head.load(&after))?;
    }
    Ok(())
}

/// Replaces the rows of all known directories at once, and returns the information that the kernel must drop from its
/// caches.
fn change<S: MountableTree>(view: &View<S>, head: &S) -> Result<Vec<Outdated>, RepositoryError> {
    let _no_request = view.block_requests();
    let directories = view.nodes().directories();
    let mut changed = Vec::new();
    for (number, before) in directories {
        let Some(row) = head.row(&before.path)? else { continue };
        let Some(after) = row.directory.clone().filter(|after| after.location != before.location) else { continue };
        changed.push((number, row, changes(head, &before, &after)?));
    }
    // All catalogs are read before the first change, so that an unreadable catalog leaves everything unchanged.
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

/// The changed names of a directory, with their new rows. The row of a name that does not exist any more is `None`.
type Changes<P> = HashMap<Arc<[u8]>, Option<Row<P>>>;

fn changes<S: MountableTree>(
    head: &S,
    before: &LocatedDirectory<S::RowsLocation>,
    after: &LocatedDirectory<S::RowsLocation>,
) -> Result<Changes<S::RowsLocation>, RepositoryError> {
    let mut changes = Changes::new();
    let new = head.rows(after)?;
    let mut new: HashMap<Arc<[u8]>, Row<S::RowsLocation>> =
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
        // The row of this directory is replaced when the loop in `change` reaches the directory.
        Some(known) if known.entry.is_directory() && stays_directory => Outdated::Attributes(known.number),
        _ => {
            nodes.detach(parent, &name);
            Outdated::Name(parent, name)
        }
    }
}
