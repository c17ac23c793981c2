//! Determines the servers to which requests for a registry are sent: first its mirrors, then the registry itself. Variables of
//! DUCC may replace the registry itself by a caching proxy. The host of Docker Hub's API differs from the host in image names.
//!
//! The mapping never changes the name under which an image is published.

use std::net::{Ipv4Addr, Ipv6Addr};

use reqwest::Url;

use super::Transport;
use super::ducc::{Access, DuccRegistry};
use super::error::RegistryError;
use super::settings::{DEFAULT_CONNECTIONS, RegistriesSettings, RegistrySettings, mirror_url};
use crate::http::authority;

/// Host names of Docker Hub in image names.
// Wishlists for DUCC name Docker Hub `registry.hub.docker.com`, and published paths keep that spelling.
pub(super) const HUB_HOSTS: [&str; 4] =
    ["docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"];
/// Host name of the distribution API of Docker Hub.
const HUB_REGISTRY: &str = "registry-1.docker.io";

/// A server that provides the repositories of a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// Scheme, host and port.
    pub(super) base: Url,
    /// Path before each repository name; may be empty.
    prefix: String,
    /// Host whose credentials may be sent to this server; `None` if no credentials may be sent.
    pub(super) credentials_of: Option<String>,
    /// Maximum number of concurrent requests.
    pub(super) connections: usize,
    /// Whether to use plain HTTP if the server does not support TLS.
    pub(super) may_be_plain: bool,
    /// URL of the mirror in the settings, if this server is a mirror.
    pub(super) mirror: Option<String>,
}

impl Endpoint {
    /// Returns host and port.
    pub(super) fn authority(&self) -> String {
        authority(&self.base)
    }

    /// Returns the URL of a path in a repository, such as `tags/list`.
    pub(super) fn url(&self, repository: &str, rest: &str) -> Url {
        let prefix = if self.prefix.is_empty() { String::new() } else { format!("{}/", self.prefix) };
        let mut url = self.base.clone();
        // DUCC, too, puts the path of a proxy between `/v2/` and the repository.
        url.set_path(&format!("/v2/{prefix}{repository}/{rest}"));
        url
    }

    /// Returns the URL of the list of repositories.
    pub(super) fn catalog_url(&self) -> Url {
        let mut url = self.base.clone();
        url.set_path("/v2/_catalog");
        url
    }

    /// Returns the endpoint for a complete URL.
    pub(super) fn of_url(url: &Url, settings: &RegistriesSettings) -> Self {
        let host = authority(url);
        let host_settings = settings_of(settings, &host);
        let may_see =
            url.scheme() == "https" || is_loopback(&host) || host_settings.is_some_and(|settings| settings.plain_http);
        Self {
            base: url.clone(),
            prefix: String::new(),
            connections: connections(host_settings),
            credentials_of: may_see.then_some(host),
            may_be_plain: false,
            mirror: None,
        }
    }

    /// Returns the same server as one that gets no credentials.
    pub(super) fn without_credentials(self) -> Self {
        Self { credentials_of: None, ..self }
    }
}

/// Returns host and port of the API of a registry, in the form of URLs.
pub(super) fn remote_authority(host: &str) -> String {
    let api_host = if HUB_HOSTS.contains(&host) { HUB_REGISTRY } else { host };
    format!("https://{api_host}/").parse().map_or_else(|_| api_host.to_owned(), |url| authority(&url))
}

/// Returns the repository name for requests: a name without a slash at Docker Hub is in `library/`.
pub(super) fn remote_repository(host: &str, repository: &str) -> String {
    match HUB_HOSTS.contains(&host) && !repository.contains('/') && !repository.is_empty() {
        true => format!("library/{repository}"),
        false => repository.to_owned(),
    }
}

/// Returns the servers for a repository in the order in which they are tried. Fails if the URL of a server is invalid.
pub(super) fn endpoints(
    host: &str,
    repository: &str,
    transport: Transport,
    settings: &RegistriesSettings,
    ducc: &[DuccRegistry],
) -> Result<Vec<Endpoint>, RegistryError> {
    let host_settings = settings_of(settings, host);
    let mut endpoints = Vec::new();
    for mirror in host_settings.map_or(&[][..], |settings| &settings.mirrors) {
        endpoints.push(mirror_endpoint(mirror, settings).ok_or_else(|| RegistryError::Url(mirror.clone()))?);
    }
    if !host_settings.is_some_and(|settings| settings.mirrors_only && !settings.mirrors.is_empty()) {
        let registry = registry(host, repository, transport, host_settings, ducc);
        endpoints.push(registry.ok_or_else(|| RegistryError::Url(host.to_owned()))?);
    }
    Ok(endpoints)
}

