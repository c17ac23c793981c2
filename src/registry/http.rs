//! HTTP as far as registries need it: who is asked, how long one waits, and where redirects may lead.

use std::collections::HashMap;
use std::error::Error;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reqwest::blocking::{Client, Response};
use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, USER_AGENT};
use reqwest::{Method, NoProxy, Proxy, Url};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::error::{ErrorBody, RegistryError};
use super::limits::lock;
use super::resolver::DnsResolver;
use super::settings::{DEFAULT_MINIMUM_RATE, DEFAULT_REQUEST_TIMEOUT};

/// How many redirects are followed for one request.
const MAX_REDIRECTS: usize = 10;
/// How much is read of the body that explains an error.
const MAX_ERROR_BODY: u64 = 64 << 10;
/// How long the body that explains an error is read. A read that is under way then ends by itself.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes that are read of a body at once.
const READ_SIZE: usize = 64 << 10;
/// What nobody needs a proxy for.
const LOOPBACK: &str = "localhost,127.0.0.0/8,::1";

/// Time limits where the settings of a registry say nothing else. A small request is limited as a whole. A layer, which may take
/// hours, has to bring a minimum of bytes instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeLimits {
    /// Until there is a connection.
    pub connect: Duration,
    /// Without a single byte.
    pub stall: Duration,
    /// For a small request, with all of its attempts.
    pub request: Duration,
    /// Bytes a second that a layer has to bring, on average over `stall`.
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

/// Proxies as the environment names them. Their URLs may hold passwords.
#[derive(Default)]
pub(super) struct Proxies {
    pub(super) https: Option<String>,
    pub(super) http: Option<String>,
    pub(super) none_for: String,
}

/// What is special about a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct ClientSettings {
    /// A file of own certificates that it is trusted by.
    pub(super) certificates: Option<PathBuf>,
    /// How long it may keep silent.
    pub(super) stall: Option<Duration>,
}

/// How long one host may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HostLimits {
    /// For a small request, with all of its attempts.
    pub(super) request: Duration,
    /// Without a single byte.
    pub(super) stall: Duration,
    /// Bytes a second that a layer has to bring, on average over `stall`.
    pub(super) minimum_rate: u64,
}

/// Asks hosts, each on its own terms.
pub(super) struct Http {
    limits: TimeLimits,
    proxies: Proxies,
    terms: HashMap<String, ClientSettings>,
    /// The limits of hosts that have their own.
    host_limits: HashMap<String, HostLimits>,
    /// Clients by the terms that they are for, made when they are needed.
    clients: Mutex<HashMap<ClientSettings, Client>>,
}

/// One request, before redirects.
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    /// For the origin of the URL, and nobody else.
    pub(super) authorization: Option<HeaderValue>,
    /// What is sent along. Such a request follows no redirect.
    pub(super) body: Option<RequestBody>,
    /// When all of the answer has to be there; only what may be large has no such limit.
    pub(super) deadline: Option<ResponseDeadline>,
}

/// When all of an answer has to be there.
#[derive(Debug, Clone, Copy)]
pub(super) struct ResponseDeadline {
    pub(super) until: Instant,
    /// How long that was from the start, for messages.
    pub(super) limit: Duration,
}

impl ResponseDeadline {
    /// Returns how much time is left, or the error to give.
    fn left(&self, url: &Url) -> Result<Duration, RegistryError> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(self.too_slow(url)) } else { Ok(left) }
    }

    fn too_slow(&self, url: &Url) -> RegistryError {
        RegistryError::TooSlow { url: redacted(url), limit: self.limit }
    }
}

/// What is sent along with a request.
#[derive(Clone)]
pub(super) struct RequestBody {
    pub(super) media_type: &'static str,
    pub(super) bytes: Vec<u8>,
}

/// What came back, perhaps after redirects.
pub(super) struct HttpResponse {
    pub(super) response: Response,
    /// Who answered in the end.
    pub(super) url: Url,
    /// Whether no redirect led away from the origin that was asked.
    pub(super) is_of_origin: bool,
    /// What was shown to it, which may come back in what it says.
    pub(super) shown: Option<HeaderValue>,
    /// When all of it has to be there.
    pub(super) deadline: Option<ResponseDeadline>,
}

