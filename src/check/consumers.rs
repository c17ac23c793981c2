//! Checks the directories that container runtimes read, for everything that makes a runtime fail.

use std::io;
use std::sync::Arc;

use super::Check;
use super::finding::Location;
use super::scope::Scope;
use crate::consumer::{self, AuditResult, Flaw};
use crate::object::ObjectKind;
use crate::path::EntryPath;
use crate::repository::{Repository, RepositoryError};
use crate::shortage::shortage_of;

impl Check<'_> {
    /// Checks the directories of all container runtimes that are in the scope.
    ///
    /// Unreadable files are ignored here, because their objects are checked elsewhere.
    pub(super) fn check_consumers(&self, scope: &Scope) {
        for consumer in consumer::ALL {
            let Some(directory) = consumer.directory() else { continue };
            if !scope.holds(format!("/{directory}").as_bytes()) {
                continue;
            }
            self.progress.set_activity(format!("checking what {} reads", consumer.name()));
            let repository = match Repository::open(Arc::clone(&self.store), &self.repository.name) {
                Ok(repository) => repository,
                Err(error) => return self.note_obstacle_of(&error),
            };
            let audited = consumer.audit(&repository, &mut |result| match result {
                AuditResult::Flaw(flaw) => self.note_flaw(&repository, consumer.name(), &flaw),
                AuditResult::Warning(warning) => self.warn(warning),
            });
            if let Err(error) = audited {
                self.note_obstacle_of(&error);
                self.store.reporter().debug(format_args!("{}", crate::message::causes(&error)));
            }
        }
    }

    /// Records an error if its cause is not in the repository.
    fn note_obstacle_of(&self, error: &RepositoryError) {
        if let Some(cause) = shortage_of(error).and_then(io::Error::raw_os_error) {
            self.end_with(".cvmfspublished", io::Error::from_raw_os_error(cause));
        }
    }

    fn note_flaw(&self, repository: &Repository, runtime: &str, flaw: &Flaw) {
        let file = file_of(repository, &flaw.path).unwrap_or_else(|_| ".cvmfspublished".to_owned());
        let location = Location::file(file).at(&[b"/", flaw.path.as_bytes()].concat());
        self.findings.note(&location, format_args!("for {runtime} {}", flaw.expected), &flaw.found);
    }
}

/// Returns the catalog file that contains, or would contain, the row of a path.
fn file_of(repository: &Repository, path: &EntryPath) -> Result<String, RepositoryError> {
    let directory = path.split().map_or(EntryPath::ROOT, |(directory, _)| directory);
    Ok(repository.location_of(&directory)?.reference.hash.path(ObjectKind::Catalog))
}
