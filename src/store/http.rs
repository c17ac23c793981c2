//! The storage of a repository behind a web server, read-only.
//!
//! Several servers may offer the same repository, such as the Stratum 1 servers of a replicated one. A file that one of them does
//! not have, or has in a damaged form, is requested from the next one.

use std::cell::Cell;
use std::fmt;
use std::io::{self, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use reqwest::header::{CONTENT_LENGTH, HeaderValue, RANGE};
use reqwest::{Method, Url};

use super::{SharedStore, Store, StoreError, StoreListing};
use crate::cancel::Cancellation;
use crate::http::{
    Download, DownloadPolicy, Http, HttpError, HttpResponse, Proxies, Request, Retryable, TimeLimits, read_until,
    redacted,
};
use crate::object::ObjectHash;
use crate::observer::Reporter;

/// How often a request is sent to all servers.
#[derive(Debug, Clone, Copy)]
struct Repetition {
    /// Maximum number of rounds.
    rounds: u32,
    /// Pause before the second round. The pause doubles with each further round.
    first_pause: Duration,
}

const REPETITION: Repetition = Repetition { rounds: 4, first_pause: Duration::from_millis(500) };
/// Size in bytes up to which a file is read from one response. A larger file is downloaded by a thread of its own, which resumes
/// after a lost connection.
const MAX_SINGLE_RESPONSE: u64 = 4 << 20;
/// Size in bytes up to which an opened file is read into memory, and compared with its name, before it is returned. Chunks are
/// smaller.
const MAX_SIZE_IN_MEMORY: u64 = 32 << 20;
/// Maximum size in bytes of a file whose size the server does not state.
// Without a limit, a server could fill the memory.
const MAX_UNSTATED_SIZE: u64 = 64 << 20;
/// Maximum size in bytes of a file that is read as a whole. CVMFS itself warns of catalogs above 1 GiB.
const MAX_WHOLE_FILE: u64 = 1 << 30;

/// A repository's storage on web servers.
#[derive(Clone)]
pub struct HttpStore {
    shared: Arc<Shared>,
    /// Index of the only server that is asked. Without it, all servers are asked.
    only: Option<usize>,
}

struct Shared {
    http: Http,
    /// URLs of the root of the storage, with a slash at the end.
    servers: Vec<Url>,
    /// Index of the server that answered the last request.
    current: AtomicUsize,
    limits: TimeLimits,
    repetition: Repetition,
    reporter: Reporter,
    cancellation: Cancellation,
}

impl fmt::Debug for HttpStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpStore").field("servers", &self.shared.servers).finish_non_exhaustive()
    }
}

impl HttpStore {
    /// Creates a client of these servers, with the proxies of the process environment. Each URL is that of the directory with
    /// `.cvmfspublished`.
    ///
    /// Fails if the URL is no valid `http` or `https` URL. No request is sent.
    pub fn new(servers: &[Url], reporter: &Reporter, cancellation: &Cancellation) -> Result<Self, StoreError> {
        Self::with_limits(servers, TimeLimits::default(), REPETITION, reporter, cancellation)
    }

    fn with_limits(
        servers: &[Url],
        limits: TimeLimits,
        repetition: Repetition,
        reporter: &Reporter,
        cancellation: &Cancellation,
    ) -> Result<Self, StoreError> {
        let proxies = Proxies::from_environment(&|name| std::env::var_os(name));
        let mut http = Http::new(limits, proxies, Default::default(), Default::default());
        http.reporter = reporter.clone();
        let servers = servers.iter().map(directory_url).collect::<Result<_, _>>()?;
        Ok(Self {
            only: None,
            shared: Arc::new(Shared {
                http,
                servers,
                current: AtomicUsize::new(0),
                limits,
                repetition,
                reporter: reporter.clone(),
                cancellation: cancellation.clone(),
            }),
        })
    }
}

