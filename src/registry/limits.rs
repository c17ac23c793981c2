//! Limits the load on registries: no request during a pause, and a maximum number of concurrent requests.
//!
//! A host is *parked* until the end of a pause. In a *requested pause*, the response stated the length, in `Retry-After` or in a
//! rate limit header. In a *chosen pause*, strata chose the length, because status 429 came without a length. Independently of
//! both, a host that repeatedly does not respond gets no request for [`UNRESPONSIVE_PAUSE`].

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER};

use super::allowance::Allowance;
use super::clock::Clock;
use super::error::{RegistryError, describe_pause};
use crate::message::causes;
use crate::observer::Reporter;

/// Maximum length of a requested pause.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
/// Minimum length of a requested pause.
// A wrong date in a header must not park a registry for years.
// `Retry-After: 0` and past dates are valid, and would cause requests without any pause.
const MIN_RETRY_AFTER: Duration = Duration::from_secs(1);
/// Number of consecutive requests without a response after which no request is sent for [`UNRESPONSIVE_PAUSE`].
// Without this limit, every image of a dead registry would wait for the time limits of its own requests.
const MAX_UNANSWERED: u32 = 3;
/// Time for which no request is sent to an unresponsive host.
const UNRESPONSIVE_PAUSE: Duration = Duration::from_secs(60);
/// Time for which `GET` replaces `HEAD` at a host that responds to `HEAD`, but not to `GET`, with status 429.
const HEAD_REJECTION_TIME: Duration = Duration::from_secs(3600);
/// Minimum interval between two messages about the same parked host.
const REPORT_INTERVAL: Duration = Duration::from_secs(600);
/// Initial and maximum length of a chosen pause. The length doubles with each further chosen pause before a successful response.
const CHOSEN_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// Returns the length of the pause in `Retry-After`, which contains seconds or a date (RFC 9110, section 10.2.3).
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let length = if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        // Only an overflow can fail here, and means a very long time.
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()
    };
    Some(length.clamp(MIN_RETRY_AFTER, MAX_RETRY_AFTER))
}

/// Returns the time for which no manifest must be requested, if the response states that the rate limit is used up.
///
/// Docker Hub sends `RateLimit-Limit: 100;w=21600` and `RateLimit-Remaining: 0;w=21600`. The window slides, so that on
/// average one request is allowed again after window / limit seconds.
pub(super) fn exhausted(headers: &HeaderMap) -> Option<Duration> {
    let (remaining, window) = rate(headers, "ratelimit-remaining")?;
    if remaining > 0 {
        return None;
    }
    let (limit, window_of_limit) = rate(headers, "ratelimit-limit").unwrap_or((1, None));
    let seconds = window.or(window_of_limit)?.div_ceil(limit.max(1));
    Some(Duration::from_secs(seconds).clamp(MIN_RETRY_AFTER, MAX_RETRY_AFTER))
}

/// Parses `<number>[;w=<seconds>]`.
fn rate(headers: &HeaderMap, name: &str) -> Option<(u64, Option<u64>)> {
    let mut parts = headers.get(name)?.to_str().ok()?.split(';').map(str::trim);
    let number = parts.next()?.parse().ok()?;
    let window = parts.find_map(|part| part.strip_prefix("w=")).and_then(|seconds| seconds.parse().ok());
    Some((number, window))
}

/// State of all hosts.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    by_authority: Mutex<HashMap<String, Arc<Host>>>,
    reporter: Reporter,
}

impl Hosts {
    /// Returns the state before the first request to any host.
    pub(super) fn new(reporter: &Reporter) -> Self {
        Self { by_authority: Mutex::default(), reporter: reporter.clone() }
    }

    /// Returns the state of a host. The first call for a host creates the state, with `connections` as the maximum number of
    /// concurrent requests and of downloads. Later calls ignore `connections`.
    pub(super) fn get(&self, authority: &str, connections: usize) -> Arc<Host> {
        let mut hosts = lock(&self.by_authority);
        if let Some(host) = hosts.get(authority) {
            return Arc::clone(host);
        }
        let host = Arc::new(Host::new(authority, connections, &self.reporter));
        hosts.insert(authority.to_owned(), Arc::clone(&host));
        host
    }
}

