//! What keeps requests from being too many: registries that are parked, and how many are asked at a time.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER};

use super::clock::Clock;
use super::error::RegistryError;

/// What no header can ask for more than.
const LONGEST_PARKING: Duration = Duration::from_secs(24 * 60 * 60);
/// What even a registry in a hurry is left alone for.
const SHORTEST_PARKING: Duration = Duration::from_secs(1);
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
    Some(asked.clamp(SHORTEST_PARKING, LONGEST_PARKING))
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
    Some(Duration::from_secs(seconds).clamp(SHORTEST_PARKING, LONGEST_PARKING))
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
    requests: Arc<Slots>,
    downloads: Arc<Slots>,
    speaks_plain_http: Mutex<bool>,
}

#[derive(Debug, Default)]
struct Parking {
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
            requests: Slots::new(connections),
            downloads: Slots::new(connections),
            speaks_plain_http: Mutex::default(),
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

    /// Waits while the host is parked, unless that goes on after `deadline`; manifests may be parked for longer.
    pub(super) fn wait(&self, clock: &dyn Clock, deadline: Instant, for_manifest: bool) -> Result<(), RegistryError> {
        loop {
            let now = clock.now();
            let Some(until) = self.parked_until(now, for_manifest) else { return Ok(()) };
            if until > deadline {
                return Err(self.parked(until, now));
            }
            clock.sleep(until - now);
        }
    }

    fn parked_until(&self, now: Instant, for_manifest: bool) -> Option<Instant> {
        let parking = lock(&self.parking);
        let manifests = parking.manifests.filter(|_| for_manifest);
        parking.everything.max(manifests).filter(|&until| until > now)
    }

    fn parked(&self, until: Instant, now: Instant) -> RegistryError {
        let seconds = until.saturating_duration_since(now).as_secs_f64().ceil() as u64;
        RegistryError::Parked { host: self.name.clone(), until, seconds }
    }

    /// Parks the host for as long as it asks, or for longer each time when it does not say. Returns the error to give.
    pub(super) fn park(&self, asked: Option<Duration>, now: Instant) -> RegistryError {
        let mut parking = lock(&self.parking);
        let length = asked.unwrap_or_else(|| {
            let (first, longest) = UNSAID_PARKING;
            let length = first.saturating_mul(1 << parking.unsaid.min(16)).min(longest);
            parking.unsaid += 1;
            length
        });
        let until = now + length;
        parking.everything = parking.everything.max(Some(until));
        tracing::debug!("{} asks to wait {length:?}", self.name);
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
        lock(&self.parking).unsaid = 0;
    }

    /// Waits until fewer than the most requests are under way, and counts one until the permit is dropped.
    pub(super) fn permit(&self) -> Permit {
        self.requests.wait()
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

/// So many of something may be under way.
#[derive(Debug)]
struct Slots {
    free: Mutex<usize>,
    freed: Condvar,
}

/// Counts one request or download that is under way.
#[derive(Debug)]
pub(super) struct Permit(Arc<Slots>);

impl Slots {
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
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
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
        let refused = host.wait(&clock, begin + Duration::from_secs(9), false).unwrap_err();
        assert_eq!(refused.to_string(), "h.org asks to wait 10s");
        assert_eq!(clock.now(), begin);
        host.wait(&clock, begin + Duration::from_secs(10), false).unwrap();
        assert_eq!(clock.now(), begin + Duration::from_secs(10));
    }

    #[test]
    fn parked_manifests_hold_up_nothing_else() {
        let clock = HandClock::default();
        let host = Host::new("h.org", 1);
        host.park_manifests(Duration::from_secs(216), clock.now());
        assert!(host.wait(&clock, clock.now(), false).is_ok());
        assert!(host.wait(&clock, clock.now(), true).is_err());
    }

    #[test]
    fn parking_without_a_length_grows_until_there_is_an_answer() {
        let clock = HandClock::default();
        let host = Host::new("h.org", 1);
        let park = || host.park(None, clock.now()).parked_until().unwrap() - clock.now();
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
        let (first, _second) = (host.permit(), hosts.get("h.org", 9).permit());
        assert!(host.requests.take().is_none() && host.try_download().is_some());
        drop(first);
        let _third = host.permit();
        assert!(host.requests.take().is_none() && host.try_download().is_some());
    }
}