impl Request {
    pub(super) fn get(url: Url) -> Self {
        Self { method: Method::GET, url, headers: HeaderMap::new(), authorization: None, body: None, deadline: None }
    }
}

impl Http {
    /// Prepares clients; `terms` and `host_limits` are by host.
    pub(super) fn new(
        limits: TimeLimits,
        proxies: Proxies,
        terms: HashMap<String, ClientSettings>,
        host_limits: HashMap<String, HostLimits>,
    ) -> Self {
        Self { limits, proxies, terms, host_limits, clients: Mutex::default() }
    }

    /// Returns how long a host may take.
    pub(super) fn limits_of(&self, host: &str) -> HostLimits {
        let TimeLimits { stall, request, minimum_rate, .. } = self.limits;
        self.host_limits.get(host).copied().unwrap_or(HostLimits { request, stall, minimum_rate })
    }

    /// Sends a request and follows its redirects. Any status is an answer.
    pub(super) fn send(&self, request: &Request) -> Result<HttpResponse, RegistryError> {
        let (mut url, mut is_of_origin) = (request.url.clone(), true);
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send_once(request, &url, is_of_origin)?;
            let Some(next) = redirect(request, &url, &response)? else {
                let (shown, deadline) = (request.authorization.clone(), request.deadline);
                return Ok(HttpResponse { response, url, is_of_origin, shown, deadline });
            };
            is_of_origin &= is_same_origin(&url, &next);
            url = next;
        }
        Err(RegistryError::Redirect { url: redacted(&request.url), reason: "it leads on and on" })
    }

    fn send_once(&self, request: &Request, url: &Url, with_authorization: bool) -> Result<Response, RegistryError> {
        let client = self.client(&authority(&request.url), &authority(url))?;
        let mut sent = client.request(request.method.clone(), url.clone()).headers(request.headers.clone());
        if let Some(authorization) = request.authorization.clone().filter(|_| with_authorization) {
            sent = sent.header(AUTHORIZATION, authorization);
        }
        if let Some(body) = &request.body {
            sent = sent.header(CONTENT_TYPE, body.media_type).body(body.bytes.clone());
        }
        if let Some(deadline) = request.deadline {
            // Of a single request, it is the time limit of all of the answer.
            sent = sent.timeout(deadline.left(url)?);
        }
        sent.send().map_err(|error| match request.deadline {
            Some(deadline) if error.is_timeout() && !error.is_connect() => deadline.too_slow(url),
            _ => unreachable(url, error),
        })
    }

    /// Returns the client for a host that `origin` has led to, or is. It may keep silent for as long as `origin`.
    fn client(&self, origin: &str, host: &str) -> Result<Client, RegistryError> {
        let terms = |host| self.terms.get(host).cloned().unwrap_or_default();
        let terms = ClientSettings { stall: terms(origin).stall, ..terms(host) };
        let mut clients = lock(&self.clients);
        if let Some(client) = clients.get(&terms) {
            return Ok(client.clone());
        }
        let client = self.build(&terms)?;
        clients.insert(terms, client.clone());
        Ok(client)
    }

    fn build(&self, terms: &ClientSettings) -> Result<Client, RegistryError> {
        let mut headers = HeaderMap::new();
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("strata/", env!("CARGO_PKG_VERSION"))));
        // What is packed on its way would have another digest.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let mut builder = Client::builder()
            .tls_backend_preconfigured(tls(terms.certificates.as_deref())?)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .dns_resolver(Arc::new(DnsResolver))
            .connect_timeout(self.limits.connect)
            // Of the blocking client, it is the time limit of the head, and then of each single read.
            .timeout(terms.stall.unwrap_or(self.limits.stall))
            .http1_only()
            .default_headers(headers)
            .no_proxy();
        for proxy in self.proxies.for_client()? {
            builder = builder.proxy(proxy);
        }
        builder.build().map_err(|error| RegistryError::Client(error.into()))
    }
}