/// State of one host that all threads share.
#[derive(Debug)]
pub(super) struct Host {
    name: String,
    parking: Mutex<Parking>,
    requests: Arc<Semaphore>,
    downloads: Arc<Semaphore>,
    speaks_plain_http: Mutex<bool>,
    /// Time until which `GET` is used in place of `HEAD`.
    head_rejected: Mutex<Option<Instant>>,
    silence: Mutex<Silence>,
    reporter: Reporter,
}

/// Missing responses of a host.
#[derive(Debug, Default)]
struct Silence {
    /// Number of consecutive requests without a response.
    unanswered: u32,
    /// Time until which no request is sent.
    until: Option<Instant>,
    /// Whether a failed request to this host has been reported since its last complete response.
    is_reported: bool,
}

#[derive(Debug, Default)]
struct Parking {
    /// Start of the first pause since the last successful response. Pauses for requests of manifests only do not count.
    since: Option<Instant>,
    /// Time of the last message about the parked host.
    reported: Option<Instant>,
    /// End of the last pause for all requests.
    everything: Option<Instant>,
    /// End of the last chosen pause.
    chosen_by_strata: Option<Instant>,
    /// End of the last chosen pause during which a confirming request was sent.
    confirmed: Option<Instant>,
    /// End of the last pause for requests of manifests only.
    manifests: Option<Instant>,
    /// Number of chosen pauses since the last successful response.
    chosen_pauses: u32,
}

impl Host {
    fn new(name: &str, connections: usize, reporter: &Reporter) -> Self {
        Self {
            name: name.to_owned(),
            parking: Mutex::default(),
            requests: Semaphore::new(connections),
            downloads: Semaphore::new(connections),
            speaks_plain_http: Mutex::default(),
            head_rejected: Mutex::default(),
            silence: Mutex::default(),
            reporter: reporter.clone(),
        }
    }

    /// Fails during the [`UNRESPONSIVE_PAUSE`] of a host that repeatedly did not respond.
    pub(super) fn check_responsive(&self, now: Instant) -> Result<(), RegistryError> {
        let silence = lock(&self.silence);
        match silence.until {
            Some(until) if now < until => {
                Err(RegistryError::GivenUp { host: self.name.clone(), failures: silence.unanswered })
            }
            _ => Ok(()),
        }
    }

    /// Records that no attempt of a request got a response. After [`MAX_UNANSWERED`] such requests in a row, the
    /// [`UNRESPONSIVE_PAUSE`] starts.
    pub(super) fn note_no_response(&self, now: Instant) {
        let mut silence = lock(&self.silence);
        silence.unanswered = silence.unanswered.saturating_add(1);
        if silence.unanswered >= MAX_UNANSWERED {
            silence.until = Some(now + UNRESPONSIVE_PAUSE);
        }
    }

    /// Records a complete response: missing responses are counted from zero again.
    pub(super) fn note_complete_response(&self) {
        *lock(&self.silence) = Silence::default();
    }

    /// Reports that a request to this host failed and that another server is tried. Further failures are not reported until the
    /// next complete response of the host.
    pub(super) fn report_failure(&self, error: &RegistryError) {
        if !std::mem::replace(&mut lock(&self.silence).is_reported, true) {
            self.reporter.info(format_args!(
                "a request to {} failed; trying the next server: {}",
                self.name,
                causes(error)
            ));
        }
    }

    /// Returns whether the host was found to use plain HTTP.
    pub(super) fn speaks_plain_http(&self) -> bool {
        *lock(&self.speaks_plain_http)
    }

    /// Records that the host uses plain HTTP.
    pub(super) fn note_plain_http(&self) {
        *lock(&self.speaks_plain_http) = true;
    }

    /// Returns whether the host was found to answer `GET`, but not `HEAD`, within the last hour.
    pub(super) fn rejects_head(&self, now: Instant) -> bool {
        lock(&self.head_rejected).is_some_and(|until| now < until)
    }

    /// Records that the host answers `GET`, but not `HEAD`. This expires, because some registries count only `GET` requests.
    pub(super) fn note_head_rejected(&self, now: Instant) {
        *lock(&self.head_rejected) = Some(now + HEAD_REJECTION_TIME);
    }

