//! The commit of a revision, independent of the kind of storage.

use std::time::Duration;

use super::{CommitError, Edit, Publication, PublishError, Revision};
use crate::catalog::{CatalogEntry, Editor};
use crate::metadata::{Metadata, Timestamp};
use crate::path::EntryPath;
use crate::repository::Repository;
use crate::settings::Settings;
use crate::span::span;
use crate::store::Staging;
use crate::threads;

/// Options for publishing a revision.
#[derive(Debug, Clone, Copy)]
pub struct PublishOptions {
    /// Time of all files that strata itself creates.
    pub now: Timestamp,
    /// Maximum time to wait for the locks of other publishers.
    pub wait: Duration,
    /// Publish even if `now` is more than a year after the last revision.
    pub accept_clock: bool,
}

impl Default for PublishOptions {
    /// Returns the options for a publication now, which waits ten minutes for other publishers.
    fn default() -> Self {
        Self { now: Timestamp::now(), wait: Duration::from_secs(600), accept_clock: false }
    }
}

/// A way to publish revisions of one repository, such as a store with a lock.
pub trait Committer: Send + Sync {
    /// Stores objects again that belong to the head, are missing or damaged, and whose bytes are known without the store. Without
    /// them, neither the head nor a new revision can be read.
    fn repair_head(&self, staging: &Staging) -> Result<(), PublishError>;

    /// Begins a commit, which excludes other publishers until it ends. Waits up to `options.wait` for a publisher before it.
    ///
    /// The new objects are in `staging`, which belongs to the store of the repository.
    fn begin<'c>(
        &'c self,
        staging: &'c Staging,
        options: &PublishOptions,
    ) -> Result<Box<dyn Commit + Send + 'c>, PublishError>;
}

/// The commit of one revision. While no program ignores its lock, only this commit can change the head until it is dropped.
pub trait Commit {
    /// Opens the current head. `known` is any revision of the repository: catalogs that were read through `known` are not read again.
    fn head(&self, known: &Repository) -> Result<Repository, PublishError>;

    /// Applies edits to the head, in their order, and stores the catalogs of the resulting revision. Clients do not see the revision.
    fn apply(&mut self, head: &Repository, edits: Vec<(EntryPath, Edit)>) -> Result<(), PublishError>;

    /// Makes the revision of [`Self::apply`] the head. Fails if another program has replaced the head since the commit began. After an
    /// error, this commit has not changed the head.
    fn finish(self: Box<Self>) -> Result<Publication, PublishError>;
}

/// Publishes revisions of one repository.
pub struct Publisher(Box<dyn Committer>);

impl Publisher {
    /// Returns a publisher that commits with `committer`.
    pub fn new(committer: impl Committer + 'static) -> Self {
        Self(Box::new(committer))
    }

    /// Stores known objects of the head again, see [`Committer::repair_head`].
    pub(crate) fn repair_head(&self, staging: &Staging) -> Result<(), PublishError> {
        self.0.repair_head(staging)
    }

    /// Publishes the edits that `prepare` returns for the current head as one revision, in their order.
    ///
    /// The new objects are in `staging`, which belongs to this repository's store. `known` is any revision of the repository.
    ///
    /// Publishes nothing and returns `None` if there are no edits. No other publisher can change the head while `prepare` runs.
    pub fn commit<E: std::error::Error + Send + Sync + 'static>(
        &self,
        staging: &Staging,
        known: &Repository,
        options: &PublishOptions,
        prepare: impl FnOnce(&Repository) -> Result<Vec<(EntryPath, Edit)>, E> + Send,
    ) -> Result<Option<Publication>, CommitError<E>> {
        threads::in_pool(|| self.commit_in_pool(staging, known, options, prepare)).map_err(PublishError::from)?
    }

    fn commit_in_pool<E: std::error::Error + Send + Sync + 'static>(
        &self,
        staging: &Staging,
        known: &Repository,
        options: &PublishOptions,
        prepare: impl FnOnce(&Repository) -> Result<Vec<(EntryPath, Edit)>, E>,
    ) -> Result<Option<Publication>, CommitError<E>> {
        let _publishing = span!("publish");
        let mut commit = self.0.begin(staging, options)?;
        let head = commit.head(known)?;
        check_clock(&head, options.now, options.accept_clock)?;
        let edits = prepare(&head).map_err(CommitError::Prepare)?;
        if edits.is_empty() {
            return Ok(None);
        }
        commit.apply(&head, edits)?;
        Ok(Some(commit.finish()?))
    }
}

/// Returns an error if the clock is probably wrong: more than a year after the last revision.
pub(crate) fn check_clock(head: &Repository, now: Timestamp, is_accepted: bool) -> Result<(), PublishError> {
    let last = head.manifest().published.map(|seconds| Timestamp { seconds, nanoseconds: 0 });
    match last.filter(|last| !is_accepted && now.seconds.saturating_sub(last.seconds) > YEAR) {
        Some(last) => Err(PublishError::Clock { now, last }),
        None => Ok(()),
    }
}

/// Seconds of the longest year.
const YEAR: i64 = 366 * 24 * 3600;

/// Applies edits to `head` in their order, and writes the catalogs of the resulting revision. Returns its number and root catalog.
///
/// Clients do not see the revision, because no manifest names it.
pub(crate) fn write_catalogs(
    staging: &Staging,
    settings: &Settings,
    now: Timestamp,
    head: &Repository,
    edits: Vec<(EntryPath, Edit)>,
) -> Result<Revision, PublishError> {
    let take = |path: &EntryPath, reference| head.take_catalog(path, reference);
    let mut editor = Editor::open(staging, settings.compression, head.root_reference(), &take, now)?;
    for (path, edit) in edits {
        apply(&mut editor, &path, edit, now)?;
    }
    // Clients load another root catalog only if the revision is higher, and do not notice a change under the same number.
    let number = head.manifest().revision + 1;
    Ok(Revision { number, root: editor.write(number)? })
}

fn apply(editor: &mut Editor<'_>, path: &EntryPath, edit: Edit, now: Timestamp) -> Result<(), PublishError> {
    let metadata = |mode| Metadata { mode, uid: 0, gid: 0, mtime: now, xattrs: None };
    match edit {
        Edit::Catalog => editor.make_catalog(path)?,
        Edit::Tree(tree) => editor.put_tree(path, &tree)?,
        Edit::File { size, content } => editor.put(path, CatalogEntry::of_file(&metadata(0o644), size, &content))?,
        Edit::Symlink(target) => editor.put(path, CatalogEntry::of_symlink(&metadata(0o777), &target))?,
        Edit::VariantLink(target) => editor.put(path, CatalogEntry::of_variant_link(&metadata(0o777), &target))?,
        Edit::Remove => drop(editor.remove(path)?),
    }
    Ok(())
}
