//! What registries list, for wishlists.

use std::time::{Duration, Instant};

use crate::registry::{AuthScheme, JsonPage, Registries, Transport};
use crate::wishlist::{ImageRepository, ListingError, ProjectApi, RegistryLister};

impl RegistryLister for Registries {
    fn tags(&self, place: &ImageRepository) -> Result<Vec<String>, ListingError> {
        Ok(Registries::tags(self, &place.host, &place.repository, Transport::of(place.plain_http))?)
    }

    fn repositories(&self, host: &str, plain_http: bool) -> Result<Vec<String>, ListingError> {
        Ok(Registries::repositories(self, host, Transport::of(plain_http))?)
    }

    fn json(&self, url: &str, api: &ProjectApi) -> Result<Option<JsonPage>, ListingError> {
        let scheme = match api {
            ProjectApi::GitLab { .. } | ProjectApi::Quay => AuthScheme::Bearer,
            ProjectApi::Harbor | ProjectApi::DockerHub | ProjectApi::Catalog => AuthScheme::Basic,
        };
        match self.get_json(url, scheme) {
            Ok(page) => Ok(Some(page)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Limits the time of the pages of one project: many pages, each of which takes long, would hold up a round for hours.
pub(super) struct TimedLister<'l> {
    listing: &'l dyn RegistryLister,
    begun: Instant,
    limit: Duration,
}

impl<'l> TimedLister<'l> {
    /// Returns a listing that gives no further page after `limit`.
    pub(super) fn new(listing: &'l dyn RegistryLister, limit: Duration) -> Self {
        Self { listing, begun: Instant::now(), limit }
    }
}

impl RegistryLister for TimedLister<'_> {
    fn tags(&self, place: &ImageRepository) -> Result<Vec<String>, ListingError> {
        self.listing.tags(place)
    }

    fn repositories(&self, host: &str, plain_http: bool) -> Result<Vec<String>, ListingError> {
        self.listing.repositories(host, plain_http)
    }

    fn json(&self, url: &str, api: &ProjectApi) -> Result<Option<JsonPage>, ListingError> {
        if self.begun.elapsed() > self.limit {
            let limit = humantime::format_duration(self.limit);
            return Err(format!("the pages of the list did not come within {limit}").into());
        }
        self.listing.json(url, api)
    }
}
