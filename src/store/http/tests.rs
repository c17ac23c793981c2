//! Tests of [`super::HttpStore`] with servers that fail.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::http::testing::{Drip, ReceivedRequest, Reply, Server};
use crate::object::{HashAlgorithm, ObjectKind};
use crate::store::contract::{assert_reads, files};

const LIMITS: TimeLimits = TimeLimits {
    connect: Duration::from_secs(5),
    stall: Duration::from_millis(300),
    request: Duration::from_millis(600),
    minimum_rate: 1 << 20,
};

fn store_at(servers: &[&Server]) -> HttpStore {
    let url = |server: &&Server| format!("http://{}/cvmfs/r.example.org", server.address).parse().unwrap();
    let urls: Vec<Url> = servers.iter().map(url).collect();
    let repetition = Repetition { rounds: 2, first_pause: Duration::from_millis(10) };
    HttpStore::with_limits(&urls, LIMITS, repetition, &Reporter::silent(), &Cancellation::default()).unwrap()
}

/// Serves the files of the contract. `change` may change a reply.
fn serve(change: impl Fn(&ReceivedRequest, Reply) -> Reply + Send + Sync + 'static) -> Server {
    let files = files();
    Server::start(move |asked| {
        let file = asked.target.strip_prefix("/cvmfs/r.example.org/").and_then(|name| files.get(name));
        let reply = file.map_or_else(|| Reply::of(404, ""), |bytes| Reply::of(200, bytes));
        change(asked, reply)
    })
}

fn is_object(asked: &ReceivedRequest) -> bool {
    asked.target.contains("/data/")
}

#[test]
fn bytes_are_compared_with_the_hash_of_any_algorithm_in_their_name() {
    for algorithm in HashAlgorithm::ALL {
        for kind in [ObjectKind::File, ObjectKind::Catalog] {
            let name = algorithm.hash(b"bytes").path(kind);
            assert!(is_named(&name, b"bytes") && !is_named(&name, b"other"), "{name}");
        }
    }
    assert!(is_named(".cvmfspublished", b"any"));
}

#[test]
fn files_are_read_from_a_server() {
    assert_reads(&store_at(&[&serve(|_, reply| reply)]));
    assert!(store_at(&[&serve(|_, reply| reply)]).listing().is_none());
}

#[test]
fn files_are_read_although_one_of_two_servers_fails() {
    let good = serve(|_, reply| reply);
    assert_reads(&store_at(&[&serve(|_, _| Reply::of(404, "")), &good]));
    for status in [403, 500] {
        let store = store_at(&[&serve(move |_, _| Reply::of(status, "")), &good]);
        for (name, bytes) in files() {
            assert_eq!(store.get(&name, u64::MAX).unwrap(), Some(bytes));
        }
        // The failing server may have the file.
        assert!(matches!(store.get("missing", 1), Err(StoreError::Status { .. })));
    }
}

#[test]
fn object_that_one_server_has_damaged_is_read_from_another() {
    let good = serve(|_, reply| reply);
    let bad = serve(|asked, reply| if is_object(asked) { Reply::of(200, "other bytes") } else { reply });
    let store = store_at(&[&bad, &good]);
    for (name, bytes) in files().into_iter().filter(|(name, _)| name.starts_with("data/")) {
        assert_eq!(store.get(&name, u64::MAX).unwrap().is_some_and(|found| found == bytes), is_named(&name, &bytes));
    }
    // If no server has the right bytes, the caller compares them with the name, and reports what is there.
    assert_reads(&store_at(&[&serve(|_, reply| reply), &good]));
}

#[test]
fn large_file_is_read_to_its_end_after_lost_connections() {
    let large = vec![7; usize::try_from(MAX_SIZE_IN_MEMORY).unwrap() + 1000];
    let expected = large.clone();
    let server = Server::start(move |asked| {
        let range = asked.headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
        let first: usize = range.map_or(0, |first| first.parse().unwrap());
        // Each connection ends after 2 MiB.
        let part = &large[first..large.len().min(first + (2 << 20))];
        let length = large.len() - first;
        let reply = Reply::of(if first == 0 { 200 } else { 206 }, part).with("content-length", length);
        reply.with("content-range", format!("bytes {first}-{}/{}", large.len() - 1, large.len()))
    });
    let store = store_at(&[&server]);
    assert!(store.get("data/large", u64::MAX).unwrap().unwrap() == expected);
    let mut streamed = Vec::new();
    store.open("data/large").unwrap().unwrap().read_to_end(&mut streamed).unwrap();
    assert!(streamed == expected);
}

