//! Expands wishes to images.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

use crate::image::{FullName, ImageName};
use crate::source::ImageArgument;

use super::options::WishOptions;
use super::project_api::{ListingError, Project, RegistryLister, beginning_of};
use super::reference::ImageRepository;
use super::{NameFilter, TagFilter, Wish, WishTarget, WishlistProblem};

/// Maximum number of invalid names in a message.
const MAX_SHOWN_NAMES: usize = 3;

/// One image that matches a wish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedImage {
    /// The line of the wish, from 1.
    pub line: usize,
    /// The image: always [`ImageArgument::Registry`].
    pub argument: ImageArgument,
    /// Options for publishing it.
    pub options: WishOptions,
    /// Whether the image comes from a rule, and not from a wish that names it. Then it may be an artifact.
    pub is_found: bool,
}

/// The images that match one repository in a wish with `newest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewestImages {
    /// Names of the newest ones.
    pub names: Vec<ImageName>,
    /// The next older images, newest first. They replace newest ones that turn out to be artifacts.
    pub older: Vec<WantedImage>,
}

impl WantedImage {
    /// Returns the name that the image is published under.
    pub fn name(&self) -> &ImageName {
        name_of(&self.argument, &self.options)
    }

    /// Returns the registry of the image.
    pub(crate) fn host(&self) -> &str {
        host_of(&self.argument)
    }
}

fn name_of<'a>(argument: &'a ImageArgument, options: &'a WishOptions) -> &'a ImageName {
    match (&options.name, argument) {
        (Some(FullName { name, .. }), _) | (None, ImageArgument::Registry { name, .. }) => name,
        _ => unreachable!("wishes name images at registries only"),
    }
}

fn host_of(argument: &ImageArgument) -> &str {
    match argument {
        ImageArgument::Registry { name, .. } => name.host(),
        _ => unreachable!("wishes name images at registries only"),
    }
}

/// A repository or project that could not be listed.
#[derive(Debug)]
pub struct ListingFailure {
    /// The line of the wish, from 1.
    pub line: usize,
    /// The registry's host.
    pub host: String,
    /// The repository or project at the registry.
    pub what: String,
    /// The cause.
    pub error: ListingError,
}

impl fmt::Display for ListingFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: cannot list '{}' of '{}'", self.line, self.what, self.host)
    }
}

/// The images that match wishes.
#[derive(Debug, Default)]
pub struct Expansion {
    /// The images, with unique names.
    pub images: Vec<WantedImage>,
    /// For each repository in a wish with `newest`: the newest images, and older ones to replace artifacts among them.
    pub newest: Vec<NewestImages>,
    /// Repositories and projects that could not be listed. Their images are missing.
    pub failures: Vec<ListingFailure>,
    /// Warnings.
    pub problems: Vec<WishlistProblem>,
}

/// Returns the images that currently match one wish. [`IncrementalExpansion`] merges the results of several wishes.
pub(crate) fn expand_one(wish: &Wish, listing: &dyn RegistryLister) -> Expansion {
    let mut expanding = WishExpander { wish, listing, result: Expansion::default() };
    match &wish.what {
        WishTarget::Image(argument) => expanding.add(argument.clone()),
        WishTarget::Tags { repository, filter } => expanding.add_tags(repository, filter),
        WishTarget::Project { project, repositories, tags } => expanding.add_project(project, repositories, tags),
    }
    let WishExpander { mut result, .. } = expanding;
    if result.images.is_empty() && result.failures.is_empty() {
        result.problems.push(WishlistProblem::hint(wish.line, "no image matches".to_owned()));
    }
    result
}

