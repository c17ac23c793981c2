//! HTTP client: TLS, proxies, time limits, and redirects.

mod error;
mod resolver;
mod response;
#[cfg(test)]
pub(crate) mod testing;
mod tls;
mod transfer;

use std::collections::HashMap;
use std::error::Error;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use reqwest::blocking::{Client, ClientBuilder, Response};
use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, USER_AGENT};
use reqwest::{Method, NoProxy, Proxy, Url};

use crate::observer::Reporter;
use crate::shortage::{cause, is_from_shortage, is_refused_thread};
use resolver::DnsResolver;

pub use error::{ConfigurationError, HttpError};
pub(crate) use response::{HttpResponse, read_until};
use tls::tls;
pub(crate) use transfer::{Download, DownloadPolicy, OpenedBlob, Retryable};

/// Maximum number of redirects that one request follows.
const MAX_REDIRECTS: usize = 10;
/// If the system refuses a resource for an HTTP client, the creation is repeated after this pause.
const CREATION_PAUSE: Duration = Duration::from_millis(25);
/// Maximum number of these pauses for one client.
const CREATION_PAUSES: u32 = 20;
/// For this time after the creation of one client failed, failed creations of other clients are not repeated.
// Otherwise each of many requests would wait for 20 × 25 ms while the shortage lasts.
const REFUSAL_TIME: Duration = Duration::from_secs(10);
/// Hosts that are never contacted through a proxy.
// On another machine, a proxy would connect to its own loopback address.
const LOOPBACK: &str = "localhost,127.0.0.0/8,::1";
/// Default of the time limit for a small request with all its attempts.
pub const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Default of the minimum rate of a large response, in bytes per second.
pub const DEFAULT_MINIMUM_RATE: u64 = 4 << 10;

/// Default time limits. A small request has a limit for its total time. The download of a layer may take hours, and must reach
/// a minimum rate instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeLimits {
    /// For establishing a connection.
    pub connect: Duration,
    /// Maximum time without receiving a byte.
    pub stall: Duration,
    /// For a small request with all its attempts.
    pub request: Duration,
    /// Minimum rate of a layer download in bytes per second, on average over `stall`.
    pub minimum_rate: u64,
}

impl Default for TimeLimits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            stall: Duration::from_secs(60),
            request: DEFAULT_REQUEST_TIMEOUT,
            minimum_rate: DEFAULT_MINIMUM_RATE,
        }
    }
}

/// Proxies from environment variables. Their URLs may contain passwords.
#[derive(Default)]
pub(crate) struct Proxies {
    pub(crate) https: Option<String>,
    pub(crate) http: Option<String>,
    pub(crate) none_for: String,
}

/// Settings of an HTTP client. Hosts with the same settings share a client.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct ClientSettings {
    /// PEM file with additional trusted root certificates.
    pub(crate) certificates: Option<PathBuf>,
    /// Maximum time without receiving a byte.
    pub(crate) stall: Option<Duration>,
}

/// Time limits of one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HostLimits {
    /// For a small request with all its attempts.
    pub(crate) request: Duration,
    /// Maximum time without receiving a byte.
    pub(crate) stall: Duration,
    /// Minimum rate of a layer download in bytes per second, on average over `stall`.
    pub(crate) minimum_rate: u64,
}

/// HTTP clients for all hosts.
pub(crate) struct Http {
    limits: TimeLimits,
    proxies: Proxies,
    client_settings: HashMap<String, ClientSettings>,
    /// Limits by host and port, for hosts that the settings name.
    host_limits: HashMap<String, HostLimits>,
    /// Clients are created one at a time on first use. Each has a thread, which all hosts with the same settings share.
    clients: Mutex<Clients>,
    pub(crate) reporter: Reporter,
}

#[derive(Default)]
struct Clients {
    by_settings: HashMap<ClientSettings, Client>,
    /// Time of the last refusal by the system to create a client.
    refused: Option<Instant>,
}

/// A request, before any redirect.
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    /// Sent only to the origin of `url` (scheme, host and port), not to the target of a redirect.
    pub(crate) authorization: Option<HeaderValue>,
    /// A request with a body follows no redirect.
    pub(crate) body: Option<RequestBody>,
    /// Deadline for the complete response; `None` for a response that may be large.
    pub(crate) deadline: Option<ResponseDeadline>,
}

