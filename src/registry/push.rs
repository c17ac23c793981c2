//! Pushes images: the missing blobs first, and the manifest last (distribution-spec, "Push").
//!
//! All requests go to the registry itself, because mirrors and caching proxies are read-only.

use reqwest::header::LOCATION;
use reqwest::{Method, Url};

use super::allowance::Allowance;
use super::credentials::Credentials;
use super::ducc::EnvironmentLookup;
use super::endpoint::{Endpoint, origin, remote_repository};
use super::exchange::Call;
use super::{
    MANIFEST_TYPES, Registries, RegistriesSettings, RegistryError, RetryBudget, Transport, content_digest, document,
};
use crate::http::{
    ConfigurationError, HttpError, HttpResponse, RequestBody, is_same_origin, redacted, redirect_target,
};
use crate::image::{Digest, ImageName, ImageReference};

/// Environment variable with the password for pushing, as in DUCC.
const PASSWORD: &str = "DUCC_OUTPUT_REGISTRY_PASS";

/// An image to push, completely in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageUpload {
    /// The manifest.
    pub manifest: Vec<u8>,
    /// The media type of the manifest.
    pub media_type: &'static str,
    /// All blobs that the manifest references.
    pub blobs: Vec<Vec<u8>>,
}

/// Result of a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushOutcome {
    /// The manifest has been pushed.
    Pushed,
    /// The tag already pointed to the same manifest.
    AlreadyPresent,
}

/// A push in progress.
struct Push<'a> {
    registries: &'a Registries,
    endpoint: Endpoint,
    /// Repository name at the registry.
    repository: String,
    name: &'a ImageName,
}

impl Registries {
    /// Creates a client for pushing. `login` contains a host and a user name; the password is read from
    /// `DUCC_OUTPUT_REGISTRY_PASS`. The same credentials as for reading are used for all other hosts, and for this host if
    /// `login` or the password is missing.
    pub fn for_pushing(
        settings: RegistriesSettings,
        environment: EnvironmentLookup<'_>,
        login: Option<(&str, &str)>,
    ) -> Result<Self, RegistryError> {
        let registries = Self::new(settings, environment)?;
        let password = environment(PASSWORD).filter(|password| !password.is_empty()).map(|password| {
            let fault = "is not valid UTF-8";
            password.into_string().map_err(|_| ConfigurationError::Variable { variable: PASSWORD.to_owned(), fault })
        });
        Ok(match (login, password.transpose()?) {
            (Some((host, user)), Some(password)) => {
                registries.with_login(host, Credentials::new(user, &password), PASSWORD)
            }
            _ => registries,
        })
    }

    /// Pushes an image under the tag in `name`. Blobs that the registry already has are not sent.
    ///
    /// Fails if `name` has a digest instead of a tag.
    pub fn push(
        &self,
        name: &ImageName,
        transport: Transport,
        image: &ImageUpload,
    ) -> Result<PushOutcome, RegistryError> {
        let ImageReference::Tag(tag) = name.reference() else {
            return Err(RegistryError::PushToDigest { name: name.to_string() });
        };
        let repository = remote_repository(name.host(), name.repository());
        let endpoint = origin(name.host(), &repository, transport, &self.shared.settings)?;
        let push = Push { registries: self, endpoint, repository, name };
        push.run(tag, image)
    }
}

