//! Lists the repositories of a project. There is no standard API for that, so each kind of registry has its own.

use std::error::Error;

use serde_json::Value;

use super::reference::ImageRepository;
use crate::registry::JsonPage;

/// Maximum number of pages of a list.
const MAX_PAGES: usize = 1_000;

/// Maximum number of repositories of a project.
const MAX_REPOSITORIES: usize = 100_000;

/// Maximum number of characters from a registry in a message.
const MAX_SHOWN_CHARACTERS: usize = 100;

/// Host names of Docker Hub in image names.
const DOCKER_HUB_HOSTS: [&str; 4] = ["docker.io", "index.docker.io", "registry.hub.docker.com", "registry-1.docker.io"];

/// Base URL of the API of Docker Hub.
const DOCKER_HUB: &str = "https://hub.docker.com";

/// An error of a [`RegistryLister`].
pub type ListingError = Box<dyn Error + Send + Sync>;

/// Lists the tags and repositories of registries. Implementations must limit the size of responses.
pub trait RegistryLister: Sync {
    /// Returns all tags of a repository, in any order.
    fn tags(&self, repository: &ImageRepository) -> Result<Vec<String>, ListingError>;

    /// Returns the names of all repositories of a registry, from its `_catalog`.
    fn repositories(&self, host: &str, plain_http: bool) -> Result<Vec<String>, ListingError>;

    /// Fetches a JSON document of an `api`. Returns `None` for status 404.
    ///
    /// Implementations must not send credentials to the target of a redirect to another host.
    fn json(&self, url: &str, api: &ProjectApi) -> Result<Option<JsonPage>, ListingError>;
}

/// All repositories at a registry whose names start with a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Project {
    /// The API that lists its repositories.
    pub api: ProjectApi,
    /// Host and optional port of the registry, as written by the user.
    pub host: String,
    /// Name of the project. Empty means the whole registry, which only [`ProjectApi::Catalog`] supports.
    pub path: String,
    /// Whether the registry uses plain HTTP.
    pub plain_http: bool,
}

/// The API that lists the repositories of a project.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProjectApi {
    /// Harbor, API v2.0, "List repositories of the specified project".
    Harbor,
    /// GitLab, API v4, "List registry repositories", for groups and for projects.
    GitLab {
        /// Base URL of its API, without a slash at the end.
        api_url: String,
    },
    /// Quay, API v1, `listRepos`, only public repositories.
    Quay,
    /// Docker Hub, "List repositories in a namespace".
    DockerHub,
    /// The registry's `_catalog` (Docker registry, HTTP API V2, "Listing Repositories").
    Catalog,
}

/// The repositories of a project cannot be listed.
#[derive(Debug, thiserror::Error)]
pub enum ProjectError {
    /// A request to the registry failed.
    #[error("cannot list '{what}'")]
    Listing {
        /// URL of the request.
        what: String,
        /// Error of the lister.
        source: ListingError,
    },
    /// The server returned status 404.
    #[error("'{url}' does not exist, or is not public")]
    Missing {
        /// URL of the request.
        url: String,
    },
    /// The response does not follow the API.
    #[error("the response of '{url}' does not follow its API: {fault}")]
    Shape {
        /// URL of the request.
        url: String,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// The next page is at another server.
    #[error("the next page of '{url}' is at another server, {next:?}")]
    Elsewhere {
        /// URL of the request.
        url: String,
        /// URL of the next page.
        next: String,
    },
    /// According to GitLab, the images are at another registry than in the wishlist.
    #[error("according to '{url}', {path:?} is at {location:?}, not at '{host}'")]
    OtherRegistry {
        /// URL of the request.
        url: String,
        /// The repository.
        path: String,
        /// Its location according to GitLab.
        location: String,
        /// The registry in the wishlist.
        host: String,
    },
    /// The list is too long.
    #[error("'{url}' lists more than {MAX_REPOSITORIES} repositories or {MAX_PAGES} pages")]
    TooMany {
        /// URL of the first page.
        url: String,
    },
}

/// Names of repositories on one page, and the URL of the next page.
type ProjectPage = (Vec<String>, Option<String>);

impl Project {
    /// Checks that the name of the project is valid for its API. Returns an error message otherwise.
    pub(super) fn check(&self) -> Result<(), String> {
        let is_name = |name: &str| {
            name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
                && name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        };
        let names = self.path.split('/').filter(|_| !self.path.is_empty()).count();
        let text = &self.path;
        if self.path.len() > 255 || names > 0 && !self.path.split('/').all(is_name) {
            return Err(format!("{text:?} is not a valid project name"));
        }
        match self.api {
            ProjectApi::Harbor | ProjectApi::Quay | ProjectApi::DockerHub if names != 1 => {
                Err(format!("{text:?} is not a valid project name: with this api it must be one name without slashes"))
            }
            ProjectApi::GitLab { .. } if names == 0 => Err("the api gitlab requires a group or a project".to_owned()),
            ProjectApi::DockerHub if !DOCKER_HUB_HOSTS.contains(&self.host.as_str()) => {
                Err(format!("the api dockerhub supports {}, but not {:?}", DOCKER_HUB_HOSTS.join(", "), self.host))
            }
            _ => Ok(()),
        }
    }

