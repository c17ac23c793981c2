//! Pushing: what a registry does not have yet, and the manifest last (distribution-spec, "Push").
//!
//! Mirrors and caches are for reading: what is pushed goes to the registry itself.

use reqwest::header::LOCATION;
use reqwest::{Method, Url};

use super::allowance::Allowance;
use super::asking::Call;
use super::credentials::Credentials;
use super::ducc::Environment;
use super::endpoint::{Endpoint, asked_repository, origin};
use super::http::{Answer, Body, is_same_origin, redirect_target, shown};
use super::{
    Effort, MANIFEST_TYPES, Registries, RegistriesSettings, RegistryError, Transport, content_digest, document,
};
use crate::image::{Digest, ImageName, ImageReference};

/// The password for the registry that images are pushed to, as DUCC has it.
const PASSWORD: &str = "DUCC_OUTPUT_REGISTRY_PASS";

/// An image to be pushed, whole in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushedImage {
    /// The manifest.
    pub manifest: Vec<u8>,
    /// Of what kind the manifest is.
    pub media_type: &'static str,
    /// All blobs that it names.
    pub blobs: Vec<Vec<u8>>,
}

/// What came of pushing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// The registry has it now.
    New,
    /// The registry had it under this very name.
    WasThere,
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
        environment: Environment<'_>,
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
    pub fn push(&self, name: &ImageName, transport: Transport, image: &PushedImage) -> Result<Pushed, RegistryError> {
        let ImageReference::Tag(tag) = name.reference() else {
            let fault = "images are pushed under a tag";
            return Err(RegistryError::Settings { host: name.to_string(), fault });
        };
        let repository = asked_repository(name.host(), name.repository());
        let endpoint = origin(name.host(), &repository, transport, &self.shared.settings)?;
        let push = Push { registries: self, endpoint, repository, name };
        push.run(tag, image)
    }
}

impl Push<'_> {
    fn run(&self, tag: &str, image: &PushedImage) -> Result<Pushed, RegistryError> {
        let digest = Digest::of(&image.manifest);
        let place = format!("manifests/{tag}");
        if self.found(&place, true)?.is_some_and(|found| found == Some(digest)) {
            return Ok(Pushed::WasThere);
        }
        for blob in &image.blobs {
            let digest = Digest::of(blob);
            if self.found(&format!("blobs/{digest}"), false)?.is_none() {
                self.upload(digest, blob)?;
            }
        }
        let body = Body { media_type: image.media_type, bytes: image.manifest.clone() };
        let call = self.call(Method::PUT, Some(body), format!("manifest of {} to be pushed", self.name));
        let answer = self.asked(&self.endpoint.url(&self.repository, &place), &call, Effort::Whole)?;
        match content_digest(&answer).filter(|&actual| actual != digest) {
            Some(actual) => Err(RegistryError::WrongDigest { url: shown(&answer.url), expected: digest, actual }),
            None => Ok(Pushed::New),
        }
    }

    /// Tells whether the registry has something, and the digest that it gives it.
    fn found(&self, place: &str, is_manifest: bool) -> Result<Option<Option<Digest>>, RegistryError> {
        let what = format!("{place} of {}", self.name);
        let call = Call { accept: is_manifest.then_some(MANIFEST_TYPES), ..self.call(Method::HEAD, None, what) };
        let url = self.endpoint.url(&self.repository, place);
        match self.asked(&url, &call, Effort::First) {
            Ok(answer) => Ok(Some(content_digest(&answer))),
            Err(RegistryError::NotFound { .. }) => Ok(None),
            Err(error) if !error.is_of_answer() => Err(error),
            // Some registries do not know this question.
            Err(error) => match self.asked(&url, &Call { method: Method::GET, ..call }, Effort::Once) {
                Ok(answer) if is_manifest => Ok(Some(Some(Digest::of(&document(answer)?)))),
                Ok(answer) => Ok(Some(content_digest(&answer))),
                Err(RegistryError::NotFound { .. }) => Ok(None),
                Err(RegistryError::GivenUp { .. }) => Err(error),
                Err(error) => Err(error),
            },
        }
    }

    /// Uploads a blob in one piece. Where that fails for a reason that may pass, it begins anew.
    fn upload(&self, digest: Digest, bytes: &[u8]) -> Result<(), RegistryError> {
        let what = format!("blob {digest} of {} to be pushed", self.name);
        let body = |bytes: &[u8]| Some(Body { media_type: "application/octet-stream", bytes: bytes.to_vec() });
        let begin = self.call(Method::POST, body(b""), what.clone());
        let send = self.call(Method::PUT, body(bytes), what);
        let url = self.endpoint.url(&self.repository, "blobs/uploads/");
        self.registries.asked(&self.endpoint, Effort::Whole, self.registries.patience, |allowance| {
            let begun = self.ask(&self.endpoint, &url, &begin, allowance)?;
            let mut place = upload_place(&begun)?;
            place.query_pairs_mut().append_pair("digest", &digest.to_string());
            // Nobody but the registry is shown credentials.
            let elsewhere = Endpoint::of_url(&place, &self.registries.shared.settings).without_credentials();
            let endpoint = if is_same_origin(&begun.url, &place) { &self.endpoint } else { &elsewhere };
            self.ask(endpoint, &place, &send, allowance).map(drop)
        })
    }

    fn call(&self, method: Method, body: Option<Body>, what: String) -> Call<'_> {
        let scope = format!("repository:{}:pull,push", self.repository);
        Call { method, scope, body, ..Call::pull(&self.repository, what) }
    }

    fn asked(&self, url: &Url, call: &Call<'_>, effort: Effort) -> Result<Answer, RegistryError> {
        let patience = self.registries.patience;
        self.registries
            .asked(&self.endpoint, effort, patience, |allowance| self.ask(&self.endpoint, url, call, allowance))
    }

    fn ask(
        &self,
        endpoint: &Endpoint,
        url: &Url,
        call: &Call<'_>,
        allowance: &Allowance,
    ) -> Result<Answer, RegistryError> {
        let (answer, _permit) = self.registries.shared.exchange(endpoint, url, call, allowance)?;
        Ok(answer)
    }
}

/// Returns where a registry wants an upload to be sent.
fn upload_place(answer: &Answer) -> Result<Url, RegistryError> {
    let reason = "it does not say where to upload to".to_owned();
    let location = answer.header(LOCATION.as_str());
    let location = location.ok_or_else(|| RegistryError::Answer { url: shown(&answer.url), reason })?;
    redirect_target(&answer.url, location).map_err(|reason| RegistryError::Redirect { url: shown(&answer.url), reason })
}
