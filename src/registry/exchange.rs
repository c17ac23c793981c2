//! One request to one server: waits while the host is parked, authenticates, and converts the status into an error.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{ACCEPT, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, Url};

use super::Shared;
use super::allowance::Allowance;
use super::challenge::{Challenge, TokenService, challenges};
use super::credentials::{CredentialLookup, Credentials};
use super::endpoint::Endpoint;
use super::error::{ErrorBody, RegistryError};
use super::limits::{Host, Permit, exhausted, lock, retry_after};
use super::token::{SharedTokenSlot, TokenResponse, TokenSlot};
use crate::http::{
    HttpError, HttpResponse, Request, RequestBody, ResponseDeadline, authority, redacted, speaks_no_tls,
};

/// Maximum size of the response of a token service in bytes.
const MAX_TOKEN_RESPONSE: u64 = 1 << 20;
/// `client_id` in token requests (distribution, "Token Authentication Specification").
const CLIENT: &str = "strata";

/// A request of the distribution API, independent of the server that it is sent to.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    /// Repository name at the registry; empty for a request that concerns no repository.
    pub(super) repository: &'a str,
    /// Scope that a token needs, such as `repository:library/debian:pull`.
    pub(super) scope: String,
    /// Accepted media types.
    pub(super) accept: Option<&'static str>,
    /// First byte of the blob to request.
    pub(super) offset: u64,
    pub(super) is_manifest: bool,
    /// Body of the request.
    pub(super) body: Option<RequestBody>,
    /// What is requested, for messages.
    pub(super) what: String,
}

impl<'a> Call<'a> {
    /// Returns a `GET` request in a repository.
    pub(super) fn pull(repository: &'a str, what: String) -> Self {
        Self {
            method: Method::GET,
            repository,
            scope: format!("repository:{repository}:pull"),
            accept: None,
            offset: 0,
            is_manifest: false,
            body: None,
            what,
        }
    }

    /// Returns whether the registry counts this request against its limit for manifests. Docker Hub does not count `HEAD`.
    fn counts_as_manifest(&self) -> bool {
        self.is_manifest && self.method == Method::GET
    }

    fn request(&self, url: Url) -> Request {
        let mut headers = HeaderMap::new();
        if let Some(accept) = self.accept {
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
        }
        if self.offset > 0 {
            // distribution-spec, "Pulling blobs": registries SHOULD support `Range`. `opened` handles those that do not.
            let range = HeaderValue::from_str(&format!("bytes={}-", self.offset));
            headers.insert(RANGE, range.expect("digits are a valid header value"));
        }
        Request { method: self.method.clone(), headers, body: self.body.clone(), ..Request::get(url) }
    }
}

/// A request that is being sent to one server.
struct Exchange<'a> {
    shared: &'a Shared,
    endpoint: &'a Endpoint,
    call: &'a Call<'a>,
    host: Arc<Host>,
    /// Cached authorization for the scope of the call.
    slot: SharedTokenSlot,
    allowance: &'a Allowance,
    /// Deadline for the complete response, including the requests for tokens.
    deadline: Option<ResponseDeadline>,
}

/// Authentication methods that one request has already tried. Each is tried once.
#[derive(Default)]
struct TriedCredentials {
    token: bool,
    basic: bool,
    /// Whether any challenge of the registry offered HTTP Basic authentication.
    basic_is_offered: bool,
    /// Error of the token service.
    failure: Option<RegistryError>,
}

/// Maximum number of repetitions of a request after status 401. Each uses a token that this or another thread fetched, or HTTP
/// Basic.
const MAX_AUTHORIZATIONS: u32 = 6;

impl Shared {
    /// Sends a request, authenticates if necessary, and returns a successful response. The permit counts the request against
    /// the limit of its host until the permit is dropped.
    pub(super) fn exchange(
        &self,
        endpoint: &Endpoint,
        url: &Url,
        call: &Call<'_>,
        allowance: &Allowance,
    ) -> Result<(HttpResponse, Permit), RegistryError> {
        let authority = endpoint.authority();
        let host = self.hosts.get(&authority, endpoint.connections);
        let permit = host.admit(&*self.clock, allowance, call.counts_as_manifest(), &call.what)?;
        let slot = self.tokens.slot(&authority, &call.scope);
        // The time for the response starts after `admit`, so that waiting for a parked host does not use it up.
        let deadline = allowance.begin();
        let exchange = Exchange { shared: self, endpoint, call, host, slot, allowance, deadline };
        let response = exchange.check_status(exchange.authorized_response(url)?)?;
        Ok((response, permit))
    }
}

