//! The commit of a revision: under the lock of the repository, from the current head to the replaced manifest.

use std::time::{Duration, Instant};

use super::{CommitError, Edit, MANIFEST, Publication, PublishError, REFLOG, Revision, WHITELIST};
use crate::allocator;
use crate::catalog::{
    CatalogEntry, CatalogReference, Editor, ReferenceKind, TaggedRevision, next_history, next_reflog,
};
use crate::manifest::{Keys, MetaInfo, RepositoryManifest, Signer, Whitelist};
use crate::metadata::{Metadata, Timestamp};
use crate::object::{Compression, Encoder, ObjectHash, ObjectKind, SizeLimit};
use crate::path::EntryPath;
use crate::repository::{REFLOG_LIMIT, Repository, RepositoryError};
use crate::settings::Settings;
use crate::span::span;
use crate::store::{DirectoryStore, LocalServer, ServerLock, Staging, Store as _, StoreError};
use crate::threads;

/// Maximum unpacked size of a meta info that is read. It is a small JSON document.
const META_INFO_LIMIT: SizeLimit = SizeLimit::of(16 << 20);

/// Options for publishing a revision.
#[derive(Debug, Clone, Copy, Default)]
pub struct PublishOptions {
    /// Time of all files that strata itself creates.
    pub now: Timestamp,
    /// Maximum time to wait for the locks of other publishers.
    pub wait: Duration,
    /// Publish even if `now` is more than a year after the last revision.
    pub accept_clock: bool,
}

/// Publishes revisions of one repository.
pub struct Publisher {
    /// The settings of the repository.
    pub settings: Settings,
    /// The keys for signing.
    pub signer: Signer,
    /// The `cvmfs_server` on this machine, if it manages the repository too.
    pub server: Option<LocalServer>,
}

impl Publisher {
    /// Publishes the edits that `prepare` returns for the current head as one revision, in their order.
    ///
    /// The new objects are in `staging`, which belongs to this repository's store. `known` is any revision of the repository:
    /// catalogs that were read through `known` are not read again.
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
        let store = staging.store();
        let start = Instant::now();
        let _lock = store.lock(options.wait).map_err(PublishError::from)?;
        // The two locks share one limit, so that `--wait` is the whole time that a command may wait.
        let left = options.wait.saturating_sub(start.elapsed());
        let server_lock = self.server.as_ref().map(|server| server.lock(left)).transpose();
        let server_lock = server_lock.map_err(PublishError::from)?;
        self.check_whitelist(store)?;
        // The trees of the staged images were freed just now, and the catalogs of the head are read next.
        allocator::release_free_memory();
        let head = known.open_head().map_err(PublishError::from)?;
        check_clock(&head, options.now, options.accept_clock)?;
        let edits = prepare(&head).map_err(CommitError::Prepare)?;
        if edits.is_empty() {
            return Ok(None);
        }
        let (number, root) = write_catalogs(staging, &self.settings, options.now, &head, edits)?;
        let manifest = RepositoryManifest {
            root_catalog: root.hash,
            catalog_size: Some(root.size),
            revision: number,
            // Clients refuse a manifest that is older than the newest one that they have seen, even if the clock was set
            // back.
            published: Some(options.now.seconds.max(head.manifest().published.unwrap_or(1)).max(1)),
            ..head.manifest().clone()
        };
        let mut late_errors = self.replace_manifest(staging, options, manifest, root, Some(number))?;
        late_errors.extend(server_lock.map(ServerLock::release).unwrap_or_default());
        Ok(Some(Publication { revision: Revision { number, root }, late_errors }))
    }

    /// Checks that clients accept signatures of this publisher's key.
    ///
    /// An expired whitelist does not prevent a publication, because only the owner of the master key can renew the whitelist.
    /// Commands warn about an expired whitelist when they start.
    fn check_whitelist(&self, store: &DirectoryStore) -> Result<(), PublishError> {
        let keys = self.signer.keys();
        let bytes = store.read_file(WHITELIST)?.ok_or(PublishError::NoWhitelist)?;
        let signed = Whitelist::parse(&bytes)?;
        // Clients refuse a list that another master key signed, even if it lists our certificate.
        signed.verify_signature(std::slice::from_ref(keys.master_public_key()))?;
        let (list, certificate) = (&signed.whitelist, keys.certificate());
        if !list.lists(certificate) {
            return Err(PublishError::NotListed(certificate.fingerprint(list.algorithm())));
        }
        Ok(())
    }

    /// Stores certificate, tag database and reflog for a root catalog, makes all objects durable, and replaces the manifest.
    ///
    /// Clients see the revision as soon as the manifest is replaced. Therefore errors of later steps are returned in the `Ok`
    /// value. `visible_revision` is the number of the revision, or `None` if clients cannot see the manifest.
    pub(super) fn replace_manifest(
        &self,
        staging: &Staging,
        options: &PublishOptions,
        mut manifest: RepositoryManifest,
        root: CatalogReference,
        visible_revision: Option<u64>,
    ) -> Result<Vec<StoreError>, PublishError> {
        let store = staging.store();
        manifest.certificate = staging.put_database(ObjectKind::Certificate, self.signer.keys().certificate().pem())?;
        let history = store_history(staging, &manifest, root, options.now)?;
        manifest.history = Some(history);
        let mut references = vec![
            (root.hash, ReferenceKind::Catalog),
            (manifest.certificate, ReferenceKind::Certificate),
            (history, ReferenceKind::History),
        ];
        if let Some(hash) = manifest.meta_info {
            // The meta info is read only to verify it, because the next manifest names the same object.
            let read = staging.read_decoded(hash, ObjectKind::MetaInfo, META_INFO_LIMIT);
            read.map_err(RepositoryError::of_root_object("meta info"))?;
            references.push((hash, ReferenceKind::MetaInfo));
        }
        let reflog = store.get(REFLOG, REFLOG_LIMIT)?;
        let reflog = next_reflog(reflog.as_deref(), &manifest.name, &references, options.now.seconds)?;
        // The algorithm of the manifest, by which CVMFS verifies the reflog of a replica, too (`cvmfs/swissknife_pull.cc`).
        let reflog_hash = root.hash.algorithm().hash(&reflog);
        manifest.reflog = Some(reflog_hash);
        let signed = self.signer.sign_manifest(&manifest)?;
        make_durable(staging)?;
        store.cancellation().check().map_err(StoreError::from)?;
        // The reflog is replaced first, because a reflog that is ahead of the manifest does no harm. A root object that the
        // reflog lacks is never collected.
        let mut late_errors = staging.replace_files(&[(REFLOG, &reflog), (MANIFEST, &signed)], visible_revision)?;
        late_errors.extend(self.write_reflog_checksum(store, reflog_hash).err());
        Ok(late_errors)
    }

    /// Writes the checksum of the reflog for the `cvmfs_server` that manages the repository, if there is one.
    fn write_reflog_checksum(&self, store: &DirectoryStore, reflog: ObjectHash) -> Result<(), StoreError> {
        let Some(server) = &self.server else { return Ok(()) };
        server.write_reflog_checksum(reflog).inspect_err(|_| {
            store.reporter().warn(format_args!(
                "cvmfs_server will refuse to publish until 'cvmfs_server check -r' has repaired the reflog checksum"
            ));
        })
    }
}

