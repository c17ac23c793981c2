//! The store that podman reads: whatever makes it refuse an image, or all of them.

use super::Check;
use super::finding::Place;
use super::scope::Scope;
use crate::consumer::podman::{Flaw, PublishedStore, audit_image};
use crate::layout::PODMAN_STORE;
use crate::object::ObjectKind;
use crate::path::EntryPath;
use crate::repository::{Repository, RepositoryError};

impl Check<'_> {
    /// Checks the store, if there is one and it is part of what is checked.
    ///
    /// What of it cannot be read is told where its objects are checked.
    pub(super) fn check_podman_store(&self, scope: &Scope) {
        if !scope.holds(format!("/{PODMAN_STORE}").as_bytes()) {
            return;
        }
        self.progress.set_stage("checking the podman store".to_owned());
        let Ok(repository) = Repository::open(&self.store, self.name) else { return };
        let Ok(Some(published)) = PublishedStore::read(&repository) else { return };
        published.flaws.iter().for_each(|flaw| self.note_flaw(&repository, flaw));
        for warning in &published.warnings {
            self.warn(warning.to_string());
        }
        for entry in published.store.entries() {
            if let Ok(audit) = audit_image(&repository, &published.store, entry) {
                audit.flaws.iter().for_each(|flaw| self.note_flaw(&repository, flaw));
            }
        }
    }

    fn note_flaw(&self, repository: &Repository, flaw: &Flaw) {
        let file = file_of(repository, &flaw.path).unwrap_or_else(|_| ".cvmfspublished".to_owned());
        let place = Place::file(file).at(&[b"/", flaw.path.as_bytes()].concat());
        self.findings.note(&place, format_args!("for podman {}", flaw.expected), &flaw.found);
    }
}

/// Returns the catalog that has the row of a path, or would have it.
fn file_of(repository: &Repository, path: &EntryPath) -> Result<String, RepositoryError> {
    let directory = path.split().map_or(EntryPath::ROOT, |(directory, _)| directory);
    Ok(repository.place_of(&directory)?.reference.hash.path(ObjectKind::Catalog))
}
