//! Follows the head: what changed with a new revision, the kernel is told to forget.

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
use super::view::View;
use crate::repository::{Folder, NamedRow, Repository, RepositoryError, Row};

/// How often the manifest is looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// Looks at the manifest from time to time, as long as the view is mounted.
pub(super) fn follow(view: Weak<View>, notifier: Notifier) {
    let mut seen = None;
    let mut shown = None;
    loop {
        let Some(view) = view.upgrade() else { return };
        let path = view.repository.store().root().join(".cvmfspublished");
        let now = fs::metadata(path).ok().map(|file| (file.ino(), file.mtime(), file.mtime_nsec(), file.size()));
        let before = shown.get_or_insert_with(|| view.repository.root_reference());
        if seen != now {
            seen = now;
            match view.repository.open_head() {
                Ok(head) if head.root_reference() == *before => {}
                Ok(head) => match show(&view, &head, &notifier) {
                    Ok(()) => {
                        tracing::info!("revision {} is mounted", head.manifest().revision);
                        *before = head.root_reference();
                    }
                    Err(error) => complain(&error),
                },
                Err(error) => complain(&error),
            }
        }
        drop(view);
        thread::sleep(INTERVAL);
    }
}

fn complain(error: &RepositoryError) {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    tracing::error!("cannot follow the head, what was mounted stays: {error}{cause}");
}

/// Something that the kernel believes and that is no longer true.
#[derive(Debug, PartialEq, Eq)]
enum Outdated {
    /// What a name leads to, or that it leads to nothing.
    Name(u64, Arc<[u8]>),
    /// The attributes of a folder.
    Attributes(u64),
    /// The list of a folder.
    List(u64),
}

/// Puts another revision in the place of the one that is mounted.
fn show(view: &View, head: &Repository, notifier: &Notifier) -> Result<(), RepositoryError> {
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

/// Changes all folders at once, and returns what the kernel has to forget.
fn change(view: &View, head: &Repository) -> Result<Vec<Outdated>, RepositoryError> {
    let _changing = view.changing();
    let folders = view.nodes().folders();
    let mut changed = Vec::new();
    for (number, before) in folders {
        // What lies in a catalog that is the same object is the same.
        if head.place_of(&before.path)? == before.place {
            continue;
        }
        let Some(row) = head.row(&before.path)? else { continue };
        let Some(after) = row.folder.clone() else { continue };
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
    Ok(outdated)
}

/// The names in a folder whose rows are not what they were, with the rows that they have now.
type Changes = HashMap<Arc<[u8]>, Option<Row>>;

fn changes(head: &Repository, before: &Folder, after: &Folder) -> Result<Changes, RepositoryError> {
    let mut changes = Changes::new();
    let new = head.rows(after)?;
    let mut new: HashMap<Arc<[u8]>, Row> = new.into_iter().map(|NamedRow { name, row }| (name, row)).collect();
    for NamedRow { name, row: was } in head.rows(before)? {
        match new.remove(&name) {
            Some(is) if is.entry == was.entry => {}
            is => drop(changes.insert(name, is)),
        }
    }
    changes.extend(new.into_iter().map(|(name, row)| (name, Some(row))));
    Ok(changes)
}

fn outdated_by(nodes: &mut Nodes, parent: u64, name: Arc<[u8]>, is: Option<Row>) -> Outdated {
    let stays_folder = is.is_some_and(|row| row.folder.is_some());
    match nodes.known(parent, &name) {
        // Its row is changed when it is its turn.
        Some(known) if known.entry.is_directory() && stays_folder => Outdated::Attributes(known.number),
        _ => {
            nodes.detach(parent, &name);
            Outdated::Name(parent, name)
        }
    }
}
