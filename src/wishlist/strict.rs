//! Version 2 of the file: strata's own. Every mistake is an error.

use std::num::NonZeroUsize;

use regex::RegexBuilder;

use super::filter::{Glob, NameFilter, TagFilter};
use super::node::{Fault, Node, Value};
use super::options::WishOptions;
use super::place::{Reference, is_host, without_scheme};
use super::project::{Project, ProjectApi};
use super::version;
use super::{Wanted, Wish, Wishlist};

/// The longest pattern in bytes: more than the longest repository name, 255.
const LONGEST_PATTERN: usize = 300;

/// The memory in bytes that one regular expression may take when it is compiled.
const REGEX_SIZE: usize = 1 << 20;

/// Reads a wishlist; `name` is what it is called where it does not say so.
pub(super) fn read(document: &Node, name: String) -> Result<Wishlist, Fault> {
    document.map_of(&["version", "name", "repository", "defaults", "images"])?;
    let text_of = |key: &str| document.get(key).map(|node| node.text().map(str::to_owned)).transpose();
    let defaults = match document.get("defaults") {
        Some(node) => WishOptions::default().read(node.map_of(&WishOptions::KEYS)?)?,
        None => WishOptions::default(),
    };
    let images = document.get("images").ok_or_else(|| document.fault("there is no 'images', the list of wishes"))?;
    let Value::List(items) = &images.value else {
        return Err(images.fault("'images' is not a list; one without wishes is written []"));
    };
    let wishes = items.iter().map(|item| wish(item, &defaults)).collect::<Result<_, _>>()?;
    let (name, repository) = (text_of("name")?.unwrap_or(name), text_of("repository")?);
    Ok(Wishlist { name, repository, wishes, problems: Vec::new(), thin: None })
}

fn wish(item: &Node, defaults: &WishOptions) -> Result<Wish, Fault> {
    match &item.value {
        Value::Text(text) => {
            let what = image_or_tags(item, text, None)?;
            Ok(Wish { line: item.line, what, options: defaults.clone() })
        }
        Value::Map(_) if item.get("project").is_some() => project_wish(item, defaults),
        Value::Map(_) if item.get("image").is_some() => image_wish(item, defaults),
        _ => Err(item.fault("a wish is an image name, or has the key 'image' or 'project'")),
    }
}

fn image_wish(item: &Node, defaults: &WishOptions) -> Result<Wish, Fault> {
    item.map_of(&[&["image", "tags", "name"][..], &WishOptions::KEYS].concat())?;
    let mut options = defaults.read(item)?;
    let image = item.get("image").ok_or_else(|| item.fault("there is no 'image'"))?;
    let what = image_or_tags(image, image.text()?, item.get("tags"))?;
    if let Some(name) = item.get("name") {
        if !matches!(what, Wanted::Image(_)) {
            return Err(name.fault("'name' is for a wish for one image, and this one may stand for several"));
        }
        options.name = Some(name.parsed()?);
    }
    Ok(Wish { line: item.line, what, options })
}

/// Reads what `text` names, with the filter for its tags if there is one beside it.
fn image_or_tags(node: &Node, text: &str, tags: Option<&Node>) -> Result<Wanted, Fault> {
    let reference = Reference::parse(text).map_err(|error| node.fault(error))?;
    match (reference.tag, tags) {
        (None, None) if reference.digest.is_none() => {
            Err(node.fault(format!("{text:?} has neither tag nor digest, and there is no 'tags'")))
        }
        (None, Some(tags)) if reference.digest.is_none() => {
            Ok(Wanted::Tags { place: reference.place, filter: tag_filter(tags)? })
        }
        (_, Some(tags)) => Err(tags.fault(format!("{text:?} already says which image: leave its tag or 'tags' out"))),
        (Some(tag), None) if tag.contains('*') => {
            if reference.digest.is_some() {
                return Err(node.fault(format!("{text:?} has both a wildcard and a digest")));
            }
            Ok(Wanted::Tags { place: reference.place, filter: TagFilter::including(vec![glob(node, tag)?]) })
        }
        (_, None) => reference.image().map(Wanted::Image).map_err(|error| node.fault(error)),
    }
}

fn project_wish(item: &Node, defaults: &WishOptions) -> Result<Wish, Fault> {
    item.map_of(&[&["project", "api", "api_url", "repositories", "tags"][..], &WishOptions::KEYS].concat())?;
    let options = defaults.read(item)?;
    let project = project(item)?;
    let repositories = item.get("repositories").map(name_filter).transpose()?.unwrap_or_default();
    let tags = item.get("tags").map(tag_filter).transpose()?.unwrap_or_default();
    Ok(Wish { line: item.line, what: Wanted::Project { project, repositories, tags }, options })
}

