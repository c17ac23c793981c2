//! The log of everything that was ever published and not collected since.

use super::Check;
use super::finding::Place;
use crate::catalog::ReferenceKind;
use crate::catalog::audit::AuditedReflog;
use crate::directory::RepositoryDirectory;
use crate::manifest::RepositoryManifest;
use crate::message::causes;
use crate::object::ObjectHash;
use crate::repository::REFLOG_LIMIT;

const REFLOG: &str = ".cvmfsreflog";

impl Check<'_> {
    /// Checks that the log is whole and holds what the manifest refers to.
    pub(super) fn check_reflog(&self, manifest: &RepositoryManifest, directory: &RepositoryDirectory) {
        let Some(bytes) = self.read_file(REFLOG, REFLOG_LIMIT) else { return };
        self.compare_reflog(ObjectHash::of(&bytes), manifest, directory);
        let place = Place::file(REFLOG);
        let reflog = match AuditedReflog::read(bytes) {
            Ok(reflog) => reflog,
            Err(fault) => return self.findings.add_faults(&place, &[fault]),
        };
        self.findings.add_faults(&place, &reflog.faults);
        for (key, value) in [("schema", "1.0"), ("schema_revision", "0"), ("fqrn", self.name.as_str())] {
            let found = reflog.properties.get(key).map_or("none", String::as_str);
            self.findings.require(&place, &format!("property {key} with"), value, found);
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
                self.findings.note(&place, format_args!("{what} {hash}, which the manifest refers to"), "no such row");
            }
        }
    }

    /// Compares the log with what others say of it. They may lawfully be behind, so a difference is worth no more than a
    /// warning.
    fn compare_reflog(&self, actual: ObjectHash, manifest: &RepositoryManifest, directory: &RepositoryDirectory) {
        if manifest.reflog.is_some_and(|stated| stated != actual) {
            self.warn(format!(
                "{REFLOG} is not the one that the manifest states (field Y): a garbage collection rewrote it, or a publisher \
                 was killed; the next publication heals it"
            ));
        }
        let checksum = directory.local_server().and_then(|server| match server {
            Some(server) => Ok(server.reflog_checksum()?),
            None => Ok(None),
        });
        let checksum = checksum.unwrap_or_else(|error| {
            self.warn(format!("what cvmfs_server expects is not compared: {}", causes(&error)));
            None
        });
        if checksum.is_some_and(|stated| stated != actual) {
            self.warn(format!(
                "{REFLOG} is not the one that cvmfs_server expects (reflog.chksum): the next publication heals it, or \
                 cvmfs_server check -r"
            ));
        }
    }
}