/// Returns the URL with a slash at the end, so that names can be joined to it.
fn directory_url(url: &Url) -> Result<Url, StoreError> {
    let invalid = |reason| StoreError::Url { url: redacted(url), reason };
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return Err(invalid("it is neither an http nor an https URL"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(invalid("it has a query or a fragment"));
    }
    let mut url = url.clone();
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    Ok(url)
}

/// The answer of one server.
enum Answer<T> {
    Found(T),
    /// The server has no such file.
    Missing,
}

impl HttpStore {
    /// Returns the servers to ask, beginning with the one that answered the last request.
    fn order(&self) -> impl Iterator<Item = usize> + use<> {
        let (first, count) = match self.only {
            Some(server) => (server, 1),
            None => (self.shared.current.load(Ordering::Relaxed), self.shared.servers.len()),
        };
        let servers = self.shared.servers.len();
        (0..count).map(move |offset| (first + offset) % servers)
    }

    /// Sends a request for a file to one server after another, until one has the file. After temporary errors, all servers are
    /// asked again. Returns `None` if no server has the file.
    fn ask<T>(
        &self,
        name: &str,
        send: impl Fn(&Url) -> Result<Answer<T>, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let (shared, mut round) = (&*self.shared, 1);
        loop {
            let mut failure: Option<StoreError> = None;
            for server in self.order() {
                shared.cancellation.check()?;
                match send(&shared.url(server, name)) {
                    Ok(Answer::Found(found)) => {
                        shared.current.store(server, Ordering::Relaxed);
                        return Ok(Some(found));
                    }
                    Ok(Answer::Missing) => {}
                    Err(error) => {
                        shared.reporter.debug(format_args!("{}", crate::message::causes(&error)));
                        // An error of any server that may be temporary is a reason to ask all again.
                        failure = failure.filter(StoreError::may_be_temporary).or(Some(error));
                    }
                }
            }
            let Some(error) = failure else { return Ok(None) };
            if round == shared.repetition.rounds || !error.may_be_temporary() {
                return Err(error);
            }
            thread::sleep(shared.repetition.first_pause * 2_u32.pow(round - 1));
            round += 1;
        }
    }

    /// Sends a request for a file like [`Self::ask`], and prefers an answer for which `is_good` returns true.
    fn ask_for_object<T>(
        &self,
        name: &str,
        send: impl Fn(&Url) -> Result<Answer<T>, StoreError>,
        is_good: impl Fn(&T) -> bool,
    ) -> Result<Option<T>, StoreError> {
        let (shared, damaged) = (&*self.shared, Cell::new(None));
        let good = self.ask(name, |url| match send(url)? {
            Answer::Found(found) if !is_good(&found) => {
                shared.reporter.debug(format_args!("{} is damaged", redacted(url)));
                damaged.set(Some(found));
                Ok(Answer::Missing)
            }
            answer => Ok(answer),
        });
        match damaged.into_inner() {
            Some(damaged) => Ok(Some(good.ok().flatten().unwrap_or(damaged))),
            None => good,
        }
    }
}

impl Shared {
    fn url(&self, server: usize, name: &str) -> Url {
        self.servers[server].join(name).expect("names in a store are valid relative URLs")
    }

    /// Sends one request for a file, from byte `offset` on.
    fn request(&self, method: Method, url: &Url, offset: u64) -> Result<Answer<HttpResponse>, StoreError> {
        let mut request = Request { method, ..Request::get(url.clone()) };
        if offset > 0 {
            let range = HeaderValue::from_str(&format!("bytes={offset}-"));
            request.headers.insert(RANGE, range.expect("digits are a valid header value"));
        }
        let response = self.http.send(&request)?;
        match response.status() {
            200 | 206 => {
                response.refuse_web_page()?;
                Ok(Answer::Found(response))
            }
            404 | 410 => Ok(Answer::Missing),
            status => Err(StoreError::Status { url: redacted(url), status }),
        }
    }

    /// Reads a response of moderate size within the time limit for small requests.
    fn read_small(&self, response: HttpResponse, limit: u64) -> Result<Vec<u8>, StoreError> {
        let (url, time) = (redacted(&response.url), self.limits.request);
        // One byte above the limit shows that the body is too large.
        let body = response.response.take(limit.saturating_add(1));
        match read_until(body, Instant::now() + time) {
            Ok(bytes) if bytes.len() as u64 > limit => Err(StoreError::TooLarge { address: url, limit }),
            Ok(bytes) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                Err(HttpError::TooSlow { url, limit: time }.into())
            }
            Err(source) => Err(HttpError::Unreachable { url, source: source.into() }.into()),
        }
    }

    /// Reads the rest of a response into memory.
    fn read_whole(self: &Arc<Self>, response: HttpResponse, limit: u64) -> Result<Vec<u8>, StoreError> {
        let url = response.url.clone();
        match length(&response) {
            Some(length) if length > limit => Err(StoreError::TooLarge { address: redacted(&url), limit }),
            Some(length) if length > MAX_SINGLE_RESPONSE => {
                let mut bytes = Vec::new();
                let read = self.download(response, &url, length).read_to_end(&mut bytes);
                read.map_err(|source| StoreError::Read { address: redacted(&url), source })?;
                Ok(bytes)
            }
            Some(_) => self.read_small(response, limit),
            None => match self.read_small(response, limit.min(MAX_UNSTATED_SIZE)) {
                Err(StoreError::TooLarge { .. }) if limit > MAX_UNSTATED_SIZE => {
                    let reason = format!("it does not state the size of a file above {MAX_UNSTATED_SIZE} bytes");
                    Err(HttpError::InvalidResponse { url: redacted(&url), reason }.into())
                }
                read => read,
            },
        }
    }

    /// Reads a whole file from one server.
    fn fetch(self: &Arc<Self>, url: &Url, limit: u64) -> Result<Answer<Vec<u8>>, StoreError> {
        let Answer::Found(response) = self.request(Method::GET, url, 0)? else { return Ok(Answer::Missing) };
        self.read_whole(response, limit.min(MAX_WHOLE_FILE)).map(Answer::Found)
    }

    /// Opens a file at one server.
    fn open(self: &Arc<Self>, url: &Url) -> Result<Answer<Opened>, StoreError> {
        let Answer::Found(response) = self.request(Method::GET, url, 0)? else { return Ok(Answer::Missing) };
        Ok(Answer::Found(match length(&response) {
            Some(length) if length > MAX_SIZE_IN_MEMORY => {
                Opened::Download(Box::new(self.download(response, url, length)), length)
            }
            _ => Opened::Whole(self.read_whole(response, MAX_WHOLE_FILE)?),
        }))
    }

    /// Requests the size of a file from one server. Some servers refuse `HEAD`, or do not state the size.
    fn size(self: &Arc<Self>, url: &Url) -> Result<Answer<u64>, StoreError> {
        match self.request(Method::HEAD, url, 0) {
            Ok(Answer::Found(response)) => {
                if let Some(length) = length(&response) {
                    return Ok(Answer::Found(length));
                }
            }
            Err(StoreError::Status { .. }) => {}
            Ok(Answer::Missing) => return Ok(Answer::Missing),
            Err(error) => return Err(error),
        }
        Ok(match self.open(url)? {
            Answer::Found(Opened::Whole(bytes)) => Answer::Found(bytes.len() as u64),
            Answer::Found(Opened::Download(_, length)) => Answer::Found(length),
            Answer::Missing => Answer::Missing,
        })
    }

    /// Downloads a large file whose response has begun. After a lost connection, the download continues at the next byte.
    fn download(self: &Arc<Self>, response: HttpResponse, url: &Url, size: u64) -> Download {
        let policy = DownloadPolicy {
            attempts: self.repetition.rounds,
            minimum_rate: self.limits.minimum_rate,
            rate_window: self.limits.stall,
            ..DownloadPolicy::default()
        };
        let (shared, url, mut first) = (Arc::clone(self), url.clone(), Some(response));
        let open = move |offset| {
            let response = match first.take() {
                Some(response) => response,
                None => match shared.request(Method::GET, &url, offset)? {
                    Answer::Found(response) => response,
                    Answer::Missing => return Err(StoreError::Missing { address: redacted(&url) }),
                },
            };
            Ok(response.into_blob(offset)?)
        };
        Download::start(open, size, policy, &self.reporter, self.cancellation.clone())
    }
}

