//! Parses version 2 of the wishlist format, which strata defines. A wish with an error is skipped.

use std::num::NonZeroUsize;

use regex::{Regex, RegexBuilder};

use super::filter::{Glob, NameFilter, TagFilter};
use super::node::{Fault, Faults, YamlNode, YamlValue};
use super::options::WishOptions;
use super::project_api::{Project, ProjectApi};
use super::reference::{WishReference, is_host, without_scheme};
use super::version;
use super::{Wish, WishTarget, Wishlist, WishlistProblem};

/// Maximum length of a pattern in bytes: more than the longest repository name, 255.
const MAX_PATTERN: usize = 300;

/// Maximum size of a compiled regular expression in bytes.
// A short pattern with nested repetitions can compile to many megabytes.
const MAX_REGEX_SIZE: usize = 1 << 20;

/// Parses a wishlist. `name` is the default for its name.
///
/// A wish with an error is skipped, because a misspelt option would silently have another effect; the other wishes are used. An
/// error in `name`, `repository` or the list itself makes the whole file invalid.
pub(super) fn read(document: &YamlNode, name: String) -> Result<Wishlist, Fault> {
    let mut faults = Faults::default();
    document.check_keys(&["version", "name", "repository", "defaults", "images"], &mut faults);
    let text_of = |key: &str| document.get(key).map(|node| node.text().map(str::to_owned)).transpose();
    let (name, repository) = (text_of("name")?.unwrap_or(name), text_of("repository")?);
    let images =
        document.get("images").ok_or_else(|| document.fault("the key 'images' with the list of wishes is missing"))?;
    let YamlValue::List(items) = &images.value else {
        return Err(images.fault("'images' must be a list; write [] for an empty list"));
    };
    let defaults = document.get("defaults").map(|node| Defaults::read(node, &mut faults)).unwrap_or_default();
    let (mut wishes, mut unclear) = (Vec::new(), 0);
    for item in items {
        let before = faults.count();
        let wish = wish(item, &defaults.options, &mut faults).filter(|_| faults.count() == before);
        match wish {
            Some(wish) if defaults.are_clear_for(item) => wishes.push(wish),
            Some(_) => unclear += 1,
            None => {}
        }
    }
    if let (Some(node), 1..) = (document.get("defaults"), unclear) {
        faults
            .add(node.fault(format!("{unclear} wishes are skipped, because they depend on the errors in 'defaults'")));
    }
    let problems = faults.sorted().into_iter().map(WishlistProblem::bad).collect();
    Ok(Wishlist { name, repository, wishes, problems, thin: None })
}

/// Default options of the wishes.
#[derive(Default)]
struct Defaults {
    options: WishOptions,
    /// Keys of the options with errors.
    wrong: Vec<&'static str>,
    /// Whether there are other errors, such as an unknown key: then any default may be wrong.
    is_unclear: bool,
}

impl Defaults {
    fn read(node: &YamlNode, faults: &mut Faults) -> Self {
        let before = faults.count();
        node.check_keys(&WishOptions::KEYS, faults);
        let mut defaults = Self { is_unclear: faults.count() > before, ..Self::default() };
        for key in WishOptions::KEYS {
            let before = faults.count();
            if let Some(value) = node.get(key) {
                defaults.options.set(key, value, faults);
            }
            if faults.count() > before {
                defaults.wrong.push(key);
            }
        }
        defaults
    }

    /// Returns whether the wish uses no default that has an error.
    fn are_clear_for(&self, item: &YamlNode) -> bool {
        !self.is_unclear && self.wrong.iter().all(|key| item.get(key).is_some())
    }
}

