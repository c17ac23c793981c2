//! Sends small requests: chooses between mirrors and the registry, repeats failed requests, and limits their time.

use std::time::Duration;

use reqwest::Url;
use serde::Deserialize;

use super::allowance::Allowance;
use super::endpoint::{Endpoint, endpoints};
use super::exchange::Call;
use super::limits::Host;
use super::{DEFAULT_CONNECTIONS, ImageLocation, Registries, RegistryError, Transport, json, paging};
use crate::http::{HttpError, HttpResponse, redacted};

/// Maximum size of one page of a list in bytes.
const MAX_LIST_PAGE: u64 = 16 << 20;
/// Maximum number of attempts for a small request.
const ATTEMPTS: u32 = 5;
/// Pause before the second attempt. The pause doubles with each further attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Maximum pause between two attempts.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// Maximum number of times that one request waits for a parked host.
const MAX_PARKINGS: u32 = 20;
/// Time limit for all pages of a list, as a multiple of the limit for one small request.
const LIST_TIME_FACTOR: u32 = 10;
/// Number of names that are requested for each page of a list.
const NAMES_PER_PAGE: &str = "1000";

/// Number of attempts and share of the time limit for a small request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RetryBudget {
    /// All attempts, within the whole time limit.
    Full,
    /// All attempts, within half of the time limit. A request with another method follows if they fail.
    FirstHalf,
    /// All attempts, within the other half of the time limit.
    SecondHalf,
    /// One attempt, within the other half of the time limit.
    SingleAttempt,
    /// Like [`Self::SingleAttempt`], but also sent during a chosen pause.
    Confirmation,
}

impl Registries {
    /// Sends a request with a small response: one attempt at each mirror, then repeated attempts at the registry.
    pub(super) fn small_request<T>(
        &self,
        location: &ImageLocation,
        call: &Call<'_>,
        path: &str,
        budget: RetryBudget,
        read: impl Fn(HttpResponse) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let (settings, ducc) = (&self.shared.settings, &self.shared.ducc);
        let endpoints = endpoints(location.name.host(), call.repository, location.transport, settings, ducc)?;
        let servers = endpoints.into_iter().map(|endpoint| {
            let url = endpoint.url(call.repository, path);
            (endpoint, url)
        });
        self.first_success(servers.collect(), |endpoint, url, patience| {
            self.with_retries(endpoint, budget, patience, |allowance| {
                let (response, _permit) = self.shared.exchange(endpoint, url, call, allowance)?;
                read(response)
            })
        })
    }

    /// Reads all pages of a list from the first server that returns it. Names that `is_valid` rejects are left out.
    pub(super) fn list<P: for<'de> Deserialize<'de>>(
        &self,
        host: &str,
        transport: Transport,
        call: &Call<'_>,
        first: impl Fn(&Endpoint) -> Url,
        names: impl Fn(P) -> Vec<String>,
        is_valid: fn(&str) -> bool,
    ) -> Result<Vec<String>, RegistryError> {
        let endpoints = endpoints(host, call.repository, transport, &self.shared.settings, &self.shared.ducc)?;
        let servers = endpoints.into_iter().map(|endpoint| {
            let mut url = first(&endpoint);
            url.query_pairs_mut().append_pair("n", NAMES_PER_PAGE);
            (endpoint, url)
        });
        self.first_success(servers.collect(), |endpoint, url, patience| {
            let limit = self.shared.http.limits_of(&endpoint.authority()).request * LIST_TIME_FACTOR;
            let begun = self.shared.clock.now();
            let page = |url: &Url| {
                if self.shared.clock.now() - begun > limit {
                    return Err(RegistryError::ListTooSlow { url: redacted(url), limit });
                }
                self.with_retries(endpoint, RetryBudget::Full, patience, |allowance| {
                    let (response, _permit) = self.shared.exchange(endpoint, url, call, allowance)?;
                    // After a redirect to another origin, relative links still belong to the original server.
                    let base = if response.is_of_origin { response.url.clone() } else { url.clone() };
                    let next = paging::next_page(&base, response.headers())?;
                    Ok((names(json(response, MAX_LIST_PAGE)?), next))
                })
            };
            paging::collect(url.clone(), page, is_valid, &self.shared.reporter)
        })
    }

