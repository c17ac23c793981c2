//! Client of the OCI distribution API: manifests, blobs, lists of tags and repositories, and pushing.
//!
//! All threads of a run share one [`Registries`]: its tokens, the number of concurrent requests for each host, and the parked
//! hosts. A host is *parked* after it responded with status 429, or with 503 and `Retry-After`: no request is sent to it until
//! the end of a pause (see `limits`). A small request is repeated after temporary errors and has one time limit for all
//! attempts. A request for a layer is not repeated here: `Download` resumes it at the byte where the last response ended.

mod allowance;
mod auth_file;
mod challenge;
mod clock;
mod credentials;
mod ducc;
mod endpoint;
mod error;
mod exchange;
mod helper;
mod limits;
mod paging;
mod push;
mod retry;
mod settings;
#[cfg(test)]
mod tests;
mod token;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::header::HeaderMap;
use reqwest::{Method, Url};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

use crate::cancel::Cancellation;
use crate::http::{
    ClientSettings, DownloadPolicy, HostLimits, Http, HttpError, HttpResponse, OpenedBlob, Proxies, Request, Retryable,
    redacted,
};
use crate::image::{
    Digest, Document, ImageName, ImageReference, MAX_DOCUMENT_SIZE, is_repository, is_schema_1, is_tag,
};
use crate::observer::Reporter;
use allowance::Allowance;
use clock::{Clock, SystemClock};
use credentials::{CredentialSources, Credentials};
use ducc::DuccRegistry;
use endpoint::{Endpoint, endpoints, remote_authority, remote_repository};
use exchange::{Call, RequestLabel};
use limits::{Host, Hosts};
use token::Tokens;

pub(crate) use crate::http::Download;
pub use crate::http::{DEFAULT_MINIMUM_RATE, DEFAULT_REQUEST_TIMEOUT, TimeLimits};
pub use ducc::EnvironmentLookup;
pub use error::{ErrorBody, RegistryError};
pub(crate) use limits::{Permit, lock};
pub use push::{ImageUpload, PushOutcome};
pub(crate) use retry::RetryBudget;
pub use settings::{
    DEFAULT_CONNECTIONS, DEFAULT_PATIENCE, REQUEST_TIMEOUT_RANGE, RegistriesSettings, RegistrySettings,
    RequestSettings, Secret,
};

/// Media types of manifests that are accepted. They are sent in one `Accept` header, because some registries read only the first.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json";
/// Maximum size of one [`JsonPage`] in bytes. Parsed JSON needs a multiple of that in memory.
const MAX_API_PAGE: u64 = 2 << 20;
/// Default of the maximum time for which a request waits for a parked registry. `sync` uses `[requests] patience` instead.
const PATIENCE: Duration = Duration::from_secs(600);

/// Whether requests to a registry are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transport {
    /// HTTPS. Plain HTTP is used if the settings have `plain_http`, or if a registry on this machine does not support TLS.
    #[default]
    Secure,
    /// Plain HTTP.
    Plain,
}

impl Transport {
    /// Returns the transport of a registry. `plain_http` is true if its name was written with `http://`.
    pub fn of(plain_http: bool) -> Self {
        if plain_http { Self::Plain } else { Self::Secure }
    }
}

/// Location of an image at a registry: host, repository, and tag or digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageLocation {
    /// Name of the image, with the host as the user wrote it.
    pub name: ImageName,
    /// Digest of the manifest to fetch. With a digest, the tag in `name` is ignored, because the tag may have moved.
    pub digest: Option<Digest>,
    /// Whether requests to the registry are encrypted.
    pub transport: Transport,
}

impl ImageLocation {
    /// Returns the digest of the manifest, if the location contains one.
    pub fn digest(&self) -> Option<Digest> {
        let of_name = match self.name.reference() {
            ImageReference::Digest(digest) => Some(*digest),
            ImageReference::Tag(_) => None,
        };
        self.digest.or(of_name)
    }

