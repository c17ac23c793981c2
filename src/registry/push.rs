//! Pushing: what a registry does not have yet, and the manifest last (distribution-spec, "Push").
//!
//! Mirrors and caches are for reading: what is pushed goes to the registry itself.

use reqwest::header::LOCATION;
use reqwest::{Method, Url};

use super::allowance::Allowance;
use super::credentials::Credentials;
use super::ducc::EnvironmentLookup;
use super::endpoint::{Endpoint, origin, remote_repository};
use super::exchange::Call;
use super::http::{HttpResponse, RequestBody, is_same_origin, redacted, redirect_target};
use super::{
    MANIFEST_TYPES, Registries, RegistriesSettings, RegistryError, RetryBudget, Transport, content_digest, document,
};
use crate::image::{Digest, ImageName, ImageReference};

/// The password for the registry that images are pushed to, as DUCC has it.
const PASSWORD: &str = "DUCC_OUTPUT_REGISTRY_PASS";

/// An image to be pushed, whole in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageUpload {
    /// The manifest.
    pub manifest: Vec<u8>,
    /// Of what kind the manifest is.
    pub media_type: &'static str,
    /// All blobs that it names.
    pub blobs: Vec<Vec<u8>>,
}

/// What came of pushing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushOutcome {
    /// The registry has it now.
    Pushed,
    /// The registry had it under this very name.
    AlreadyPresent,
}

/// One push under way.
struct Push<'a> {
    registries: &'a Registries,
    endpoint: Endpoint,
    /// The repository as its registry calls it.
    repository: String,
    name: &'a ImageName,
}

impl Registries {
    /// Prepares to push, to a host as a user, with the password of `DUCC_OUTPUT_REGISTRY_PASS`. For other hosts, and where user
    /// or password are missing, credentials are looked for where those for reading are.
    pub fn for_pushing(
        settings: RegistriesSettings,
        environment: EnvironmentLookup<'_>,
        login: Option<(&str, &str)>,
    ) -> Result<Self, RegistryError> {
        let registries = Self::new(settings, environment)?;
        let password = environment(PASSWORD).filter(|password| !password.is_empty()).map(|password| {
            let fault = "is not text";
            password.into_string().map_err(|_| RegistryError::Variable { variable: PASSWORD.to_owned(), fault })
        });
        Ok(match (login, password.transpose()?) {
            (Some((host, user)), Some(password)) => {
                registries.with_login(host, Credentials::new(user, &password), PASSWORD)
            }
            _ => registries,
        })
    }

    /// Stores an image under its tag. What the registry has is not sent again.
    pub fn push(
        &self,
        name: &ImageName,
        transport: Transport,
        image: &ImageUpload,
    ) -> Result<PushOutcome, RegistryError> {
        let ImageReference::Tag(tag) = name.reference() else {
            let fault = "images are pushed under a tag";
            return Err(RegistryError::Settings { host: name.to_string(), fault });
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
        let place = format!("manifests/{tag}");
        if self.found(&place, true)?.is_some_and(|found| found == Some(digest)) {
            return Ok(PushOutcome::AlreadyPresent);
        }
        for blob in &image.blobs {
            let digest = Digest::of(blob);
            if self.found(&format!("blobs/{digest}"), false)?.is_none() {
                self.upload(digest, blob)?;
            }
        }
        let body = RequestBody { media_type: image.media_type, bytes: image.manifest.clone() };
        let call = self.call(Method::PUT, Some(body), format!("manifest of {} to be pushed", self.name));
        let response = self.asked(&self.endpoint.url(&self.repository, &place), &call, RetryBudget::Full)?;
        match content_digest(&response).filter(|&actual| actual != digest) {
            Some(actual) => Err(RegistryError::WrongDigest { url: redacted(&response.url), expected: digest, actual }),
            None => Ok(PushOutcome::Pushed),
        }
    }

    /// Tells whether the registry has something, and the digest that it gives it.
    fn found(&self, place: &str, is_manifest: bool) -> Result<Option<Option<Digest>>, RegistryError> {
        let what = format!("{place} of {}", self.name);
        let call = Call { accept: is_manifest.then_some(MANIFEST_TYPES), ..self.call(Method::HEAD, None, what) };
        let url = self.endpoint.url(&self.repository, place);
        match self.asked(&url, &call, RetryBudget::FirstHalf) {
            Ok(response) => Ok(Some(content_digest(&response))),
            Err(RegistryError::NotFound { .. }) => Ok(None),
            Err(error) if !error.may_depend_on_method() => Err(error),
            // Some registries do not know this question.
            Err(error) => match self.asked(&url, &Call { method: Method::GET, ..call }, RetryBudget::SingleAttempt) {
                Ok(response) if is_manifest => Ok(Some(Some(Digest::of(&document(response)?)))),
                Ok(response) => Ok(Some(content_digest(&response))),
                Err(RegistryError::NotFound { .. }) => Ok(None),
                Err(RegistryError::GivenUp { .. }) => Err(error),
                Err(error) => Err(error),
            },
        }
    }

    /// Uploads a blob in one piece. Where that fails for a reason that may pass, it begins anew.
    fn upload(&self, digest: Digest, bytes: &[u8]) -> Result<(), RegistryError> {
        let what = format!("blob {digest} of {} to be pushed", self.name);
        let body = |bytes: &[u8]| Some(RequestBody { media_type: "application/octet-stream", bytes: bytes.to_vec() });
        let begin = self.call(Method::POST, body(b""), what.clone());
        let send = self.call(Method::PUT, body(bytes), what);
        let url = self.endpoint.url(&self.repository, "blobs/uploads/");
        self.registries.asked(&self.endpoint, RetryBudget::Full, self.registries.patience, |allowance| {
            let begun = self.ask(&self.endpoint, &url, &begin, allowance)?;
            let mut place = upload_place(&begun)?;
            place.query_pairs_mut().append_pair("digest", &digest.to_string());
            // Nobody but the registry is shown credentials.
            let elsewhere = Endpoint::of_url(&place, &self.registries.shared.settings).without_credentials();
            let endpoint = if is_same_origin(&begun.url, &place) { &self.endpoint } else { &elsewhere };
            self.ask(endpoint, &place, &send, allowance).map(drop)
        })
    }

    fn call(&self, method: Method, body: Option<RequestBody>, what: String) -> Call<'_> {
        let scope = format!("repository:{}:pull,push", self.repository);
        Call { method, scope, body, ..Call::pull(&self.repository, what) }
    }

    fn asked(&self, url: &Url, call: &Call<'_>, budget: RetryBudget) -> Result<HttpResponse, RegistryError> {
        let patience = self.registries.patience;
        self.registries
            .asked(&self.endpoint, budget, patience, |allowance| self.ask(&self.endpoint, url, call, allowance))
    }

    fn ask(
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

/// Returns where a registry wants an upload to be sent.
fn upload_place(response: &HttpResponse) -> Result<Url, RegistryError> {
    let reason = "it does not say where to upload to".to_owned();
    let location = response.header(LOCATION.as_str());
    let location = location.ok_or_else(|| RegistryError::InvalidResponse { url: redacted(&response.url), reason })?;
    redirect_target(&response.url, location)
        .map_err(|reason| RegistryError::Redirect { url: redacted(&response.url), reason })
}
