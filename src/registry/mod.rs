//! Images at registries that speak the OCI distribution protocol, and the lists of what they have.
//!
//! All threads of a run share one [`Registries`]: its tokens, how many requests each host gets at a time, and until when a
//! host wants none. Small requests are tried again after failures that may pass, and are limited in time as a whole. A layer is
//! asked for once; whoever reads it knows best where to go on.

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
mod http;
mod limits;
mod paging;
mod push;
mod resolver;
mod retry;
mod settings;
#[cfg(test)]
mod tests;
mod token;
mod transfer;

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap};
use reqwest::{Method, Url};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

use crate::image::{
    Digest, Document, ImageName, ImageReference, MAX_DOCUMENT_SIZE, is_repository, is_schema_1, is_tag,
};
use allowance::Allowance;
use clock::{Clock, SystemClock};
use credentials::{CredentialSources, Credentials};
use ducc::DuccRegistry;
use endpoint::{Endpoint, endpoints, remote_authority, remote_repository};
use exchange::{Call, RequestLabel};
use http::{ClientSettings, HostLimits, Http, HttpResponse, Proxies, redacted};
use limits::{Host, Hosts};
use token::Tokens;
use transfer::{DownloadPolicy, OpenedBlob, Retryable};

pub use ducc::EnvironmentLookup;
pub use error::{ErrorBody, RegistryError};
pub use http::TimeLimits;
pub(crate) use limits::{Permit, lock};
pub use push::{ImageUpload, PushOutcome};
pub(crate) use retry::RetryBudget;
pub use settings::{
    DEFAULT_CONNECTIONS, DEFAULT_MINIMUM_RATE, DEFAULT_PATIENCE, DEFAULT_REQUEST_TIMEOUT, RegistriesSettings,
    RegistrySettings, RequestSettings, Secret,
};
pub(crate) use transfer::Download;

/// What manifests are taken: one header, since some registries look at the first only.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json";
/// The size up to which a page of another interface is read, in bytes: it takes many times that in memory.
const MAX_API_PAGE: u64 = 2 << 20;
/// How long a request waits for a registry that asks to wait, where nothing else is said.
const PATIENCE: Duration = Duration::from_secs(600);

/// How a registry is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transport {
    /// With encryption, unless the settings say otherwise, or a registry on this machine knows none.
    #[default]
    Secure,
    /// Without.
    Plain,
}

impl Transport {
    /// Returns how a registry is spoken to that was named with `http://` in front, or without.
    pub fn of(plain_http: bool) -> Self {
        if plain_http { Self::Plain } else { Self::Secure }
    }
}

/// Where an image is: a registry, a repository there, and a tag or a digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageLocation {
    /// The name, with the host as it was spelt.
    pub name: ImageName,
    /// The manifest that is fetched, whatever the tag stands for by now.
    pub digest: Option<Digest>,
    /// How the registry is spoken to.
    pub transport: Transport,
}

impl ImageLocation {
    /// Returns the digest of the manifest, if it is given.
    pub fn digest(&self) -> Option<Digest> {
        let of_name = match self.name.reference() {
            ImageReference::Digest(digest) => Some(*digest),
            ImageReference::Tag(_) => None,
        };
        self.digest.or(of_name)
    }

    /// Returns what its registry calls its manifest.
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

/// One JSON response of an API that registries have beside the distribution API, such as Harbor's.
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

/// HTTP authentication scheme for an API beside the distribution API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthScheme {
    /// HTTP Basic authentication with user name and password. Harbor and Docker Hub accept it.
    Basic,
    /// The password as a bearer token. GitLab and Quay accept it.
    Bearer,
}

/// All registries that a run talks to: credentials, tokens, limits. Cheap to clone, and shared by threads.
#[derive(Clone)]
pub struct Registries {
    shared: Arc<Shared>,
    patience: Duration,
}

/// What all threads share.
struct Shared {
    http: Http,
    hosts: Hosts,
    tokens: Tokens,
    credentials: CredentialSources,
    settings: RegistriesSettings,
    ducc: Vec<DuccRegistry>,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for Registries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registries").field("patience", &self.patience).finish_non_exhaustive()
    }
}

impl Registries {
    /// Prepares to talk to registries. Files of credentials are read when a registry asks for some.
    ///
    /// Fails when DUCC's variables are not complete, or the settings contradict themselves.
    pub fn new(settings: RegistriesSettings, environment: EnvironmentLookup<'_>) -> Result<Self, RegistryError> {
        Self::with_clock(settings, environment, TimeLimits::default(), Arc::new(SystemClock))
    }

