//! Checks the tag database, and the catalogs to which its tags refer.

use std::collections::{HashMap, HashSet};

use super::Check;
use super::finding::{Findings, Location, escape};
use super::name::ObjectName;
use super::reference::{Reference, References};
use super::tree::CatalogTree;
use crate::catalog::audit::{AuditedHistory, AuditedTag};
use crate::manifest::RepositoryManifest;
use crate::object::{ObjectHash, ObjectKind, SizeLimit};

/// A tag whose root catalog has a valid name.
pub(super) struct CheckedTag {
    row: AuditedTag,
    pub(super) name: ObjectName,
    /// Size of the root catalog after decompression, in bytes, as the tag states it.
    pub(super) size: Option<u64>,
    /// The file of the tag database.
    pub(super) referrer: String,
}

impl Check<'_> {
    /// Checks the tag database and returns its tags.
    pub(super) fn check_tags(
        &self,
        hash: ObjectHash,
        manifest: &RepositoryManifest,
        references: &References,
    ) -> Vec<CheckedTag> {
        let name = ObjectName::of(hash, ObjectKind::History);
        references.add(Reference::known(name));
        let location = Location::file(name.to_string()).referred_to_by(".cvmfspublished");
        let Some(bytes) = self.read_object(name, &location, SizeLimit::of_database(None)) else { return Vec::new() };
        let history = match AuditedHistory::read(bytes) {
            Ok(history) => history,
            Err(fault) => {
                self.findings.add_faults(&location, &[fault]);
                return Vec::new();
            }
        };
        self.findings.add_faults(&location, &history.faults);
        for (key, value) in [("schema", "1.0"), ("schema_revision", "3"), ("fqrn", self.repository.name.as_str())] {
            let found = history.properties.get(key).map_or("none", String::as_str);
            self.findings.require(&location, &format!("property {key} with"), value, found);
        }
        // CVMFS requires this property when it reconstructs the reflog; zeros mean that there is no previous database.
        let previous = history.properties.get("previous_revision").map_or("none", String::as_str);
        if ObjectName::of_text(previous, ObjectKind::History).is_none() {
            self.findings.note(&location, "a hash in property previous_revision", previous);
        }
        self.check_branches(&location, &history);
        let root = manifest.root_catalog.to_string();
        let trunk = history.tags.iter().find(|tag| tag.name == "trunk").map_or("no such tag", |tag| &tag.hash);
        self.findings.require(&location, "tag 'trunk' with the root catalog of the manifest,", root.as_str(), trunk);
        history.tags.into_iter().filter_map(|row| self.check_tag(&location, name, row)).collect()
    }

    fn check_branches(&self, location: &Location, history: &AuditedHistory) {
        for branch in &history.branches {
            let shown = escape(branch.name.as_bytes());
            if branch.name.is_empty() != branch.parent.is_none() {
                let found = if branch.parent.is_some() { "one" } else { "none" };
                self.findings.note(
                    location,
                    format_args!("a parent of branch '{shown}' unless it is the default"),
                    found,
                );
            }
            if !history.tags.iter().any(|tag| tag.branch == branch.name) {
                self.findings.note(location, format_args!("a tag on branch '{shown}'"), "none");
            }
        }
        check_ancestors(location, history, &self.findings);
        for tag in &history.tags {
            let shown = escape(tag.name.as_bytes());
            match history.branches.iter().find(|branch| branch.name == tag.branch) {
                None => self.findings.note(location, format_args!("the branch of tag '{shown}'"), "no such branch"),
                Some(branch) if tag.revision < branch.initial_revision => {
                    let expected = format!(
                        "tag '{shown}' at or after the first revision {} of its branch",
                        branch.initial_revision
                    );
                    self.findings.note(location, expected, tag.revision);
                }
                Some(_) => {}
            }
        }
    }

    fn check_tag(&self, location: &Location, history: ObjectName, row: AuditedTag) -> Option<CheckedTag> {
        let shown = escape(row.name.as_bytes());
        if row.name.is_empty() || row.name.contains(char::is_whitespace) {
            self.findings.note(
                location,
                "a tag name that is not empty and has no white space",
                format_args!("'{shown}'"),
            );
        }
        let name = ObjectName::of_text(&row.hash, ObjectKind::Catalog);
        if name.is_none() {
            self.findings.note(location, format_args!("the hash of a root catalog in tag '{shown}'"), &row.hash);
        }
        let size = u64::try_from(row.size).ok();
        Some(CheckedTag { row, name: name?, size, referrer: history.to_string() })
    }

    /// Compares the tags with the root catalogs to which they refer.
    pub(super) fn compare_with_tags(&self, tags: &[CheckedTag], tree: &CatalogTree) {
        for tag in tags {
            let Some(root) = tree.root(tag.name) else { continue };
            let location = Location::file(tag.referrer.clone());
            let shown = escape(tag.row.name.as_bytes());
            let size = i64::try_from(root.size).unwrap_or(i64::MAX);
            self.findings.require(
                &location,
                &format!("size of the root catalog of tag '{shown}',"),
                size,
                tag.row.size,
            );
            let revision = root.revision.as_deref().unwrap_or("0");
            let found = tag.row.revision.to_string();
            self.findings.require(
                &location,
                &format!("revision of the root catalog of tag '{shown}',"),
                revision,
                &found,
            );
        }
    }
}

/// Checks that the chain of parents of each branch ends at the default branch, without a loop.
fn check_ancestors(location: &Location, history: &AuditedHistory, findings: &Findings) {
    let parents: HashMap<&str, &str> =
        history.branches.iter().filter_map(|branch| Some((branch.name.as_str(), branch.parent.as_deref()?))).collect();
    // Branches whose chain is known to end at the default branch, so that each branch is followed only once.
    let mut good = HashSet::from([""]);
    for &branch in parents.keys() {
        let (mut at, mut way) = (branch, Vec::new());
        // A way with more steps than there are branches is a loop.
        while !good.contains(at) && way.len() <= parents.len() {
            way.push(at);
            match parents.get(at) {
                Some(parent) => at = parent,
                None => break,
            }
        }
        if good.contains(at) {
            good.extend(way);
        } else {
            let shown = escape(branch.as_bytes());
            findings.note(
                location,
                format_args!("branch '{shown}' to descend from the default branch"),
                "another ancestry",
            );
        }
    }
}