impl Exchange<'_> {
    /// Sends the request, and repeats it with credentials as long as the registry responds with another challenge.
    fn authorized_response(&self, url: &Url) -> Result<HttpResponse, RegistryError> {
        let mut authorization = self.known_authorization()?;
        let mut response = self.send(url, authorization.clone())?;
        let mut tried = TriedCredentials::default();
        for _ in 0..MAX_AUTHORIZATIONS {
            // A redirect may lead to a storage server. Its status 401 is not a challenge of the registry, and it must get
            // no credentials.
            if response.status() != 401 || !response.is_of_origin {
                break;
            }
            let Some(next) = self.authorize(&response, authorization.as_ref(), &mut tried)? else { break };
            response = self.send(url, Some(next.clone()))?;
            authorization = Some(next);
        }
        Ok(response)
    }

    /// Sends the request. If a server on this machine does not support TLS, sends it over plain HTTP.
    fn send(&self, url: &Url, authorization: Option<HeaderValue>) -> Result<HttpResponse, RegistryError> {
        let deadline = self.deadline;
        let mut request = Request { authorization, deadline, ..self.call.request(url.clone()) };
        if self.endpoint.may_be_plain && self.host.speaks_plain_http() {
            request.url.set_scheme("http").ok();
        }
        match self.shared.http.send(&request) {
            Err(error) if self.may_try_plain(&request) && speaks_no_tls(&error) => {
                request.url.set_scheme("http").ok();
                let response = self.shared.http.send(&request)?;
                self.host.note_plain_http();
                Ok(response)
            }
            result => Ok(result?),
        }
    }

    fn may_try_plain(&self, request: &Request) -> bool {
        self.endpoint.may_be_plain && request.url.scheme() == "https"
    }

    /// Returns the authorization that an earlier request with this scope needed. An expired token is fetched again.
    fn known_authorization(&self) -> Result<Option<HeaderValue>, RegistryError> {
        let mut slot = lock(&self.slot);
        if let Some(fresh) = slot.fresh(self.shared.clock.now()) {
            return Ok(Some(fresh.clone()));
        }
        match slot.challenge.clone() {
            Some(Challenge::Bearer(service)) => self.fetch(&mut slot, service).map(Some),
            _ => Ok(None),
        }
    }

    /// Returns the authorization for a challenge of a response with status 401. `None` if every scheme has been tried or there
    /// are no credentials.
    ///
    /// Some registries accept a token for some requests and HTTP Basic for others, and offer the latter only after they have
    /// seen the token. Therefore HTTP Basic is tried after the token if any response offered it.
    fn authorize(
        &self,
        response: &HttpResponse,
        refused: Option<&HeaderValue>,
        tried: &mut TriedCredentials,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        let mut slot = lock(&self.slot);
        // Another thread may have fetched a new token since this request was sent.
        if let Some(fresh) = slot.fresh(self.shared.clock.now()).filter(|&fresh| Some(fresh) != refused) {
            return Ok(Some(fresh.clone()));
        }
        let offered = challenges(response.headers());
        tried.basic_is_offered |= offered.contains(&Challenge::Basic);
        for challenge in offered {
            if let Challenge::Bearer(service) = challenge
                && !std::mem::replace(&mut tried.token, true)
            {
                match self.fetch(&mut slot, service) {
                    Ok(token) => return Ok(Some(token)),
                    Err(error) => tried.failure = Some(error),
                }
            }
        }
        if let Some(basic) = self.basic(&mut slot, refused, tried)? {
            return Ok(Some(basic));
        }
        // The error of the token service explains the failure better than the status 401 of the registry.
        match tried.failure.take() {
            Some(error) => Err(error),
            None => Ok(None),
        }
    }

    /// Returns the HTTP Basic authorization if it was offered, has not been refused, and credentials exist.
    fn basic(
        &self,
        slot: &mut TokenSlot,
        refused: Option<&HeaderValue>,
        tried: &mut TriedCredentials,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        if !tried.basic_is_offered || std::mem::replace(&mut tried.basic, true) {
            slot.forget(refused);
            return Ok(None);
        }
        let basic = self.find()?.credentials.and_then(|credentials| credentials.basic());
        let basic = basic.filter(|basic| Some(basic) != refused);
        match &basic {
            Some(basic) => slot.keep(Challenge::Basic, basic.clone(), None),
            None => slot.forget(refused),
        }
        Ok(basic)
    }

    fn find(&self) -> Result<CredentialLookup, RegistryError> {
        match &self.endpoint.credentials_of {
            Some(host) => self.shared.credentials.find(host, self.call.repository),
            None => Ok(CredentialLookup { credentials: None, origin: "no credentials were sent to it".to_owned() }),
        }
    }

    /// Fetches a token. The caller holds the lock of the slot, so that no other thread fetches the same token.
    fn fetch(&self, slot: &mut TokenSlot, service: TokenService) -> Result<HeaderValue, RegistryError> {
        let found = self.find()?;
        // Also without credentials: Docker Hub and GHCR require a token for public images, too.
        let request = self.token_request(&service, found.credentials.as_ref())?;
        let connections = Endpoint::of_url(&request.url, &self.shared.settings).connections;
        let realm = self.shared.hosts.get(&authority(&request.url), connections);
        let what = format!("a token for {} from {}", self.call.what, redacted(&request.url));
        // Waiting here would hold the lock of the slot, and so block all requests with this scope.
        realm.refuse_while_parked(self.shared.clock.now(), self.allowance, &what)?;
        let request = Request { deadline: self.token_by(&request.url), ..request };
        let response = self.shared.http.send(&request)?;
        let label = RequestLabel { what: &what, mirror: self.endpoint.mirror.as_deref() };
        let response = self.shared.check_status(response, &realm, label, || Ok(found.origin))?;
        let url = redacted(&response.url);
        let unusable = |reason: &str| HttpError::InvalidResponse { url: url.clone(), reason: reason.to_owned() };
        let token: TokenResponse = serde_json::from_slice(&response.read(MAX_TOKEN_RESPONSE)?)
            .map_err(|_| unusable("it is not the JSON of a token response"))?;
        let value = token.authorization().ok_or_else(|| unusable("it contains no token"))?;
        let renew = self.shared.clock.now() + token.use_for(self.shared.clock.time_of_day());
        slot.keep(Challenge::Bearer(service), value.clone(), Some(renew));
        Ok(value)
    }

    /// Returns the deadline for fetching a token: the deadline of the request, or, if the request has none, that of a small
    /// request which starts now.
    fn token_by(&self, url: &Url) -> Option<ResponseDeadline> {
        self.deadline.or_else(|| {
            let limits = self.shared.http.limits_of(&authority(url));
            Allowance::small(self.shared.clock.now(), Duration::ZERO, limits.request, limits).begin()
        })
    }

    /// Returns the request for a token, with credentials if there are any. They are not sent over plain HTTP unless the
    /// registry itself uses plain HTTP.
    fn token_request(
        &self,
        service: &TokenService,
        credentials: Option<&Credentials>,
    ) -> Result<Request, RegistryError> {
        let refuse = |reason| RegistryError::Challenge { url: redacted(&self.endpoint.base), reason };
        let is_plain = self.endpoint.base.scheme() == "http" || self.host.speaks_plain_http();
        let mut url = token_url(&service.realm, is_plain, credentials.is_some()).map_err(refuse)?;
        // Some challenges contain only the realm.
        let scope = service.scope.as_deref().unwrap_or(&self.call.scope);
        // Distribution, "Authentication using OAuth2": a refresh token is sent by `POST`.
        if let Some(Credentials::IdentityToken(token)) = credentials {
            // The query of a URL is encoded like a form (`application/x-www-form-urlencoded`).
            let mut form = Url::parse("form:").expect("it is a URL");
            let mut pairs = form.query_pairs_mut();
            pairs.append_pair("grant_type", "refresh_token").append_pair("client_id", CLIENT);
            pairs.append_pair("service", service.service.as_deref().unwrap_or_default()).append_pair("scope", scope);
            pairs.append_pair("refresh_token", token.reveal());
            drop(pairs);
            let bytes = form.query().unwrap_or_default().as_bytes().to_vec();
            let body = Some(RequestBody { media_type: "application/x-www-form-urlencoded", bytes });
            return Ok(Request { method: Method::POST, body, ..Request::get(url) });
        }
        let mut pairs = url.query_pairs_mut();
        pairs.extend_pairs(service.service.iter().map(|service| ("service", service)));
        // "Token Authentication Specification": several scopes of a challenge become several `scope` parameters.
        pairs.extend_pairs(scope.split_ascii_whitespace().map(|scope| ("scope", scope)));
        if let Some(Credentials::Password { username, .. }) = credentials {
            pairs.append_pair("account", username);
        }
        drop(pairs);
        let authorization = credentials.and_then(Credentials::basic);
        Ok(Request { authorization, ..Request::get(url) })
    }

    /// Returns the response if its status is a success, and an error otherwise. If the response states that the limit for
    /// manifests is used up, parks the host for requests of manifests.
    fn check_status(&self, response: HttpResponse) -> Result<HttpResponse, RegistryError> {
        if self.call.is_manifest
            && let Some(length) = exhausted(response.headers())
        {
            self.host.park_manifests(length, self.shared.clock.now());
        }
        // The offset is not inside the blob (RFC 9110, section 15.5.17).
        if response.status() == 416 && self.call.offset > 0 {
            return Err(RegistryError::Range { url: redacted(&response.url), offset: self.call.offset });
        }
        let label = RequestLabel { what: &self.call.what, mirror: self.endpoint.mirror.as_deref() };
        self.shared.check_status(response, &self.host, label, || Ok(self.find()?.origin))
    }
}