/// An opened file.
enum Opened {
    Whole(Vec<u8>),
    /// A download, and the size of the file in bytes.
    Download(Box<Download>, u64),
}

/// Returns whether a file may have this name: the bytes of an object must match the hash in its name.
fn is_named(name: &str, bytes: &[u8]) -> bool {
    hash_in(name).is_none_or(|hash| hash.algorithm().hash(bytes) == hash)
}

/// Returns the hash in the name of an object.
fn hash_in(name: &str) -> Option<ObjectHash> {
    let hash = name.strip_prefix("data/")?.replacen('/', "", 1);
    // The letter at the end is that of the kind of the object.
    hash.trim_end_matches(|letter: char| letter.is_ascii_uppercase()).parse().ok()
}

/// Returns the size of the file that a response states.
fn length(response: &HttpResponse) -> Option<u64> {
    response.header(CONTENT_LENGTH.as_str())?.parse().ok()
}

impl Retryable for StoreError {
    fn is_transient(&self) -> bool {
        self.may_be_temporary()
    }

    fn parked_until(&self) -> Option<Instant> {
        None
    }
}

impl From<HttpStore> for SharedStore {
    fn from(store: HttpStore) -> Self {
        Arc::new(store)
    }
}

impl Store for HttpStore {
    fn address(&self, name: &str) -> String {
        redacted(&self.shared.url(self.shared.current.load(Ordering::Relaxed), name))
    }