/// The expansion of a wishlist while some registries have not responded yet.
///
/// Of two wishes for one name, the first in the wishlist takes precedence. A wish is *open* until it is expanded. An image is
/// *certain* as soon as no earlier open wish could match its name. Open wishes for other repositories do not delay the image. An
/// older image that replaces an artifact has a lower precedence than every wish that could match the name of that image.
pub(crate) struct IncrementalExpansion<'w> {
    wishes: &'w [Wish],
    parts: Vec<Option<Expansion>>,
    /// The open wishes by host.
    open: HashMap<&'w str, BTreeSet<usize>>,
    /// Names that wishes for single images contain.
    named: HashSet<ImageName>,
    certain: HashSet<ImageName>,
    /// By host: images whose names an earlier open wish could match.
    doubtful: HashMap<String, BTreeMap<ImagePosition, WantedImage>>,
}

/// The position of an image in the expanded wishlist: the index of its wish, and the index of the image among those of the wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ImagePosition {
    wish: usize,
    index: usize,
    /// 0 for the image that the wish matched at `index`. For an older image that was inserted before that image: the number of
    /// images that have been inserted there, including this one.
    added: Reverse<usize>,
}

impl ImagePosition {
    /// Returns the position of an image that matches a wish. Both indexes count from 0.
    pub(crate) fn new(wish: usize, index: usize) -> Self {
        Self { wish, index, added: Reverse(0) }
    }

    /// Returns a position before that of an image, and before those of the `added - 1` images already inserted there.
    pub(crate) fn before((wish, index): (usize, usize), added: usize) -> Self {
        Self { wish, index, added: Reverse(added) }
    }

    fn is_added(self) -> bool {
        self.added.0 > 0
    }
}

impl<'w> IncrementalExpansion<'w> {
    /// Starts with all rules open. Wishes for single images are never open, because their names are known.
    pub(crate) fn new(wishes: &'w [Wish]) -> Self {
        let (mut open, mut named): (HashMap<&str, BTreeSet<usize>>, _) = (HashMap::new(), HashSet::new());
        for (index, wish) in wishes.iter().enumerate() {
            if let Some(host) = wish.listed_host() {
                open.entry(host).or_default().insert(index);
            }
            if let WishTarget::Image(argument) = &wish.what {
                named.insert(name_of(argument, &wish.options).clone());
            }
        }
        let parts = wishes.iter().map(|_| None).collect();
        Self { wishes, parts, open, named, certain: HashSet::new(), doubtful: HashMap::new() }
    }

    /// Adds the expansion of a wish. Returns the images that became certain, with unique names.
    pub(crate) fn add(&mut self, wish: usize, part: Expansion) -> Vec<(ImagePosition, WantedImage)> {
        let mut hosts: BTreeSet<String> = BTreeSet::new();
        if let Some(host) = self.wishes[wish].listed_host() {
            self.open.entry(host).or_default().remove(&wish);
            hosts.insert(host.to_owned());
        }
        for (index, image) in part.images.iter().enumerate() {
            let host = image.name().host().to_owned();
            self.doubtful.entry(host.clone()).or_default().insert(ImagePosition::new(wish, index), image.clone());
            hosts.insert(host);
        }
        self.parts[wish] = Some(part);
        hosts.iter().flat_map(|host| self.decide(host)).collect()
    }

    /// Adds an older image that replaces an artifact. Returns the images that became certain. The older image is among them
    /// only if no wish has matched its name.
    pub(crate) fn add_older(&mut self, order: ImagePosition, image: WantedImage) -> Vec<(ImagePosition, WantedImage)> {
        let host = image.name().host().to_owned();
        self.doubtful.entry(host.clone()).or_default().insert(order, image);
        self.decide(&host)
    }

    /// Returns the images of a host that have become certain.
    fn decide(&mut self, host: &str) -> Vec<(ImagePosition, WantedImage)> {
        let Some(doubtful) = self.doubtful.remove(host) else { return Vec::new() };
        let (mut certain, mut left) = (Vec::new(), BTreeMap::new());
        let (older, wanted): (Vec<_>, Vec<_>) = doubtful.into_iter().partition(|(order, _)| order.is_added());
        for (order, mut image) in wanted.into_iter().chain(older) {
            let end = if order.is_added() { usize::MAX } else { order.wish };
            let mut before = self.open.get(host).into_iter().flat_map(|open| open.range(..end));
            if before.any(|&wish| self.wishes[wish].may_match(image.name())) {
                left.insert(order, image);
            } else if self.certain.insert(image.name().clone()) {
                image.is_found &= !self.named.contains(image.name());
                certain.push((order, image));
            }
        }
        if !left.is_empty() {
            self.doubtful.insert(host.to_owned(), left);
        }
        certain
    }