    /// Waits until the host is not parked and fewer than the maximum number of requests are under way. One confirming request is
    /// admitted in each chosen pause.
    ///
    /// The permit counts one request until it is dropped. No permit is held while waiting for a parked host.
    pub(super) fn admit(
        &self,
        clock: &dyn Clock,
        allowance: &Allowance,
        for_manifest: bool,
        what: &str,
    ) -> Result<Permit, RegistryError> {
        loop {
            self.wait(clock, allowance, for_manifest, what)?;
            let permit = self.requests.wait();
            // Another thread may have parked the host while this one waited for a permit.
            if allowance.confirms || self.parked_until(clock.now(), for_manifest).is_none() {
                return Ok(permit);
            }
        }
    }

    /// Waits while the host is parked, and reports that. Fails at once if the pause ends after the deadline of the request, or
    /// later than `allowance.patience` after the start of the first pause since the last successful response. `what` describes
    /// the request, for messages.
    pub(super) fn wait(
        &self,
        clock: &dyn Clock,
        allowance: &Allowance,
        for_manifest: bool,
        what: &str,
    ) -> Result<(), RegistryError> {
        loop {
            clock.check().map_err(RegistryError::Cancelled)?;
            let now = clock.now();
            let Some(until) = self.parked_until(now, for_manifest) else { return Ok(()) };
            if allowance.confirms && self.may_confirm(until) {
                return Ok(());
            }
            // A registry that only ever asks clients to wait is waited for once, not once for each request.
            let since = lock(&self.parking).since;
            let deadline =
                since.map_or(allowance.park_deadline, |since| allowance.park_deadline.min(since + allowance.patience));
            if until > deadline {
                return Err(self.parked(until, now));
            }
            self.report(until, now, what);
            clock.sleep(until - now);
        }
    }

    /// Returns whether a confirming request may be sent before the end `until` of a pause, and if so, records it: one such
    /// request is allowed in each chosen pause.
    fn may_confirm(&self, until: Instant) -> bool {
        let mut parking = lock(&self.parking);
        parking.chosen_by_strata == Some(until) && parking.confirmed.replace(until) != Some(until)
    }

    /// Returns an error while the host is parked, for callers that hold a lock and therefore must not wait here. Also reports
    /// the pause, if the request may wait for the end of the pause later.
    pub(super) fn refuse_while_parked(
        &self,
        now: Instant,
        allowance: &Allowance,
        what: &str,
    ) -> Result<(), RegistryError> {
        let Some(until) = self.parked_until(now, false) else { return Ok(()) };
        if until <= allowance.park_deadline {
            self.report(until, now, what);
        }
        Err(self.parked(until, now))
    }

    /// Returns host and port.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Reports that the host is parked until `until`, unless a pause of this host was reported within [`REPORT_INTERVAL`].
    fn report(&self, until: Instant, now: Instant, what: &str) {
        let mut parking = lock(&self.parking);
        if parking.reported.is_none_or(|reported| now.saturating_duration_since(reported) > REPORT_INTERVAL) {
            parking.reported = Some(now);
            let is_requested = parking.chosen_by_strata != Some(until);
            let pause = describe_pause(&self.name, is_requested, seconds(until, now));
            let delayed = if parking.everything == Some(until) { "requests" } else { "requests for manifests" };
            self.reporter
                .info(format_args!("{pause}; this delays all {delayed} to {}; the first is for: {what}", self.name));
        }
    }

    /// Returns the end of the pause for a request, if the host is parked.
    fn parked_until(&self, now: Instant, for_manifest: bool) -> Option<Instant> {
        let parking = lock(&self.parking);
        let manifests = parking.manifests.filter(|_| for_manifest);
        parking.everything.max(manifests).filter(|&until| until > now)
    }

    /// Returns the error for a request that does not wait until `until`.
    fn parked(&self, until: Instant, now: Instant) -> RegistryError {
        let is_requested = lock(&self.parking).chosen_by_strata != Some(until);
        RegistryError::Parked { host: self.name.clone(), until, seconds: seconds(until, now), is_requested }
    }

    /// Parks the host: for a requested pause of this length, or without a length for a chosen pause. Returns the error for the
    /// request.
    pub(super) fn park(&self, requested: Option<Duration>, now: Instant) -> RegistryError {
        let mut parking = lock(&self.parking);
        let until = match (requested, parking.everything.filter(|&until| until > now)) {
            (Some(length), _) => now + length,
            // All concurrent requests get the same response. Together they cause one pause.
            (None, Some(until)) => until,
            (None, None) => {
                let (first, longest) = CHOSEN_PAUSE;
                parking.chosen_pauses += 1;
                // The shift is limited because a shift by 32 bits overflows.
                let until = now + first.saturating_mul(1 << (parking.chosen_pauses - 1).min(16)).min(longest);
                parking.chosen_by_strata = Some(until);
                until
            }
        };
        parking.since.get_or_insert(now);
        parking.everything = parking.everything.max(Some(until));
        drop(parking);
        self.reporter.debug(format_args!("{} is parked for {:?}", self.name, until - now));
        self.parked(until, now)
    }

