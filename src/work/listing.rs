//! What registries list, for wishlists.

use std::time::{Duration, Instant};

use crate::registry::{Registries, ShownAs, Transport};
use crate::wishlist::{ImageRepository, JsonPage, Listing, ListingError, ProjectApi};

impl Listing for Registries {
    fn tags(&self, place: &ImageRepository) -> Result<Vec<String>, ListingError> {
        Ok(Registries::tags(self, &place.host, &place.repository, Transport::of(place.plain_http))?)
    }

    fn repositories(&self, host: &str, plain_http: bool) -> Result<Vec<String>, ListingError> {
        Ok(Registries::repositories(self, host, Transport::of(plain_http))?)
    }

    fn json(&self, url: &str, api: &ProjectApi) -> Result<Option<JsonPage>, ListingError> {
        let shown_as = match api {
            ProjectApi::GitLab { .. } | ProjectApi::Quay => ShownAs::Token,
            ProjectApi::Harbor | ProjectApi::DockerHub | ProjectApi::Catalog => ShownAs::Password,
        };
        match self.get_json(url, shown_as) {
            Ok(page) => {
                let headers = page.header("x-next-page").map(|next| ("x-next-page".to_owned(), next.to_owned()));
                let headers = headers.into_iter().collect();
                Ok(Some(JsonPage { body: page.body, link_next: page.next, headers }))
            }
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Limits the time of the pages of one project: many pages, each of which takes long, would hold up a round for hours.
pub(super) struct TimedListing<'l> {
    listing: &'l dyn Listing,
    begun: Instant,
    limit: Duration,
}

impl<'l> TimedListing<'l> {
    /// Returns a listing that gives no further page after `limit`.
    pub(super) fn new(listing: &'l dyn Listing, limit: Duration) -> Self {
        Self { listing, begun: Instant::now(), limit }
    }
}

impl Listing for TimedListing<'_> {
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
