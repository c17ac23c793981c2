//! Checks the reflog: the database of all objects to which a manifest has referred and which no garbage collection has
//! deleted.

use super::Check;
use super::finding::Location;
use crate::catalog::ReferenceKind;
use crate::catalog::audit::AuditedReflog;
use crate::manifest::RepositoryManifest;
use crate::object::ObjectHash;
use crate::repository::REFLOG_LIMIT;

pub(super) const REFLOG: &str = ".cvmfsreflog";

impl Check<'_> {
    /// Checks that the reflog is intact and contains all objects to which the manifest refers.
    pub(super) fn check_reflog(&self, manifest: &RepositoryManifest) {
        let Some(bytes) = self.read_file(REFLOG, REFLOG_LIMIT) else { return };
        self.compare_reflog(&bytes, manifest);
        let location = Location::file(REFLOG);
        let reflog = match AuditedReflog::read(bytes) {
            Ok(reflog) => reflog,
            Err(fault) => return self.findings.add_faults(&location, &[fault]),
        };
        self.findings.add_faults(&location, &reflog.faults);
        // Another schema revision ends the tools of CVMFS with a failed assertion.
        for (key, value) in [("schema", "1.0"), ("schema_revision", "0"), ("fqrn", self.repository.name.as_str())] {
            let found = reflog.properties.get(key).map_or("none", String::as_str);
            self.findings.require(&location, &format!("property {key} with"), value, found);
        }
        let needed = [
            (Some(manifest.root_catalog), ReferenceKind::Catalog, "root catalog"),
            (Some(manifest.certificate), ReferenceKind::Certificate, "certificate"),
            (manifest.history, ReferenceKind::History, "tag database"),
            (manifest.meta_info, ReferenceKind::MetaInfo, "meta info"),
        ];
        for (hash, kind, what) in needed {
            if let Some(hash) = hash
                && !reflog.references.contains(&(hash.to_string(), kind as i64))
            {
                self.findings.note(
                    &location,
                    format_args!("{what} {hash}, which the manifest refers to"),
                    "no row for it",
                );
            }
        }
    }

    /// Compares the reflog with the hashes that the manifest and `cvmfs_server` record for it. These may validly be
    /// outdated, so a difference is only a warning.
    fn compare_reflog(&self, bytes: &[u8], manifest: &RepositoryManifest) {
        let differs = |stated: ObjectHash| stated != stated.algorithm().hash(bytes);
        if manifest.reflog.is_some_and(differs) {
            self.warn(format!(
                "{REFLOG} has another hash than the manifest states (field Y): a garbage collection rewrote it, or a publisher \
                 was killed; the next publication corrects this"
            ));
        }
        if self.repository.reflog_checksum.is_some_and(differs) {
            self.warn(format!(
                "{REFLOG} has another hash than cvmfs_server expects (reflog.chksum); the next publication corrects this, or \
                 cvmfs_server check -r"
            ));
        }
    }
}
