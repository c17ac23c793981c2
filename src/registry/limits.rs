//! What keeps requests from being too many: registries that are parked, and how many are asked at a time.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER};

use super::allowance::Allowance;
use super::clock::Clock;
use super::error::RegistryError;
use crate::message::causes;

/// What no header can ask for more than.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
/// What even a registry in a hurry is left alone for.
const MIN_RETRY_AFTER: Duration = Duration::from_secs(1);
/// How many requests in a row may be left without an answer before a registry is left alone.
const MAX_UNANSWERED: u32 = 3;
/// How long it is left alone then.
const UNRESPONSIVE_PAUSE: Duration = Duration::from_secs(60);
/// How long nothing more is said of a registry that asks to wait.
const REPORT_INTERVAL: Duration = Duration::from_secs(600);
/// How long one is left alone that does not say how long, at first and at most.
const UNSAID_PARKING: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// Returns how long an answer asks to wait, from `Retry-After` in seconds or as a date (RFC 9110, section 10.2.3).
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let asked = if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()
    };
    Some(asked.clamp(MIN_RETRY_AFTER, MAX_RETRY_AFTER))
}

/// Returns how long manifests are to be left alone after an answer that says that none are left for now.
///
/// Docker Hub sends `RateLimit-Limit: 100;w=21600` and `RateLimit-Remaining: 0;w=21600`. The window slides, so that one
/// is free again after window over limit, on average.
pub(super) fn exhausted(headers: &HeaderMap) -> Option<Duration> {
    let (remaining, window) = rate(headers, "ratelimit-remaining")?;
    if remaining > 0 {
        return None;
    }
    let (limit, window_of_limit) = rate(headers, "ratelimit-limit").unwrap_or((1, None));
    let seconds = window.or(window_of_limit)?.div_ceil(limit.max(1));
    Some(Duration::from_secs(seconds).clamp(MIN_RETRY_AFTER, MAX_RETRY_AFTER))
}

/// Reads `<number>[;w=<seconds>]`.
fn rate(headers: &HeaderMap, name: &str) -> Option<(u64, Option<u64>)> {
    let mut parts = headers.get(name)?.to_str().ok()?.split(';').map(str::trim);
    let number = parts.next()?.parse().ok()?;
    let window = parts.find_map(|part| part.strip_prefix("w=")).and_then(|seconds| seconds.parse().ok());
    Some((number, window))
}

/// What is known of each host.
#[derive(Debug, Default)]
pub(super) struct Hosts(Mutex<HashMap<String, Arc<Host>>>);

impl Hosts {
    /// Returns what is known of a host; `connections` counts when it is asked for the first time.
    pub(super) fn get(&self, authority: &str, connections: usize) -> Arc<Host> {
        let mut hosts = lock(&self.0);
        if let Some(host) = hosts.get(authority) {
            return Arc::clone(host);
        }
        let host = Arc::new(Host::new(authority, connections));
        hosts.insert(authority.to_owned(), Arc::clone(&host));
        host
    }
}

/// One host, as far as everybody who asks it has to know.
#[derive(Debug)]
pub(super) struct Host {
    name: String,
    parking: Mutex<Parking>,
    requests: Arc<Semaphore>,
    downloads: Arc<Semaphore>,
    speaks_plain_http: Mutex<bool>,
    silence: Mutex<Silence>,
}

/// What is known of a host that does not answer.
#[derive(Debug, Default)]
struct Silence {
    /// How many requests in a row it left without an answer.
    unanswered: u32,
    /// Until when it is left alone for that.
    until: Option<Instant>,
    /// Whether it was said that something else is asked in its place.
    is_told: bool,
}

#[derive(Debug, Default)]
struct Parking {
    /// When it asked to wait for the first time since its last answer.
    since: Option<Instant>,
    /// When it was said last that it asks to wait.
    told: Option<Instant>,
    everything: Option<Instant>,
    manifests: Option<Instant>,
    /// How many answers in a row asked to wait without saying how long.
    unsaid: u32,
}

impl Host {
    fn new(name: &str, connections: usize) -> Self {
        Self {
            name: name.to_owned(),
            parking: Mutex::default(),
            requests: Semaphore::new(connections),
            downloads: Semaphore::new(connections),
            speaks_plain_http: Mutex::default(),
            silence: Mutex::default(),
        }
    }

    /// Fails while the host is left alone because it does not answer.
    pub(super) fn check_answers(&self, now: Instant) -> Result<(), RegistryError> {
        let silence = lock(&self.silence);
        match silence.until {
            Some(until) if now < until => {
                Err(RegistryError::GivenUp { host: self.name.clone(), failures: silence.unanswered })
            }
            _ => Ok(()),
        }
    }

    /// Notes that the host left a request without an answer, after all attempts.
    pub(super) fn left_unanswered(&self, now: Instant) {
        let mut silence = lock(&self.silence);
        silence.unanswered = silence.unanswered.saturating_add(1);
        if silence.unanswered >= MAX_UNANSWERED {
            silence.until = Some(now + UNRESPONSIVE_PAUSE);
        }
    }

