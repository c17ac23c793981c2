//! Caches authorization per host and scope, and prevents two threads from fetching the same token.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use reqwest::header::HeaderValue;
use serde::Deserialize;

use super::challenge::Challenge;
use super::credentials::authorization;
use super::limits::lock;

/// Lifetime of a token without `expires_in` (distribution, "Token Authentication Specification").
const DEFAULT_TOKEN_LIFETIME: Duration = Duration::from_secs(60);
/// Maximum time for which a token is used.
const MAX_TOKEN_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// Cached authorization by host and scope.
#[derive(Default)]
pub(super) struct Tokens(Mutex<HashMap<(String, String), SharedTokenSlot>>);

/// Cached authorization for one scope of one host. A thread holds the lock while it fetches a token.
pub(super) type SharedTokenSlot = Arc<Mutex<TokenSlot>>;

impl Tokens {
    /// Returns the cached authorization for a scope of a host.
    pub(super) fn slot(&self, authority: &str, scope: &str) -> SharedTokenSlot {
        let mut slots = lock(&self.0);
        Arc::clone(slots.entry((authority.to_owned(), scope.to_owned())).or_default())
    }
}

/// Authentication scheme that a host requires for a scope, and the authorization to send.
#[derive(Default)]
pub(super) struct TokenSlot {
    pub(super) challenge: Option<Challenge>,
    cached: Option<CachedAuthorization>,
}

struct CachedAuthorization {
    value: HeaderValue,
    /// Time from which a new token must be fetched; `None` if the value does not expire.
    renew: Option<Instant>,
}

impl TokenSlot {
    /// Returns the cached authorization, unless it has expired.
    pub(super) fn fresh(&self, now: Instant) -> Option<&HeaderValue> {
        let cached = self.cached.as_ref()?;
        cached.renew.is_none_or(|renew| now < renew).then_some(&cached.value)
    }

    /// Stores the authorization for later requests.
    pub(super) fn keep(&mut self, challenge: Challenge, value: HeaderValue, renew: Option<Instant>) {
        self.challenge = Some(challenge);
        self.cached = Some(CachedAuthorization { value, renew });
    }

    /// Removes the `refused` authorization and its scheme, unless another thread has replaced them since.
    pub(super) fn forget(&mut self, refused: Option<&HeaderValue>) {
        if self.cached.as_ref().map(|cached| &cached.value) == refused {
            *self = Self::default();
        }
    }
}

/// Response of a token service.
#[derive(Deserialize)]
pub(super) struct TokenResponse {
    token: Option<String>,
    // "Token Authentication Specification": a service sends `token`, `access_token`, or both with the same value.
    access_token: Option<String>,
    #[serde(default)]
    // Some services send a number as text. That must not make the token unusable.
    expires_in: serde_json::Value,
    #[serde(default)]
    issued_at: serde_json::Value,
}

impl TokenResponse {
    /// Returns the `Authorization` header with the token.
    pub(super) fn authorization(&self) -> Option<HeaderValue> {
        let tokens = [&self.token, &self.access_token];
        let token = tokens.into_iter().flatten().find(|token| !token.is_empty())?;
        authorization(&format!("Bearer {token}"))
    }

    /// Returns the time for which the token is used: four fifths of its lifetime, minus its age.
    pub(super) fn use_for(&self, time_of_day: SystemTime) -> Duration {
        let seconds = self.expires_in.as_u64().filter(|&seconds| seconds > 0);
        let life = seconds.map_or(DEFAULT_TOKEN_LIFETIME, Duration::from_secs).min(MAX_TOKEN_LIFETIME);
        let issued = self.issued_at.as_str().and_then(|text| humantime::parse_rfc3339_weak(text).ok());
        let age = issued.and_then(|issued| time_of_day.duration_since(issued).ok()).unwrap_or_default();
        // A service does not issue expired tokens. The clock of the service or of this machine is wrong, so the age is ignored.
        let age = if age >= life { Duration::ZERO } else { age };
        // A token that is used to the end of its lifetime may expire before the request arrives.
        (life * 4 / 5).saturating_sub(age)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> TokenResponse {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn token_is_in_one_of_two_members() {
        for json in [r#"{"token":"t"}"#, r#"{"access_token":"t"}"#, r#"{"token":"","access_token":"t"}"#] {
            let value = parse(json).authorization().unwrap();
            assert_eq!(value.to_str().unwrap(), "Bearer t");
            assert!(!format!("{value:?}").contains('t') || value.is_sensitive());
        }
        for json in ["{}", r#"{"token":""}"#, r#"{"token":"a\nb"}"#] {
            assert!(parse(json).authorization().is_none(), "{json}");
        }
    }

    #[test]
    fn token_is_used_for_four_fifths_of_its_lifetime() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let seconds = |json: &str| parse(json).use_for(now).as_secs();
        assert_eq!(seconds("{}"), 48);
        assert_eq!(seconds(r#"{"expires_in":300}"#), 240);
        assert_eq!(seconds(r#"{"expires_in":0}"#), 48);
        assert_eq!(seconds(r#"{"expires_in":"x","issued_at":7}"#), 48);
        assert_eq!(seconds(r#"{"expires_in":300,"issued_at":"1970-01-01T00:15:00Z"}"#), 140);
        assert_eq!(seconds(r#"{"expires_in":300,"issued_at":"1970-01-01T00:15:00.123456789Z"}"#), 140);
        assert_eq!(seconds(r#"{"expires_in":300,"issued_at":"1970-01-01T00:00:00Z"}"#), 240);
        assert_eq!(seconds(r#"{"expires_in":300,"issued_at":"2070-01-01T00:00:00Z"}"#), 240);
        assert_eq!(seconds(r#"{"expires_in":99999999}"#), 69_120);
    }
}