fn wish(item: &YamlNode, defaults: &WishOptions, faults: &mut Faults) -> Option<Wish> {
    match &item.value {
        YamlValue::Text(text) => {
            let what = image_or_tags(item, text, None, faults)?;
            Some(Wish { line: item.line, what, options: defaults.clone() })
        }
        YamlValue::Map(_) if item.get("project").is_some() => project_wish(item, defaults, faults),
        YamlValue::Map(_) if item.get("image").is_some() => image_wish(item, defaults, faults),
        YamlValue::TooLong(_) => faults.take(item.text().map(drop)).and(None),
        _ => {
            faults.add(item.fault("a wish is an image name or has the key 'image' or 'project'"));
            None
        }
    }
}

fn image_wish(item: &YamlNode, defaults: &WishOptions, faults: &mut Faults) -> Option<Wish> {
    item.check_keys(&[&["image", "tags", "name"][..], &WishOptions::KEYS].concat(), faults);
    let mut options = defaults.read(item, faults);
    let image = item.get("image")?;
    let text = faults.take(image.text());
    let what = text.and_then(|text| image_or_tags(image, text, item.get("tags"), faults));
    if let Some(name) = item.get("name") {
        if matches!(what, Some(WishTarget::Tags { .. } | WishTarget::Project { .. })) {
            faults.add(name.fault("'name' is allowed only in a wish for one image, and this one may match several"));
        }
        options.name = faults.take(name.parsed());
    }
    Some(Wish { line: item.line, what: what?, options })
}

/// Parses an image reference, with the filter in `tags` if there is one.
fn image_or_tags(node: &YamlNode, text: &str, tags: Option<&YamlNode>, faults: &mut Faults) -> Option<WishTarget> {
    // The tags are parsed first, so that their errors are reported even if the name is invalid, too.
    let filter = tags.map(|tags| tag_filter(tags, faults));
    let reference = faults.take(WishReference::parse(text).map_err(|error| node.fault(error)))?;
    let what = match (reference.tag, tags.zip(filter)) {
        (None, None) if reference.digest.is_none() => {
            Err(node.fault(format!("{text:?} has neither tag nor digest, and the key 'tags' is missing")))
        }
        (None, Some((_, filter))) if reference.digest.is_none() => {
            Ok(WishTarget::Tags { repository: reference.repository, filter })
        }
        (_, Some((tags, _))) => {
            Err(tags.fault(format!("{text:?} already contains a tag or digest: remove it, or remove 'tags'")))
        }
        (Some(tag), None) if tag.contains('*') && reference.digest.is_some() => {
            Err(node.fault(format!("{text:?} has both a wildcard and a digest")))
        }
        (Some(tag), None) if tag.contains('*') => glob(node, tag).map(|glob| WishTarget::Tags {
            repository: reference.repository,
            filter: TagFilter::including(vec![glob]),
        }),
        (_, None) => reference.image().map(WishTarget::Image).map_err(|error| node.fault(error)),
    };
    faults.take(what)
}

fn project_wish(item: &YamlNode, defaults: &WishOptions, faults: &mut Faults) -> Option<Wish> {
    item.check_keys(&[&["project", "api", "api_url", "repositories", "tags"][..], &WishOptions::KEYS].concat(), faults);
    let options = defaults.read(item, faults);
    let project = faults.take(project(item));
    let repositories = item.get("repositories").map(|node| name_filter(node, faults)).unwrap_or_default();
    let tags = item.get("tags").map(|node| tag_filter(node, faults)).unwrap_or_default();
    Some(Wish { line: item.line, what: WishTarget::Project { project: project?, repositories, tags }, options })
}

fn project(item: &YamlNode) -> Result<Project, Fault> {
    let node = item.get("project").ok_or_else(|| item.fault("the key 'project' is missing"))?;
    let (rest, plain_http) = without_scheme(node.text()?).map_err(|error| node.fault(error))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let path = path.strip_suffix('/').unwrap_or(path);
    if !is_host(host) {
        return Err(node.fault(format!("{host:?} is not a valid host")));
    }
    let api =
        item.get("api").ok_or_else(|| item.fault("a project requires 'api', the API that lists its repositories"))?;
    let url = item.get("api_url");
    let project =
        Project { api: project_api(api, url, host)?, host: host.to_owned(), path: path.to_owned(), plain_http };
    project.check().map_err(|error| node.fault(error))?;
    Ok(project)
}