/// Returns the registry itself, for requests that mirrors and proxies do not support.
pub(super) fn origin(
    host: &str,
    repository: &str,
    transport: Transport,
    settings: &RegistriesSettings,
) -> Result<Endpoint, RegistryError> {
    let registry = registry(host, repository, transport, settings_of(settings, host), &[]);
    registry.ok_or_else(|| RegistryError::Url(host.to_owned()))
}

fn mirror_endpoint(mirror: &str, settings: &RegistriesSettings) -> Option<Endpoint> {
    let url = mirror_url(mirror)?;
    let host = authority(&url);
    Some(Endpoint {
        prefix: url.path().trim_matches('/').to_owned(),
        connections: connections(settings_of(settings, &host)),
        credentials_of: Some(host),
        may_be_plain: false,
        mirror: Some(mirror.to_owned()),
        base: url.join("/").ok()?,
    })
}

/// Returns the registry itself, or the proxy that DUCC's variables set for it.
fn registry(
    host: &str,
    repository: &str,
    transport: Transport,
    settings: Option<&RegistrySettings>,
    ducc: &[DuccRegistry],
) -> Option<Endpoint> {
    let ducc_registry = ducc.iter().find(|registry| registry.applies_to(host, repository));
    let is_plain = transport == Transport::Plain || settings.is_some_and(|settings| settings.plain_http);
    let scheme = if is_plain { "http" } else { "https" };
    let (api_host, prefix, credentials_of) = match ducc_registry.map(|registry| &registry.access) {
        // As in DUCC, the proxy gets no credentials.
        Some(Access::Proxy { authority, prefix }) => (authority.as_str(), prefix.clone(), None),
        _ if HUB_HOSTS.contains(&host) => (HUB_REGISTRY, String::new(), Some(host.to_owned())),
        _ => (host, String::new(), Some(host.to_owned())),
    };
    let base = format!("{scheme}://{api_host}/").parse().ok()?;
    // containerd also uses plain HTTP for a registry on `localhost`.
    let may_be_plain = !is_plain && is_loopback(api_host);
    Some(Endpoint { base, prefix, credentials_of, connections: connections(settings), may_be_plain, mirror: None })
}

fn connections(settings: Option<&RegistrySettings>) -> usize {
    settings.and_then(|settings| settings.connections).unwrap_or(DEFAULT_CONNECTIONS)
}

/// Returns the settings of a host. All host names of Docker Hub share the settings of any of these names.
pub(super) fn settings_of<'s>(settings: &'s RegistriesSettings, host: &str) -> Option<&'s RegistrySettings> {
    let exact = settings.hosts.get(host);
    let is_hub = HUB_HOSTS.contains(&host);
    exact.or_else(|| HUB_HOSTS.iter().filter(|_| is_hub).find_map(|name| settings.hosts.get(*name)))
}