    /// Prepares to talk to registries as this process's environment says, without any settings.
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
        let http = Http::new(limits, proxies(environment), terms(&settings), host_limits(&settings, limits));
        let credentials = CredentialSources::new(settings.clone(), ducc.clone(), environment);
        let (hosts, tokens) = (Hosts::default(), Tokens::default());
        let shared = Shared { http, hosts, tokens, credentials, settings, ducc, clock };
        Ok(Self { shared: Arc::new(shared), patience: PATIENCE })
    }

    /// Returns the same registries, whose requests wait up to `patience` for one that asks to wait. Beyond that, the
    /// error says until when (see [`RegistryError::parked_until`]). Mirrors are not waited for.
    pub fn with_patience(&self, patience: Duration) -> Self {
        Self { patience, ..self.clone() }
    }

    /// Returns the same registries, none of which anybody has asked yet, with these credentials for one host.
    fn with_login(mut self, host: &str, credentials: Credentials, place: &'static str) -> Self {
        let shared =
            Arc::get_mut(&mut self.shared).expect("registries that nobody has asked are in nobody else's hands");
        shared.credentials.set_login(host, credentials, place);
        self
    }

    /// Returns the digest of what a name stands for, without fetching it if the registry allows for that.
    ///
    /// Registries and what lies before them answer this question in many wrong ways, so that no failure counts before one
    /// request for the manifest itself has failed, too.
    pub fn head(&self, place: &ImageLocation) -> Result<Digest, RegistryError> {
        let repository = remote_repository(place.name.host(), place.name.repository());
        let what = format!("manifest of {place}");
        let call = Call { method: Method::HEAD, ..manifest_call(&repository, what) };
        let path = format!("manifests/{}", place.reference());
        let found =
            self.small(place, &call, &path, RetryBudget::FirstHalf, |response| match content_digest(&response) {
                Some(actual) => match place.digest().filter(|&expected| expected != actual) {
                    Some(expected) => {
                        Err(RegistryError::WrongDigest { url: redacted(&response.url), expected, actual })
                    }
                    None => Ok(Some(actual)),
                },
                None => Ok(None),
            });
        match found {
            Ok(Some(digest)) => Ok(digest),
            // Some registries do not know the header.
            Ok(None) => Ok(self.manifest(place, None, RetryBudget::Full)?.0.digest),
            Err(error) if !error.may_depend_on_method() => Err(error),
            Err(error) => {
                let budget = if error.is_transient() { RetryBudget::SingleAttempt } else { RetryBudget::SecondHalf };
                match self.manifest(place, None, budget) {
                    Err(RegistryError::GivenUp { .. }) => Err(error),
                    result => Ok(result?.0.digest),
                }
            }
        }
    }

    /// Returns the tags of a repository, in order. What is no tag is left out.
    pub fn tags(&self, host: &str, repository: &str, transport: Transport) -> Result<Vec<String>, RegistryError> {
        #[derive(Deserialize)]
        struct Page {
            #[serde(deserialize_with = "nullable")]
            tags: Option<Vec<String>>,
        }
        let asked = remote_repository(host, repository);
        let call = Call::pull(&asked, format!("tags of {host}/{repository}"));
        let first = |endpoint: &Endpoint| endpoint.url(&asked, "tags/list");
        self.list(host, transport, &call, first, |page: Page| page.tags.unwrap_or_default(), is_tag)
    }

    /// Returns the repositories that a registry lists, in order; many list none, or not to everybody.
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

    /// Fetches JSON from a server's own interface, with the credentials that there are for its host.
    ///
    /// They are shown unasked, as such servers leave out what one may not see, but never without encryption unless the
    /// settings have `plain_http` for the host, or it is this machine.
    pub fn get_json(&self, url: &str, credentials: AuthScheme) -> Result<JsonPage, RegistryError> {
        let url: Url = url.parse().map_err(|_| RegistryError::Url(url.to_owned()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(RegistryError::Url(url.to_string()));
        }
        let endpoint = Endpoint::of_url(&url, &self.shared.settings);
        let host = self.shared.hosts.get(&endpoint.authority(), endpoint.connections);
        self.asked(&endpoint, RetryBudget::Full, self.patience, |allowance| {
            let _permit = host.admit(&*self.shared.clock, allowance, false, &redacted(&url))?;
            let deadline = allowance.begin();
            let found =
                endpoint.credentials_of.as_ref().map(|host| self.shared.credentials.find(host, "")).transpose()?;
            let shown_credentials = found.as_ref().and_then(|found| found.credentials.as_ref());
            let authorization = shown_credentials.and_then(|shown| match credentials {
                AuthScheme::Basic => shown.basic(),
                AuthScheme::Bearer => shown.bearer(),
            });
            let request = http::Request { authorization, deadline, ..http::Request::get(url.clone()) };
            let response = self.shared.http.send(&request)?;
            let place = || Ok(found.map_or_else(|| "credentials are not shown to it".to_owned(), |found| found.place));
            let response =
                self.shared.judged(response, &host, RequestLabel { what: &redacted(&url), mirror: None }, place)?;
            let (headers, next) = (response.headers().clone(), paging::next_page(&url, response.headers())?);
            let body = json(response, MAX_API_PAGE)?;
            Ok(JsonPage { body, next: next.map(String::from), headers })
        })
    }

    /// Fetches a manifest: that of the place, or another of its repository by its digest. Returns it with its media type.
    pub(crate) fn manifest(
        &self,
        place: &ImageLocation,
        digest: Option<&Digest>,
        budget: RetryBudget,
    ) -> Result<(Document, String), RegistryError> {
        let repository = remote_repository(place.name.host(), place.name.repository());
        let expected = digest.copied().or_else(|| place.digest());
        let reference = expected.map_or_else(|| place.reference(), |digest| digest.to_string());
        let what = match digest {
            Some(digest) => format!("manifest {digest} of {place}"),
            None => format!("manifest of {place}"),
        };
        let path = format!("manifests/{reference}");
        self.small(place, &manifest_call(&repository, what), &path, budget, |response| {
            let (url, media_type, claimed) =
                (redacted(&response.url), response.media_type(), content_digest(&response));
            let document = Document::new(document(response)?);
            let actual = document.digest;
            let mut promised = expected.into_iter().chain(claimed);
            match promised.find(|&promised| promised != actual && !is_schema_1(&document.bytes)) {
                Some(expected) => Err(RegistryError::WrongDigest { url, expected, actual }),
                None => Ok((document, media_type)),
            }
        })
    }

    /// Fetches a blob that is no layer.
    pub(crate) fn small_blob(&self, place: &ImageLocation, digest: &Digest) -> Result<Vec<u8>, RegistryError> {
        let repository = remote_repository(place.name.host(), place.name.repository());
        let call = Call::pull(&repository, format!("blob {digest} of {place}"));
        self.small(place, &call, &format!("blobs/{digest}"), RetryBudget::Full, |response| {
            let (url, bytes) = (redacted(&response.url), document(response)?);
            match Digest::of(&bytes) {
                actual if actual == *digest => Ok(bytes),
                actual => Err(RegistryError::WrongDigest { url, expected: *digest, actual }),
            }
        })
    }

    /// Waits until one more layer of a place may be downloaded.
    pub(crate) fn download_permit(&self, place: &ImageLocation) -> Permit {
        self.host_of(place).download()
    }

    /// Returns the permission to download one more layer of a place, if that is possible now.
    pub(crate) fn try_download_permit(&self, place: &ImageLocation) -> Option<Permit> {
        self.host_of(place).try_download()
    }

    /// Returns the host whose downloads those of a place count as, whichever server they come from.
    fn host_of(&self, place: &ImageLocation) -> Arc<Host> {
        let name = place.name.host();
        let connections = self.shared.settings.hosts.get(name).and_then(|registry| registry.connections);
        self.shared.hosts.get(name, connections.unwrap_or(DEFAULT_CONNECTIONS))
    }

    /// Returns how hard layers of a place are tried for.
    pub(crate) fn policy(&self, place: &ImageLocation) -> DownloadPolicy {
        let limits = self.shared.http.limits_of(&remote_authority(place.name.host()));
        let (minimum_rate, rate_window) = (limits.minimum_rate, limits.stall);
        DownloadPolicy { max_parked: self.patience, minimum_rate, rate_window, ..DownloadPolicy::default() }
    }

    /// Begins to read a blob at byte `offset`, or at its start if the server cannot do otherwise.
    ///
    /// `urls` are asked first, without credentials. There is one attempt for each server; the digest is left to the reader.
    pub(crate) fn open_blob(
        &self,
        place: &ImageLocation,
        digest: &Digest,
        urls: &[String],
        offset: u64,
    ) -> Result<OpenedBlob, RegistryError> {
        let host = place.name.host();
        let repository = remote_repository(host, place.name.repository());
        let call = Call { offset, ..Call::pull(&repository, format!("blob {digest} of {place}")) };
        let foreign = urls.iter().filter_map(|url| url.parse().ok()).filter(|url: &Url| {
            matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.password().is_none()
        });
        let foreign = foreign.map(|url| (Endpoint::of_url(&url, &self.shared.settings).without_credentials(), url));
        let own = endpoints(host, &repository, place.transport, &self.shared.settings, &self.shared.ducc)?;
        let own = own.into_iter().map(|endpoint| {
            let url = endpoint.url(&repository, &format!("blobs/{digest}"));
            (endpoint, url)
        });
        self.first_of(foreign.chain(own).collect(), |endpoint, url, patience| {
            let allowance = Allowance::large(self.shared.clock.now(), patience.unwrap_or_default());
            // The download is counted as a whole.
            let (response, _permit) = self.shared.exchange(endpoint, url, &call, &allowance)?;
            Ok(OpenedBlob { mirror: endpoint.mirror.clone(), ..opened(response, offset)? })
        })
    }
}