    /// Returns the names of the repositories of the project, in any order. The names are unchecked.
    pub fn repositories(&self, listing: &dyn RegistryLister) -> Result<Vec<String>, ProjectError> {
        match &self.api {
            ProjectApi::Harbor => self.harbor(listing),
            ProjectApi::GitLab { api_url } => self.gitlab(api_url, listing),
            ProjectApi::Quay => self.quay(listing),
            ProjectApi::DockerHub => self.docker_hub(listing),
            ProjectApi::Catalog => self.catalog(listing),
        }
    }

    fn origin(&self) -> String {
        format!("{}://{}", if self.plain_http { "http" } else { "https" }, self.host)
    }

    fn harbor(&self, listing: &dyn RegistryLister) -> Result<Vec<String>, ProjectError> {
        let origin = self.origin();
        // 100 is the maximum page size of Harbor.
        let first = format!("{origin}/api/v2.0/projects/{}/repositories?page=1&page_size=100", self.path);
        pages(listing, &self.api, first, |page, url| {
            let names = items(&page.body, url)?.iter().map(|item| text(item, "name", url).map(str::to_owned));
            let next = page.next.as_deref().map(|next| same_server(&origin, url, next)).transpose()?;
            Ok((names.collect::<Result<_, _>>()?, next))
        })
    }

    /// Requests the repositories of a group first. A path with a slash may also be that of a single project.
    fn gitlab(&self, api_url: &str, listing: &dyn RegistryLister) -> Result<Vec<String>, ProjectError> {
        let of_group = self.gitlab_list(api_url, "groups", listing);
        if of_group.is_ok() || !self.path.contains('/') {
            return of_group;
        }
        match (of_group, self.gitlab_list(api_url, "projects", listing)) {
            (_, Ok(of_project)) => Ok(of_project),
            (Err(ProjectError::Missing { .. }), Err(error)) | (Err(error), Err(_)) => Err(error),
            (Ok(of_group), _) => Ok(of_group),
        }
    }

    fn gitlab_list(
        &self,
        api_url: &str,
        kind: &str,
        listing: &dyn RegistryLister,
    ) -> Result<Vec<String>, ProjectError> {
        // In GitLab's API, an encoded path takes the place of the numeric ID.
        let encoded = self.path.replace('/', "%2F");
        // 100 is the maximum page size of GitLab.
        let list = format!("{api_url}/api/v4/{kind}/{encoded}/registry/repositories?per_page=100&page=");
        pages(listing, &self.api, format!("{list}1"), |page, url| {
            let names = items(&page.body, url)?.iter().map(|item| self.gitlab_name(item, url));
            let shape = |fault| ProjectError::Shape { url: url.to_owned(), fault };
            let next = match page.header("x-next-page").map(str::trim) {
                // GitLab sends the header without a value on the last page.
                None | Some("") => None,
                Some(next) => {
                    let number: u32 = next.parse().map_err(|_| shape("X-Next-Page is not a number"))?;
                    Some(format!("{list}{number}"))
                }
            };
            Ok((names.collect::<Result<_, _>>()?, next))
        })
    }

    /// Returns the name of a repository. Fails if GitLab states that it is at another registry than that of the wish.
    fn gitlab_name(&self, item: &Value, url: &str) -> Result<String, ProjectError> {
        let path = text(item, "path", url)?;
        match item.get("location").and_then(Value::as_str) {
            Some(location) if location != format!("{}/{path}", self.host) => Err(ProjectError::OtherRegistry {
                url: url.to_owned(),
                path: beginning_of(path),
                location: beginning_of(location),
                host: self.host.clone(),
            }),
            _ => Ok(path.to_owned()),
        }
    }