    /// Notes that the host gave an answer from its first byte to its last.
    pub(super) fn answered_in_full(&self) {
        *lock(&self.silence) = Silence::default();
    }

    /// Says once what is asked elsewhere, until the host answers.
    pub(super) fn tell_failure(&self, error: &RegistryError) {
        if !std::mem::replace(&mut lock(&self.silence).is_told, true) {
            tracing::info!("asking elsewhere than at {}: {}", self.name, causes(error));
        }
    }

    /// Tells whether it was found to speak HTTP without encryption.
    pub(super) fn speaks_plain_http(&self) -> bool {
        *lock(&self.speaks_plain_http)
    }

    /// Remembers that it speaks HTTP without encryption.
    pub(super) fn found_plain_http(&self) {
        *lock(&self.speaks_plain_http) = true;
    }

    /// Waits until the host is not parked and fewer than the most requests are under way, and counts one until the permit is
    /// dropped. What waits for a parked host takes no place from what need not.
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
            if self.parked_until(clock.now(), for_manifest).is_none() {
                return Ok(permit);
            }
        }
    }

    /// Waits while the host is parked, unless that takes longer than is allowed, for this request or since the host's last
    /// answer; manifests may be parked for longer. `what` waits, for a message.
    pub(super) fn wait(
        &self,
        clock: &dyn Clock,
        allowance: &Allowance,
        for_manifest: bool,
        what: &str,
    ) -> Result<(), RegistryError> {
        loop {
            let now = clock.now();
            let Some(until) = self.parked_until(now, for_manifest) else { return Ok(()) };
            let since = lock(&self.parking).since;
            let deadline =
                since.map_or(allowance.park_deadline, |since| allowance.park_deadline.min(since + allowance.patience));
            if until > deadline {
                return Err(self.parked(until, now));
            }
            self.tell(until, now, what);
            clock.sleep(until - now);
        }
    }

    /// Fails while the host is parked, for a caller who holds what others wait for.
    pub(super) fn refuse_while_parked(
        &self,
        now: Instant,
        allowance: &Allowance,
        what: &str,
    ) -> Result<(), RegistryError> {
        let Some(until) = self.parked_until(now, false) else { return Ok(()) };
        if until <= allowance.park_deadline {
            self.tell(until, now, what);
        }
        Err(self.parked(until, now))
    }

    /// Returns host and port.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Says once that the host asks to wait.
    fn tell(&self, until: Instant, now: Instant, what: &str) {
        let mut parking = lock(&self.parking);
        if parking.told.is_none_or(|told| now.saturating_duration_since(told) > REPORT_INTERVAL) {
            parking.told = Some(now);
            let seconds = Duration::from_secs(seconds(until, now));
            let (host, pause) = (&self.name, humantime::format_duration(seconds));
            tracing::info!("{host} asks to wait {pause}: {what} waits, like every other request to it");
        }
    }

    fn parked_until(&self, now: Instant, for_manifest: bool) -> Option<Instant> {
        let parking = lock(&self.parking);
        let manifests = parking.manifests.filter(|_| for_manifest);
        parking.everything.max(manifests).filter(|&until| until > now)
    }

    fn parked(&self, until: Instant, now: Instant) -> RegistryError {
        RegistryError::Parked { host: self.name.clone(), until, seconds: seconds(until, now) }
    }

    /// Parks the host for as long as it asks, or for longer each time when it does not say. Returns the error to give.
    pub(super) fn park(&self, asked: Option<Duration>, now: Instant) -> RegistryError {
        let mut parking = lock(&self.parking);
        let until = match (asked, parking.everything.filter(|&until| until > now)) {
            (Some(length), _) => now + length,
            // It says so to all requests that are under way. That is one time.
            (None, Some(until)) => until,
            (None, None) => {
                let (first, longest) = UNSAID_PARKING;
                parking.unsaid += 1;
                now + first.saturating_mul(1 << (parking.unsaid - 1).min(16)).min(longest)
            }
        };
        parking.since.get_or_insert(now);
        parking.everything = parking.everything.max(Some(until));
        tracing::debug!("{} asks to wait {:?}", self.name, until - now);
        self.parked(until, now)
    }

    /// Parks manifests alone.
    pub(super) fn park_manifests(&self, length: Duration, now: Instant) {
        let mut parking = lock(&self.parking);
        parking.manifests = parking.manifests.max(Some(now + length));
        tracing::debug!("{} gives no more manifests for {length:?}", self.name);
    }

    /// Notes that the host answers.
    pub(super) fn answered(&self) {
        let mut parking = lock(&self.parking);
        (parking.unsaid, parking.since) = (0, None);
    }

    /// Waits until fewer than the most downloads are under way, and counts one until the permit is dropped.
    ///
    /// Downloads are counted apart from small requests, and whole, however many connections one takes: so none that is
    /// under way ever waits for another, which may wait to be read itself.
    pub(super) fn download(&self) -> Permit {
        self.downloads.wait()
    }

    /// Counts one download more, unless there are as many as there may be.
    pub(super) fn try_download(&self) -> Option<Permit> {
        self.downloads.take()
    }
}