/// Returns whether a host, with or without a port, is a loopback address.
fn is_loopback(host: &str) -> bool {
    if let Some((address, _)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        // `Ipv6Addr::is_loopback` is false for an IPv4-mapped address such as `::ffff:127.0.0.1`.
        return address.parse().is_ok_and(|address: Ipv6Addr| address.to_canonical().is_loopback());
    }
    let name = host.split(':').next().unwrap_or_default();
    name == "localhost" || name.parse().is_ok_and(|address: Ipv4Addr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::super::ducc;
    use super::*;

    fn set(host: &str, registry: RegistrySettings) -> RegistriesSettings {
        RegistriesSettings { hosts: [(host.to_owned(), registry)].into(), ..RegistriesSettings::default() }
    }

    /// Returns the URLs of the manifest `t` of `a/b`, each with the host whose credentials are sent to it.
    fn manifest_urls(host: &str, transport: Transport, settings: &RegistriesSettings) -> Vec<(String, Option<String>)> {
        let endpoints = endpoints(host, "a/b", transport, settings, &[]).unwrap();
        endpoints.into_iter().map(|e| (e.url("a/b", "manifests/t").into(), e.credentials_of)).collect()
    }

    fn one(url: &str, credentials_of: &str) -> (String, Option<String>) {
        (url.to_owned(), Some(credentials_of.to_owned()))
    }

    #[test]
    fn requests_go_to_the_host_of_the_registry() {
        let nothing = RegistriesSettings::default();
        let url = "https://h.org:5000/v2/a/b/manifests/t";
        assert_eq!(manifest_urls("h.org:5000", Transport::Secure, &nothing), [one(url, "h.org:5000")]);
        let url = "http://h.org/v2/a/b/manifests/t";
        assert_eq!(manifest_urls("h.org", Transport::Plain, &nothing), [one(url, "h.org")]);
        let plain = set("h.org", RegistrySettings { plain_http: true, ..Default::default() });
        assert_eq!(manifest_urls("h.org", Transport::Secure, &plain), [one(url, "h.org")]);
        let url = "https://[2001:db8::1]:5000/v2/a/b/manifests/t";
        assert_eq!(manifest_urls("[2001:db8::1]:5000", Transport::Secure, &nothing), [one(url, "[2001:db8::1]:5000")]);
        let url = "http://[::1]/v2/a/b/manifests/t";
        assert_eq!(manifest_urls("[::1]", Transport::Plain, &nothing), [one(url, "[::1]")]);
    }

    #[test]
    fn requests_for_docker_hub_go_to_its_api_host() {
        for host in ["docker.io", "index.docker.io"] {
            let url = "https://registry-1.docker.io/v2/a/b/manifests/t";
            assert_eq!(manifest_urls(host, Transport::Secure, &RegistriesSettings::default()), [one(url, host)]);
        }
        let authorities = ["docker.io", "H.org:443", "h.org:5000", "[2001:DB8:0::1]:5000"].map(remote_authority);
        assert_eq!(authorities, ["registry-1.docker.io", "h.org", "h.org:5000", "[2001:db8::1]:5000"]);
        assert_eq!(remote_repository("docker.io", "alpine"), "library/alpine");
        assert_eq!(remote_repository("docker.io", "a/b"), "a/b");
        assert_eq!(remote_repository("h.org", "alpine"), "alpine");
    }

    #[test]
    fn mirrors_precede_the_registry_and_get_none_of_its_credentials() {
        let mirrors = vec!["https://m.org/hub/".to_owned(), "http://n.org:80".to_owned()];
        let mut registry = RegistrySettings { mirrors, ..Default::default() };
        let expected = [
            one("https://m.org/v2/hub/a/b/manifests/t", "m.org"),
            one("http://n.org/v2/a/b/manifests/t", "n.org"),
            one("https://registry-1.docker.io/v2/a/b/manifests/t", "docker.io"),
        ];
        assert_eq!(manifest_urls("docker.io", Transport::Secure, &set("docker.io", registry.clone())), expected);
        registry.mirrors_only = true;
        assert_eq!(manifest_urls("docker.io", Transport::Secure, &set("docker.io", registry)), expected[..2]);
    }

    #[test]
    fn proxy_of_ducc_replaces_the_registry_and_gets_no_credentials() {
        let variables =
            [("DUCC_AUTH_REGISTRIES", "L"), ("DUCC_L_IDENT", "docker.io"), ("DUCC_L_PROXY", "cache.org:1/hub")];
        let ducc =
            ducc::registries(&|name| variables.iter().find(|(key, _)| *key == name).map(|(_, v)| (*v).into())).unwrap();
        let nothing = RegistriesSettings::default();
        let found = endpoints("docker.io", "library/a", Transport::Secure, &nothing, &ducc).unwrap();
        assert_eq!(found[0].url("library/a", "tags/list").as_str(), "https://cache.org:1/v2/hub/library/a/tags/list");
        assert_eq!((found.len(), &found[0].credentials_of), (1, &None));
        let found = endpoints("h.org", "a", Transport::Secure, &nothing, &ducc).unwrap();
        assert_eq!(found[0].authority(), "h.org");
    }

    #[test]
    fn plain_http_is_tried_only_at_this_machine() {
        let may = |host: &str, transport| {
            endpoints(host, "a", transport, &RegistriesSettings::default(), &[]).unwrap()[0].may_be_plain
        };
        for host in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:5000",
            "127.9.9.9",
            "[::1]",
            "[::1]:5000",
            "[0:0:0:0:0:0:0:1]:5000",
            "[::ffff:127.0.0.1]:5000",
        ] {
            assert!(may(host, Transport::Secure), "{host}");
            assert!(!may(host, Transport::Plain), "{host}");
        }
        for host in
            ["h.org", "localhost.evil.org", "128.0.0.1", "127.0.0.1.evil.org:5000", "[::2]", "[2001:db8::1]:5000"]
        {
            assert!(!may(host, Transport::Secure), "{host}");
        }
    }
}