/// Stores the tag database of the next revision. `manifest` still names the previous one.
fn store_history(
    staging: &Staging,
    manifest: &RepositoryManifest,
    root: CatalogReference,
    now: Timestamp,
) -> Result<ObjectHash, PublishError> {
    let read = |hash| {
        let limit = SizeLimit::of_database(None);
        let bytes = staging.store().read_decoded(hash, ObjectKind::History, limit);
        Ok::<_, RepositoryError>((bytes.map_err(RepositoryError::of_root_object("tag database"))?, hash))
    };
    let before = manifest.history.map(read).transpose()?;
    let before = before.as_ref().map(|(bytes, hash)| (bytes.as_slice(), *hash));
    let head = TaggedRevision { root, revision: manifest.revision, timestamp: now.seconds };
    Ok(staging.put_database(ObjectKind::History, &next_history(before, &manifest.name, head)?)?)
}

/// Makes all objects of a revision durable, and checks that those from earlier revisions still exist.
fn make_durable(staging: &Staging) -> Result<(), PublishError> {
    staging.flush()?;
    // A garbage collection of `cvmfs_server` may have deleted objects that were found in the store at the start of the run.
    if let Some(hash) = staging.first_vanished()? {
        return Err(PublishError::Vanished(hash));
    }
    // Without this sync, the manifest could be on disk after a crash, while objects that it names are missing.
    Ok(staging.store().sync()?)
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

/// Stores the certificate and the meta info of the head again if they are missing or damaged and their bytes are known: the certificate
/// of the keys, and the meta info of a new repository.
pub(crate) fn repair_root_objects(staging: &Staging, keys: &Keys) -> Result<(), StoreError> {
    let store = staging.store();
    let bytes = store.read_file(MANIFEST)?.unwrap_or_default();
    // An invalid manifest is reported when the head is opened.
    let Ok(manifest) = RepositoryManifest::parse(&bytes).map(|signed| signed.manifest) else { return Ok(()) };
    let meta_info = MetaInfo::default().write();
    for (hash, kind, bytes) in [
        (Some(manifest.certificate), ObjectKind::Certificate, keys.certificate().pem()),
        (manifest.meta_info, ObjectKind::MetaInfo, meta_info.as_slice()),
    ] {
        let mut encoder = Encoder::new(Compression::Exact);
        let stored = encoder.encode(bytes);
        let known = hash.filter(|hash| hash.algorithm().hash(stored) == *hash);
        if let Some(hash) = known.filter(|&hash| !store.is_intact(hash, kind)) {
            store.reporter().warn(format_args!("'{}' is missing or damaged: writing it again", hash.path(kind)));
            staging.put(hash, kind, stored)?;
            staging.flush()?;
        }
    }
    Ok(())
}

/// Applies edits to `head` in their order, and writes the catalogs of the resulting revision. Returns its number and root catalog.
///
/// Clients do not see the revision, because no manifest names it.
pub(crate) fn write_catalogs(
    staging: &Staging,
    settings: &Settings,
    now: Timestamp,
    head: &Repository,
    edits: Vec<(EntryPath, Edit)>,
) -> Result<(u64, CatalogReference), PublishError> {
    let take = |path: &EntryPath, reference| head.take_catalog(path, reference);
    let mut editor = Editor::open(staging, settings.compression, head.root_reference(), &take, now)?;
    for (path, edit) in edits {
        apply(&mut editor, &path, edit, now)?;
    }
    // Clients load another root catalog only if the revision is higher, and do not notice a change under the same number.
    let number = head.manifest().revision + 1;
    Ok((number, editor.write(number)?))
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