fn project_api(api: &YamlNode, url: Option<&YamlNode>, host: &str) -> Result<ProjectApi, Fault> {
    let known = match api.text()? {
        "gitlab" => return gitlab(api, url, host),
        "harbor" => ProjectApi::Harbor,
        "quay" => ProjectApi::Quay,
        "dockerhub" => ProjectApi::DockerHub,
        "catalog" => ProjectApi::Catalog,
        other => return Err(api.fault(format!("{other:?} is not one of harbor, gitlab, quay, dockerhub and catalog"))),
    };
    match url {
        None => Ok(known),
        Some(url) => Err(url.fault("'api_url' is allowed only with the api gitlab")),
    }
}

fn gitlab(api: &YamlNode, url: Option<&YamlNode>, host: &str) -> Result<ProjectApi, Fault> {
    let Some(url) = url else {
        // Only this registry has a known URL of the API. A guessed URL for another registry could send its credentials to
        // another server.
        return if host == "registry.gitlab.com" {
            Ok(ProjectApi::GitLab { api_url: "https://gitlab.com".to_owned() })
        } else {
            Err(api.fault("the api gitlab requires 'api_url', such as https://gitlab.example.org"))
        };
    };
    let text = url.text()?.trim_end_matches('/');
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let is_plain = |rest: &str| {
        let (host, path) = rest.split_once('/').unwrap_or((rest, "a"));
        is_host(host) && path.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'-' | b'_' | b'.'))
    };
    if !rest.is_some_and(is_plain) {
        return Err(url.fault("'api_url' is not a URL such as https://gitlab.example.org"));
    }
    Ok(ProjectApi::GitLab { api_url: text.to_owned() })
}

fn name_filter(node: &YamlNode, faults: &mut Faults) -> NameFilter {
    if !matches!(node.value, YamlValue::Map(_)) {
        return NameFilter { include: globs(node, faults), ..NameFilter::default() };
    }
    node.check_keys(&["include", "exclude"], faults);
    let mut filter = NameFilter::default();
    if let Some(include) = node.get("include") {
        filter.include = globs(include, faults);
    }
    if let Some(exclude) = node.get("exclude") {
        filter.exclude = globs(exclude, faults);
    }
    filter
}

fn tag_filter(node: &YamlNode, faults: &mut Faults) -> TagFilter {
    if !matches!(node.value, YamlValue::Map(_)) {
        return TagFilter::including(globs(node, faults));
    }
    node.check_keys(&["include", "exclude", "regex", "semver", "newest"], faults);
    let mut filter = TagFilter::default();
    if let Some(include) = node.get("include") {
        filter.include = globs(include, faults);
    }
    if let Some(exclude) = node.get("exclude") {
        filter.exclude = globs(exclude, faults);
    }
    filter.regex = node.get("regex").and_then(|pattern| faults.take(regex(pattern)));
    filter.semver = node.get("semver").and_then(|requirement| {
        let parsed = requirement.text().and_then(|text| {
            version::parse_requirement(text).map_err(|error| requirement.fault(format!("invalid semver: {error}")))
        });
        faults.take(parsed)
    });
    filter.newest = node.get("newest").and_then(|newest| {
        let number = newest.text().map(|text| text.parse::<NonZeroUsize>().ok());
        faults
            .take(number.and_then(|number| number.ok_or_else(|| newest.fault("'newest' must be a number, at least 1"))))
    });
    filter
}

fn regex(pattern: &YamlNode) -> Result<Regex, Fault> {
    let regex = RegexBuilder::new(pattern.text()?).size_limit(MAX_REGEX_SIZE).dfa_size_limit(MAX_REGEX_SIZE).build();
    // The first lines of the message repeat the pattern; the last one is the error.
    let last_line = |error: &regex::Error| error.to_string().lines().last().unwrap_or_default().to_owned();
    regex.map_err(|error| pattern.fault(format!("invalid regex: {}", last_line(&error))))
}