    /// Sends a request to one server after another until one succeeds. If all fail, returns the error of the last server. A
    /// request waits for a parked server only if that server is the last one.
    pub(super) fn first_success<T>(
        &self,
        mut servers: Vec<(Endpoint, Url)>,
        send: impl Fn(&Endpoint, &Url, Option<Duration>) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let (last, last_url) = servers.pop().expect("settings with mirrors_only have mirrors");
        for (endpoint, url) in &servers {
            match send(endpoint, url, None) {
                Ok(found) => return Ok(found),
                Err(error) if error.is_not_found() => {
                    self.shared.reporter.debug(format_args!("trying the next server: {error}"))
                }
                Err(error) => self.shared.hosts.get(&endpoint.authority(), endpoint.connections).report_failure(&error),
            }
        }
        send(&last, &last_url, Some(self.patience))
    }

    /// Sends a small request to one server, and repeats it after temporary errors. A caller that can try another server passes
    /// no `patience`; then there is only one attempt.
    ///
    /// Missing responses are recorded: a server that repeatedly does not respond gets no requests for a while.
    pub(super) fn with_retries<T>(
        &self,
        endpoint: &Endpoint,
        budget: RetryBudget,
        patience: impl Into<Option<Duration>>,
        mut attempt: impl FnMut(&Allowance) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let confirms = budget == RetryBudget::Confirmation;
        let patience = patience.into().map(|patience| if confirms { Duration::ZERO } else { patience });
        let is_single = patience.is_none() || confirms || budget == RetryBudget::SingleAttempt;
        let attempts = if is_single { 1 } else { ATTEMPTS };
        let host = self.shared.hosts.get(&endpoint.authority(), endpoint.connections);
        host.check_responsive(self.shared.clock.now())?;
        let limits = self.shared.http.limits_of(&endpoint.authority());
        let whole = if budget == RetryBudget::Full { limits.request } else { limits.request / 2 };
        let mut allowance = Allowance::small(self.shared.clock.now(), patience.unwrap_or_default(), whole, limits);
        allowance.confirms = confirms;
        let result = self.retry_loop(attempts, &allowance, &host, || attempt(&allowance));
        match &result {
            // Some servers never respond to `HEAD`, but do to `GET`. Therefore a missing response to `HEAD` is not recorded.
            Err(error) if error.is_silence() && budget == RetryBudget::FirstHalf => {}
            Err(error) if error.is_silence() => host.note_no_response(self.shared.clock.now()),
            // A pause is neither a missing nor a complete response.
            Err(error) if error.is_postponed() => {}
            _ => host.note_complete_response(),
        }
        result
    }

    /// Repeats `attempt` until it succeeds, fails permanently, or the time is used up. An attempt that ends because a host is
    /// parked does not count as failed.
    fn retry_loop<T>(
        &self,
        attempts: u32,
        allowance: &Allowance,
        target: &Host,
        mut attempt: impl FnMut() -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let (mut failed, mut parked) = (1, 0);
        loop {
            self.shared.clock.check().map_err(RegistryError::Cancelled)?;
            let result = attempt();
            allowance.end();
            match (result, allowance.used_up()) {
                (Err(RegistryError::Parked { host, until, .. }), _)
                    if until <= allowance.park_deadline && parked < MAX_PARKINGS =>
                {
                    parked += 1;
                    // If the server itself is parked, the next attempt waits for it. If a token service is parked, the wait is
                    // here instead: no lock on the token is held here, and the wait does not use up the time for the response.
                    if host != target.name() {
                        self.shared.hosts.get(&host, DEFAULT_CONNECTIONS).wait(
                            &*self.shared.clock,
                            allowance,
                            false,
                            "a token",
                        )?;
                    }
                }
                (Err(RegistryError::Http(HttpError::TooSlow { url, .. })), Some(limit)) => {
                    return Err(HttpError::TooSlow { url, limit }.into());
                }
                (Err(error), None) if failed < attempts && error.is_transient() && !error.is_postponed() => {
                    let pause = FIRST_PAUSE.saturating_mul(1 << (failed - 1)).min(MAX_PAUSE);
                    self.shared.reporter.debug(format_args!("trying again: {error}"));
                    self.shared.clock.sleep(self.shared.clock.jittered(pause));
                    failed += 1;
                }
                (result, _) => return result,
            }
        }
    }
}