impl Proxies {
    fn for_client(&self) -> Result<Vec<Proxy>, RegistryError> {
        let proxy = |variable: &str, text: &Option<String>, make: fn(String) -> reqwest::Result<Proxy>| {
            let Some(text) = text.as_ref().filter(|text| !text.is_empty()) else { return Ok(None) };
            let text = if text.contains("://") { text.clone() } else { format!("http://{text}") };
            let fault = "names no proxy that can be used";
            let made = make(text).map_err(|_| RegistryError::Variable { variable: variable.to_owned(), fault })?;
            Ok(Some(made.no_proxy(NoProxy::from_string(&format!("{},{LOOPBACK}", self.none_for)))))
        };
        let https = proxy("HTTPS_PROXY", &self.https, Proxy::https::<String>)?;
        let http = proxy("HTTP_PROXY", &self.http, Proxy::http::<String>)?;
        Ok(https.into_iter().chain(http).collect())
    }
}

/// Returns how connections are encrypted: with the certificates of the system, if it has some, and own ones.
fn tls(certificates: Option<&Path>) -> Result<rustls::ClientConfig, RegistryError> {
    let mut roots = rustls::RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(system.certs);
    if roots.is_empty() {
        tracing::debug!("this system has no certificates of its own: only registries with a `ca` can be trusted");
    }
    if let Some(path) = certificates {
        add_certificates(&mut roots, path)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| RegistryError::Client(error.into()))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn add_certificates(roots: &mut rustls::RootCertStore, path: &Path) -> Result<(), RegistryError> {
    let text = std::fs::read(path).map_err(|source| RegistryError::Read { path: path.to_owned(), source })?;
    let invalid = |fault| RegistryError::Invalid { path: path.to_owned(), fault };
    let before = roots.len();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|_| invalid("it is not in the PEM form"))?;
        roots.add(certificate).map_err(|_| invalid("it holds a certificate that is none"))?;
    }
    if roots.len() == before { Err(invalid("it holds no certificate")) } else { Ok(()) }
}

/// Returns where an answer leads to, if it leads anywhere.
fn redirect(request: &Request, url: &Url, response: &Response) -> Result<Option<Url>, RegistryError> {
    let location = response.headers().get(LOCATION);
    let (true, Some(location), None) = (is_redirect(response.status().as_u16()), location, &request.body) else {
        return Ok(None);
    };
    let refuse = |reason| RegistryError::Redirect { url: redacted(url), reason };
    let location = location.to_str().map_err(|_| refuse("its target is not text"))?;
    redirect_target(url, location).map(Some).map_err(refuse)
}

fn is_redirect(status: u16) -> bool {
    matches!(status, 301 | 302 | 303 | 307 | 308)
}

/// Returns the URL that `location` stands for, or why it is not followed.
pub(super) fn redirect_target(url: &Url, location: &str) -> Result<Url, &'static str> {
    let next = url.join(location).map_err(|_| "its target is not a URL")?;
    match (url.scheme(), next.scheme()) {
        ("https", "http") => Err("its target is not encrypted"),
        (_, "http" | "https") => Ok(next),
        _ => Err("its target is not at an HTTP server"),
    }
}

/// Tells whether two URLs have scheme, host and port in common: what one may know, the other may.
pub(super) fn is_same_origin(one: &Url, other: &Url) -> bool {
    one.origin() == other.origin()
}

/// Returns host and port, if that is not the scheme's own.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Returns a URL for a message: signed URLs carry secrets in their queries.
pub(super) fn redacted(url: &Url) -> String {
    format!("{}://{}{}", url.scheme(), authority(url), url.path())
}

fn unreachable(url: &Url, error: reqwest::Error) -> RegistryError {
    RegistryError::Unreachable { url: redacted(url), source: error.without_url().into() }
}

