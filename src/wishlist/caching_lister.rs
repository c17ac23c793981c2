//! A listing that asks for the tags of each repository once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::project::{ListingError, ProjectApi, RegistryLister};
use super::reference::ImageRepository;
use crate::registry::JsonPage;

/// Remembers the tags of repositories, since wishlists often have several patterns for one.
pub(crate) struct CachingLister<'l> {
    listing: &'l dyn RegistryLister,
    tags: Mutex<HashMap<ImageRepository, SharedTags>>,
}

/// The tags of a repository, once they are known. The thread that holds the lock may ask for them.
type SharedTags = Arc<Mutex<Option<Vec<String>>>>;

impl<'l> CachingLister<'l> {
    /// Returns a listing that asks `listing` for what it has not asked before. What failed is asked for again.
    pub(crate) fn new(listing: &'l dyn RegistryLister) -> Self {
        Self { listing, tags: Mutex::default() }
    }
}

impl RegistryLister for CachingLister<'_> {
    fn tags(&self, repository: &ImageRepository) -> Result<Vec<String>, ListingError> {
        let known = Arc::clone(self.tags.lock().expect(UNPOISONED).entry(repository.clone()).or_default());
        let mut known = known.lock().expect(UNPOISONED);
        if let Some(tags) = &*known {
            return Ok(tags.clone());
        }
        Ok(known.insert(self.listing.tags(repository)?).clone())
    }

    fn repositories(&self, host: &str, plain_http: bool) -> Result<Vec<String>, ListingError> {
        self.listing.repositories(host, plain_http)
    }

    fn json(&self, url: &str, api: &ProjectApi) -> Result<Option<JsonPage>, ListingError> {
        self.listing.json(url, api)
    }
}

const UNPOISONED: &str = "no thread panics while it lists tags";