fn globs(node: &YamlNode, faults: &mut Faults) -> Vec<Glob> {
    let texts = node.texts(faults);
    texts.into_iter().filter_map(|(item, text)| faults.take(glob(item, text))).collect()
}

fn glob(node: &YamlNode, pattern: &str) -> Result<Glob, Fault> {
    if pattern.len() > MAX_PATTERN {
        return Err(node.fault(format!("a pattern of {} bytes exceeds the limit of {MAX_PATTERN}", pattern.len())));
    }
    let is_of_names = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '/' | '*' | '?');
    match pattern.chars().find(|&c| !is_of_names(c)) {
        Some(sign) => Err(node.fault(format!(
            "{pattern:?} matches nothing: names cannot contain {sign:?}; only * and ? are wildcards, use 'regex' for more"
        ))),
        None => Ok(Glob::new(pattern)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::parse;
    use super::*;
    use crate::layout::ChainSelection;
    use crate::source::{PlatformRequest, PlatformSelection};

    fn wishes(images: &str) -> Vec<Wish> {
        parse(&format!("version: 2\nimages:\n{images}")).unwrap().wishes
    }

    /// Returns the error message for a list with one invalid wish.
    fn message(images: &str) -> String {
        let wishlist = parse(&format!("version: 2\nimages:\n{images}")).unwrap();
        assert!(wishlist.wishes.is_empty() && wishlist.problems[0].is_bad, "{images}");
        wishlist.problems[0].to_string()
    }

    #[test]
    fn every_part_of_a_wishlist_is_parsed() {
        let text = "\
version: 2
name: hep
repository: unpacked.example.org
defaults: {platforms: linux/amd64, layers: true, flat: false, chains: none, strict: true}
images:
  - docker.io/library/debian:12
  - image: registry.example.org/atlas/athena
    tags: [21.0.*, 22.10]
    platforms: [linux/amd64, linux/arm64/v8, linux/amd64]
  - image: ghcr.io/org/tool
    tags: {include: 'v*', regex: '^v[0-9]', exclude: ['*-rc*'], semver: '>=1.2, <3', newest: 5}
    layers: false
    podman: false
    platforms: all
    chains: all
  - image: docker.io/library/debian:12
    name: example.org/base/debian:12
  - project: http://harbor.example.org:8080/physics
    api: harbor
    repositories: {include: '*', exclude: '*/cache'}
    tags: {newest: 3}
";
        let wishlist = parse(text).unwrap();
        assert_eq!((wishlist.name.as_str(), wishlist.repository.as_deref()), ("hep", Some("unpacked.example.org")));
        let lines: Vec<usize> = wishlist.wishes.iter().map(|wish| wish.line).collect();
        assert_eq!(lines, [6, 7, 10, 16, 18]);
        let options: Vec<&WishOptions> = wishlist.wishes.iter().map(|wish| &wish.options).collect();
        let amd64: crate::image::Platform = "linux/amd64".parse().unwrap();
        let only_amd64 = PlatformRequest { platform: amd64.clone(), explicit: true };
        assert_eq!(options[0].platforms, PlatformSelection::One(only_amd64));
        assert!(options[0].layers && !options[0].flat && options[0].strict);
        let arm64 = "linux/arm64/v8".parse().unwrap();
        assert_eq!(options[1].platforms, PlatformSelection::Several(vec![amd64, arm64]));
        assert_eq!((options[1].chains, options[2].chains), (ChainSelection::None, ChainSelection::All));
        assert!(options[1].podman && !options[2].podman);
        assert!(!options[2].layers && options[2].platforms == PlatformSelection::All);
        assert_eq!(options[3].name.as_ref().unwrap().to_string(), "example.org/base/debian:12");
        let WishTarget::Tags { filter, .. } = &wishlist.wishes[1].what else { panic!("is no rule for tags") };
        let patterns: Vec<&str> = filter.include.iter().map(Glob::as_str).collect();
        assert_eq!(patterns, ["21.0.*", "22.10"]);
        let WishTarget::Tags { filter, .. } = &wishlist.wishes[2].what else { panic!("is no rule for tags") };
        assert!(filter.regex.is_some() && filter.semver.is_some() && filter.newest.unwrap().get() == 5);
        let WishTarget::Project { project, repositories, .. } = &wishlist.wishes[4].what else {
            panic!("is no project")
        };
        assert_eq!((project.host.as_str(), project.path.as_str()), ("harbor.example.org:8080", "physics"));
        assert!(project.plain_http && repositories.wants("physics", "physics/a"));
    }

    #[test]
    fn error_for_an_unknown_key_contains_key_and_line() {
        let text = "version: 2\nimages:\n- image: h.org/a:1\n  platfroms: all\n";
        let message = parse(text).unwrap().problems[0].to_string();
        assert!(message.starts_with("line 4, column 3: unknown key \"platfroms\""), "{message}");
        for text in [
            "version: 2\nimage: []\nimages: []",
            "version: 2\ndefaults: {name: h.org/a:1}\nimages: []",
            "version: 2\nimages:\n- {image: h.org/a, tags: {includes: a}}",
            "version: 2\nimages:\n- {image: h.org/a:1, api: harbor}",
            "version: 2\nimages:\n- {project: h.org/a, api: harbor, name: h.org/a:b}",
            "version: 2\nimages:\n- {project: h.org/a, api: harbor, repositories: {regex: a}}",
        ] {
            let problems = parse(text).unwrap().problems;
            assert!(problems[0].is_bad && problems[0].text.contains("unknown key"), "{text}");
        }
    }

    #[test]
    fn errors_are_reported_with_their_lines() {
        for (image, part) in [
            ("- h.org/a", "neither tag nor digest"),
            ("- image: h.org/a", "neither tag nor digest"),
            ("- h.org/A:1", "not an image name"),
            ("- image: h.org/a:1\n  tags: ['2']", "already contains"),
            ("- image: h.org/a\n  tags: ['2']\n  name: h.org/b:1", "one image"),
            ("- image: h.org/a:*\n  name: h.org/b:1", "one image"),
            ("- image: h.org/a:1\n  name: b", "not an image name"),
            ("- image: h.org/a\n  tags: {newest: 0}", "at least 1"),
            ("- image: h.org/a\n  tags: {newest: -1}", "at least 1"),
            ("- image: h.org/a\n  tags: []", "empty list"),
            ("- image: h.org/a\n  tags: {include: ''}", "empty text"),
            ("- image: h.org/a\n  tags:", "not nothing"),
            ("- image: h.org/a\n  tags: {regex: '('}", "invalid regex"),
            ("- image: h.org/a\n  tags: {regex: '(a{1000}){1000}'}", "invalid regex"),
            ("- image: h.org/a\n  tags: 'v[0-9]'", "matches nothing"),
            ("- image: h.org/a\n  tags: {semver: '>=x'}", "invalid semver"),
            ("- image: h.org/a:1\n  platforms: linux", "platform"),
            ("- image: h.org/a:1\n  platforms: []", "empty list"),
            ("- image: h.org/a:1\n  layers: 1", "true or false"),
            ("- image: h.org/a:1\n  chains: some", "final"),
            ("- project: h.org/a", "'api'"),
            ("- project: h.org/a\n  api: nexus", "not one of"),
            ("- project: h.org/a\n  api: gitlab", "'api_url'"),
            ("- project: h.org/a\n  api: harbor\n  api_url: https://h.org", "gitlab"),
            ("- project: h.org/a\n  api: gitlab\n  api_url: 'https://u:p@h.org'", "URL"),
            ("- project: u:p@h.org/a\n  api: harbor", "password"),
            ("- project: h.org/a/b\n  api: harbor", "one name"),
            ("- project: h.org/\n  api: harbor", "one name"),
            ("- project: h.org/../x\n  api: gitlab\n  api_url: https://h.org", "project"),
            ("- project: h.org/a\n  api: dockerhub", "docker.io"),
            ("- []", "a wish is"),
            ("-", "a wish is"),
        ] {
            let message = message(image);
            let line = 2 + image.lines().count();
            let is_placed = [line, 3].iter().any(|line| message.starts_with(&format!("line {line}, column ")));
            assert!(is_placed && message.contains(part) && !message.contains('\n'), "{image}: {message}");
        }
    }

    #[test]
    fn all_errors_are_reported_and_the_other_wishes_are_used() {
        let text = "\
version: 2
repositroy: x
images:
  - h.org/a:1
  - h.org/b
  - image: h.org/c
    platfroms: all
    layers: perhaps
    platforms: [linux/amd64, linux, linux/\u{fc}]
    tags: {semver: '>>1', newest: 0, include: ['v*', 'v[0-9]', '']}
    name: x
  - h.org/d:1
  - h.org/d:1: 5
  - {image: h.org/e:1, image: h.org/f:1}
  - {project: h.org, api: harbor, repositories: {regex: a}, tags: {newest: x}, chains: some}
  - h.org/g:2
";
        let wishlist = parse(text).unwrap();
        assert_eq!(wishlist.wishes.iter().map(|wish| wish.line).collect::<Vec<_>>(), [4, 12, 16]);
        let lines: Vec<usize> = wishlist.problems.iter().map(|problem| problem.line).collect();
        assert_eq!(
            lines,
            [2, 5, 7, 8, 9, 9, 10, 10, 10, 10, 11, 11, 13, 14, 15, 15, 15, 15],
            "{:?}",
            wishlist.problems
        );
        assert!(wishlist.problems.iter().all(|problem| problem.is_bad && problem.column.is_some()));
    }

    #[test]
    fn wish_that_depends_on_an_invalid_default_is_skipped() {
        let images = "images: [h.org/a:1, {image: h.org/b:1, flat: true}]";
        let wishlist = parse(&format!("version: 2\ndefaults: {{flat: fasle, layers: false}}\n{images}\n")).unwrap();
        assert_eq!(wishlist.wishes.len(), 1);
        assert!(wishlist.wishes[0].options.flat && !wishlist.wishes[0].options.layers);
        assert!(wishlist.problems.iter().any(|problem| problem.text.contains("1 wishes are skipped")));
        let wishlist = parse(&format!("version: 2\ndefaults: {{falt: false}}\n{images}\n")).unwrap();
        assert_eq!((wishlist.wishes.len(), wishlist.problems.len()), (0, 2));
    }

    #[test]
    fn invalid_name_repository_or_list_makes_the_file_invalid() {
        for wrong in ["name: [a]", "name: ''", "repository: {a: b}", "images: h.org/a:1", "images: {}"] {
            let images = if wrong.starts_with("images") { "" } else { "images: []" };
            assert!(parse(&format!("version: 2\n{wrong}\n{images}\n")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn gitlab_com_requires_no_api_url() {
        let wishes = wishes("- {project: registry.gitlab.com/group/sub, api: gitlab}");
        let WishTarget::Project { project, .. } = &wishes[0].what else { panic!("is no project") };
        assert_eq!(project.api, ProjectApi::GitLab { api_url: "https://gitlab.com".to_owned() });
    }

    #[test]
    fn options_may_be_shared_by_an_alias() {
        let wishes = wishes("- {image: h.org/a, tags: &t {newest: 2}}\n- {image: h.org/b, tags: *t}\n");
        for wish in wishes {
            assert!(matches!(wish.what, WishTarget::Tags { filter, .. } if filter.newest.unwrap().get() == 2));
        }
    }
}