/// Tells whether encryption failed because the other side does not know it; a certificate that is not trusted is
/// something else.
pub(super) fn speaks_no_tls(error: &RegistryError) -> bool {
    let RegistryError::Unreachable { source, .. } = error else { return false };
    chain(source.as_ref()).any(|error| {
        let ends = error
            .downcast_ref::<io::Error>()
            .is_some_and(|error| matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset));
        ends || matches!(error.downcast_ref(), Some(rustls::Error::InvalidMessage(_)))
    })
}

/// Tells whether the other side was reached, but its certificate is not trusted.
pub(super) fn is_distrust(error: &(dyn Error + 'static)) -> bool {
    chain(error).any(|error| matches!(error.downcast_ref(), Some(rustls::Error::InvalidCertificate(_))))
}

/// Returns an error and its causes, the outermost first.
fn chain<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| cause(error))
}

/// Returns the cause of an error. An I/O error that wraps another one names that one's cause as its own.
fn cause<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e (dyn Error + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(wrapped) => Some(wrapped),
        None => error.source(),
    }
}

impl HttpResponse {
    pub(super) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// Returns a header that is plain text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers().get(name)?.to_str().ok()
    }

    /// Returns the media type without its parameters, in lower case; it may be empty.
    pub(super) fn media_type(&self) -> String {
        let text = self.header(CONTENT_TYPE.as_str()).unwrap_or_default();
        text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
    }

    /// Reads the body of an answer that is an error.
    pub(super) fn error_body(self) -> ErrorBody {
        let until = Instant::now() + ERROR_BODY_TIMEOUT;
        match read_until(self.response.take(MAX_ERROR_BODY), until) {
            Ok(body) => ErrorBody::parse(&body).without(self.shown.as_ref().and_then(|shown| shown.to_str().ok())),
            Err(_) => ErrorBody::default(),
        }
    }

    /// Reads a body of up to `limit` bytes.
    pub(super) fn read(self, limit: u64) -> Result<Vec<u8>, RegistryError> {
        let mut body = Vec::new();
        let url = self.url;
        let read = self.response.take(limit + 1).read_to_end(&mut body);
        read.map_err(|source| match self.deadline.map(|deadline| (deadline, deadline.left(&url))) {
            Some((deadline, Err(_))) => deadline.too_slow(&url),
            _ => RegistryError::Unreachable { url: redacted(&url), source: source.into() },
        })?;
        match body.len() as u64 > limit {
            true => Err(RegistryError::TooLarge { url: redacted(&url), limit }),
            false => Ok(body),
        }
    }
}

/// Reads a body to its end, or fails when it is not there at `until`.
fn read_until(mut body: impl Read, until: Instant) -> io::Result<Vec<u8>> {
    let (mut bytes, mut piece) = (Vec::new(), vec![0; READ_SIZE]);
    loop {
        match body.read(&mut piece) {
            Ok(0) => return Ok(bytes),
            Ok(count) => bytes.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if Instant::now() >= until {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn redirect_is_followed_but_not_out_of_encryption() {
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
    fn shown_url_has_neither_query_nor_user() {
        assert_eq!(redacted(&url("https://u:p@h.org:5000/v2/a?sig=secret#x")), "https://h.org:5000/v2/a");
    }

    #[test]
    fn file_without_certificates_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for text in ["", "garbage", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            std::fs::write(file.path(), text).unwrap();
            assert!(matches!(tls(Some(file.path())), Err(RegistryError::Invalid { .. })), "{text}");
        }
        assert!(matches!(tls(Some(Path::new("/nonexistent"))), Err(RegistryError::Read { .. })));
        assert!(tls(None).is_ok());
    }

    #[test]
    fn proxy_may_lack_its_scheme() {
        let proxies = |https: &str| Proxies { https: Some(https.to_owned()), ..Proxies::default() }.for_client();
        assert_eq!(proxies("proxy.org:3128").unwrap().len(), 1);
        assert_eq!(proxies("").unwrap().len(), 0);
        let error = proxies("http://user:secret@:x").unwrap_err().to_string();
        assert!(error.starts_with("HTTPS_PROXY") && !error.contains("secret"), "{error}");
    }
}