/// Deadline for a complete response.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ResponseDeadline {
    pub(crate) until: Instant,
    /// Duration from the start of the attempt to `until`, for messages.
    pub(crate) limit: Duration,
}

impl ResponseDeadline {
    /// Returns the remaining time, or an error if the deadline has passed.
    fn remaining(&self, url: &Url) -> Result<Duration, HttpError> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(self.too_slow(url)) } else { Ok(left) }
    }

    fn too_slow(&self, url: &Url) -> HttpError {
        HttpError::TooSlow { url: redacted(url), limit: self.limit }
    }
}

/// Body of a request.
#[derive(Clone)]
pub(crate) struct RequestBody {
    pub(crate) media_type: &'static str,
    pub(crate) bytes: Vec<u8>,
}

impl Request {
    pub(crate) fn get(url: Url) -> Self {
        Self { method: Method::GET, url, headers: HeaderMap::new(), authorization: None, body: None, deadline: None }
    }
}

impl Http {
    /// Creates clients. The keys of `client_settings` and `host_limits` are host and port.
    pub(crate) fn new(
        limits: TimeLimits,
        proxies: Proxies,
        client_settings: HashMap<String, ClientSettings>,
        host_limits: HashMap<String, HostLimits>,
    ) -> Self {
        let reporter = Reporter::silent();
        Self { limits, proxies, client_settings, host_limits, clients: Mutex::default(), reporter }
    }

    /// Returns the time limits of a host.
    pub(crate) fn limits_of(&self, host: &str) -> HostLimits {
        let TimeLimits { stall, request, minimum_rate, .. } = self.limits;
        self.host_limits.get(host).copied().unwrap_or(HostLimits { request, stall, minimum_rate })
    }

    /// Sends a request and follows redirects. A response with an error status is returned, too.
    pub(crate) fn send(&self, request: &Request) -> Result<HttpResponse, HttpError> {
        let (mut url, mut is_of_origin) = (request.url.clone(), true);
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send_once(request, &url, is_of_origin)?;
            let Some(next) = redirect(request, &url, &response)? else {
                let (authorization, deadline) = (request.authorization.clone(), request.deadline);
                return Ok(HttpResponse { response, url, is_of_origin, authorization, deadline });
            };
            is_of_origin &= is_same_origin(&url, &next);
            url = next;
        }
        Err(HttpError::Redirect { url: redacted(&request.url), reason: "more than 10 redirects" })
    }

    fn send_once(&self, request: &Request, url: &Url, with_authorization: bool) -> Result<Response, HttpError> {
        let client = self.client(&authority(&request.url), &authority(url))?;
        let mut sent = client.request(request.method.clone(), url.clone()).headers(request.headers.clone());
        if let Some(authorization) = request.authorization.clone().filter(|_| with_authorization) {
            sent = sent.header(AUTHORIZATION, authorization);
        }
        if let Some(body) = &request.body {
            sent = sent.header(CONTENT_TYPE, body.media_type).body(body.bytes.clone());
        }
        if let Some(deadline) = request.deadline {
            // The timeout of a single request covers the complete response.
            sent = sent.timeout(deadline.remaining(url)?);
        }
        sent.send().map_err(|error| match request.deadline {
            Some(deadline) if error.is_timeout() && !error.is_connect() => deadline.too_slow(url),
            _ => unreachable(url, error),
        })
    }

    /// Returns the client for a host. `origin` is the host of the original request, whose stall limit also applies after redirects.
    fn client(&self, origin: &str, host: &str) -> Result<Client, HttpError> {
        let settings_of = |host| self.client_settings.get(host).cloned().unwrap_or_default();
        let settings = ClientSettings { stall: settings_of(origin).stall, ..settings_of(host) };
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.by_settings.get(&settings) {
            return Ok(client.clone());
        }
        let is_refused = clients.refused.is_some_and(|time| time.elapsed() < REFUSAL_TIME);
        let client = self.build(&settings, if is_refused { 0 } else { CREATION_PAUSES }).inspect_err(|error| {
            if is_from_shortage(error) {
                clients.refused = Some(Instant::now());
            }
        })?;
        clients.by_settings.insert(settings, client.clone());
        Ok(client)
    }

    /// Creates the client for a host in advance, before other threads use up the resources.
    pub(crate) fn prepare(&self, host: &str) -> Result<(), HttpError> {
        self.client(host, host).map(drop)
    }

    /// Creates a client. If the system refuses a resource, tries again after a pause, up to `pauses` times.
    fn build(&self, settings: &ClientSettings, mut pauses: u32) -> Result<Client, HttpError> {
        let tls = tls(settings.certificates.as_deref(), &self.reporter)?;
        loop {
            match self.builder(settings, tls.clone())?.build() {
                Err(error) if pauses > 0 && is_from_shortage(&error) => {
                    pauses -= 1;
                    thread::sleep(CREATION_PAUSE);
                }
                Err(error) if is_refused_thread(&error) => return Err(HttpError::Thread(error.into())),
                built => return built.map_err(|error| HttpError::Client(error.into())),
            }
        }
    }

    fn builder(&self, settings: &ClientSettings, tls: rustls::ClientConfig) -> Result<ClientBuilder, HttpError> {
        let mut headers = HeaderMap::new();
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("strata/", env!("CARGO_PKG_VERSION"))));
        // A content encoding would change the bytes, and so the digest.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let mut builder = Client::builder()
            .tls_backend_preconfigured(tls)
            // `send` follows redirects, because it decides for each target whether it gets the authorization.
            .redirect(reqwest::redirect::Policy::none())
            // `retry_loop` and `Attempts` repeat requests, and count the attempts.
            .retry(reqwest::retry::never())
            .dns_resolver(Arc::new(DnsResolver))
            .connect_timeout(self.limits.connect)
            // The timeout of the blocking client covers the response head, and then each read of the body.
            .timeout(settings.stall.unwrap_or(self.limits.stall))
            .http1_only()
            .default_headers(headers)
            // Otherwise reqwest adds the proxies of the process environment by itself.
            .no_proxy();
        for proxy in self.proxies.for_client()? {
            builder = builder.proxy(proxy);
        }
        Ok(builder)
    }
}

