//! Accepts differences of a published layer that come from the lower layers of another image, if `losses.json` lists them.
//!
//! A layer is published only once, on top of the layers of the image that was converted first. Only properties that the
//! archive does not determine may differ: the targets of hard links into lower layers, attributes of directories that the
//! archive does not contain as entries, and the positions of whiteouts and opaque directories. Everything else is compared
//! strictly, even if it is listed.

use std::collections::BTreeSet;

use super::compare::Comparison;
use super::content::ContentDigest;
use super::difference::Difference;
use super::naive_layer::NaiveLayer;
use super::records::ExpectedLosses;
use crate::layer::LossKind;
use crate::layout::{LayerRecord, LossList};
use crate::path::EntryPath;

/// The properties of an image's layers that depend on the layers below them, and the losses in which these properties are
/// listed. Paths are relative to the image unless stated otherwise.
#[derive(Default)]
pub(super) struct OtherParents {
    listed_links: BTreeSet<EntryPath>,
    listed_marks: BTreeSet<EntryPath>,
    /// Roots of the compared layers, as paths in the repository.
    roots: Vec<EntryPath>,
    /// Hard links into lower layers in the compared layers, as paths in the repository.
    links: BTreeSet<EntryPath>,
    /// Directories that an archive does not contain as entries, in this image or in the published layer, as paths in the
    /// repository.
    implied: BTreeSet<EntryPath>,
    /// Hard links into lower layers, in layers that were not compared.
    other_links: BTreeSet<EntryPath>,
    /// Paths at which the layers that were not compared have other whiteouts or opaque directories.
    other_marks: BTreeSet<EntryPath>,
}

impl OtherParents {
    /// Starts with the listed losses.
    pub(super) fn new(listed: &LossList) -> Self {
        let of_kind = |kind| -> BTreeSet<EntryPath> {
            listed.kinds().filter(|(other, _)| *other == kind).flat_map(|(_, losses)| losses.paths.clone()).collect()
        };
        Self {
            listed_links: of_kind(LossKind::LinkIntoOtherParents),
            listed_marks: of_kind(LossKind::LayerOfOtherParents),
            ..Self::default()
        }
    }

    /// Returns whether a loss other than a hard link is listed.
    pub(super) fn is_listed(&self) -> bool {
        !self.listed_marks.is_empty()
    }

    /// Returns whether a hard link is listed.
    pub(super) fn has_link(&self, link: &EntryPath) -> bool {
        self.listed_links.contains(link)
    }

    /// Returns the elements of `directories` that are neither listed nor below a listed path. A listed root affects only the
    /// root itself.
    pub(super) fn without_marks(&self, directories: &BTreeSet<EntryPath>) -> BTreeSet<EntryPath> {
        let is_listed = |path: &EntryPath| {
            self.listed_marks.contains(path)
                || path.ancestors().any(|directory| !directory.is_root() && self.listed_marks.contains(&directory))
        };
        directories.iter().filter(|path| !is_listed(path)).cloned().collect()
    }

    /// Records which directories the archive of a layer does not contain as entries.
    pub(super) fn add_implied(
        &mut self,
        root: &EntryPath,
        form: &NaiveLayer<ContentDigest>,
        published: Option<&LayerRecord>,
    ) {
        let published = published.iter().flat_map(|record| &record.implied_directories);
        self.implied.extend(form.implied.iter().chain(published).map(|path| join(root, path)));
    }

    /// Records a layer that is compared.
    pub(super) fn add_compared(&mut self, root: &EntryPath, form: &NaiveLayer<ContentDigest>) {
        self.roots.push(root.clone());
        self.links.extend(form.linked_below.iter().map(|path| join(root, path)));
    }

    /// Records a layer that is not compared, with the differences that a comparison finds.
    pub(super) fn add_other(&mut self, form: &NaiveLayer<ContentDigest>, differences: &[Difference]) {
        self.other_links.extend(form.linked_below.iter().cloned());
        let marks = differences.iter().filter(|difference| self.depends_on_parents(difference));
        let marks: Vec<EntryPath> = marks.map(|difference| in_image(&difference.path)).collect();
        self.other_marks.extend(marks);
    }

    /// Removes the differences that are listed correctly, and adds exactly these to the losses that must be listed.
    pub(super) fn accept_listed(&self, losses: &mut ExpectedLosses, comparison: &mut Comparison<'_>) {
        let of_links = comparison.take(|difference| {
            self.links.contains(&difference.path) && self.listed_links.contains(&in_image(&difference.path))
        });
        let of_marks = comparison.take(|difference| {
            self.is_in_layer(difference)
                && self.depends_on_parents(difference)
                && self.listed_marks.contains(&in_image(&difference.path))
        });
        // The archive does not state the time of an implied directory, so another time is no loss. A missing implied
        // directory also reduces the link count of its parent.
        let directories: BTreeSet<EntryPath> =
            of_marks.iter().filter_map(|difference| Some(difference.path.split()?.0)).collect();
        comparison.take(|difference| match difference.attribute {
            "time" => self.implied.contains(&difference.path) && self.is_in_layer(difference),
            "link count" => directories.contains(&difference.path),
            _ => false,
        });
        let mut expect =
            |kind, listed: &BTreeSet<EntryPath>, accepted: Vec<Difference>, others: &BTreeSet<EntryPath>| {
                let accepted: BTreeSet<EntryPath> =
                    accepted.iter().map(|difference| in_image(&difference.path)).collect();
                losses.add_unlisted(
                    kind,
                    listed.iter().filter(|path| accepted.contains(path) || others.contains(path)).cloned(),
                );
            };
        expect(LossKind::LinkIntoOtherParents, &self.listed_links, of_links, &self.other_links);
        expect(LossKind::LayerOfOtherParents, &self.listed_marks, of_marks, &self.other_marks);
    }

    fn is_in_layer(&self, difference: &Difference) -> bool {
        self.roots.iter().any(|root| difference.path.is_in(root))
    }

    /// Returns whether a difference concerns a property that the archive of a layer leaves to the lower layers.
    fn depends_on_parents(&self, difference: &Difference) -> bool {
        let is_implied = self.implied.contains(&difference.path);
        let is_mark = |what: &String| {
            matches!(what.as_str(), "nothing" | "a whiteout") || is_implied && what.as_str() == "a directory"
        };
        let is_opaque = |what: &String| OPAQUE_MARKS.iter().any(|mark| what == mark);
        match difference.attribute {
            "mode" | "owner" | "group" => is_implied,
            "xattr" => is_implied || is_opaque(&difference.expected) || is_opaque(&difference.found),
            "path" | "type" => [&difference.expected, &difference.found].into_iter().all(is_mark),
            _ => false,
        }
    }
}

/// Extended attributes of an opaque directory, in the text form of differences.
const OPAQUE_MARKS: [&str; 2] = ["'trusted.overlay.opaque'='y'", "'user.overlay.opaque'='y'"];

/// Returns the path in the image for a path in a published layer.
fn in_image(path: &EntryPath) -> EntryPath {
    // Skips `.layers`, the first two digits, the digest and `layerfs`.
    path.components().skip(4).fold(EntryPath::ROOT, |path, name| path.join(name))
}

fn join(root: &EntryPath, path: &EntryPath) -> EntryPath {
    path.components().fold(root.clone(), |path, name| path.join(name))
}
