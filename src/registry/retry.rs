//! How hard registries are tried: which of their servers are asked, how often, and for how long.

use std::time::Duration;

use reqwest::Url;
use serde::Deserialize;

use super::allowance::Allowance;
use super::endpoint::{Endpoint, endpoints};
use super::exchange::Call;
use super::http::{HttpResponse, redacted};
use super::limits::Host;
use super::{DEFAULT_CONNECTIONS, ImageLocation, Registries, RegistryError, Transport, json, paging};

/// The size up to which a page of a list is read, in bytes.
const MAX_LIST_PAGE: u64 = 16 << 20;
/// How often a small request is tried.
const ATTEMPTS: u32 = 5;
/// How long to wait before the second attempt. It doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// How long to wait at most.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// How often a request is told to wait before it is given up.
const MAX_PARKINGS: u32 = 20;
/// A list, with all of its pages, may take this many times as long as a single small request.
const LIST_TIME_FACTOR: u32 = 10;
/// How many names a page of a list is asked to have.
const PAGE: &str = "1000";

/// How hard a server is tried for something small.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RetryBudget {
    /// With all attempts, in all the time that there is.
    Full,
    /// With all attempts, in half of the time: if that fails, it is asked in another way.
    FirstHalf,
    /// With all attempts, in the other half of the time.
    SecondHalf,
    /// With one attempt, in the other half of the time.
    SingleAttempt,
}

impl Registries {
    /// Asks for something small of an image: mirrors once each, and then the registry until it answers.
    pub(super) fn small<T>(
        &self,
        place: &ImageLocation,
        call: &Call<'_>,
        path: &str,
        budget: RetryBudget,
        read: impl Fn(HttpResponse) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let (settings, ducc) = (&self.shared.settings, &self.shared.ducc);
        let endpoints = endpoints(place.name.host(), call.repository, place.transport, settings, ducc)?;
        let asked = endpoints.into_iter().map(|endpoint| {
            let url = endpoint.url(call.repository, path);
            (endpoint, url)
        });
        self.first_of(asked.collect(), |endpoint, url, patience| {
            self.asked(endpoint, budget, patience, |allowance| {
                let (response, _permit) = self.shared.exchange(endpoint, url, call, allowance)?;
                read(response)
            })
        })
    }

    /// Reads a list page by page from the first server that gives it.
    pub(super) fn list<P: for<'de> Deserialize<'de>>(
        &self,
        host: &str,
        transport: Transport,
        call: &Call<'_>,
        first: impl Fn(&Endpoint) -> Url,
        names: impl Fn(P) -> Vec<String>,
        is_right: fn(&str) -> bool,
    ) -> Result<Vec<String>, RegistryError> {
        let endpoints = endpoints(host, call.repository, transport, &self.shared.settings, &self.shared.ducc)?;
        let asked = endpoints.into_iter().map(|endpoint| {
            let mut url = first(&endpoint);
            url.query_pairs_mut().append_pair("n", PAGE);
            (endpoint, url)
        });
        self.first_of(asked.collect(), |endpoint, url, patience| {
            let limit = self.shared.http.limits_of(&endpoint.authority()).request * LIST_TIME_FACTOR;
            let begun = self.shared.clock.now();
            let page = |url: &Url| {
                if self.shared.clock.now() - begun > limit {
                    return Err(RegistryError::TooSlow { url: redacted(url), limit });
                }
                self.asked(endpoint, RetryBudget::Full, patience, |allowance| {
                    let (response, _permit) = self.shared.exchange(endpoint, url, call, allowance)?;
                    // A redirect to elsewhere does not take the list there.
                    let base = if response.is_of_origin { response.url.clone() } else { url.clone() };
                    let next = paging::next_page(&base, response.headers())?;
                    Ok((names(json(response, MAX_LIST_PAGE)?), next))
                })
            };
            paging::collect(url.clone(), page, is_right)
        })
    }

    /// Asks one server after the other, and returns the last one's error if all fail. Only the last is waited for, and
    /// asked several times.
    pub(super) fn first_of<T>(
        &self,
        mut asked: Vec<(Endpoint, Url)>,
        ask: impl Fn(&Endpoint, &Url, Option<Duration>) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let (last, last_url) = asked.pop().expect("settings with mirrors_only have mirrors");
        for (endpoint, url) in &asked {
            match ask(endpoint, url, None) {
                Ok(found) => return Ok(found),
                Err(error) if error.is_not_found() => tracing::debug!("asking elsewhere: {error}"),
                Err(error) => self.shared.hosts.get(&endpoint.authority(), endpoint.connections).tell_failure(&error),
            }
        }
        ask(&last, &last_url, Some(self.patience))
    }

    /// Asks one server for something small, as often as it makes sense: once where another is asked after it, as there is no
    /// `patience` for it then. A server that leaves everything without an answer is left alone for a while.
    pub(super) fn asked<T>(
        &self,
        endpoint: &Endpoint,
        budget: RetryBudget,
        patience: impl Into<Option<Duration>>,
        mut attempt: impl FnMut(&Allowance) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let patience = patience.into();
        let attempts = if patience.is_none() || budget == RetryBudget::SingleAttempt { 1 } else { ATTEMPTS };
        let host = self.shared.hosts.get(&endpoint.authority(), endpoint.connections);
        host.check_answers(self.shared.clock.now())?;
        let limits = self.shared.http.limits_of(&endpoint.authority());
        let whole = if budget == RetryBudget::Full { limits.request } else { limits.request / 2 };
        let allowance = Allowance::small(self.shared.clock.now(), patience.unwrap_or_default(), whole, limits);
        let result = self.retried(attempts, &allowance, &host, || attempt(&allowance));
        match &result {
            // Some servers are silent to this question alone.
            Err(error) if error.is_silence() && budget == RetryBudget::FirstHalf => {}
            Err(error) if error.is_silence() => host.left_unanswered(self.shared.clock.now()),
            Err(error) if error.is_postponed() => {}
            _ => host.answered_in_full(),
        }
        result
    }

    /// Tries until there is an answer, a failure that does not pass, or no time left. Being told to wait is no failed attempt.
    fn retried<T>(
        &self,
        attempts: u32,
        allowance: &Allowance,
        asked: &Host,
        mut attempt: impl FnMut() -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let (mut failed, mut parked) = (1, 0);
        loop {
            let result = attempt();
            allowance.end();
            match (result, allowance.used_up()) {
                (Err(RegistryError::Parked { host, until, .. }), _)
                    if until <= allowance.park_deadline && parked < MAX_PARKINGS =>
                {
                    parked += 1;
                    // The next attempt waits for the server itself. A token service is waited for here, where that holds up
                    // nobody who needs the same token, and takes no time from the answer.
                    if host != asked.name() {
                        self.shared.hosts.get(&host, DEFAULT_CONNECTIONS).wait(
                            &*self.shared.clock,
                            allowance,
                            false,
                            "a token",
                        )?;
                    }
                }
                (Err(RegistryError::TooSlow { url, .. }), Some(limit)) => {
                    return Err(RegistryError::TooSlow { url, limit });
                }
                (Err(error), None) if failed < attempts && error.is_transient() && !error.is_postponed() => {
                    let pause = FIRST_PAUSE.saturating_mul(1 << (failed - 1)).min(MAX_PAUSE);
                    tracing::debug!("trying again: {error}");
                    self.shared.clock.sleep(self.shared.clock.jittered(pause));
                    failed += 1;
                }
                (result, _) => return result,
            }
        }
    }
}
