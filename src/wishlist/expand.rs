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
pub(super) mod tests;
