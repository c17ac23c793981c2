//! The commit in a store with a lock: from the current head to the replaced manifest.

use std::time::Instant;

use super::commit::{Commit, Committer, write_catalogs};
use super::{Edit, MANIFEST, Publication, PublishError, PublishOptions, REFLOG, Revision, WHITELIST};
use crate::allocator;
use crate::catalog::{CatalogReference, ReferenceKind, TaggedRevision, next_history, next_reflog};
use crate::manifest::{Keys, MetaInfo, RepositoryManifest, Whitelist};
use crate::metadata::Timestamp;
use crate::object::{Compression, Encoder, ObjectHash, ObjectKind, SizeLimit};
use crate::path::EntryPath;
use crate::repository::{REFLOG_LIMIT, Repository, RepositoryError};
use crate::settings::Settings;
use crate::store::{LocalServer, NewFile, PublishLock, ServerLock, SharedWritableStore, Staging, StoreError};

/// Maximum unpacked size of a meta info that is read. It is a small JSON document.
const META_INFO_LIMIT: SizeLimit = SizeLimit::of(16 << 20);

/// Commits to a store under its lock, and signs with the keys of the repository.
pub struct LockedCommitter {
    /// The settings of the repository.
    pub settings: Settings,
    /// The keys for signing.
    pub keys: Keys,
    /// The `cvmfs_server` on this machine, if it manages the repository too.
    pub server: Option<LocalServer>,
}

impl Committer for LockedCommitter {
    /// Repairs the certificate, which the keys contain, and the meta info of a new repository.
    fn repair_head(&self, staging: &Staging) -> Result<(), PublishError> {
        Ok(repair_root_objects(staging, &self.keys)?)
    }

    fn begin<'c>(
        &'c self,
        staging: &'c Staging,
        options: &PublishOptions,
    ) -> Result<Box<dyn Commit + Send + 'c>, PublishError> {
        let start = Instant::now();
        let lock = staging.store().lock(options.wait)?;
        // The two locks share one limit, so that `--wait` is the whole time that a command may wait.
        let left = options.wait.saturating_sub(start.elapsed());
        let server_lock = self.server.as_ref().map(|server| server.lock(left)).transpose()?;
        self.check_whitelist(staging.store())?;
        // The trees of the staged images were freed just now, and the catalogs of the head are read next.
        allocator::release_free_memory();
        Ok(Box::new(LockedCommit {
            committer: self,
            staging,
            now: options.now,
            // Read before the head, so that a change between the two is detected.
            manifest: staging.store().read_file(MANIFEST)?,
            next: None,
            server_lock,
            _lock: lock,
        }))
    }
}

/// A commit under the locks of the store.
struct LockedCommit<'c> {
    committer: &'c LockedCommitter,
    staging: &'c Staging,
    now: Timestamp,
    /// The manifest of the head, as it is stored.
    manifest: Option<Vec<u8>>,
    /// The revision to publish, and its manifest without the objects that are stored last.
    next: Option<(Revision, RepositoryManifest)>,
    server_lock: Option<ServerLock>,
    _lock: PublishLock,
}

impl Commit for LockedCommit<'_> {
    fn head(&self, known: &Repository) -> Result<Repository, PublishError> {
        Ok(known.open_head()?)
    }

    fn apply(&mut self, head: &Repository, edits: Vec<(EntryPath, Edit)>) -> Result<(), PublishError> {
        let next = write_catalogs(self.staging, &self.committer.settings, self.now, head, edits)?;
        let manifest = RepositoryManifest {
            root_catalog: next.root.hash,
            catalog_size: Some(next.root.size),
            revision: next.number,
            // Clients refuse a manifest that is older than the newest one that they have seen, even if the clock was set
            // back.
            published: Some(self.now.seconds.max(head.manifest().published.unwrap_or(1)).max(1)),
            ..head.manifest().clone()
        };
        self.next = Some((next, manifest));
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Publication, PublishError> {
        let (revision, manifest) = self.next.expect("the edits are applied before the commit is finished");
        let (root, before) = (revision.root, self.manifest.as_deref());
        let mut late_errors = self.committer.replace_manifest(self.staging, self.now, manifest, root, before)?;
        late_errors.extend(self.server_lock.map(ServerLock::release).unwrap_or_default());
        Ok(Publication { revision, late_errors })
    }
}

impl LockedCommitter {
    /// Checks that clients accept signatures of this publisher's key.
    ///
    /// An expired whitelist does not prevent a publication, because only the owner of the master key can renew the whitelist.
    /// Commands warn about an expired whitelist when they start.
    fn check_whitelist(&self, store: &SharedWritableStore) -> Result<(), PublishError> {
        let keys = &self.keys;
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
    /// value. `before` is the manifest that is replaced, as it is stored; `None` if the repository is new, so that no client sees it.
    pub(super) fn replace_manifest(
        &self,
        staging: &Staging,
        now: Timestamp,
        mut manifest: RepositoryManifest,
        root: CatalogReference,
        before: Option<&[u8]>,
    ) -> Result<Vec<StoreError>, PublishError> {
        let store = staging.store();
        manifest.certificate = staging.put_database(ObjectKind::Certificate, self.keys.certificate().pem())?;
        let history = store_history(staging, &manifest, root, now)?;
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
        let old_reflog = store.get(REFLOG, REFLOG_LIMIT)?;
        let reflog = next_reflog(old_reflog.as_deref(), &manifest.name, &references, now.seconds)?;
        // The algorithm of the manifest, by which CVMFS verifies the reflog of a replica, too (`cvmfs/swissknife_pull.cc`).
        let reflog_hash = root.hash.algorithm().hash(&reflog);
        manifest.reflog = Some(reflog_hash);
        let signed = self.keys.sign_manifest(&manifest)?;
        make_durable(staging)?;
        store.cancellation().check().map_err(StoreError::from)?;
        // The reflog is replaced first, because a reflog that is ahead of the manifest does no harm. A root object that the
        // reflog lacks is never collected.
        let files = [
            NewFile::new(REFLOG, &reflog).replacing(old_reflog.as_deref()),
            NewFile::new(MANIFEST, &signed).replacing(before),
        ];
        let mut late_errors = staging.replace_files(&files, before.map(|_| manifest.revision))?;
        late_errors.extend(self.write_reflog_checksum(store, reflog_hash).err());
        Ok(late_errors)
    }

    /// Writes the checksum of the reflog for the `cvmfs_server` that manages the repository, if there is one.
    fn write_reflog_checksum(&self, store: &SharedWritableStore, reflog: ObjectHash) -> Result<(), StoreError> {
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

/// Stores the certificate and the meta info of the head again if they are missing or damaged and their bytes are known: the certificate
/// of the keys, and the meta info of a new repository.
fn repair_root_objects(staging: &Staging, keys: &Keys) -> Result<(), StoreError> {
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