/// What was requested, and from which mirror, for messages.
#[derive(Clone, Copy)]
pub(super) struct RequestLabel<'a> {
    pub(super) what: &'a str,
    /// Mirror that the request was sent to; `None` for the registry itself.
    pub(super) mirror: Option<&'a str>,
}

impl Shared {
    /// Returns the response if its status is a success, and an error otherwise. Parks the host after status 429, or 503 with
    /// `Retry-After`.
    pub(super) fn check_status(
        &self,
        response: HttpResponse,
        host: &Host,
        label: RequestLabel<'_>,
        credentials: impl FnOnce() -> Result<String, RegistryError>,
    ) -> Result<HttpResponse, RegistryError> {
        let (status, url) = (response.status(), redacted(&response.url));
        let (what, mirror) = (label.what.to_owned(), label.mirror.map(str::to_owned));
        let wait = retry_after(response.headers(), self.clock.time_of_day());
        match status {
            // RFC 6585, section 4: `Retry-After` is optional here.
            429 => Err(host.park(wait, self.clock.now())),
            // Without `Retry-After`, 503 is an ordinary server error (RFC 9110, section 15.6.4).
            503 if wait.is_some() => Err(host.park(wait, self.clock.now())),
            200..=299 => {
                host.note_response();
                Ok(response)
            }
            404 => Err(RegistryError::NotFound { what, mirror, error: ErrorBody::of(response) }),
            401 | 403 => {
                let credentials = credentials()?;
                Err(RegistryError::Unauthorized { what, mirror, status, credentials, error: ErrorBody::of(response) })
            }
            _ => Err(RegistryError::Status { url, status, error: ErrorBody::of(response) }),
        }
    }
}

