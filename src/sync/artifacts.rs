//! Leaves out what registries list beside images: charts, signatures, lists of parts and the like.
//!
//! A list of tags does not tell them from images; only manifests do. Where a wish wants the newest so many, an artifact must
//! not take the place of an image, so the manifests of these are looked at before anything is converted or removed. All
//! others show when they are converted. What was found once is remembered by its digest.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

use rayon::prelude::*;

use super::quarantine::Quarantine;
use super::survey::{Finding, Survey};
use super::{Event, Observer, SyncError};
use crate::catalog::{StateDatabase, StateError};
use crate::convert::{ConvertError, ImageOptions, Request, Run};
use crate::image::{Digest, ImageName};
use crate::source::SourceError;
use crate::threads;
use crate::wishlist::{Newest, WantedImage};

/// Maximum number of images whose manifests are looked at at once. Each registry has a limit of its own.
const AT_ONCE: usize = 32;

/// The images of a round, without what is none.
pub(super) struct Sorted {
    /// The images, and what the survey says about each.
    pub(super) images: Vec<WantedImage>,
    pub(super) findings: Vec<Finding>,
    /// What is no image, and its type.
    pub(super) artifacts: Vec<(WantedImage, String)>,
    /// Images that would be wanted if others turned out to be artifacts, about which nothing could be learnt.
    pub(super) spared: BTreeSet<ImageName>,
}

/// What a name stands for at its registry.
#[derive(PartialEq, Eq)]
enum Kind {
    /// An image, or nothing that is known to be none.
    Image,
    /// An artifact of this type.
    Artifact(String),
    /// The registry does not say.
    Unknown,
}

/// Returns what is to be converted for an image that is wanted.
pub(super) fn request(image: &WantedImage) -> Request {
    let (name, options) = (image.options.name.clone(), ImageOptions::of(&image.options));
    Request { argument: image.argument.clone(), name, image: options }
}

/// Returns the type of the artifact that a rule took for an image, if that is the error.
pub(super) fn artifact_type<'e>(image: &WantedImage, error: &'e ConvertError) -> Option<&'e str> {
    match error {
        ConvertError::Source(SourceError::Artifact { artifact_type, .. }) if image.is_found => Some(artifact_type),
        _ => None,
    }
}

/// Remembers that a name stands for an artifact, as long as the registry has the same digest under it.
pub(super) fn note_artifact(
    state: &StateDatabase,
    image: &WantedImage,
    digest: Digest,
    artifact_type: &str,
) -> Result<(), StateError> {
    state.add_artifact(&image.name().to_string(), &wanted(image, digest), artifact_type)
}

/// Returns what is wanted of an image. An index may have an artifact for one platform and an image for another.
fn wanted(image: &WantedImage, digest: Digest) -> String {
    let platforms = ImageOptions::of(&image.options).platforms.asked().unwrap_or_default();
    format!("{digest} {platforms}")
}

/// Tells images from what is none.
pub(super) struct Sorter<'a> {
    pub(super) run: &'a Run,
    pub(super) survey: &'a Survey<'a>,
    pub(super) quarantine: &'a Quarantine<'a>,
    pub(super) observer: &'a dyn Observer,
}

/// An image that is looked at, and where it belongs in the list.
struct Entry {
    /// The place of the image that it comes before, and then the more, the earlier.
    place: (usize, Reverse<usize>),
    image: WantedImage,
}

/// A wish for the newest images of a repository, while it is found out which these are.
struct Rule {
    wanted: usize,
    names: Vec<ImageName>,
    older: std::vec::IntoIter<WantedImage>,
    /// The place of the first of the images, and how many were put before it.
    place: usize,
    added: usize,
}

impl Rule {
    fn new(newest: Newest, places: &HashMap<ImageName, usize>) -> Self {
        let place = newest.names.iter().filter_map(|name| places.get(name)).min().copied().unwrap_or(places.len());
        Self { wanted: newest.names.len(), names: newest.names, older: newest.older.into_iter(), place, added: 0 }
    }

    /// Returns the images that take the place of artifacts and have not been looked at.
    fn fill(&mut self, kinds: &HashMap<ImageName, Kind>) -> Vec<Entry> {
        let mut new = Vec::new();
        let is_artifact = |name: &ImageName| matches!(kinds.get(name), Some(Kind::Artifact(_)));
        self.names.retain(|name| !is_artifact(name));
        while self.names.len() < self.wanted
            && let Some(image) = self.older.next()
        {
            if is_artifact(image.name()) {
                continue;
            }
            self.names.push(image.name().clone());
            if !kinds.contains_key(image.name()) {
                self.added += 1;
                new.push(Entry { place: (self.place, Reverse(self.added)), image });
            }
        }
        new
    }

