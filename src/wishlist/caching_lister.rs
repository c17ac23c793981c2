//! A lister that requests the tags of each repository once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::project_api::{ListingError, ProjectApi, RegistryLister};
use super::reference::ImageRepository;
use crate::registry::JsonPage;

/// Caches the tags of repositories, because wishlists often have several patterns for one repository.
pub(crate) struct CachingLister<'l> {
    listing: &'l dyn RegistryLister,
    tags: Mutex<HashMap<ImageRepository, SharedTags>>,
}

/// The tags of a repository, if they have been requested. A thread holds the lock while it requests them.
type SharedTags = Arc<Mutex<Option<Vec<String>>>>;

impl<'l> CachingLister<'l> {
    /// Returns a cache over `listing`. Errors are not cached.
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
