//! Reads credentials and proxies from the environment variables that DUCC uses, so that existing setups keep working.

use std::ffi::OsString;
use std::fmt;

use super::credentials::Credentials;
use super::error::RegistryError;
use crate::http::ConfigurationError;

/// Returns the value of an environment variable.
pub type EnvironmentLookup<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The registry that one set of variables `DUCC_<label>_…` describes.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct DuccRegistry {
    label: String,
    /// Substring of the host, or start of `host/repository` if it contains a slash.
    ident: String,
    pub(super) access: Access,
}

/// How requests reach a registry.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Access {
    /// Directly, with these credentials.
    Credentials(Credentials),
    /// Through a caching proxy, `host[/path]`, without credentials.
    Proxy {
        /// Host and optional port of the proxy.
        authority: String,
        /// Path before the repository name; may be empty.
        prefix: String,
    },
}

/// Reads the registries that `DUCC_AUTH_REGISTRIES` lists. An incomplete set of variables is an error, as in DUCC.
pub(super) fn registries(environment: EnvironmentLookup<'_>) -> Result<Vec<DuccRegistry>, RegistryError> {
    let get = |variable: &str| match environment(variable).map(OsString::into_string) {
        None => Ok(None),
        Some(Ok(text)) => Ok(Some(text).filter(|text| !text.is_empty())),
        Some(Err(_)) => Err(fault(variable, "is not valid UTF-8")),
    };
    let labels = get("DUCC_AUTH_REGISTRIES")?.unwrap_or_default();
    let labels = labels.split(',').map(str::trim).filter(|label| !label.is_empty());
    labels.map(|label| registry(label, &get)).collect()
}

fn registry(
    label: &str,
    get: &dyn Fn(&str) -> Result<Option<String>, RegistryError>,
) -> Result<DuccRegistry, RegistryError> {
    let variable = |part: &str| format!("DUCC_{label}_{part}");
    let need = |part: &str| {
        let name = variable(part);
        get(&name)?.ok_or_else(|| fault(&name, "is not set, but DUCC_AUTH_REGISTRIES lists this registry"))
    };
    let ident = need("IDENT")?;
    let access = match get(&variable("PROXY"))? {
        Some(proxy) => {
            proxy_access(&proxy).ok_or_else(|| fault(&variable("PROXY"), "is not of the form host[/path]"))?
        }
        None => Access::Credentials(Credentials::new(&need("USER")?, &need("PASS")?)),
    };
    Ok(DuccRegistry { label: label.to_owned(), ident, access })
}

fn proxy_access(text: &str) -> Option<Access> {
    let text = text.split_once("://").map_or(text, |(_, rest)| rest).trim_matches('/');
    let (authority, prefix) = text.split_once('/').unwrap_or((text, ""));
    let url: reqwest::Url = format!("https://{text}/").parse().ok()?;
    let is_right = url.username().is_empty() && url.password().is_none() && url.query().is_none();
    is_right.then(|| Access::Proxy { authority: authority.to_owned(), prefix: prefix.to_owned() })
}

fn fault(variable: &str, fault: &'static str) -> RegistryError {
    ConfigurationError::Variable { variable: variable.to_owned(), fault }.into()
}

impl DuccRegistry {
    /// Returns whether the variables apply to a repository at a host.
    pub(super) fn applies_to(&self, host: &str, repository: &str) -> bool {
        // The author of an image name must not be able to choose the server that receives the password. Therefore an
        // identifier with a path must match from the start of the host on.
        let ident = self.ident.trim_start_matches("https://").trim_start_matches("http://");
        let starts = |name: String| name.starts_with(ident);
        match ident.contains('/') {
            true => starts(format!("{host}/{repository}")) || starts(format!("{host}/v2/{repository}")),
            // DUCC searches for the identifier anywhere in the host, and existing setups depend on that.
            false => host.contains(ident),
        }
    }

    /// Returns the name of the variable with the user, for messages.
    pub(super) fn user_variable(&self) -> String {
        format!("DUCC_{}_USER", self.label)
    }
}

impl fmt::Debug for DuccRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DuccRegistry").field("label", &self.label).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Vec<DuccRegistry>, RegistryError> {
        registries(&|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).into()))
    }

    #[test]
    fn each_label_has_credentials_or_a_proxy() {
        let found = read(&[
            ("DUCC_AUTH_REGISTRIES", "HUB, GL,"),
            ("DUCC_HUB_IDENT", "docker.io"),
            ("DUCC_HUB_PROXY", "cache.org:5000/hub/x"),
            ("DUCC_HUB_USER", "ignored"),
            ("DUCC_GL_IDENT", "gitlab"),
            ("DUCC_GL_USER", "u"),
            ("DUCC_GL_PASS", "p"),
        ])
        .unwrap();
        let proxy = Access::Proxy { authority: "cache.org:5000".to_owned(), prefix: "hub/x".to_owned() };
        assert!(found[0].access == proxy);
        assert!(found[1].access == Access::Credentials(Credentials::new("u", "p")));
        assert!(found[0].applies_to("registry-1.docker.io", "a") && !found[0].applies_to("h.org", "a"));
        assert!(found[1].applies_to("gitlab.h.org", "a") && !found[1].applies_to("h.org", "gitlab/a"));
        assert!(!format!("{found:?}").contains("ignored"));
    }

    #[test]
    fn incomplete_registry_is_an_error_that_names_the_variable() {
        assert!(read(&[]).unwrap().is_empty());
        let all = [
            ("DUCC_AUTH_REGISTRIES", "A"),
            ("DUCC_A_IDENT", "h.org"),
            ("DUCC_A_USER", "u"),
            ("DUCC_A_PASS", "hunter2"),
        ];
        assert_eq!(read(&all).unwrap().len(), 1);
        for missing in 1..all.len() {
            let mut variables = all.to_vec();
            let (name, _) = variables.remove(missing);
            let error = read(&variables).unwrap_err().to_string();
            assert!(error.starts_with(name) && !error.contains("hunter2"), "{error}");
        }
        let proxy = [("DUCC_AUTH_REGISTRIES", "A"), ("DUCC_A_IDENT", "h.org"), ("DUCC_A_PROXY", "u:p@cache")];
        assert!(read(&proxy).unwrap_err().to_string().starts_with("DUCC_A_PROXY"));
    }
}