    /// Returns the merged expansion of all wishes that have been added.
    pub(crate) fn finish(self) -> Expansion {
        Expansion::join(self.parts.into_iter().flatten())
    }
}

impl Wish {
    /// Returns the registry whose lists are needed to expand the wish; `None` for a single image.
    pub(crate) fn listed_host(&self) -> Option<&str> {
        (!matches!(self.what, WishTarget::Image(_))).then(|| self.host())
    }

    /// Returns the registry of the images that the wish matches.
    pub(crate) fn host(&self) -> &str {
        match &self.what {
            WishTarget::Image(argument) => host_of(argument),
            WishTarget::Tags { repository, .. } => &repository.host,
            WishTarget::Project { project, .. } => &project.host,
        }
    }

    /// Returns the name of the image, if the wish is for a single one.
    pub(super) fn image_name(&self) -> Option<&ImageName> {
        match &self.what {
            WishTarget::Image(argument) => Some(name_of(argument, &self.options)),
            _ => None,
        }
    }

    /// Returns whether the expansion of the wish could contain this name.
    fn may_match(&self, name: &ImageName) -> bool {
        match &self.what {
            WishTarget::Image(_) => false,
            WishTarget::Tags { repository, .. } => {
                repository.host == name.host() && repository.repository == name.repository()
            }
            WishTarget::Project { project, .. } => project.host == name.host() && project.holds(name.repository()),
        }
    }
}

impl Expansion {
    /// Merges the expansions of wishes in the order of the wishlist. Of two wishes for one name, the first takes precedence.
    fn join(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut whole = Self::default();
        let mut known: HashMap<ImageName, usize> = HashMap::new();
        for part in parts {
            whole.failures.extend(part.failures);
            whole.problems.extend(part.problems);
            whole.newest.extend(part.newest);
            for image in part.images {
                match known.get(image.name()) {
                    Some(&first) => {
                        whole.problems.extend(conflict(&whole.images[first], &image));
                        whole.images[first].is_found &= image.is_found;
                    }
                    None => {
                        known.insert(image.name().clone(), whole.images.len());
                        whole.images.push(image);
                    }
                }
            }
        }
        whole
    }
}

/// Returns a warning if two wishes for one name contradict each other.
fn conflict(first: &WantedImage, second: &WantedImage) -> Option<WishlistProblem> {
    let matter = contradiction((&first.argument, &first.options), (&second.argument, &second.options))?;
    let text = format!("'{}' is already listed {matter} in line {}, which takes precedence", second.name(), first.line);
    Some(WishlistProblem::hint(second.line, text))
}

/// Describes how the second of two wishes for one name contradicts the first.
pub(super) fn contradiction(
    first: (&ImageArgument, &WishOptions),
    second: (&ImageArgument, &WishOptions),
) -> Option<&'static str> {
    match (first.0 == second.0, first.1 == second.1) {
        (false, _) => Some("from another location"),
        (true, false) => Some("with other options"),
        (true, true) => None,
    }
}

struct WishExpander<'w> {
    wish: &'w Wish,
    listing: &'w dyn RegistryLister,
    result: Expansion,
}

