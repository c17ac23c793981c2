//! The storage of a repository behind a web server, read-only.
//!
//! Several servers may offer the same repository, such as the Stratum 1 servers of a replicated one. A file that one of them does
//! not have, or has in a damaged form, is requested from the next one.

mod limits;
#[cfg(test)]
mod tests;

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
use crate::message::causes;
use crate::object::ObjectHash;
use crate::observer::Reporter;
use limits::{RecentFailures, Repetition, time_limits};

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
    failures: RecentFailures,
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
    /// `timeout` is the maximum time for reading a file with all attempts; for a file above 4 MiB, the maximum time without a
    /// byte. An attempt fails after a fifth of `timeout` without a byte.
    ///
    /// Fails if the URL is no valid `http` or `https` URL. No request is sent.
    pub fn new(
        servers: &[Url],
        timeout: Duration,
        reporter: &Reporter,
        cancellation: &Cancellation,
    ) -> Result<Self, StoreError> {
        Self::with_limits(servers, time_limits(timeout), Repetition::within(timeout), reporter, cancellation)
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
                failures: RecentFailures::default(),
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
    /// asked again, as long as another attempt can end within the time limit. Returns `None` if no server has the file.
    ///
    /// `send` must end soon after the time that it is passed.
    fn ask<T>(
        &self,
        name: &str,
        send: impl Fn(&Url, Instant) -> Result<Answer<T>, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let (shared, mut round) = (&*self.shared, 1);
        shared.failures.check(self.only, name)?;
        let until = Instant::now() + shared.limits.request;
        loop {
            let error = match self.ask_once(name, until, &send) {
                Err(error) if error.may_be_temporary() => error,
                answer => return answer,
            };
            let pause = shared.repetition.pause_after(round);
            if round == shared.repetition.rounds || !shared.has_time(pause, until) {
                shared.failures.add(self.only, name, &error);
                return Err(error);
            }
            thread::sleep(pause);
            round += 1;
        }
    }

    /// Does the same without a repetition.
    fn ask_once<T>(
        &self,
        name: &str,
        until: Instant,
        send: &impl Fn(&Url, Instant) -> Result<Answer<T>, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let shared = &*self.shared;
        let mut failure: Option<StoreError> = None;
        for server in self.order() {
            shared.cancellation.check()?;
            if failure.is_some() && !shared.has_time(Duration::ZERO, until) {
                break;
            }
            match send(&shared.url(server, name), until) {
                Ok(Answer::Found(found)) => {
                    shared.current.store(server, Ordering::Relaxed);
                    return Ok(Some(found));
                }
                Ok(Answer::Missing) => {}
                Err(error) => {
                    shared.reporter.debug(format_args!("{}", causes(&error)));
                    // An error of any server that may be temporary is a reason to ask all again.
                    failure = failure.filter(StoreError::may_be_temporary).or(Some(error));
                }
            }
        }
        failure.map_or(Ok(None), Err)
    }

    /// Sends a request for a file like [`Self::ask`], and prefers an answer for which `is_good` returns true.
    fn ask_for_object<T>(
        &self,
        name: &str,
        send: impl Fn(&Url, Instant) -> Result<Answer<T>, StoreError>,
        is_good: impl Fn(&T) -> bool,
    ) -> Result<Option<T>, StoreError> {
        let (shared, damaged) = (&*self.shared, Cell::new(None));
        let good = self.ask(name, |url, until| match send(url, until)? {
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

    /// Returns whether an attempt without a byte would end at `until`, if it began after `pause`.
    fn has_time(&self, pause: Duration, until: Instant) -> bool {
        Instant::now() + pause + self.limits.stall <= until
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

    /// Reads a response of moderate size. Fails if it is not complete at `until`.
    fn read_small(&self, response: HttpResponse, limit: u64, until: Instant) -> Result<Vec<u8>, StoreError> {
        let (url, time) = (redacted(&response.url), self.limits.request);
        // One byte above the limit shows that the body is too large.
        let body = response.response.take(limit.saturating_add(1));
        match read_until(body, until) {
            Ok(bytes) if bytes.len() as u64 > limit => Err(StoreError::TooLarge { address: url, limit }),
            Ok(bytes) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                Err(HttpError::TooSlow { url, limit: time }.into())
            }
            Err(source) => Err(HttpError::Unreachable { url, source: source.into() }.into()),
        }
    }

    /// Reads the rest of a response into memory.
    fn read_whole(self: &Arc<Self>, response: HttpResponse, limit: u64, until: Instant) -> Result<Vec<u8>, StoreError> {
        let url = response.url.clone();
        match length(&response) {
            Some(length) if length > limit => Err(StoreError::TooLarge { address: redacted(&url), limit }),
            Some(length) if length > MAX_SINGLE_RESPONSE => {
                let mut bytes = Vec::new();
                let read = self.download(response, &url, length).read_to_end(&mut bytes);
                read.map_err(|source| StoreError::Read { address: redacted(&url), source })?;
                Ok(bytes)
            }
            Some(_) => self.read_small(response, limit, until),
            None => match self.read_small(response, limit.min(MAX_UNSTATED_SIZE), until) {
                Err(StoreError::TooLarge { .. }) if limit > MAX_UNSTATED_SIZE => {
                    let reason = format!("it does not state the size of a file above {MAX_UNSTATED_SIZE} bytes");
                    Err(HttpError::InvalidResponse { url: redacted(&url), reason }.into())
                }
                read => read,
            },
        }
    }

    /// Reads a whole file from one server.
    fn fetch(self: &Arc<Self>, url: &Url, limit: u64, until: Instant) -> Result<Answer<Vec<u8>>, StoreError> {
        let Answer::Found(response) = self.request(Method::GET, url, 0)? else { return Ok(Answer::Missing) };
        self.read_whole(response, limit.min(MAX_WHOLE_FILE), until).map(Answer::Found)
    }

    /// Opens a file at one server.
    fn open(self: &Arc<Self>, url: &Url, until: Instant) -> Result<Answer<Opened>, StoreError> {
        let Answer::Found(response) = self.request(Method::GET, url, 0)? else { return Ok(Answer::Missing) };
        Ok(Answer::Found(match length(&response) {
            Some(length) if length > MAX_SIZE_IN_MEMORY => {
                Opened::Download(Box::new(self.download(response, url, length)), length)
            }
            _ => Opened::Whole(self.read_whole(response, MAX_WHOLE_FILE, until)?),
        }))
    }

    /// Requests the size of a file from one server. Some servers refuse `HEAD`, or do not state the size.
    fn size(self: &Arc<Self>, url: &Url, until: Instant) -> Result<Answer<u64>, StoreError> {
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
        Ok(match self.open(url, until)? {
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
            first_pause: self.repetition.first_pause,
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

/// A download whose failure is noted, so that it is not repeated at once.
struct NotedDownload {
    download: Box<Download>,
    shared: Arc<Shared>,
    /// The only server that is asked, and the name of the file.
    request: (Option<usize>, String),
}

impl Read for NotedDownload {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.download.read(buffer).inspect_err(|error| {
            if error.kind() != io::ErrorKind::Interrupted {
                let (server, name) = &self.request;
                self.shared.failures.add(*server, name, error);
            }
        })
    }
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
        self.ask_for_object(name, |url, until| self.shared.fetch(url, limit, until), |bytes| is_named(name, bytes))
    }

    /// The returned reader fails with an error, instead of ending early, if the file cannot be read to its end. An object
    /// above 32 MiB that the first server has damaged is not requested from another one.
    fn open(&self, name: &str) -> Result<Option<Box<dyn Read + Send>>, StoreError> {
        let is_good = |opened: &Opened| match opened {
            Opened::Whole(bytes) => is_named(name, bytes),
            Opened::Download(..) => true,
        };
        let opened = self.ask_for_object(name, |url, until| self.shared.open(url, until), is_good)?;
        Ok(opened.map(|opened| match opened {
            Opened::Whole(bytes) => Box::new(Cursor::new(bytes)) as Box<dyn Read + Send>,
            Opened::Download(download, _) => {
                let (shared, request) = (Arc::clone(&self.shared), (self.only, name.to_owned()));
                Box::new(NotedDownload { download, shared, request })
            }
        }))
    }

    fn head(&self, name: &str) -> Result<Option<u64>, StoreError> {
        self.ask(name, |url, until| self.shared.size(url, until))
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