impl Proxies {
    /// Reads the variables with the names that curl uses.
    pub(crate) fn from_environment(environment: &dyn Fn(&str) -> Option<OsString>) -> Self {
        let get = |names: [&str; 2]| {
            names.into_iter().find_map(environment).and_then(|value| OsString::into_string(value).ok())
        };
        Self {
            https: get(["HTTPS_PROXY", "https_proxy"]),
            http: get(["HTTP_PROXY", "http_proxy"]),
            none_for: get(["NO_PROXY", "no_proxy"]).unwrap_or_default(),
        }
    }

    fn for_client(&self) -> Result<Vec<Proxy>, ConfigurationError> {
        let proxy = |variable: &str, text: &Option<String>, make: fn(String) -> reqwest::Result<Proxy>| {
            let Some(text) = text.as_ref().filter(|text| !text.is_empty()) else { return Ok(None) };
            // curl accepts proxies without a scheme, so existing environments contain them.
            let text = if text.contains("://") { text.clone() } else { format!("http://{text}") };
            let fault = "is not a valid proxy URL";
            let made = make(text).map_err(|_| ConfigurationError::Variable { variable: variable.to_owned(), fault })?;
            Ok(Some(made.no_proxy(NoProxy::from_string(&format!("{},{LOOPBACK}", self.none_for)))))
        };
        let https = proxy("HTTPS_PROXY", &self.https, Proxy::https::<String>)?;
        let http = proxy("HTTP_PROXY", &self.http, Proxy::http::<String>)?;
        Ok(https.into_iter().chain(http).collect())
    }
}

/// Returns the target of a redirect, if the response is one. Fails if the target is not allowed.
fn redirect(request: &Request, url: &Url, response: &Response) -> Result<Option<Url>, HttpError> {
    let location = response.headers().get(LOCATION);
    let (true, Some(location), None) = (is_redirect(response.status().as_u16()), location, &request.body) else {
        return Ok(None);
    };
    let refuse = |reason| HttpError::Redirect { url: redacted(url), reason };
    let location = location.to_str().map_err(|_| refuse("the target is not text"))?;
    redirect_target(url, location).map(Some).map_err(refuse)
}