fn project(item: &Node) -> Result<Project, Fault> {
    let node = item.get("project").ok_or_else(|| item.fault("there is no 'project'"))?;
    let (rest, plain_http) = without_scheme(node.text()?).map_err(|error| node.fault(error))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let path = path.strip_suffix('/').unwrap_or(path);
    if !is_host(host) {
        return Err(node.fault(format!("{host:?} is no host")));
    }
    let api =
        item.get("api").ok_or_else(|| item.fault("a project needs 'api': how its registry lists repositories"))?;
    let url = item.get("api_url");
    let project =
        Project { api: project_api(api, url, host)?, host: host.to_owned(), path: path.to_owned(), plain_http };
    project.check().map_err(|error| node.fault(error))?;
    Ok(project)
}

fn project_api(api: &Node, url: Option<&Node>, host: &str) -> Result<ProjectApi, Fault> {
    let known = match api.text()? {
        "gitlab" => return gitlab(api, url, host),
        "harbor" => ProjectApi::Harbor,
        "quay" => ProjectApi::Quay,
        "dockerhub" => ProjectApi::DockerHub,
        "catalog" => ProjectApi::Catalog,
        other => return Err(api.fault(format!("{other:?} is none of harbor, gitlab, quay, dockerhub and catalog"))),
    };
    match url {
        None => Ok(known),
        Some(url) => Err(url.fault("'api_url' is for the api gitlab, whose host is not the registry's")),
    }
}