fn manifest_call(repository: &str, what: String) -> Call<'_> {
    Call { accept: Some(MANIFEST_TYPES), is_manifest: true, ..Call::pull(repository, what) }
}

/// Returns on what terms each host and port is asked for which something is set.
fn terms(settings: &RegistriesSettings) -> HashMap<String, ClientSettings> {
    let terms = settings.hosts.iter().map(|(host, registry)| {
        let certificates = registry.ca.as_ref().map(|file| settings.directory.join(file));
        (remote_authority(host), ClientSettings { certificates, stall: registry.stall_timeout })
    });
    terms.collect()
}

/// Returns the limits of each host and port for which some are set.
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

fn proxies(environment: EnvironmentLookup<'_>) -> Proxies {
    let get =
        |names: [&str; 2]| names.into_iter().find_map(environment).and_then(|value| OsString::into_string(value).ok());
    Proxies {
        https: get(["HTTPS_PROXY", "https_proxy"]),
        http: get(["HTTP_PROXY", "http_proxy"]),
        none_for: get(["NO_PROXY", "no_proxy"]).unwrap_or_default(),
    }
}

/// Returns the digest that a registry gives its answer, if it is of the one kind that can be compared.
fn content_digest(response: &HttpResponse) -> Option<Digest> {
    response.header("docker-content-digest")?.parse().ok()
}

