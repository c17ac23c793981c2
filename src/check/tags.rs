//! The tag database, and what its tags keep alive.

use std::collections::{HashMap, HashSet};

use super::Check;
use super::finding::{Findings, Place, escape};
use super::name::ObjectName;
use super::reference::{Reference, References};
use super::tree::Tree;
use crate::catalog::audit::{AuditedHistory, AuditedTag};
use crate::manifest::RepositoryManifest;
use crate::object::{ObjectHash, ObjectKind, SizeLimit};

/// A tag whose root catalog has a name.
pub(super) struct Tag {
    row: AuditedTag,
    pub(super) name: ObjectName,
    /// Bytes of its root catalog, unpacked, as the tag says.
    pub(super) size: Option<u64>,
    /// The tag database.
    pub(super) referrer: String,
}

impl Check<'_> {
    /// Checks the tag database and returns its tags.
    pub(super) fn check_tags(
        &self,
        hash: ObjectHash,
        manifest: &RepositoryManifest,
        references: &References,
    ) -> Vec<Tag> {
        let name = ObjectName::of(hash, ObjectKind::History);
        references.add(Reference::known(name));
        let place = Place::file(name.to_string()).referred_to_by(".cvmfspublished");
        let Some(bytes) = self.read_object(name, &place, SizeLimit::of_database(None)) else { return Vec::new() };
        let history = match AuditedHistory::read(bytes) {
            Ok(history) => history,
            Err(fault) => {
                self.findings.add_faults(&place, &[fault]);
                return Vec::new();
            }
        };
        self.findings.add_faults(&place, &history.faults);
        for (key, value) in [("schema", "1.0"), ("schema_revision", "3"), ("fqrn", self.name.as_str())] {
            let found = history.properties.get(key).map_or("none", String::as_str);
            self.findings.require(&place, &format!("property {key} with"), value, found);
        }
        let previous = history.properties.get("previous_revision").map_or("none", String::as_str);
        if ObjectName::of_text(previous, ObjectKind::History).is_none() {
            self.findings.note(&place, "a hash in property previous_revision", previous);
        }
        self.check_branches(&place, &history);
        let root = manifest.root_catalog.to_string();
        let trunk = history.tags.iter().find(|tag| tag.name == "trunk").map_or("no such tag", |tag| &tag.hash);
        self.findings.require(&place, "tag 'trunk' on the head,", root.as_str(), trunk);
        history.tags.into_iter().filter_map(|row| self.check_tag(&place, name, row)).collect()
    }

    fn check_branches(&self, place: &Place, history: &AuditedHistory) {
        for branch in &history.branches {
            let shown = escape(branch.name.as_bytes());
            if branch.name.is_empty() != branch.parent.is_none() {
                let found = if branch.parent.is_some() { "one" } else { "none" };
                self.findings.note(place, format_args!("a parent of branch '{shown}' unless it is the default"), found);
            }
            if !history.tags.iter().any(|tag| tag.branch == branch.name) {
                self.findings.note(place, format_args!("a tag on branch '{shown}'"), "none");
            }
        }
        check_ancestors(place, history, &self.findings);
        for tag in &history.tags {
            let shown = escape(tag.name.as_bytes());
            match history.branches.iter().find(|branch| branch.name == tag.branch) {
                None => self.findings.note(place, format_args!("the branch of tag '{shown}'"), "no such branch"),
                Some(branch) if tag.revision < branch.initial_revision => {
                    let expected =
                        format!("tag '{shown}' not before revision {} of its branch", branch.initial_revision);
                    self.findings.note(place, expected, tag.revision);
                }
                Some(_) => {}
            }
        }
    }

    fn check_tag(&self, place: &Place, history: ObjectName, row: AuditedTag) -> Option<Tag> {
        let shown = escape(row.name.as_bytes());
        if row.name.is_empty() || row.name.contains(char::is_whitespace) {
            self.findings.note(place, "tag names without blanks", format_args!("'{shown}'"));
        }
        let name = ObjectName::of_text(&row.hash, ObjectKind::Catalog);
        if name.is_none() {
            self.findings.note(place, format_args!("the hash of a root catalog in tag '{shown}'"), &row.hash);
        }
        let size = u64::try_from(row.size).ok();
        Some(Tag { row, name: name?, size, referrer: history.to_string() })
    }

    /// Compares tags with the root catalogs that they name.
    pub(super) fn compare_with_tags(&self, tags: &[Tag], tree: &Tree) {
        for tag in tags {
            let Some(root) = tree.root(tag.name) else { continue };
            let place = Place::file(tag.referrer.clone());
            let shown = escape(tag.row.name.as_bytes());
            let size = i64::try_from(root.size).unwrap_or(i64::MAX);
            self.findings.require(&place, &format!("size of the root catalog of tag '{shown}',"), size, tag.row.size);
            let revision = root.revision.as_deref().unwrap_or("0");
            let found = tag.row.revision.to_string();
            self.findings.require(&place, &format!("revision of the root catalog of tag '{shown}',"), revision, &found);
        }
    }
}

/// Every branch leads to the default one: from parent to parent, and never back to itself.
fn check_ancestors(place: &Place, history: &AuditedHistory, findings: &Findings) {
    let parents: HashMap<&str, &str> =
        history.branches.iter().filter_map(|branch| Some((branch.name.as_str(), branch.parent.as_deref()?))).collect();
    // Branches that are known to lead there, so that each is followed once.
    let mut good = HashSet::from([""]);
    for &branch in parents.keys() {
        let (mut at, mut way) = (branch, Vec::new());
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
            findings.note(place, format_args!("branch '{shown}' to come from the default branch"), "another ancestry");
        }
    }
}