#[test]
fn slow_silent_and_short_responses_are_errors() {
    let (name, _) = files().into_iter().max_by_key(|(_, bytes)| bytes.len()).unwrap();
    type Change = fn(Reply) -> Reply;
    let faults: [(&str, Change); 5] = [
        ("head", |reply| reply.dripping(Drip::Head)),
        ("body", |reply| reply.dripping(Drip::Body)),
        ("silence", |reply| reply.dripping(Drip::Silence)),
        ("short", |reply| reply.with("content-length", 10_000)),
        ("page", |reply| reply.with("content-type", "text/html; charset=utf-8")),
    ];
    for (fault, change) in faults {
        let server = serve(move |asked, reply| if is_object(asked) { change(reply) } else { reply });
        let store = store_at(&[&server]);
        let error = store.get(&name, u64::MAX).unwrap_err();
        assert!(error.is_obstacle() && !error.is_damage(), "{fault}: {error}");
        assert!(store.open(&name).is_err(), "{fault}");
    }
}

#[test]
fn temporary_error_is_repeated_and_a_permanent_one_is_not() {
    let is_first = AtomicBool::new(true);
    let server = serve(move |_, reply| match is_first.swap(false, Ordering::Relaxed) {
        true => Reply::of(503, ""),
        false => reply,
    });
    assert_reads(&store_at(&[&server]));
    let is_first = AtomicBool::new(true);
    let busy = serve(move |_, reply| match is_first.swap(false, Ordering::Relaxed) {
        true => Reply::of(503, ""),
        false => reply,
    });
    let forbidding = serve(|_, _| Reply::of(403, ""));
    assert_eq!(store_at(&[&busy, &forbidding]).get(".cvmfspublished", 100).unwrap(), Some(b"manifest".to_vec()));
    let server = serve(|_, _| Reply::of(403, ""));
    let store = store_at(&[&server]);
    assert!(matches!(store.get(".cvmfspublished", 100), Err(StoreError::Status { status: 403, .. })));
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn url_must_be_that_of_a_directory() {
    let new = |url: &str| {
        HttpStore::new(&[url.parse().unwrap()], LIMITS.request, &Reporter::silent(), &Cancellation::default())
    };
    for wrong in ["ftp://h.org/a.b", "http://h.org/a.b?c", "http://h.org/a.b#c", "file:///srv/a.b"] {
        assert!(matches!(new(wrong), Err(StoreError::Url { .. })), "{wrong}");
    }
    assert_eq!(new("http://user:secret@h.org/a.b").unwrap().address("data/x"), "http://h.org/a.b/data/x");
}

#[test]
fn failed_request_is_not_sent_again_at_once() {
    let server = serve(|_, _| Reply::of(503, ""));
    let store = store_at(&[&server]);
    assert!(matches!(store.get("data/x", 1), Err(StoreError::Status { status: 503, .. })));
    let sent = server.requests().len();
    let error = store.get("data/x", 1).unwrap_err();
    assert!(matches!(&error, StoreError::FailedBefore { reason } if reason.contains("503")), "{error}");
    assert_eq!(server.requests().len(), sent);
    assert!(matches!(store.get("data/y", 1), Err(StoreError::Status { status: 503, .. })));
}

#[test]
fn failed_download_is_not_started_again_at_once() {
    let server = Server::start(|_| Reply::of(200, "short").with("content-length", MAX_SIZE_IN_MEMORY + 1));
    let store = store_at(&[&server]);
    let mut opened = store.open("data/x").unwrap().unwrap();
    assert!(opened.read_to_end(&mut Vec::new()).is_err());
    assert!(matches!(store.open("data/x"), Err(StoreError::FailedBefore { .. })));
}

#[test]
fn all_attempts_at_a_silent_server_end_in_time() {
    let server = Server::start(|_| Reply::of(200, "0123456789").dripping(Drip::Silence));
    let url = format!("http://{}/cvmfs/r.example.org", server.address).parse().unwrap();
    let (timeout, start) = (Duration::from_secs(1), Instant::now());
    let store = HttpStore::new(&[url], timeout, &Reporter::silent(), &Cancellation::default()).unwrap();
    assert!(store.get("data/x", 100).is_err());
    // Half a second more, because other tests run at the same time.
    assert!(start.elapsed() < timeout * 3 / 2, "{:?}", start.elapsed());
    assert!(server.requests().len() > 1);
}