/// Refuses web pages, as proxies and log-in services send them with the best status.
fn refuse_web_page(response: &HttpResponse) -> Result<(), RegistryError> {
    if response.media_type() != "text/html" {
        return Ok(());
    }
    let reason = "it is a web page; perhaps a proxy or a log-in page is in the way".to_owned();
    Err(RegistryError::InvalidResponse { url: redacted(&response.url), reason })
}

/// Reads a JSON document as it is.
fn document(response: HttpResponse) -> Result<Vec<u8>, RegistryError> {
    refuse_web_page(&response)?;
    response.read(MAX_DOCUMENT_SIZE)
}

/// Takes `null` for nothing, as registries write it for an empty list; a member that is missing is an error all the same.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    Option::deserialize(deserializer)
}

fn json<T: DeserializeOwned>(response: HttpResponse, limit: u64) -> Result<T, RegistryError> {
    refuse_web_page(&response)?;
    let (url, reason) = (redacted(&response.url), "it is not the JSON that was asked for".to_owned());
    serde_json::from_slice(&response.read(limit)?).map_err(|_| RegistryError::InvalidResponse { url, reason })
}

/// Makes a body of an answer, after a look at where it begins.
fn opened(response: HttpResponse, offset: u64) -> Result<OpenedBlob, RegistryError> {
    refuse_web_page(&response)?;
    let length = response.header(CONTENT_LENGTH.as_str()).and_then(|text| text.parse().ok());
    let unusable =
        |reason: &str| RegistryError::InvalidResponse { url: redacted(&response.url), reason: reason.to_owned() };
    let start = match response.status() {
        206 => {
            let range = response.header(CONTENT_RANGE.as_str()).and_then(first_byte);
            range
                .filter(|&start| start == offset)
                .ok_or_else(|| unusable("it begins at another byte than was asked"))?
        }
        200 => 0,
        status => return Err(unusable(&format!("it has no content, but status {status}"))),
    };
    Ok(OpenedBlob { start, length, mirror: None, body: Box::new(response.response) })
}

/// Returns the first byte of `bytes 5-9/10`.
fn first_byte(range: &str) -> Option<u64> {
    let (first, rest) = range.trim().strip_prefix("bytes ")?.trim().split_once('-')?;
    let (last, _) = rest.split_once('/')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some(first)
}

impl Retryable for RegistryError {
    fn is_transient(&self) -> bool {
        Self::is_transient(self)
    }

    fn parked_until(&self) -> Option<Instant> {
        Self::parked_until(self)
    }
}
