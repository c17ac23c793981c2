//! Publishes revisions as another program might have written them.

use std::convert::Infallible;

use strata::directory::RepositoryDirectory;
use strata::metadata::Timestamp;
use strata::object::Compression;
use strata::path::EntryPath;
use strata::publish::{Edit, LockedCommitter, PublishOptions, Publisher};
use strata::repository::Repository;
use strata::store::Staging;

use super::TestRepository;

/// Content that another program publishes at a path.
pub enum Foreign {
    /// A file with this content.
    File(Vec<u8>),
    /// A symbolic link.
    Link(String),
    /// No entry: the path is removed.
    Gone,
}

/// Publishes a revision with these files and links.
pub fn publish_foreign(repository: &TestRepository, entries: impl IntoIterator<Item = (String, Foreign)>) {
    publish_edits(repository, |staging| {
        let edit = |(path, foreign): (String, Foreign)| {
            let edit = match foreign {
                Foreign::File(bytes) => {
                    let content = staging.put_file(Compression::Exact, &bytes).unwrap();
                    Edit::File { size: bytes.len() as u64, content }
                }
                Foreign::Link(target) => Edit::Symlink(target.into_bytes()),
                Foreign::Gone => Edit::Remove,
            };
            (EntryPath::normalise(path.as_bytes()).unwrap(), edit)
        };
        entries.into_iter().map(edit).collect()
    });
}

/// Publishes a revision with the edits that `make` returns.
pub fn publish_edits(repository: &TestRepository, make: impl FnOnce(&Staging) -> Vec<(EntryPath, Edit)>) {
    let directory = RepositoryDirectory::open(&repository.directory()).unwrap();
    let staging = Staging::start(directory.store().unwrap()).unwrap();
    let mut edits = make(&staging);
    edits.sort_by(|(a, _), (b, _)| a.cmp(b));
    let keys = directory.keys().unwrap();
    let committer = LockedCommitter { settings: directory.settings().clone(), keys, server: None };
    let head = Repository::open(directory.store().unwrap(), directory.name()).unwrap();
    let options = PublishOptions { now: Timestamp::now(), accept_clock: true, ..PublishOptions::default() };
    Publisher::new(committer).commit(&staging, &head, &options, |_| Ok::<_, Infallible>(edits)).unwrap();
}