    /// The bytes of an object that no server has undamaged are those of one of the servers.
    fn get(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
        self.ask_for_object(name, |url| self.shared.fetch(url, limit), |bytes| is_named(name, bytes))
    }

    /// The returned reader fails with an error, instead of ending early, if the file cannot be read to its end. An object
    /// above 32 MiB that the first server has damaged is not requested from another one.
    fn open(&self, name: &str) -> Result<Option<Box<dyn Read + Send>>, StoreError> {
        let is_good = |opened: &Opened| match opened {
            Opened::Whole(bytes) => is_named(name, bytes),
            Opened::Download(..) => true,
        };
        let opened = self.ask_for_object(name, |url| self.shared.open(url), is_good)?;
        Ok(opened.map(|opened| match opened {
            Opened::Whole(bytes) => Box::new(Cursor::new(bytes)) as Box<dyn Read + Send>,
            Opened::Download(download, _) => download,
        }))
    }

    fn head(&self, name: &str) -> Result<Option<u64>, StoreError> {
        self.ask(name, |url| self.shared.size(url))
    }

    fn servers(&self) -> Vec<SharedStore> {
        let store = |server| Self { only: Some(server), ..self.clone() }.into();
        self.order().map(store).collect()
    }

    fn listing(&self) -> Option<&dyn StoreListing> {
        None
    }

    fn reporter(&self) -> &Reporter {
        &self.shared.reporter
    }
}

#[cfg(test)]
mod tests {
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
            assert_eq!(
                store.get(&name, u64::MAX).unwrap().is_some_and(|found| found == bytes),
                is_named(&name, &bytes)
            );
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
        let new = |url: &str| HttpStore::new(&[url.parse().unwrap()], &Reporter::silent(), &Cancellation::default());
        for wrong in ["ftp://h.org/a.b", "http://h.org/a.b?c", "http://h.org/a.b#c", "file:///srv/a.b"] {
            assert!(matches!(new(wrong), Err(StoreError::Url { .. })), "{wrong}");
        }
        assert_eq!(new("http://user:secret@h.org/a.b").unwrap().address("data/x"), "http://h.org/a.b/data/x");
    }
}