/// Returns the URL of a token service, or the reason why it is not used. Credentials are sent to it over plain HTTP only
/// if the registry uses plain HTTP, too.
fn token_url(realm: &str, registry_is_plain: bool, with_credentials: bool) -> Result<Url, &'static str> {
    let url: Url = realm.parse().map_err(|_| "the URL of its token service is invalid")?;
    if !matches!(url.scheme(), "http" | "https") || !url.username().is_empty() || url.password().is_some() {
        return Err("its token service is not an HTTP server, or its URL contains a user or password");
    }
    if with_credentials && url.scheme() == "http" && !registry_is_plain {
        return Err("its token service uses plain HTTP, over which credentials are not sent");
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_not_sent_over_plain_http_for_a_registry_with_https() {
        assert!(token_url("http://auth.org/token", false, true).is_err());
        for (realm, is_plain, with_credentials) in [
            ("http://auth.org/token", false, false),
            ("http://auth.org/token", true, true),
            ("https://auth.org/token", false, true),
            ("https://auth.org/token", true, true),
        ] {
            assert!(token_url(realm, is_plain, with_credentials).is_ok(), "{realm}");
        }
        for realm in ["", "/token", "file:///etc/passwd", "https://u:p@auth.org/", "auth.org/token"] {
            assert!(token_url(realm, true, false).is_err(), "{realm}");
        }
    }
}