/// Returns the seconds until a time, rounded up.
fn seconds(until: Instant, now: Instant) -> u64 {
    until.saturating_duration_since(now).as_secs_f64().ceil() as u64
}

/// So many of something may be under way.
#[derive(Debug)]
struct Semaphore {
    free: Mutex<usize>,
    freed: Condvar,
}

/// Counts one request or download that is under way.
#[derive(Debug)]
pub(crate) struct Permit(Arc<Semaphore>);

impl Semaphore {
    fn new(count: usize) -> Arc<Self> {
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

/// Locks what no panic can leave half changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderName, HeaderValue};

    use super::super::clock::tests::HandClock;
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
    fn exhausted_limit_frees_one_request_after_window_over_limit() {
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
    fn parked_host_is_waited_for_up_to_the_deadline() {
        let clock = HandClock::default();
        let host = Host::new("h.org", 1);
        let begin = clock.now();
        let error = host.park(Some(Duration::from_secs(10)), begin);
        assert_eq!(error.parked_until(), Some(begin + Duration::from_secs(10)));
        let wait = |seconds| {
            let allowance = Allowance::large(begin, Duration::from_secs(seconds));
            host.wait(&clock, &allowance, false, "manifest of h.org/a:1")
        };
        let refused = wait(9).unwrap_err();
        assert_eq!(refused.to_string(), "h.org asks to wait 10s");
        assert_eq!(clock.now(), begin);
        wait(10).unwrap();
        assert_eq!(clock.now(), begin + Duration::from_secs(10));
    }

    #[test]
    fn host_that_only_asks_to_wait_is_waited_for_no_longer_than_from_the_first_time() {
        let clock = HandClock::default();
        let host = Host::new("h.org", 1);
        let wait = || host.wait(&clock, &Allowance::large(clock.now(), Duration::from_secs(20)), false, "all");
        for seconds in [8, 8] {
            host.park(Some(Duration::from_secs(seconds)), clock.now());
            wait().unwrap();
        }
        host.park(Some(Duration::from_secs(8)), clock.now());
        assert!(wait().is_err(), "24 seconds are more than 20, although each request waits for 8 only");
        host.answered();
        wait().unwrap();
    }

    #[test]
    fn host_that_leaves_three_requests_without_an_answer_is_left_alone_for_a_minute() {
        let clock = HandClock::default();
        let host = Host::new("h.org", 1);
        let is_asked = || host.check_answers(clock.now()).is_ok();
        host.left_unanswered(clock.now());
        host.left_unanswered(clock.now());
        host.answered_in_full();
        (0..2).for_each(|_| host.left_unanswered(clock.now()));
        assert!(is_asked());
        host.left_unanswered(clock.now());
        let error = host.check_answers(clock.now()).unwrap_err();
        assert!(error.to_string().contains("h.org") && error.to_string().contains("3 requests"), "{error}");
        clock.sleep(UNRESPONSIVE_PAUSE);
        assert!(is_asked());
        host.left_unanswered(clock.now());
        assert!(!is_asked(), "one more is enough as long as it never answers");
        host.answered_in_full();
        assert!(is_asked());
    }

    #[test]
    fn parked_manifests_hold_up_nothing_else() {
        let clock = HandClock::default();
        let host = Host::new("h.org", 1);
        host.park_manifests(Duration::from_secs(216), clock.now());
        let wait = |for_manifest| {
            host.wait(&clock, &Allowance::large(clock.now(), Duration::ZERO), for_manifest, "manifest of h.org/a:1")
        };
        assert!(wait(false).is_ok() && wait(true).is_err());
    }

    #[test]
    fn parking_without_a_length_grows_until_there_is_an_answer() {
        let clock = HandClock::default();
        let host = Host::new("h.org", 1);
        let park = || {
            let length = host.park(None, clock.now()).parked_until().unwrap() - clock.now();
            let again = host.park(None, clock.now()).parked_until().unwrap() - clock.now();
            assert_eq!(length, again, "requests that were under way together are told once");
            clock.sleep(length);
            length
        };
        assert_eq!([park(), park(), park()].map(|length| length.as_secs()), [1, 2, 4]);
        assert!((0..100).all(|_| park().as_secs() <= 300));
        assert_eq!(park().as_secs(), 300);
        host.answered();
        assert_eq!(park().as_secs(), 1);
    }

    #[test]
    fn permits_are_as_many_as_connections() {
        let hosts = Hosts::default();
        let host = hosts.get("h.org", 2);
        let clock = HandClock::default();
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