    /// Parks the host for a requested pause of this length, for requests of manifests only.
    pub(super) fn park_manifests(&self, length: Duration, now: Instant) {
        let mut parking = lock(&self.parking);
        parking.manifests = parking.manifests.max(Some(now + length));
        self.reporter.debug(format_args!("{} allows no more requests of manifests for {length:?}", self.name));
    }

    /// Records a successful response: the next chosen pause is the shortest one, and patience is counted from the next pause.
    pub(super) fn note_response(&self) {
        let mut parking = lock(&self.parking);
        (parking.chosen_pauses, parking.since) = (0, None);
    }

    /// Waits until fewer than the maximum number of downloads are under way. The permit counts one download until it is dropped.
    ///
    /// Downloads and other requests are limited separately, and a permit covers all connections of one download. Otherwise a
    /// download could wait for the permit of a second download, while the second download waits until its bytes are read.
    pub(super) fn download(&self) -> Permit {
        self.downloads.wait()
    }

    /// Returns a permit for a download, unless the maximum number is under way.
    pub(super) fn try_download(&self) -> Option<Permit> {
        self.downloads.take()
    }
}

/// Returns the number of seconds from `now` to `until`, rounded up.
fn seconds(until: Instant, now: Instant) -> u64 {
    until.saturating_duration_since(now).as_secs_f64().ceil() as u64
}

/// A counting semaphore.
#[derive(Debug)]
struct Semaphore {
    free: Mutex<usize>,
    freed: Condvar,
}

/// Counts one request or download that is under way, until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit(Arc<Semaphore>);

impl Semaphore {
    fn new(count: usize) -> Arc<Self> {
        // With a limit of 0, every caller would wait for ever.
        Arc::new(Self { free: Mutex::new(count.max(1)), freed: Condvar::new() })
    }

    fn wait(self: &Arc<Self>) -> Permit {
        let free = lock(&self.free);
        let mut free = self.freed.wait_while(free, |free| *free == 0).unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        Permit(Arc::clone(self))
    }

    fn take(self: &Arc<Self>) -> Option<Permit> {
        let mut free = lock(&self.free);
        *free = free.checked_sub(1)?;
        Some(Permit(Arc::clone(self)))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *lock(&self.0.free) += 1;
        self.0.freed.notify_one();
    }
}