    /// Returns the tag or digest with which the manifest is requested.
    fn reference(&self) -> String {
        match (self.digest, self.name.reference()) {
            (Some(digest), _) => digest.to_string(),
            (None, ImageReference::Digest(digest)) => digest.to_string(),
            (None, ImageReference::Tag(tag)) => tag.clone(),
        }
    }
}

impl fmt::Display for ImageLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)?;
        match (self.digest, self.name.reference()) {
            (Some(digest), ImageReference::Tag(_)) => write!(f, "@{digest}"),
            _ => Ok(()),
        }
    }
}

/// One JSON response of an API other than the distribution API, such as that of Harbor.
#[derive(Debug, Clone)]
pub struct JsonPage {
    /// The JSON document.
    pub body: serde_json::Value,
    /// URL of the next page, from the `Link` header (RFC 8288). [`Registries`] returns an absolute URL at the same server.
    pub next: Option<String>,
    headers: HeaderMap,
}

impl JsonPage {
    /// Returns the value of a header such as `x-next-page`, if it is visible ASCII.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

#[cfg(test)]
impl JsonPage {
    pub(crate) fn new(body: serde_json::Value) -> Self {
        Self { body, next: None, headers: HeaderMap::new() }
    }

    pub(crate) fn set_header(&mut self, name: &'static str, value: &'static str) {
        self.headers.insert(name, reqwest::header::HeaderValue::from_static(value));
    }
}

/// HTTP authentication scheme for an API other than the distribution API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthScheme {
    /// User name and password (RFC 7617), for example for Harbor.
    Basic,
    /// The password as a bearer token (RFC 6750), for example for GitLab and Quay.
    Bearer,
}

/// Client for all registries of a run. Clones are cheap, and share credentials, tokens and limits between threads.
#[derive(Clone)]
pub struct Registries {
    shared: Arc<Shared>,
    patience: Duration,
}

/// State that all clones of [`Registries`] share.
struct Shared {
    http: Http,
    hosts: Hosts,
    tokens: Tokens,
    credentials: CredentialSources,
    settings: RegistriesSettings,
    ducc: Vec<DuccRegistry>,
    clock: Arc<dyn Clock>,
    reporter: Reporter,
}

impl fmt::Debug for Registries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registries").field("patience", &self.patience).finish_non_exhaustive()
    }
}

impl Registries {
    /// Creates the client. Credential files are not read before a registry requests authentication.
    ///
    /// Fails if the `DUCC_…` environment variables are incomplete or the settings are contradictory.
    pub fn new(settings: RegistriesSettings, environment: EnvironmentLookup<'_>) -> Result<Self, RegistryError> {
        Self::with_cancellation(settings, environment, &Cancellation::default())
    }

    /// Creates the client like [`new`](Self::new). In addition, `cancellation` ends the requests that wait for a registry.
    pub fn with_cancellation(
        settings: RegistriesSettings,
        environment: EnvironmentLookup<'_>,
        cancellation: &Cancellation,
    ) -> Result<Self, RegistryError> {
        let clock = SystemClock { cancellation: cancellation.clone() };
        Self::with_clock(settings, environment, TimeLimits::default(), Arc::new(clock))
    }

    /// Creates the client with the environment variables of this process and without settings.
    pub fn from_environment() -> Result<Self, RegistryError> {
        Self::new(RegistriesSettings::default(), &|name| std::env::var_os(name))
    }

