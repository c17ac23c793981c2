//! Parses authentication challenges: `WWW-Authenticate` (RFC 9110, section 11.6.1).

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// Maximum number of challenges that are parsed, and of parameters of each.
// The header is untrusted: one header line has room for thousands of challenges.
const MAX_CHALLENGES: usize = 16;

/// A supported authentication scheme that a server offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A token from a token service.
    Bearer(TokenService),
    /// User name and password (RFC 7617).
    Basic,
}

/// Where to request a token, and for which scope (distribution, "Token Authentication Specification").
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct TokenService {
    pub(super) realm: String,
    pub(super) service: Option<String>,
    pub(super) scope: Option<String>,
}

/// Returns the supported challenges of a response, those for tokens first.
pub(super) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let texts = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let mut known: Vec<Challenge> = texts.take(MAX_CHALLENGES).flat_map(parse).filter_map(Raw::known).collect();
    known.sort_by_key(|challenge| matches!(challenge, Challenge::Basic));
    known
}

/// A challenge of any scheme.
#[derive(Debug, Default, PartialEq, Eq)]
struct Raw {
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Raw {
    fn known(self) -> Option<Challenge> {
        // Names of schemes and parameters are case-insensitive (RFC 9110, sections 11.1 and 11.2).
        if self.scheme.eq_ignore_ascii_case("basic") {
            return Some(Challenge::Basic);
        }
        let get = |name: &str| {
            let found = self.parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
        };
        // Only the realm is required: some registries send neither service nor scope.
        let realm = self.scheme.eq_ignore_ascii_case("bearer").then(|| get("realm")).flatten()?;
        Some(Challenge::Bearer(TokenService { realm, service: get("service"), scope: get("scope") }))
    }
}

/// Splits a header into challenges. Commas separate both challenges and parameters, and may occur inside quotes.
fn parse(text: &str) -> Vec<Raw> {
    let mut rest = Cursor(text);
    let mut found: Vec<Raw> = Vec::new();
    loop {
        // Empty list elements must be ignored (RFC 9110, section 5.6.1.2).
        rest.skip(|c| c == ',' || c.is_ascii_whitespace());
        let word = rest.take(is_token);
        if word.is_empty() {
            return found;
        }
        let after = rest.0;
        rest.skip(|c| c == ' ' || c == '\t');
        // Whitespace around the equals sign must be accepted (RFC 9110, section 11.2, `BWS`).
        if rest.eat('=') && !rest.0.starts_with('=') {
            rest.skip(|c| c == ' ' || c == '\t');
            let value = rest.value();
            match found.last_mut() {
                Some(raw) if raw.parameters.len() < MAX_CHALLENGES => raw.parameters.push((word.to_owned(), value)),
                _ => {}
            }
        } else if found.len() < MAX_CHALLENGES {
            rest.0 = after;
            found.push(Raw { scheme: word.to_owned(), parameters: Vec::new() });
            rest.token68();
        } else {
            return found;
        }
    }
}

fn is_token(c: char) -> bool {
    // `tchar` of RFC 9110, section 5.6.2.
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

/// The part of a header that has not been parsed yet.
struct Cursor<'t>(&'t str);

impl<'t> Cursor<'t> {
    fn take(&mut self, is_right: impl Fn(char) -> bool) -> &'t str {
        let end = self.0.find(|c| !is_right(c)).unwrap_or(self.0.len());
        let (taken, rest) = self.0.split_at(end);
        self.0 = rest;
        taken
    }

    fn skip(&mut self, is_right: impl Fn(char) -> bool) {
        self.take(is_right);
    }

    fn eat(&mut self, c: char) -> bool {
        let rest = self.0.strip_prefix(c);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    /// Parses a token or a quoted string, and returns it without quotes and backslashes.
    fn value(&mut self) -> String {
        if !self.eat('"') {
            // Some registries omit the quotes, even around URLs.
            return self.take(|c| c != ',' && !c.is_ascii_whitespace()).to_owned();
        }
        let mut value = String::new();
        let mut characters = self.0.chars();
        while let Some(c) = characters.next() {
            match c {
                '"' => break,
                // `quoted-pair` of RFC 9110, section 5.6.4.
                '\\' => value.extend(characters.next()),
                c => value.push(c),
            }
        }
        self.0 = characters.as_str();
        value
    }

    /// Skips a `token68` (RFC 9110, section 11.2), a value without a name such as in `Negotiate YII…==`.
    fn token68(&mut self) {
        let mut ahead = Cursor(self.0);
        ahead.skip(|c| c == ' ' || c == '\t');
        ahead.skip(|c| c.is_ascii_alphanumeric() || "-._~+/".contains(c));
        ahead.skip(|c| c == '=');
        ahead.skip(|c| c == ' ' || c == '\t');
        if ahead.0.is_empty() || ahead.0.starts_with(',') {
            self.0 = ahead.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[&'static str]) -> Vec<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, reqwest::header::HeaderValue::from_static(value));
        }
        challenges(&headers)
    }

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let owned = |text: &str| text.to_owned();
        Challenge::Bearer(TokenService { realm: owned(realm), service: service.map(owned), scope: scope.map(owned) })
    }

    #[test]
    fn commas_inside_quotes_do_not_separate_parameters() {
        let header = r#"Bearer realm="https://a.org/t",service="a.org",scope="repository:a:pull,push""#;
        assert_eq!(of(&[header]), [bearer("https://a.org/t", Some("a.org"), Some("repository:a:pull,push"))]);
    }

    #[test]
    fn several_challenges_are_found_in_one_header_and_in_several() {
        let token = bearer("https://a.org/t", None, None);
        for values in [
            &[r#"Basic realm="a, b", Bearer realm="https://a.org/t""#][..],
            &[r#"Bearer realm="https://a.org/t", Basic realm="x""#],
            &[r#"Basic realm="x""#, r#"bearer REALM = "https://a.org/t""#],
            &[r#"Negotiate YII+/x==, Basic, Digest qop="auth", Bearer realm=https://a.org/t"#],
            &[r#"Negotiate, Bearer realm="https://a.org/t" , Basic"#],
        ] {
            assert_eq!(of(values), [token.clone(), Challenge::Basic], "{values:?}");
        }
    }

    #[test]
    fn quoted_characters_lose_their_backslashes() {
        assert_eq!(of(&[r#"Bearer realm="https://a/\"\\b""#]), [bearer(r#"https://a/"\b"#, None, None)]);
    }

    #[test]
    fn unknown_or_malformed_challenge_is_ignored() {
        for header in
            ["", "Bearer", "Negotiate", r#"Bearer service="x""#, ",,", "\"", "=", r#"realm="x""#, "Digest a=b"]
        {
            assert_eq!(of(&[header]), [], "{header}");
        }
        assert_eq!(of(&[r#"Bearer realm="https://a.org"#]), [bearer("https://a.org", None, None)]);
    }

    #[test]
    fn number_of_challenges_is_limited() {
        let many: &'static str = "Basic, ".repeat(5000).leak();
        assert_eq!(of(&[many]).len(), MAX_CHALLENGES);
    }
}