/// Locks a mutex and ignores poisoning. For values that a panic cannot leave inconsistent.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderName, HeaderValue};

    use super::super::clock::tests::ManualClock;
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_bounded() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let after = |value| retry_after(&headers(&[("retry-after", value)]), now).map(|length| length.as_secs());
        assert_eq!(after("120"), Some(120));
        assert_eq!(after(" 0 "), Some(1));
        assert_eq!(after("Sun, 06 Nov 1994 08:50:37 GMT"), Some(60));
        assert_eq!(after("Sun, 06 Nov 1994 08:00:00 GMT"), Some(1));
        assert_eq!(after("99999999999999999999999"), Some(86_400));
        assert_eq!(after("Sat, 06 Nov 2094 08:49:37 GMT"), Some(86_400));
        for nothing in ["", "soon", "-1", "1.5"] {
            assert_eq!(after(nothing), None, "{nothing}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[test]
    fn pause_after_an_exhausted_limit_is_window_divided_by_limit() {
        let after = |limit, remaining| {
            let headers = headers(&[("ratelimit-limit", limit), ("ratelimit-remaining", remaining)]);
            exhausted(&headers).map(|length| length.as_secs())
        };
        assert_eq!(after("100;w=21600", "0;w=21600"), Some(216));
        assert_eq!(after("100;w=21600", "0"), Some(216));
        assert_eq!(after("100;w=21600", "1;w=21600"), None);
        assert_eq!(after("0;w=10", "0;w=99999999"), Some(86_400));
        assert_eq!(after("100", "0"), None);
        assert_eq!(after("x", "0;w=5"), Some(5));
        assert_eq!(exhausted(&HeaderMap::new()), None);
    }

    #[test]
    fn request_waits_for_a_parked_host_until_the_deadline_of_the_request() {
        let clock = ManualClock::default();
        let host = Host::new("h.org", 1, &Reporter::silent());
        let begin = clock.now();
        let error = host.park(Some(Duration::from_secs(10)), begin);
        assert_eq!(error.parked_until(), Some(begin + Duration::from_secs(10)));
        let wait = |seconds| {
            let allowance = Allowance::large(begin, Duration::from_secs(seconds));
            host.wait(&clock, &allowance, false, "manifest of h.org/a:1")
        };
        let refused = wait(9).unwrap_err();
        assert_eq!(refused.to_string(), "h.org asks clients to wait 10s");
        assert_eq!(clock.now(), begin);
        wait(10).unwrap();
        assert_eq!(clock.now(), begin + Duration::from_secs(10));
    }

    #[test]
    fn patience_is_counted_from_the_start_of_the_first_pause() {
        let clock = ManualClock::default();
        let host = Host::new("h.org", 1, &Reporter::silent());
        let wait = || host.wait(&clock, &Allowance::large(clock.now(), Duration::from_secs(20)), false, "all");
        for seconds in [8, 8] {
            host.park(Some(Duration::from_secs(seconds)), clock.now());
            wait().unwrap();
        }
        host.park(Some(Duration::from_secs(8)), clock.now());
        assert!(wait().is_err(), "24 seconds are more than 20, although each request waits for 8 only");
        host.note_response();
        wait().unwrap();
    }

    #[test]
    fn host_gets_no_request_for_a_minute_after_three_missing_responses() {
        let clock = ManualClock::default();
        let host = Host::new("h.org", 1, &Reporter::silent());
        let accepts_requests = || host.check_responsive(clock.now()).is_ok();
        host.note_no_response(clock.now());
        host.note_no_response(clock.now());
        host.note_complete_response();
        (0..2).for_each(|_| host.note_no_response(clock.now()));
        assert!(accepts_requests());
        host.note_no_response(clock.now());
        let error = host.check_responsive(clock.now()).unwrap_err();
        assert!(error.to_string().contains("h.org") && error.to_string().contains("3 requests"), "{error}");
        clock.sleep(UNRESPONSIVE_PAUSE);
        assert!(accepts_requests());
        host.note_no_response(clock.now());
        assert!(!accepts_requests(), "until the host responds, each further missing response starts the pause again");
        host.note_complete_response();
        assert!(accepts_requests());
    }

    #[test]
    fn pause_for_manifests_delays_no_other_request() {
        let clock = ManualClock::default();
        let host = Host::new("h.org", 1, &Reporter::silent());
        host.park_manifests(Duration::from_secs(216), clock.now());
        let wait = |for_manifest| {
            host.wait(&clock, &Allowance::large(clock.now(), Duration::ZERO), for_manifest, "manifest of h.org/a:1")
        };
        assert!(wait(false).is_ok() && wait(true).is_err());
    }

    #[test]
    fn chosen_pause_doubles_until_there_is_a_successful_response() {
        let clock = ManualClock::default();
        let host = Host::new("h.org", 1, &Reporter::silent());
        let park = || {
            let length = host.park(None, clock.now()).parked_until().unwrap() - clock.now();
            let again = host.park(None, clock.now()).parked_until().unwrap() - clock.now();
            assert_eq!(length, again, "responses to concurrent requests count once");
            clock.sleep(length);
            length
        };
        assert_eq!([park(), park(), park()].map(|length| length.as_secs()), [1, 2, 4]);
        assert!((0..100).all(|_| park().as_secs() <= 300));
        assert_eq!(park().as_secs(), 300);
        host.note_response();
        assert_eq!(park().as_secs(), 1);
    }

    #[test]
    fn number_of_permits_is_the_number_of_connections() {
        let hosts = Hosts::default();
        let host = hosts.get("h.org", 2);
        let clock = ManualClock::default();
        let admit = |host: &Host| {
            host.admit(&clock, &Allowance::large(clock.now(), Duration::ZERO), false, "manifest of h.org/a:1").unwrap()
        };
        let (first, _second) = (admit(&host), admit(&hosts.get("h.org", 9)));
        assert!(host.requests.take().is_none() && host.try_download().is_some());
        drop(first);
        let _third = admit(&host);
        assert!(host.requests.take().is_none() && host.try_download().is_some());
    }
}