impl Push<'_> {
    fn run(&self, tag: &str, image: &ImageUpload) -> Result<PushOutcome, RegistryError> {
        let digest = Digest::of(&image.manifest);
        let path = format!("manifests/{tag}");
        if self.existing(&path, true)?.is_some_and(|found| found == Some(digest)) {
            return Ok(PushOutcome::AlreadyPresent);
        }
        for blob in &image.blobs {
            let digest = Digest::of(blob);
            if self.existing(&format!("blobs/{digest}"), false)?.is_none() {
                self.upload(digest, blob)?;
            }
        }
        let body = RequestBody { media_type: image.media_type, bytes: image.manifest.clone() };
        let call = self.call(Method::PUT, Some(body), format!("manifest of {} to be pushed", self.name));
        let response = self.send_with_retries(&self.endpoint.url(&self.repository, &path), &call, RetryBudget::Full)?;
        match content_digest(&response).filter(|&actual| actual != digest) {
            Some(actual) => Err(RegistryError::WrongDigest { url: redacted(&response.url), expected: digest, actual }),
            None => Ok(PushOutcome::Pushed),
        }
    }

    /// Checks whether the registry has the manifest or blob at `path`. Returns `None` if the registry does not have it,
    /// `Some(None)` if the response does not state the digest, and the digest otherwise.
    fn existing(&self, path: &str, is_manifest: bool) -> Result<Option<Option<Digest>>, RegistryError> {
        let what = format!("{path} of {}", self.name);
        let call = Call { accept: is_manifest.then_some(MANIFEST_TYPES), ..self.call(Method::HEAD, None, what) };
        let url = self.endpoint.url(&self.repository, path);
        match self.send_with_retries(&url, &call, RetryBudget::FirstHalf) {
            Ok(response) => Ok(Some(content_digest(&response))),
            Err(RegistryError::NotFound { .. }) => Ok(None),
            Err(error) if !error.may_depend_on_method() => Err(error),
            // Some registries do not support `HEAD`. Therefore its error is confirmed by one `GET` request.
            Err(error) => {
                match self.send_with_retries(&url, &Call { method: Method::GET, ..call }, RetryBudget::SingleAttempt) {
                    Ok(response) if is_manifest => Ok(Some(Some(Digest::of(&document(response)?)))),
                    Ok(response) => Ok(Some(content_digest(&response))),
                    Err(RegistryError::NotFound { .. }) => Ok(None),
                    Err(RegistryError::GivenUp { .. }) => Err(error),
                    Err(error) => Err(error),
                }
            }
        }
    }

    /// Uploads a blob: `POST` starts the upload, and one `PUT` sends all bytes. After a temporary error, a new upload is
    /// started.
    fn upload(&self, digest: Digest, bytes: &[u8]) -> Result<(), RegistryError> {
        let what = format!("blob {digest} of {} to be pushed", self.name);
        let body = |bytes: &[u8]| Some(RequestBody { media_type: "application/octet-stream", bytes: bytes.to_vec() });
        // distribution-spec, "POST then PUT". Support of a single `POST` is optional for registries.
        let begin = self.call(Method::POST, body(b""), what.clone());
        let send = self.call(Method::PUT, body(bytes), what);
        let url = self.endpoint.url(&self.repository, "blobs/uploads/");
        self.registries.with_retries(&self.endpoint, RetryBudget::Full, self.registries.patience, |allowance| {
            let begun = self.send(&self.endpoint, &url, &begin, allowance)?;
            let mut location = upload_location(&begun)?;
            // The location may contain parameters of its own, such as the state of the upload, which must be kept.
            location.query_pairs_mut().append_pair("digest", &digest.to_string());
            // The registry may choose another server for the upload. Credentials are sent only to the registry itself.
            let elsewhere = Endpoint::of_url(&location, &self.registries.shared.settings).without_credentials();
            let endpoint = if is_same_origin(&begun.url, &location) { &self.endpoint } else { &elsewhere };
            self.send(endpoint, &location, &send, allowance).map(drop)
        })
    }

    fn call(&self, method: Method, body: Option<RequestBody>, what: String) -> Call<'_> {
        let scope = format!("repository:{}:pull,push", self.repository);
        Call { method, scope, body, ..Call::pull(&self.repository, what) }
    }

    fn send_with_retries(
        &self,
        url: &Url,
        call: &Call<'_>,
        budget: RetryBudget,
    ) -> Result<HttpResponse, RegistryError> {
        let patience = self.registries.patience;
        self.registries
            .with_retries(&self.endpoint, budget, patience, |allowance| self.send(&self.endpoint, url, call, allowance))
    }

    fn send(
        &self,
        endpoint: &Endpoint,
        url: &Url,
        call: &Call<'_>,
        allowance: &Allowance,
    ) -> Result<HttpResponse, RegistryError> {
        let (response, _permit) = self.registries.shared.exchange(endpoint, url, call, allowance)?;
        Ok(response)
    }
}

/// Returns the URL to which a blob must be uploaded, from the `Location` header of the response to `POST`.
fn upload_location(response: &HttpResponse) -> Result<Url, RegistryError> {
    let reason = "it has no Location header for the upload".to_owned();
    let location = response.header(LOCATION.as_str());
    let location = location.ok_or_else(|| HttpError::InvalidResponse { url: redacted(&response.url), reason })?;
    // distribution-spec: the location may be absolute or relative.
    redirect_target(&response.url, location)
        .map_err(|reason| RegistryError::Link { url: redacted(&response.url), reason })
}