fn gitlab(api: &Node, url: Option<&Node>, host: &str) -> Result<ProjectApi, Fault> {
    let Some(url) = url else {
        // The only registry whose API is at a known place. Guessing others could send credentials to a stranger.
        return if host == "registry.gitlab.com" {
            Ok(ProjectApi::GitLab { api_url: "https://gitlab.com".to_owned() })
        } else {
            Err(api.fault("the api gitlab needs 'api_url', such as https://gitlab.example.org"))
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

fn name_filter(node: &Node) -> Result<NameFilter, Fault> {
    if !matches!(node.value, Value::Map(_)) {
        return Ok(NameFilter { include: globs(node)?, ..NameFilter::default() });
    }
    node.map_of(&["include", "exclude"])?;
    let mut filter = NameFilter::default();
    if let Some(include) = node.get("include") {
        filter.include = globs(include)?;
    }
    if let Some(exclude) = node.get("exclude") {
        filter.exclude = globs(exclude)?;
    }
    Ok(filter)
}

fn tag_filter(node: &Node) -> Result<TagFilter, Fault> {
    if !matches!(node.value, Value::Map(_)) {
        return Ok(TagFilter::including(globs(node)?));
    }
    node.map_of(&["include", "exclude", "regex", "semver", "newest"])?;
    let mut filter = TagFilter::default();
    if let Some(include) = node.get("include") {
        filter.include = globs(include)?;
    }
    if let Some(exclude) = node.get("exclude") {
        filter.exclude = globs(exclude)?;
    }
    if let Some(pattern) = node.get("regex") {
        let regex = RegexBuilder::new(pattern.text()?).size_limit(REGEX_SIZE).dfa_size_limit(REGEX_SIZE).build();
        // The first lines of the message draw the pattern.
        let last_line = |error: &regex::Error| error.to_string().lines().last().unwrap_or_default().to_owned();
        filter.regex = Some(regex.map_err(|error| pattern.fault(format!("invalid regex: {}", last_line(&error))))?);
    }
    if let Some(requirement) = node.get("semver") {
        let parsed = version::parse_requirement(requirement.text()?);
        filter.semver = Some(parsed.map_err(|error| requirement.fault(format!("invalid semver: {error}")))?);
    }
    if let Some(newest) = node.get("newest") {
        let number: Option<NonZeroUsize> = newest.text()?.parse().ok();
        filter.newest = Some(number.ok_or_else(|| newest.fault("'newest' is a number from 1"))?);
    }
    Ok(filter)
}

fn globs(node: &Node) -> Result<Vec<Glob>, Fault> {
    node.texts()?.into_iter().map(|(item, text)| glob(item, text)).collect()
}

fn glob(node: &Node, pattern: &str) -> Result<Glob, Fault> {
    if pattern.len() > LONGEST_PATTERN {
        return Err(node.fault(format!("a pattern of {} bytes is longer than any name", pattern.len())));
    }
    let is_of_names = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '/' | '*' | '?');
    match pattern.chars().find(|&c| !is_of_names(c)) {
        Some(sign) => Err(node.fault(format!(
            "{pattern:?} matches nothing: no name has {sign:?}; only * and ? have a meaning here, 'regex' takes more"
        ))),
        None => Ok(Glob::new(pattern)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::options::{ChainOption, PlatformOption};
    use super::super::tests::parse;
    use super::*;

    fn wishes(images: &str) -> Vec<Wish> {
        parse(&format!("version: 2\nimages:\n{images}")).unwrap().wishes
    }

    fn message(images: &str) -> String {
        parse(&format!("version: 2\nimages:\n{images}")).unwrap_err().to_string()
    }

    #[test]
    fn every_part_is_read() {
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
        assert_eq!(options[0].platforms, PlatformOption::Listed(vec![amd64.clone()]));
        assert!(options[0].layers && !options[0].flat && options[0].strict);
        let arm64 = "linux/arm64/v8".parse().unwrap();
        assert_eq!(options[1].platforms, PlatformOption::Listed(vec![amd64, arm64]));
        assert_eq!((options[1].chains, options[2].chains), (ChainOption::None, ChainOption::All));
        assert!(options[1].podman && !options[2].podman);
        assert!(!options[2].layers && options[2].platforms == PlatformOption::All);
        assert_eq!(options[3].name.as_ref().unwrap().to_string(), "example.org/base/debian:12");
        let Wanted::Tags { filter, .. } = &wishlist.wishes[1].what else { panic!("is no rule for tags") };
        let patterns: Vec<&str> = filter.include.iter().map(Glob::as_str).collect();
        assert_eq!(patterns, ["21.0.*", "22.10"]);
        let Wanted::Tags { filter, .. } = &wishlist.wishes[2].what else { panic!("is no rule for tags") };
        assert!(filter.regex.is_some() && filter.semver.is_some() && filter.newest.unwrap().get() == 5);
        let Wanted::Project { project, repositories, .. } = &wishlist.wishes[4].what else { panic!("is no project") };
        assert_eq!((project.host.as_str(), project.path.as_str()), ("harbor.example.org:8080", "physics"));
        assert!(project.plain_http && repositories.wants("physics", "physics/a"));
    }

    #[test]
    fn unknown_keys_are_errors_that_name_key_and_line() {
        let text = "version: 2\nimages:\n- image: h.org/a:1\n  platfroms: all\n";
        let message = parse(text).unwrap_err().to_string();
        assert!(message.starts_with("'lists/hep.yaml', line 4, column 3: unknown key \"platfroms\""), "{message}");
        for text in [
            "version: 2\nimage: []\nimages: []",
            "version: 2\ndefaults: {name: h.org/a:1}\nimages: []",
            "version: 2\nimages:\n- {image: h.org/a, tags: {includes: a}}",
            "version: 2\nimages:\n- {image: h.org/a:1, api: harbor}",
            "version: 2\nimages:\n- {project: h.org/a, api: harbor, name: h.org/a:b}",
            "version: 2\nimages:\n- {project: h.org/a, api: harbor, repositories: {regex: a}}",
        ] {
            assert!(parse(text).unwrap_err().to_string().contains("unknown key"), "{text}");
        }
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        for (image, part) in [
            ("- h.org/a", "neither tag nor digest"),
            ("- image: h.org/a", "neither tag nor digest"),
            ("- h.org/A:1", "not an image name"),
            ("- image: h.org/a:1\n  tags: ['2']", "already says"),
            ("- image: h.org/a\n  tags: ['2']\n  name: h.org/b:1", "one image"),
            ("- image: h.org/a:*\n  name: h.org/b:1", "one image"),
            ("- image: h.org/a:1\n  name: b", "not an image name"),
            ("- image: h.org/a\n  tags: {newest: 0}", "from 1"),
            ("- image: h.org/a\n  tags: {newest: -1}", "from 1"),
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
            ("- project: h.org/a\n  api: nexus", "none of"),
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
            let is_placed = message.contains(&format!(", line {line}, ")) || message.contains(", line 3, ");
            assert!(is_placed && message.contains(part) && !message.contains('\n'), "{image}: {message}");
        }
    }

    #[test]
    fn gitlab_of_gitlab_com_needs_no_url() {
        let wishes = wishes("- {project: registry.gitlab.com/group/sub, api: gitlab}");
        let Wanted::Project { project, .. } = &wishes[0].what else { panic!("is no project") };
        assert_eq!(project.api, ProjectApi::GitLab { api_url: "https://gitlab.com".to_owned() });
    }

    #[test]
    fn options_may_be_shared_by_an_alias() {
        let wishes = wishes("- {image: h.org/a, tags: &t {newest: 2}}\n- {image: h.org/b, tags: *t}\n");
        for wish in wishes {
            assert!(matches!(wish.what, Wanted::Tags { filter, .. } if filter.newest.unwrap().get() == 2));
        }
    }
}