    fn quay(&self, listing: &dyn RegistryLister) -> Result<Vec<String>, ProjectError> {
        let first = format!("{}/api/v1/repository?namespace={}&public=true", self.origin(), self.path);
        pages(listing, &self.api, first.clone(), |page, url| {
            let mut names = Vec::new();
            for item in items(member(&page.body, "repositories", url)?, url)? {
                // Quay also has repositories of other kinds, such as applications.
                if item.get("kind").and_then(Value::as_str).is_none_or(|kind| kind == "image") {
                    names.push(format!("{}/{}", text(item, "namespace", url)?, text(item, "name", url)?));
                }
            }
            let token = page.body.get("next_page").and_then(Value::as_str).filter(|token| !token.is_empty());
            Ok((names, token.map(|token| format!("{first}&next_page={}", percent_encoded(token)))))
        })
    }

    fn docker_hub(&self, listing: &dyn RegistryLister) -> Result<Vec<String>, ProjectError> {
        let first = format!("{DOCKER_HUB}/v2/namespaces/{}/repositories/?page_size=100", self.path);
        pages(listing, &self.api, first, |page, url| {
            let mut names = Vec::new();
            for item in items(member(&page.body, "results", url)?, url)? {
                if item.get("repository_type").and_then(Value::as_str).is_none_or(|kind| kind == "image") {
                    names.push(format!("{}/{}", self.path, text(item, "name", url)?));
                }
            }
            let next = page.body.get("next").and_then(Value::as_str);
            Ok((names, next.map(|next| same_server(DOCKER_HUB, url, next)).transpose()?))
        })
    }

    fn catalog(&self, listing: &dyn RegistryLister) -> Result<Vec<String>, ProjectError> {
        let what = format!("{}/v2/_catalog", self.origin());
        let all = listing
            .repositories(&self.host, self.plain_http)
            .map_err(|source| ProjectError::Listing { what: what.clone(), source })?;
        let names: Vec<String> = all.into_iter().filter(|name| self.holds(name)).collect();
        if names.len() > MAX_REPOSITORIES { Err(ProjectError::TooMany { url: what }) } else { Ok(names) }
    }

    /// Returns whether a repository belongs to the project: its name is that of the project, or starts with it and a slash.
    pub(super) fn holds(&self, name: &str) -> bool {
        let rest = name.strip_prefix(&self.path);
        self.path.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

/// Reads all pages of a list.
fn pages(
    listing: &dyn RegistryLister,
    api: &ProjectApi,
    first: String,
    read: impl Fn(&JsonPage, &str) -> Result<ProjectPage, ProjectError>,
) -> Result<Vec<String>, ProjectError> {
    let mut all = Vec::new();
    let mut url = first.clone();
    for _ in 0..MAX_PAGES {
        let answer = listing.json(&url, api).map_err(|source| ProjectError::Listing { what: url.clone(), source })?;
        let page = answer.ok_or_else(|| ProjectError::Missing { url: url.clone() })?;
        let (names, next) = read(&page, &url)?;
        all.extend(names);
        if all.len() > MAX_REPOSITORIES {
            break;
        }
        match next {
            Some(next) => url = next,
            None => return Ok(all),
        }
    }
    Err(ProjectError::TooMany { url: first })
}

fn items<'v>(value: &'v Value, url: &str) -> Result<&'v [Value], ProjectError> {
    let fault = "it contains no list";
    value.as_array().map(Vec::as_slice).ok_or_else(|| ProjectError::Shape { url: url.to_owned(), fault })
}

fn member<'v>(value: &'v Value, name: &str, url: &str) -> Result<&'v Value, ProjectError> {
    let fault = "the member with the list is missing";
    value.get(name).ok_or_else(|| ProjectError::Shape { url: url.to_owned(), fault })
}

fn text<'v>(value: &'v Value, name: &str, url: &str) -> Result<&'v str, ProjectError> {
    let fault = "a repository has no name";
    value.get(name).and_then(Value::as_str).ok_or_else(|| ProjectError::Shape { url: url.to_owned(), fault })
}

