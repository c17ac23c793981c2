//! Reads the store of a revision.

use super::paths::{images_list, images_lock, layers_list, layers_lock, lock_token};
use super::{Flaw, PodmanStore};
use crate::layout::PODMAN_STORE;
use crate::message::causes;
use crate::path::EntryPath;
use crate::repository::{Repository, RepositoryError};

/// Maximum size of a list in bytes. A list of 10,000 images has a fifth of this size.
const MAX_LIST_SIZE: u64 = 64 << 20;

/// Number of bytes of a lock file that podman reads.
const TOKEN_BYTES: usize = 64;

/// The store of a revision.
#[derive(Debug, Default)]
pub struct PublishedStore {
    /// The lists, without faults.
    pub store: PodmanStore,
    /// Faults in the lists that podman does not accept.
    pub flaws: Vec<Flaw>,
    /// Faults that make podman slow, or prevent it from noticing changes.
    pub warnings: Vec<Flaw>,
    /// Whether strata was the last program to write both lists, so that every entry has the format of strata.
    pub is_ours: bool,
    /// Whether the list of images is missing or its content is lost.
    pub has_lost_images: bool,
}

impl PublishedStore {
    /// Reads the store of a revision; `None` if the revision has no store.
    pub fn read(repository: &Repository) -> Result<Option<Self>, RepositoryError> {
        Self::read_with(repository, false)
    }

    /// Like [`Self::read`], for a repair: a list whose content is lost or damaged counts as empty.
    pub fn read_to_repair(repository: &Repository) -> Result<Option<Self>, RepositoryError> {
        Self::read_with(repository, true)
    }

    fn read_with(repository: &Repository, repairs: bool) -> Result<Option<Self>, RepositoryError> {
        if repository.get(&EntryPath::ROOT.join(PODMAN_STORE.as_bytes()))?.is_none() {
            return Ok(None);
        }
        let mut published = Self { is_ours: true, ..Self::default() };
        let images = published.read_list(repository, repairs, images_list(), images_lock())?;
        published.has_lost_images = images.is_none();
        let layers = published.read_list(repository, repairs, layers_list(), layers_lock())?;
        let (images, layers) = (images.unwrap_or_default(), layers.unwrap_or_default());
        let (store, flaws) = PodmanStore::parse(&images, &layers, published.is_ours);
        published.store = store;
        published.flaws.extend(flaws);
        Ok(Some(published))
    }

    /// Reads a file. An entry of another type or a too large file becomes a flaw and counts as missing, so that it is replaced.
    fn read_file(
        &mut self,
        repository: &Repository,
        repairs: bool,
        path: &EntryPath,
    ) -> Result<Option<Vec<u8>>, RepositoryError> {
        let fault = match repository.read(path, MAX_LIST_SIZE) {
            Err(RepositoryError::Unreadable { fault, .. }) => fault.to_owned(),
            Err(RepositoryError::Content { source, .. }) if repairs && source.is_damage() => causes(&source),
            read => return read,
        };
        self.is_ours = false;
        self.flaws.push(Flaw::new(path.clone(), "a file that podman reads", fault));
        Ok(None)
    }

    /// Reads a list, and compares it with its lock.
    fn read_list(
        &mut self,
        repository: &Repository,
        repairs: bool,
        list: EntryPath,
        lock: EntryPath,
    ) -> Result<Option<Vec<u8>>, RepositoryError> {
        let json = self.read_file(repository, repairs, &list)?;
        let token = self.read_file(repository, repairs, &lock)?;
        let expected = lock_token(json.as_deref().unwrap_or_default());
        self.is_ours &= token.as_deref() == Some(expected.as_bytes());
        match token {
            // podman opens the lock file with `O_CREAT`, which fails on a read-only file system if the file is missing.
            None => self.flaws.push(Flaw::new(lock, "a file", "nothing")),
            // podman 4.3 then parses both lists at each access: `podman images` of 500 images took 38 s instead of 0.7 s.
            Some(token) if token.len() < TOKEN_BYTES => {
                let found = format!("{}, so that podman reads the list repeatedly", token.len());
                self.warnings.push(Flaw::new(lock, format!("{TOKEN_BYTES} bytes"), found));
            }
            Some(token) if token != expected.as_bytes() => {
                let found = "other bytes, so that podman may not see changes of the list";
                self.warnings.push(Flaw::new(lock, "the checksum of the list", found));
            }
            Some(_) => {}
        }
        Ok(json)
    }
}