    fn with_clock(
        settings: RegistriesSettings,
        environment: EnvironmentLookup<'_>,
        limits: TimeLimits,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, RegistryError> {
        for (host, registry) in &settings.hosts {
            if let Some(fault) = registry.fault() {
                return Err(RegistryError::Settings { host: host.clone(), fault });
            }
        }
        let ducc = ducc::registries(environment)?;
        let limits = TimeLimits {
            request: settings.requests.timeout.unwrap_or(limits.request),
            minimum_rate: settings.requests.minimum_rate.unwrap_or(limits.minimum_rate),
            ..limits
        };
        let http = Http::new(
            limits,
            Proxies::from_environment(environment),
            client_settings(&settings),
            host_limits(&settings, limits),
        );
        let credentials = CredentialSources::new(settings.clone(), ducc.clone(), environment);
        let (hosts, tokens) = (Hosts::default(), Tokens::default());
        let shared = Shared { http, hosts, tokens, credentials, settings, ducc, clock, reporter: Reporter::silent() };
        Ok(Self { shared: Arc::new(shared), patience: PATIENCE })
    }

    /// Returns a clone whose requests wait up to `patience` for a parked registry. If the registry is parked for longer, the
    /// request fails with the end of that time (see [`RegistryError::parked_until`]). Requests never wait for a parked mirror.
    pub fn with_patience(&self, patience: Duration) -> Self {
        Self { patience, ..self.clone() }
    }

    /// Sets the observer. Without it, messages are dropped. Panics if `self` has been cloned.
    pub fn with_reporter(mut self, reporter: &Reporter) -> Self {
        let shared = Arc::get_mut(&mut self.shared).expect("a new client has no clones");
        shared.http.reporter = reporter.clone();
        shared.hosts = Hosts::new(reporter);
        shared.reporter = reporter.clone();
        self
    }

    /// Returns the reporter to the observer of this client.
    pub(crate) fn reporter(&self) -> &Reporter {
        &self.shared.reporter
    }

    /// Creates the HTTP client for a host in advance: the client needs a thread, which the system may refuse later.
    pub(crate) fn prepare(&self, host: &str) -> Result<(), RegistryError> {
        Ok(self.shared.http.prepare(host)?)
    }

    /// Sets credentials for one host, which precede all other credentials. Panics if `self` has been cloned.
    fn with_login(mut self, host: &str, credentials: Credentials, origin: &'static str) -> Self {
        let shared = Arc::get_mut(&mut self.shared).expect("a new client has no clones");
        shared.credentials.set_login(host, credentials, origin);
        self
    }

    /// Returns the digest of the manifest or index at a location, with a `HEAD` request if the registry supports it.
    ///
    /// Registries and proxies answer `HEAD` incorrectly in many ways. Therefore an error is returned only after a `GET` request
    /// for the manifest has failed, too.
    pub fn head(&self, location: &ImageLocation) -> Result<Digest, RegistryError> {
        if self.host_of(location).rejects_head(self.shared.clock.now()) {
            return Ok(self.manifest(location, None, RetryBudget::Full)?.0.digest);
        }
        let repository = remote_repository(location.name.host(), location.name.repository());
        let what = format!("manifest of {location}");
        let call = Call { method: Method::HEAD, ..manifest_call(&repository, what) };
        let path = format!("manifests/{}", location.reference());
        let found =
            self.small_request(location, &call, &path, RetryBudget::FirstHalf, |response| {
                match content_digest(&response) {
                    Some(actual) => match location.digest().filter(|&expected| expected != actual) {
                        Some(expected) => {
                            Err(RegistryError::WrongDigest { url: redacted(&response.url), expected, actual })
                        }
                        None => Ok(Some(actual)),
                    },
                    None => Ok(None),
                }
            });
        match found {
            Ok(Some(digest)) => Ok(digest),
            // Some registries do not send `Docker-Content-Digest`.
            Ok(None) => Ok(self.manifest(location, None, RetryBudget::Full)?.0.digest),
            // Some registries limit `HEAD` requests alone.
            Err(error) if error.is_chosen_pause() => match self.manifest(location, None, RetryBudget::Confirmation) {
                Err(RegistryError::Parked { .. } | RegistryError::GivenUp { .. }) => Err(error),
                result => {
                    let digest = result?.0.digest;
                    self.host_of(location).note_head_rejected(self.shared.clock.now());
                    Ok(digest)
                }
            },
            Err(error) if !error.may_depend_on_method() => Err(error),
            Err(error) => {
                let budget = if error.is_transient() { RetryBudget::SingleAttempt } else { RetryBudget::SecondHalf };
                match self.manifest(location, None, budget) {
                    Err(RegistryError::GivenUp { .. }) => Err(error),
                    result => Ok(result?.0.digest),
                }
            }
        }
    }

    /// Returns the tags of a repository, sorted. Strings that are not valid tags are left out.
    pub fn tags(&self, host: &str, repository: &str, transport: Transport) -> Result<Vec<String>, RegistryError> {
        #[derive(Deserialize)]
        struct Page {
            #[serde(deserialize_with = "nullable")]
            tags: Option<Vec<String>>,
        }
        let repository_at_registry = remote_repository(host, repository);
        let call = Call::pull(&repository_at_registry, format!("tags of {host}/{repository}"));
        let first = |endpoint: &Endpoint| endpoint.url(&repository_at_registry, "tags/list");
        self.list(host, transport, &call, first, |page: Page| page.tags.unwrap_or_default(), is_tag)
    }

    /// Returns the repositories of a registry, sorted, from `_catalog`. Many registries do not support `_catalog`, or only for
    /// some users.
    pub fn repositories(&self, host: &str, transport: Transport) -> Result<Vec<String>, RegistryError> {
        #[derive(Deserialize)]
        struct Page {
            #[serde(deserialize_with = "nullable")]
            repositories: Option<Vec<String>>,
        }
        let what = format!("list of repositories at {host}");
        let call = Call { scope: "registry:catalog:*".to_owned(), ..Call::pull("", what) };
        let names = |page: Page| page.repositories.unwrap_or_default();
        self.list(host, transport, &call, Endpoint::catalog_url, names, is_repository)
    }

    /// Fetches JSON from an API other than the distribution API, with the credentials for the host of `url`.
    ///
    /// Credentials are sent without an authentication challenge, because such servers silently omit private repositories from
    /// the response to an anonymous request. They are sent over plain HTTP only if the settings have `plain_http` for the
    /// host or the host is this machine.
    pub fn get_json(&self, url: &str, credentials: AuthScheme) -> Result<JsonPage, RegistryError> {
        let url: Url = url.parse().map_err(|_| RegistryError::Url(url.to_owned()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(RegistryError::Url(url.to_string()));
        }
        let endpoint = Endpoint::of_url(&url, &self.shared.settings);
        let host = self.shared.hosts.get(&endpoint.authority(), endpoint.connections);
        self.with_retries(&endpoint, RetryBudget::Full, self.patience, |allowance| {
            let _permit = host.admit(&*self.shared.clock, allowance, false, &redacted(&url))?;
            let deadline = allowance.begin();
            let found =
                endpoint.credentials_of.as_ref().map(|host| self.shared.credentials.find(host, "")).transpose()?;
            let shown_credentials = found.as_ref().and_then(|found| found.credentials.as_ref());
            let authorization = shown_credentials.and_then(|shown| match credentials {
                AuthScheme::Basic => shown.basic(),
                AuthScheme::Bearer => shown.bearer(),
            });
            let request = Request { authorization, deadline, ..Request::get(url.clone()) };
            let response = self.shared.http.send(&request)?;
            let origin = || Ok(found.map_or_else(|| "no credentials were sent to it".to_owned(), |found| found.origin));
            let response = self.shared.check_status(
                response,
                &host,
                RequestLabel { what: &redacted(&url), mirror: None },
                origin,
            )?;
            let (headers, next) = (response.headers().clone(), paging::next_page(&url, response.headers())?);
            let body = json(response, MAX_API_PAGE)?;
            Ok(JsonPage { body, next: next.map(String::from), headers })
        })
    }

    /// Fetches a manifest and returns it with its media type: the manifest at `location`, or the one with `digest` in the same
    /// repository.
    pub(crate) fn manifest(
        &self,
        location: &ImageLocation,
        digest: Option<&Digest>,
        budget: RetryBudget,
    ) -> Result<(Document, String), RegistryError> {
        let repository = remote_repository(location.name.host(), location.name.repository());
        let expected = digest.copied().or_else(|| location.digest());
        let reference = expected.map_or_else(|| location.reference(), |digest| digest.to_string());
        let what = match digest {
            Some(digest) => format!("manifest {digest} of {location}"),
            None => format!("manifest of {location}"),
        };
        let path = format!("manifests/{reference}");
        self.small_request(location, &manifest_call(&repository, what), &path, budget, |response| {
            let (url, media_type, claimed) =
                (redacted(&response.url), response.media_type(), content_digest(&response));
            let document = Document::new(document(response)?);
            let actual = document.digest;
            let mut promised = expected.into_iter().chain(claimed);
            // The digest of a signed manifest of schema 1 does not cover its signatures. The caller rejects schema 1
            // with a clear error.
            match promised.find(|&promised| promised != actual && !is_schema_1(&document.bytes)) {
                Some(expected) => Err(RegistryError::WrongDigest { url, expected, actual }),
                None => Ok((document, media_type)),
            }
        })
    }

    /// Fetches a blob of up to [`MAX_DOCUMENT_SIZE`] bytes and verifies its digest.
    pub(crate) fn small_blob(&self, location: &ImageLocation, digest: &Digest) -> Result<Vec<u8>, RegistryError> {
        let repository = remote_repository(location.name.host(), location.name.repository());
        let call = Call::pull(&repository, format!("blob {digest} of {location}"));
        self.small_request(location, &call, &format!("blobs/{digest}"), RetryBudget::Full, |response| {
            let (url, bytes) = (redacted(&response.url), document(response)?);
            match Digest::of(&bytes) {
                actual if actual == *digest => Ok(bytes),
                actual => Err(RegistryError::WrongDigest { url, expected: *digest, actual }),
            }
        })
    }

    /// Returns the token that cancels requests and downloads.
    pub(crate) fn cancellation(&self) -> Cancellation {
        self.shared.clock.cancellation()
    }

    /// Waits until another layer may be downloaded from the registry of `location`.
    pub(crate) fn download_permit(&self, location: &ImageLocation) -> Permit {
        self.host_of(location).download()
    }

    /// Returns a permit to download another layer from the registry of `location`, unless the maximum number is under way.
    pub(crate) fn try_download_permit(&self, location: &ImageLocation) -> Option<Permit> {
        self.host_of(location).try_download()
    }

    /// Returns the host whose maximum number of downloads applies to `location`: the registry, even if a mirror sends the layer.
    fn host_of(&self, location: &ImageLocation) -> Arc<Host> {
        let name = location.name.host();
        let connections = self.shared.settings.hosts.get(name).and_then(|registry| registry.connections);
        self.shared.hosts.get(name, connections.unwrap_or(DEFAULT_CONNECTIONS))
    }

    /// Returns the limits for downloads of layers of `location`.
    pub(crate) fn policy(&self, location: &ImageLocation) -> DownloadPolicy {
        let limits = self.shared.http.limits_of(&remote_authority(location.name.host()));
        let (minimum_rate, rate_window) = (limits.minimum_rate, limits.stall);
        DownloadPolicy { max_parked: self.patience, minimum_rate, rate_window, ..DownloadPolicy::default() }
    }

    /// Requests a blob from byte `offset` on. A server without support for ranges sends it from its first byte.
    ///
    /// `urls` are tried first, without credentials. Each server is tried once. The caller must verify the digest.
    pub(crate) fn open_blob(
        &self,
        location: &ImageLocation,
        digest: &Digest,
        urls: &[String],
        offset: u64,
    ) -> Result<OpenedBlob, RegistryError> {
        let host = location.name.host();
        let repository = remote_repository(host, location.name.repository());
        let call = Call { offset, ..Call::pull(&repository, format!("blob {digest} of {location}")) };
        // image-spec, "Descriptors", `urls`. The author of the image chooses these servers, so they must not get credentials.
        let foreign = urls.iter().filter_map(|url| url.parse().ok()).filter(|url: &Url| {
            matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.password().is_none()
        });
        let foreign = foreign.map(|url| (Endpoint::of_url(&url, &self.shared.settings).without_credentials(), url));
        let servers = endpoints(host, &repository, location.transport, &self.shared.settings, &self.shared.ducc)?;
        let servers = servers.into_iter().map(|endpoint| {
            let url = endpoint.url(&repository, &format!("blobs/{digest}"));
            (endpoint, url)
        });
        self.first_success(foreign.chain(servers).collect(), |endpoint, url, patience| {
            let allowance = Allowance::large(self.shared.clock.now(), patience.unwrap_or_default());
            // The permit for this request is dropped at the end of this function. The caller holds the permit for the whole
            // download.
            let (response, _permit) = self.shared.exchange(endpoint, url, &call, &allowance)?;
            Ok(OpenedBlob { mirror: endpoint.mirror.clone(), ..response.into_blob(offset)? })
        })
    }
}

fn manifest_call(repository: &str, what: String) -> Call<'_> {
    Call { accept: Some(MANIFEST_TYPES), is_manifest: true, ..Call::pull(repository, what) }
}

/// Returns the client settings by host and port.
fn client_settings(settings: &RegistriesSettings) -> HashMap<String, ClientSettings> {
    let by_host = settings.hosts.iter().map(|(host, registry)| {
        let certificates = registry.ca.as_ref().map(|file| settings.directory.join(file));
        (remote_authority(host), ClientSettings { certificates, stall: registry.stall_timeout })
    });
    by_host.collect()
}

/// Returns the time limits by host and port, for hosts that the settings name.
fn host_limits(settings: &RegistriesSettings, defaults: TimeLimits) -> HashMap<String, HostLimits> {
    let limits = settings.hosts.iter().map(|(host, registry)| {
        let limits = HostLimits {
            request: registry.request_timeout.unwrap_or(defaults.request),
            stall: registry.stall_timeout.unwrap_or(defaults.stall),
            minimum_rate: registry.minimum_rate.unwrap_or(defaults.minimum_rate),
        };
        (remote_authority(host), limits)
    });
    limits.collect()
}

/// Returns the digest in `Docker-Content-Digest`, if it is a SHA-256 digest.
fn content_digest(response: &HttpResponse) -> Option<Digest> {
    response.header("docker-content-digest")?.parse().ok()
}

/// Reads a manifest, index or config of up to [`MAX_DOCUMENT_SIZE`] bytes.
fn document(response: HttpResponse) -> Result<Vec<u8>, RegistryError> {
    response.refuse_web_page()?;
    Ok(response.read(MAX_DOCUMENT_SIZE)?)
}

/// Accepts `null`, which registries write for an empty list. A missing member stays an error.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    Option::deserialize(deserializer)
}

fn json<T: DeserializeOwned>(response: HttpResponse, limit: u64) -> Result<T, RegistryError> {
    response.refuse_web_page()?;
    let (url, reason) = (redacted(&response.url), "it is not the expected JSON".to_owned());
    serde_json::from_slice(&response.read(limit)?).map_err(|_| HttpError::InvalidResponse { url, reason }.into())
}

impl Retryable for RegistryError {
    fn is_transient(&self) -> bool {
        Self::is_transient(self)
    }

    fn parked_until(&self) -> Option<Instant> {
        Self::parked_until(self)
    }
}
