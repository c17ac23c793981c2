//! The store of a revision.

use super::place::{images_list, images_lock, layers_list, layers_lock, lock_token};
use super::{Flaw, PodmanStore};
use crate::layout::PODMAN_STORE;
use crate::message::causes;
use crate::path::EntryPath;
use crate::repository::{Repository, RepositoryError};

/// No list is read that is longer: 64 MiB, of which 10,000 images take a fifth.
const LIST_LIMIT: u64 = 64 << 20;

/// Bytes of a lock that podman reads.
const TOKEN_BYTES: usize = 64;

/// The store as a revision has it.
#[derive(Debug, Default)]
pub struct PublishedStore {
    /// The lists, without what podman stumbles over.
    pub store: PodmanStore,
    /// What podman stumbles over in them.
    pub flaws: Vec<Flaw>,
    /// What makes podman slow, or blind to changes.
    pub warnings: Vec<Flaw>,
    /// Whether strata was the last to write both lists, so that every entry is as strata writes it.
    pub is_ours: bool,
    /// Whether the list of images, or its content, is lost, so that images are missing in it.
    pub has_lost_images: bool,
}

impl PublishedStore {
    /// Reads the store of a revision, which may have none.
    pub fn read(repository: &Repository) -> Result<Option<Self>, RepositoryError> {
        Self::read_with(repository, false)
    }

    /// Does the same to repair it: a list whose content is lost or damaged counts as empty.
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

    /// Reads a file. Something else in its place, or a file that is too long, is nothing, and is to be replaced.
    fn read_file(
        &mut self,
        repository: &Repository,
        repairs: bool,
        path: &EntryPath,
    ) -> Result<Option<Vec<u8>>, RepositoryError> {
        let fault = match repository.read(path, LIST_LIMIT) {
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
            None => self.flaws.push(Flaw::new(lock, "a file", "nothing")),
            Some(token) if token.len() < TOKEN_BYTES => {
                let found = format!("{}, so that podman reads the list again and again", token.len());
                self.warnings.push(Flaw::new(lock, format!("{TOKEN_BYTES} bytes"), found));
            }
            Some(token) if token != expected.as_bytes() => {
                let found = "those of another list, so that podman may not see what has changed";
                self.warnings.push(Flaw::new(lock, "the bytes that strata gives the list", found));
            }
            Some(_) => {}
        }
        Ok(json)
    }
}