/// Resolves the URL of the next page. Fails if it is not at the server `origin`.
fn same_server(origin: &str, url: &str, next: &str) -> Result<String, ProjectError> {
    let whole =
        if next.starts_with('/') && !next.starts_with("//") { format!("{origin}{next}") } else { next.to_owned() };
    // URL parsers read a backslash as a slash, and remove control characters, so that the host could be another one.
    let is_clean = whole.bytes().all(|b| b.is_ascii_graphic() && b != b'\\');
    match whole.strip_prefix(origin) {
        // Without the slash, `https://host.evil.org` would count as `https://host`.
        Some(rest) if rest.starts_with('/') && is_clean => Ok(whole),
        _ => Err(ProjectError::Elsewhere { url: url.to_owned(), next: beginning_of(next) }),
    }
}

/// Returns the start of a text from a registry, for a message.
pub(super) fn beginning_of(text: &str) -> String {
    text.chars().take(MAX_SHOWN_CHARACTERS).collect()
}

fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            _ => encoded += &format!("%{byte:02X}"),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::super::expand::tests::Registries;
    use super::*;

    use serde_json::json;

    fn project(api: ProjectApi, host: &str, path: &str) -> Project {
        Project { api, host: host.to_owned(), path: path.to_owned(), plain_http: false }
    }

    fn gitlab(path: &str) -> Project {
        let api_url = "https://gitlab.example.org".to_owned();
        project(ProjectApi::GitLab { api_url }, "registry.example.org", path)
    }

    #[test]
    fn harbor_pages_follow_the_link_header() {
        let first = "https://harbor.example.org/api/v2.0/projects/physics/repositories?page=1&page_size=100";
        let second = "/api/v2.0/projects/physics/repositories?page=2&page_size=100";
        let item = |name: &str| {
            json!({"artifact_count": 1, "creation_time": "2024-01-09T10:00:00.000Z", "id": 7, "name": name,
                   "project_id": 2, "pull_count": 3, "update_time": "2024-01-09T10:00:00.000Z"})
        };
        let mut registries = Registries::default();
        registries.page(first, json!([item("physics/a"), item("physics/tools/b")])).next = Some(second.to_owned());
        registries.page(&format!("https://harbor.example.org{second}"), json!([item("physics/c")]));
        let project = project(ProjectApi::Harbor, "harbor.example.org", "physics");
        assert_eq!(project.repositories(&registries).unwrap(), ["physics/a", "physics/tools/b", "physics/c"]);
    }

    #[test]
    fn next_page_at_another_server_is_rejected() {
        let first = "https://harbor.example.org/api/v2.0/projects/physics/repositories?page=1&page_size=100";
        let project = project(ProjectApi::Harbor, "harbor.example.org", "physics");
        for next in [
            "https://evil.example.org/x",
            "//evil.example.org/x",
            "https://harbor.example.org.evil.example.org/x",
            "https://harbor.example.org@evil.example.org/x",
            "http://harbor.example.org/x",
            "x",
            "/x\n",
        ] {
            let mut registries = Registries::default();
            registries.page(first, json!([])).next = Some(next.to_owned());
            let error = project.repositories(&registries).unwrap_err();
            assert!(matches!(error, ProjectError::Elsewhere { .. }), "{next}: {error}");
        }
    }

    #[test]
    fn gitlab_lists_a_group_by_page_numbers() {
        let list = "https://gitlab.example.org/api/v4/groups/group%2Fsub/registry/repositories?per_page=100&page=";
        let item = |path: &str| {
            json!({"id": 1, "name": "", "path": path, "project_id": 9, "location": format!("registry.example.org/{path}"),
                   "created_at": "2019-01-10T13:38:57.391Z", "cleanup_policy_started_at": null})
        };
        let mut registries = Registries::default();
        let page = registries.page(&format!("{list}1"), json!([item("group/sub/a")]));
        page.set_header("x-next-page", "2");
        let page = registries.page(&format!("{list}2"), json!([item("group/sub/a/b")]));
        page.set_header("x-next-page", "");
        assert_eq!(gitlab("group/sub").repositories(&registries).unwrap(), ["group/sub/a", "group/sub/a/b"]);
    }

    #[test]
    fn gitlab_path_may_be_that_of_a_project() {
        let url = "https://gitlab.example.org/api/v4/projects/group%2Ftool/registry/repositories?per_page=100&page=1";
        let mut registries = Registries::default();
        registries.page(url, json!([{"path": "group/tool", "location": "registry.example.org/group/tool"}]));
        assert_eq!(gitlab("group/tool").repositories(&registries).unwrap(), ["group/tool"]);
        assert!(matches!(gitlab("group/none").repositories(&registries), Err(ProjectError::Missing { .. })));
        assert!(matches!(gitlab("none").repositories(&registries), Err(ProjectError::Missing { .. })));
    }

    #[test]
    fn repository_at_another_registry_of_gitlab_is_an_error() {
        let url = "https://gitlab.example.org/api/v4/groups/group/registry/repositories?per_page=100&page=1";
        let mut registries = Registries::default();
        registries.page(url, json!([{"path": "group/a", "location": "registry.example.org:5050/group/a"}]));
        let error = gitlab("group").repositories(&registries).unwrap_err();
        assert!(error.to_string().contains("registry.example.org:5050"), "{error}");
    }

    #[test]
    fn quay_pages_follow_the_token() {
        let first = "https://quay.io/api/v1/repository?namespace=org&public=true";
        let item = |name: &str, kind: &str| json!({"namespace": "org", "name": name, "description": null, "is_public": true, "kind": kind, "state": "NORMAL"});
        let mut registries = Registries::default();
        let body = json!({"repositories": [item("a", "image"), item("chart", "application")], "next_page": "gA/=+&x"});
        registries.page(first, body);
        registries.page(&format!("{first}&next_page=gA%2F%3D%2B%26x"), json!({"repositories": [item("b", "image")]}));
        let project = project(ProjectApi::Quay, "quay.io", "org");
        assert_eq!(project.repositories(&registries).unwrap(), ["org/a", "org/b"]);
    }

    #[test]
    fn docker_hub_pages_follow_the_next_url() {
        let first = "https://hub.docker.com/v2/namespaces/org/repositories/?page_size=100";
        let next = "https://hub.docker.com/v2/namespaces/org/repositories?page=2&page_size=100";
        let item = |name: &str, kind: Option<&str>| json!({"name": name, "namespace": "org", "repository_type": kind, "status": 1, "is_private": false});
        let mut registries = Registries::default();
        let results = [item("a", Some("image")), item("driver", Some("plugin"))];
        registries.page(first, json!({"count": 3, "next": next, "previous": null, "results": results}));
        registries.page(next, json!({"count": 3, "next": null, "previous": first, "results": [item("b", None)]}));
        let project = project(ProjectApi::DockerHub, "docker.io", "org");
        assert_eq!(project.repositories(&registries).unwrap(), ["org/a", "org/b"]);
    }

    #[test]
    fn catalog_is_filtered_by_the_project() {
        let mut registries = Registries::default();
        registries.catalog("r.example.org", &["a", "a/b", "ab/c", "b/a"]);
        let below = |path: &str| project(ProjectApi::Catalog, "r.example.org", path).repositories(&registries).unwrap();
        assert_eq!(below("a"), ["a", "a/b"]);
        assert_eq!(below("").len(), 4);
    }

    #[test]
    fn list_without_end_is_an_error() {
        let url = "https://harbor.example.org/api/v2.0/projects/physics/repositories?page=1&page_size=100";
        let mut registries = Registries::default();
        registries.page(url, json!([{"name": "physics/a"}])).next = Some(url.to_owned());
        let project = project(ProjectApi::Harbor, "harbor.example.org", "physics");
        assert!(matches!(project.repositories(&registries), Err(ProjectError::TooMany { .. })));
    }

    #[test]
    fn invalid_responses_are_errors() {
        let harbor = "https://h.org/api/v2.0/projects/p/repositories?page=1&page_size=100";
        let quay = "https://h.org/api/v1/repository?namespace=p&public=true";
        for body in [json!(null), json!({}), json!({"errors": []}), json!([1]), json!([{"name": 1}]), json!("x")] {
            let mut registries = Registries::default();
            registries.page(harbor, body.clone());
            registries.page(quay, json!({"repositories": body}));
            for api in [ProjectApi::Harbor, ProjectApi::Quay] {
                let answer = project(api, "h.org", "p").repositories(&registries);
                assert!(matches!(answer, Err(ProjectError::Shape { .. })), "{body}");
            }
        }
    }
}