fn is_redirect(status: u16) -> bool {
    matches!(status, 301 | 302 | 303 | 307 | 308)
}

/// Resolves `location` against `url`, or returns the reason why it is not followed.
pub(crate) fn redirect_target(url: &Url, location: &str) -> Result<Url, &'static str> {
    let next = url.join(location).map_err(|_| "the target is not a URL")?;
    match (url.scheme(), next.scheme()) {
        ("https", "http") => Err("the target uses plain HTTP, and the request used HTTPS"),
        (_, "http" | "https") => Ok(next),
        _ => Err("the target is neither an http nor an https URL"),
    }
}

/// Returns whether two URLs have the same scheme, host and port, so that credentials for one may be sent to the other.
pub(crate) fn is_same_origin(one: &Url, other: &Url) -> bool {
    one.origin() == other.origin()
}

/// Returns the host, and the port unless it is the default of the scheme.
pub(crate) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Returns a URL for messages, without user, password and query: the query of a signed URL is a secret.
pub(crate) fn redacted(url: &Url) -> String {
    format!("{}://{}{}", url.scheme(), authority(url), url.path())
}

fn unreachable(url: &Url, error: reqwest::Error) -> HttpError {
    // The error of the client contains the URL, whose query may be a secret signature.
    HttpError::Unreachable { url: redacted(url), source: error.without_url().into() }
}

/// Returns whether the TLS handshake failed because the server does not support TLS. An untrusted certificate is a different
/// error.
pub(crate) fn speaks_no_tls(error: &HttpError) -> bool {
    let HttpError::Unreachable { source, .. } = error else { return false };
    chain(source.as_ref()).any(|error| {
        // A plain HTTP server closes the connection, or answers the handshake with text (`InvalidMessage`).
        let ends = error
            .downcast_ref::<io::Error>()
            .is_some_and(|error| matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset));
        ends || matches!(error.downcast_ref(), Some(rustls::Error::InvalidMessage(_)))
    })
}

/// Returns whether the server was reached, but its certificate is not trusted.
pub(crate) fn is_distrust(error: &(dyn Error + 'static)) -> bool {
    chain(error).any(|error| matches!(error.downcast_ref(), Some(rustls::Error::InvalidCertificate(_))))
}

/// Returns an error and its causes, outermost first.
fn chain<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| cause(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn redirect_from_https_to_http_is_rejected() {
        let target = |location| redirect_target(&url("https://h.org/v2/a?x"), location).map(String::from);
        assert_eq!(target("/v2/b").as_deref(), Ok("https://h.org/v2/b"));
        assert_eq!(target("https://cdn.org/x?sig=1").as_deref(), Ok("https://cdn.org/x?sig=1"));
        for refused in ["http://h.org/v2/a", "ftp://h.org/", "file:///etc/passwd", "https://"] {
            assert!(target(refused).is_err(), "{refused}");
        }
        assert!(redirect_target(&url("http://h.org/"), "https://h.org/").is_ok());
    }

    #[test]
    fn origin_is_scheme_host_and_port() {
        let same = |other| is_same_origin(&url("https://h.org/a"), &url(other));
        assert!(same("https://h.org:443/b?c"));
        for other in ["http://h.org/a", "https://h.org:8443/a", "https://cdn.h.org/a"] {
            assert!(!same(other), "{other}");
        }
    }

    #[test]
    fn redacted_url_has_neither_query_nor_user() {
        assert_eq!(redacted(&url("https://u:p@h.org:5000/v2/a?sig=secret#x")), "https://h.org:5000/v2/a");
    }

    #[test]
    fn scheme_of_a_proxy_is_optional() {
        let proxies = |https: &str| Proxies { https: Some(https.to_owned()), ..Proxies::default() }.for_client();
        assert_eq!(proxies("proxy.org:3128").unwrap().len(), 1);
        assert_eq!(proxies("").unwrap().len(), 0);
        let error = proxies("http://user:secret@:x").unwrap_err().to_string();
        assert!(error.starts_with("HTTPS_PROXY") && !error.contains("secret"), "{error}");
    }
}