impl WishExpander<'_> {
    fn add(&mut self, argument: ImageArgument) {
        let image = self.image(argument);
        self.result.images.push(image);
    }

    fn image(&self, argument: ImageArgument) -> WantedImage {
        let is_found = !matches!(self.wish.what, WishTarget::Image(_));
        WantedImage { line: self.wish.line, argument, options: self.wish.options.clone(), is_found }
    }

    fn add_tags(&mut self, repository: &ImageRepository, filter: &TagFilter) {
        match self.listing.tags(repository) {
            // Invalid tags are removed first, so that they do not count among the newest.
            Ok(tags) => {
                // A tag from a registry becomes part of a path in the repository.
                let tags = self.valid(tags, "tag", |tag| repository.image(tag).is_ok());
                let image = |tag: String| repository.image(&tag).ok().map(|image| self.image(image));
                let (older, wanted) = filter.split(&tags);
                let wanted: Vec<WantedImage> = wanted.into_iter().filter_map(&image).collect();
                if filter.newest.is_some() {
                    let names = wanted.iter().map(|image| image.name().clone()).collect();
                    let older = older.into_iter().rev().filter_map(image).collect();
                    self.result.newest.push(NewestImages { names, older });
                }
                self.result.images.extend(wanted);
            }
            Err(error) => self.fail(&repository.host, &repository.repository, error),
        }
    }

    fn add_project(&mut self, project: &Project, wanted: &NameFilter, tags: &TagFilter) {
        let names = match project.repositories(self.listing) {
            Ok(names) => names,
            Err(error) => return self.fail(&project.host, &project.path, error.into()),
        };
        let repository = |name: &str| ImageRepository {
            host: project.host.clone(),
            repository: name.to_owned(),
            plain_http: project.plain_http,
        };
        // The name becomes part of an image name, in which a colon would start the tag.
        let is_name = |name: &str| project.holds(name) && !name.contains(':') && repository(name).image("tag").is_ok();
        let mut names = self.valid(names, "repository of this project", is_name);
        names.retain(|name| wanted.wants(&project.path, name));
        // Registries list names in any order, but the result must be the same for the same names.
        names.sort();
        names.dedup();
        names.iter().for_each(|name| self.add_tags(&repository(name), tags));
    }

    fn fail(&mut self, host: &str, what: &str, error: ListingError) {
        let failure = ListingFailure { line: self.wish.line, host: host.to_owned(), what: what.to_owned(), error };
        self.result.failures.push(failure);
    }

    /// Returns the valid names, and adds a warning about the others.
    fn valid(&mut self, names: Vec<String>, kind: &str, is_valid: impl Fn(&str) -> bool) -> Vec<String> {
        let (valid, invalid): (Vec<String>, Vec<String>) = names.into_iter().partition(|name| is_valid(name));
        if !invalid.is_empty() {
            let shown: Vec<String> =
                invalid.iter().take(MAX_SHOWN_NAMES).map(|name| format!("{:?}", beginning_of(name))).collect();
            let text =
                format!("the registry lists {} names that are not a valid {kind}: {}", invalid.len(), shown.join(", "));
            self.result.problems.push(WishlistProblem::hint(self.wish.line, text));
        }
        valid
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::tests::parse;
    use super::*;
    use crate::registry::JsonPage;
    use crate::wishlist::CachingLister;
    use crate::wishlist::project_api::ProjectApi;

    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;

    /// Registries whose responses the test sets.
    #[derive(Default)]
    pub struct Registries {
        tags: HashMap<String, Vec<String>>,
        catalogs: HashMap<String, Vec<String>>,
        pages: HashMap<String, JsonPage>,
        asked: AtomicUsize,
    }

    impl Registries {
        pub fn tags(mut self, place: &str, tags: &[&str]) -> Self {
            self.tags.insert(place.to_owned(), tags.iter().map(|&tag| tag.to_owned()).collect());
            self
        }

        pub fn catalog(&mut self, host: &str, names: &[&str]) {
            self.catalogs.insert(host.to_owned(), names.iter().map(|&name| name.to_owned()).collect());
        }

        pub fn page(&mut self, url: &str, body: serde_json::Value) -> &mut JsonPage {
            self.pages.entry(url.to_owned()).or_insert_with(|| JsonPage::new(body))
        }
    }

    impl RegistryLister for Registries {
        fn tags(&self, repository: &ImageRepository) -> Result<Vec<String>, ListingError> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            self.tags.get(&repository.to_string()).cloned().ok_or_else(|| "connection refused".into())
        }

        fn repositories(&self, host: &str, _plain_http: bool) -> Result<Vec<String>, ListingError> {
            self.catalogs.get(host).cloned().ok_or_else(|| "connection refused".into())
        }

        fn json(&self, url: &str, _: &ProjectApi) -> Result<Option<JsonPage>, ListingError> {
            Ok(self.pages.get(url).cloned())
        }
    }

    fn expand_text(text: &str, registries: &Registries) -> Expansion {
        let (wishlist, listing) = (parse(text).unwrap(), CachingLister::new(registries));
        let mut growing = IncrementalExpansion::new(&wishlist.wishes);
        for (index, wish) in wishlist.wishes.iter().enumerate() {
            growing.add(index, expand_one(wish, &listing));
        }
        growing.finish()
    }

    fn names(expansion: &Expansion) -> Vec<String> {
        expansion.images.iter().map(|image| image.name().to_string()).collect()
    }

    #[test]
    fn images_are_sorted_by_wish_and_version() {
        let text = "input:\n- 'h.org/b:1.*'\n- h.org/a:x\n- 'http://h.org/c:*'\n";
        let registries =
            Registries::default().tags("h.org/b", &["1.10", "1.9", "2.0", "10"]).tags("h.org/c", &["z", "y"]);
        let expansion = expand_text(text, &registries);
        assert_eq!(names(&expansion), ["h.org/b:1.9", "h.org/b:1.10", "h.org/a:x", "h.org/c:y", "h.org/c:z"]);
        let lines: Vec<usize> = expansion.images.iter().map(|image| image.line).collect();
        assert_eq!(lines, [2, 2, 3, 4, 4]);
        assert!(matches!(expansion.images[3].argument, ImageArgument::Registry { plain_http: true, .. }));
        assert!(expansion.failures.is_empty() && expansion.problems.is_empty());
    }

    #[test]
    fn failing_registry_is_named_and_affects_no_other_wish() {
        let text = "input:\n- 'down.org/a:*'\n- 'h.org/b:*'\n- 'down.org/c:1'\n";
        let expansion = expand_text(text, &Registries::default().tags("h.org/b", &["1"]));
        assert_eq!(names(&expansion), ["h.org/b:1", "down.org/c:1"]);
        let failure = &expansion.failures[0];
        assert_eq!((failure.line, failure.to_string().as_str()), (2, "line 2: cannot list 'a' of 'down.org'"));
        assert!(expansion.failures.len() == 1 && expansion.problems.is_empty());
    }

    #[test]
    fn failing_repository_of_a_project_affects_no_other_repository() {
        let text = "version: 2\nimages:\n- {project: r.org/p, api: catalog, repositories: {exclude: '*/cache'}}\n";
        let mut registries = Registries::default().tags("r.org/p/a", &["1"]).tags("r.org/p/c", &["2"]);
        registries.catalog("r.org", &["p/c", "p/cache", "p/b", "p/a", "q/x", "p/a"]);
        let expansion = expand_text(text, &registries);
        assert_eq!(names(&expansion), ["r.org/p/a:1", "r.org/p/c:2"]);
        assert_eq!(expansion.failures[0].what, "p/b");
        let expansion = expand_text("version: 2\nimages:\n- {project: down.org, api: catalog}\n", &registries);
        assert_eq!((expansion.failures[0].host.as_str(), expansion.images.len()), ("down.org", 0));
    }

    #[test]
    fn first_of_two_wishes_for_one_image_takes_precedence() {
        let text = "version: 2\nimages:\n- {image: 'h.org/a:2', layers: false}\n- 'h.org/a:*'\n- {image: h.org/b:1, name: 'h.org/a:3'}\n- http://h.org/a:1\n- h.org/a:1\n";
        let expansion = expand_text(text, &Registries::default().tags("h.org/a", &["1", "2", "3"]));
        assert_eq!(names(&expansion), ["h.org/a:2", "h.org/a:1", "h.org/a:3"]);
        assert!(!expansion.images[0].options.layers);
        let problems: Vec<String> = expansion.problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            problems,
            [
                "line 4: 'h.org/a:2' is already listed with other options in line 3, which takes precedence",
                "line 5: 'h.org/a:3' is already listed from another location in line 4, which takes precedence",
                "line 6: 'h.org/a:1' is already listed from another location in line 4, which takes precedence",
            ]
        );
    }

    #[test]
    fn invalid_names_are_reported_and_do_not_count_among_the_newest() {
        let text = "version: 2\nimages:\n- {image: h.org/a, tags: {newest: 2}}\n- {project: r.org/p, api: catalog}\n";
        let mut registries =
            Registries::default().tags("h.org/a", &["1", "2", "99/../../x", "99\n", ""]).tags("r.org/p/ok", &["1"]);
        registries.catalog("r.org", &["p/../../etc", "p/ok", "p/A", "p/ok:1"]);
        let expansion = expand_text(text, &registries);
        assert_eq!(names(&expansion), ["h.org/a:1", "h.org/a:2", "r.org/p/ok:1"]);
        assert!(expansion.failures.is_empty());
        let problems: Vec<String> = expansion.problems.iter().map(ToString::to_string).collect();
        let told = "line 3: the registry lists 3 names that are not a valid tag: \"99/../../x\", \"99\\n\", \"\"";
        assert_eq!(problems[0], told);
        assert!(
            problems[1]
                .starts_with("line 4: the registry lists 3 names that are not a valid repository of this project")
        );
    }

    #[test]
    fn tags_of_a_repository_are_requested_once_for_several_patterns() {
        let registries = Registries::default().tags("h.org/a", &["1.0", "2.0"]);
        let expansion = expand_text("input:\n- 'h.org/a:2.*'\n- 'h.org/a:1.*'\n", &registries);
        assert_eq!(names(&expansion), ["h.org/a:2.0", "h.org/a:1.0"]);
        assert_eq!(registries.asked.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn expansion_contains_older_images_to_replace_artifacts() {
        let text = "version: 2\nimages:\n- h.org/a:3\n- {image: h.org/a, tags: {newest: 2}}\n- {image: h.org/b, tags: {newest: 9}}\n- 'h.org/c:*'\n";
        let registries = Registries::default()
            .tags("h.org/a", &["1", "2", "3", "4"])
            .tags("h.org/b", &["1"])
            .tags("h.org/c", &["1", "2"]);
        let expansion = expand_text(text, &registries);
        assert_eq!(names(&expansion), ["h.org/a:3", "h.org/a:4", "h.org/b:1", "h.org/c:1", "h.org/c:2"]);
        let text_of = |names: &[ImageName]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let newest: Vec<(Vec<String>, Vec<String>)> = expansion
            .newest
            .iter()
            .map(|newest| {
                let older: Vec<ImageName> = newest.older.iter().map(|image| image.name().clone()).collect();
                (text_of(&newest.names), text_of(&older))
            })
            .collect();
        let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        assert_eq!(
            newest,
            [
                (texts(&["h.org/a:3", "h.org/a:4"]), texts(&["h.org/a:2", "h.org/a:1"])),
                (texts(&["h.org/b:1"]), Vec::new())
            ]
        );
        let is_found: Vec<bool> = expansion.images.iter().map(|image| image.is_found).collect();
        assert_eq!(is_found, [false, true, true, true, true]);
    }

    #[test]
    fn open_wishes_for_other_repositories_do_not_delay_an_image() {
        let text = "version: 2\nimages:\n- 'slow.org/a:*'\n- slow.org/a:1\n- slow.org/b:1\n- 'h.org/a:*'\n\
                    - {image: h.org/x:1, name: 'slow.org/a:7'}\n- {project: slow.org/p, api: catalog}\n- slow.org/p/q:1\n\
                    - slow.org/pq:1\n";
        let mut registries = Registries::default().tags("slow.org/a", &["1", "2"]).tags("h.org/a", &["1"]);
        registries.catalog("slow.org", &[]);
        let wishlist = parse(text).unwrap();
        let mut growing = IncrementalExpansion::new(&wishlist.wishes);
        let mut add = |wish: usize| -> Vec<String> {
            let part = expand_one(&wishlist.wishes[wish], &registries);
            growing.add(wish, part).into_iter().map(|(_, image)| image.name().to_string()).collect()
        };
        let certain: Vec<String> = [1, 2, 4, 6, 7, 3].into_iter().flat_map(&mut add).collect();
        assert_eq!(certain, ["slow.org/b:1", "slow.org/pq:1", "h.org/a:1"]);
        assert_eq!(add(0), ["slow.org/a:1", "slow.org/a:2", "slow.org/a:7"]);
        assert_eq!(add(5), ["slow.org/p/q:1"]);
        let expansion = growing.finish();
        assert_eq!(names(&expansion)[..3], ["slow.org/a:1", "slow.org/a:2", "slow.org/b:1"]);
        assert_eq!(expansion.images.len(), 7);
    }

    #[test]
    fn older_image_comes_after_all_wishes_that_could_match_its_name() {
        let text = "version: 2\nimages:\n- {image: h.org/a, tags: {newest: 1}}\n- {image: 'h.org/a:2.*', flat: false}\n\
                    - h.org/a:3\n- h.org/b:1\n";
        let registries = Registries::default().tags("h.org/a", &["1.0", "2.0", "3", "4"]);
        let wishlist = parse(text).unwrap();
        let mut growing = IncrementalExpansion::new(&wishlist.wishes);
        let part = expand_one(&wishlist.wishes[0], &registries);
        let older = part.newest[0].older.clone();
        assert_eq!(growing.add(0, part).len(), 1);
        growing.add(2, expand_one(&wishlist.wishes[2], &registries));
        let mut add = |index: usize| growing.add_older(ImagePosition::before((0, 0), index + 1), older[index].clone());
        assert_eq!(older[1].name().to_string(), "h.org/a:2.0");
        assert!((0..3).all(|index| add(index).is_empty()), "the second wish could match all of them");
        let certain = growing.add(1, expand_one(&wishlist.wishes[1], &registries));
        let told: Vec<_> = certain.iter().map(|(_, image)| (image.name().to_string(), image.line)).collect();
        let expected = [("h.org/a:2.0", 4), ("h.org/a:3", 5), ("h.org/a:1.0", 3)];
        assert_eq!(told, expected.map(|(name, line)| (name.to_owned(), line)));
        assert_eq!(certain.iter().map(|(_, image)| image.is_found).collect::<Vec<_>>(), [true, false, true]);
        let order = [
            ImagePosition::before((0, 0), 2),
            ImagePosition::before((0, 0), 1),
            ImagePosition::new(0, 0),
            ImagePosition::new(0, 1),
        ];
        assert!(order.is_sorted());
    }

    #[test]
    fn rule_that_matches_nothing_is_reported() {
        let expansion = expand_text("input:\n- 'h.org/a:v*'\n", &Registries::default().tags("h.org/a", &["1"]));
        assert_eq!(expansion.problems[0].to_string(), "line 2: no image matches");
    }

    proptest! {
        #[test]
        fn no_listed_tag_leads_out_of_its_repository(tags in proptest::collection::vec(".{0,12}", 0..6)) {
            let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
            let expansion = expand_text("input:\n- 'h.org/a:*'\n", &Registries::default().tags("h.org/a", &tags));
            for image in &expansion.images {
                let path = image.name().public_path();
                prop_assert!(path.starts_with("h.org/a:") && path.matches('/').count() == 1);
            }
        }
    }
}
