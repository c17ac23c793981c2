//! Lists the contents of registries for wishlists.

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

/// Lister that limits the total time for the pages of one list. Without this limit, many slow pages could delay a round for
/// hours.
pub(super) struct TimedLister<'l> {
    lister: &'l dyn RegistryLister,
    start: Instant,
    limit: Duration,
}

impl<'l> TimedLister<'l> {
    /// Returns a lister that requests no page after `limit` has passed.
    pub(super) fn new(lister: &'l dyn RegistryLister, limit: Duration) -> Self {
        Self { lister, start: Instant::now(), limit }
    }
}

impl RegistryLister for TimedLister<'_> {
    fn tags(&self, place: &ImageRepository) -> Result<Vec<String>, ListingError> {
        self.lister.tags(place)
    }

    fn repositories(&self, host: &str, plain_http: bool) -> Result<Vec<String>, ListingError> {
        self.lister.repositories(host, plain_http)
    }

    fn json(&self, url: &str, api: &ProjectApi) -> Result<Option<JsonPage>, ListingError> {
        if self.start.elapsed() > self.limit {
            let limit = humantime::format_duration(self.limit);
            return Err(format!(
                "the registry did not send all pages of the list within {limit}, which is ten times [requests] timeout"
            )
            .into());
        }
        self.lister.json(url, api)
    }
}