    /// Returns the images that come next, one for each that may yet turn out to be none.
    fn spared(self, kinds: &HashMap<ImageName, Kind>) -> impl Iterator<Item = ImageName> {
        let unknown = self.names.iter().filter(|name| kinds.get(name) == Some(&Kind::Unknown)).count();
        self.older.take(unknown).map(|image| image.name().clone())
    }
}

impl Sorter<'_> {
    /// Looks at all images, and at older ones in the place of those that are none.
    pub(super) fn sort(&self, images: Vec<WantedImage>, newest: Vec<Newest>) -> Result<Sorted, SyncError> {
        let places = images.iter().enumerate().map(|(place, image)| (image.name().clone(), place)).collect();
        let mut rules: Vec<Rule> = newest.into_iter().map(|newest| Rule::new(newest, &places)).collect();
        let mut kinds: HashMap<ImageName, Kind> = HashMap::new();
        let mut looked_at: Vec<(Entry, Finding)> = Vec::new();
        let mut entries: Vec<Entry> =
            images.into_iter().enumerate().map(|(place, image)| Entry { place: (place, Reverse(0)), image }).collect();
        while !entries.is_empty() {
            let counted: BTreeSet<ImageName> = rules.iter().flat_map(|rule| rule.names.iter().cloned()).collect();
            let images: Vec<WantedImage> = entries.iter().map(|entry| entry.image.clone()).collect();
            let findings = self.survey.look_at_all(&images, self.quarantine, self.observer)?;
            let found = self.kinds(&images, &findings, &counted)?;
            kinds.extend(images.iter().map(|image| image.name().clone()).zip(found));
            looked_at.extend(entries.into_iter().zip(findings));
            entries = Vec::new();
            for rule in &mut rules {
                let is_new =
                    |entry: &Entry| !entries.iter().any(|other: &Entry| other.image.name() == entry.image.name());
                let new: Vec<Entry> = rule.fill(&kinds).into_iter().filter(is_new).collect();
                entries.extend(new);
            }
            if !entries.is_empty() {
                self.observer.note(Event::Listed(entries.len()));
            }
        }
        let spared = rules.into_iter().flat_map(|rule| rule.spared(&kinds)).collect();
        self.part(looked_at, kinds, spared)
    }

    /// Parts images from artifacts, in the order of the wishlist.
    fn part(
        &self,
        mut looked_at: Vec<(Entry, Finding)>,
        mut kinds: HashMap<ImageName, Kind>,
        spared: BTreeSet<ImageName>,
    ) -> Result<Sorted, SyncError> {
        looked_at.sort_by_key(|(entry, _)| entry.place);
        let mut sorted = Sorted { images: Vec::new(), findings: Vec::new(), artifacts: Vec::new(), spared };
        for (Entry { image, .. }, finding) in looked_at {
            match kinds.remove(image.name()) {
                Some(Kind::Artifact(artifact_type)) if image.is_found => {
                    self.observer.note(Event::Artifact(&image, &artifact_type));
                    self.quarantine.note_success(image.name())?;
                    sorted.artifacts.push((image, artifact_type));
                }
                _ => {
                    sorted.images.push(image);
                    sorted.findings.push(finding);
                }
            }
        }
        Ok(sorted)
    }

    /// Finds out what each image is; of those that are not `counted`, as far as that is remembered.
    fn kinds(
        &self,
        images: &[WantedImage],
        findings: &[Finding],
        counted: &BTreeSet<ImageName>,
    ) -> Result<Vec<Kind>, SyncError> {
        let kind =
            |(image, finding): (&WantedImage, &Finding)| self.kind(image, finding, counted.contains(image.name()));
        let pool = threads::waiting_pool(AT_ONCE.min(images.len()))?;
        let kinds: Result<_, StateError> = pool.install(|| images.par_iter().zip(findings).map(kind).collect());
        Ok(kinds?)
    }

    fn kind(&self, image: &WantedImage, finding: &Finding, is_counted: bool) -> Result<Kind, StateError> {
        let digest = match finding {
            Finding::Unchanged => return Ok(Kind::Image),
            Finding::Changed(digest) => *digest,
            Finding::Later(_) | Finding::Failed(_) | Finding::Quarantined(_) => return Ok(Kind::Unknown),
        };
        let state = self.run.state();
        if let Some(artifact_type) = state.artifact(&image.name().to_string(), &wanted(image, digest))? {
            return Ok(Kind::Artifact(artifact_type));
        }
        if !is_counted {
            return Ok(Kind::Image);
        }
        match self.run.resolve(&request(image)) {
            Ok(_) => Ok(Kind::Image),
            Err(ConvertError::Source(SourceError::Artifact { artifact_type, .. })) => {
                note_artifact(state, image, digest, &artifact_type)?;
                Ok(Kind::Artifact(artifact_type))
            }
            Err(_) => Ok(Kind::Unknown),
        }
    }
}
