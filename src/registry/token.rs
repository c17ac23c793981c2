//! Tokens: who gives them, how long they last, and that no two threads fetch the same one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use reqwest::header::HeaderValue;
use serde::Deserialize;

use super::challenge::Challenge;
use super::credentials::authorization;
use super::limits::lock;

/// How long a token lasts that does not say it (distribution, "Token Authentication Specification").
const DEFAULT_TOKEN_LIFETIME: Duration = Duration::from_secs(60);
/// How long any token is used.
const MAX_TOKEN_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// The tokens that are known, by host and scope.
#[derive(Default)]
pub(super) struct Tokens(Mutex<HashMap<(String, String), SharedTokenSlot>>);

/// What is known for one scope of one host. Whoever holds the lock may fetch the token.
pub(super) type SharedTokenSlot = Arc<Mutex<TokenSlot>>;

impl Tokens {
    /// Returns what is known for a scope of a host.
    pub(super) fn slot(&self, authority: &str, scope: &str) -> SharedTokenSlot {
        let mut slots = lock(&self.0);
        Arc::clone(slots.entry((authority.to_owned(), scope.to_owned())).or_default())
    }
}

/// How a host was found to be asked for a scope, and what is shown to it.
#[derive(Default)]
pub(super) struct TokenSlot {
    pub(super) way: Option<Challenge>,
    shown: Option<Shown>,
}

struct Shown {
    value: HeaderValue,
    /// From when on to fetch another.
    renew: Option<Instant>,
}

impl TokenSlot {
    /// Returns what may still be shown.
    pub(super) fn fresh(&self, now: Instant) -> Option<&HeaderValue> {
        let shown = self.shown.as_ref()?;
        shown.renew.is_none_or(|renew| now < renew).then_some(&shown.value)
    }

    /// Keeps what is to be shown from now on.
    pub(super) fn keep(&mut self, way: Challenge, value: HeaderValue, renew: Option<Instant>) {
        self.way = Some(way);
        self.shown = Some(Shown { value, renew });
    }

    /// Forgets what was `refused` and how it was got, unless there is something else to show by now.
    pub(super) fn forget(&mut self, refused: Option<&HeaderValue>) {
        if self.shown.as_ref().map(|shown| &shown.value) == refused {
            *self = Self::default();
        }
    }
}

/// A token as its service gives it.
#[derive(Deserialize)]
pub(super) struct TokenResponse {
    token: Option<String>,
    access_token: Option<String>,
    #[serde(default)]
    expires_in: serde_json::Value,
    #[serde(default)]
    issued_at: serde_json::Value,
}

impl TokenResponse {
    /// Returns the header that shows the token.
    pub(super) fn authorization(&self) -> Option<HeaderValue> {
        let tokens = [&self.token, &self.access_token];
        let token = tokens.into_iter().flatten().find(|token| !token.is_empty())?;
        authorization(&format!("Bearer {token}"))
    }

    /// Returns for how long the token is used: four fifths of its life, less what is gone of it.
    pub(super) fn use_for(&self, time_of_day: SystemTime) -> Duration {
        let seconds = self.expires_in.as_u64().filter(|&seconds| seconds > 0);
        let life = seconds.map_or(DEFAULT_TOKEN_LIFETIME, Duration::from_secs).min(MAX_TOKEN_LIFETIME);
        let issued = self.issued_at.as_str().and_then(|text| humantime::parse_rfc3339_weak(text).ok());
        let age = issued.and_then(|issued| time_of_day.duration_since(issued).ok()).unwrap_or_default();
        // Nobody gives away dead tokens: one of the two clocks is wrong.
        let age = if age >= life { Duration::ZERO } else { age };
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
    fn token_has_two_names() {
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
    fn token_is_used_for_four_fifths_of_its_life() {
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
