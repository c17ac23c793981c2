//! Finds the descriptions of file bundles that CVMFS clients obey: files `.cvmfsbundle-NAME` beside a file NAME.

use std::collections::{BTreeMap, HashSet};

use serde_json::Value;

use super::content::ContentDigest;
use super::naive_tree::NaiveTree;
use crate::layer::NodeKind;
use crate::path::EntryPath;

/// Maximum size of a description in bytes.
const MAX_SIZE: usize = 1 << 20;

/// Content of a file, as long as it may be a description.
pub(super) struct PossibleDescription {
    size: u64,
    bytes: Vec<u8>,
    is_possible: bool,
}

impl PossibleDescription {
    /// Starts a file of `size` bytes.
    pub(super) fn new(size: u64) -> Self {
        Self { size, bytes: Vec::new(), is_possible: size <= MAX_SIZE as u64 }
    }

    /// Appends bytes. Holes need not be appended: a file with holes is no description.
    pub(super) fn data(&mut self, bytes: &[u8]) {
        self.is_possible &= !self.bytes.is_empty() || bytes.first().is_none_or(|first| b"# \t\r\n{".contains(first));
        if self.is_possible {
            self.bytes.extend_from_slice(bytes);
        }
    }

    /// Returns whether the whole content is a description.
    pub(super) fn is_description(&self) -> bool {
        if !self.is_possible || self.bytes.len() as u64 != self.size {
            return false;
        }
        let lines = self.bytes.split_inclusive(|&byte| byte == b'\n');
        let comments: usize = lines.take_while(|line| line[0] == b'#').map(<[u8]>::len).sum();
        let json = &self.bytes[comments..];
        json.trim_ascii_start().first() == Some(&b'{')
            && serde_json::from_slice(json).is_ok_and(|members: BTreeMap<String, Value>| {
                let paths = members.get("dependencies").and_then(Value::as_array);
                paths.is_some_and(|paths| paths.iter().any(Value::is_string))
            })
    }
}

/// Returns the descriptions in a tree whose triggers are there, too. `contents` are the digests of all files that are descriptions.
pub(super) fn file_bundles(tree: &NaiveTree<ContentDigest>, contents: &HashSet<ContentDigest>) -> Vec<EntryPath> {
    let is_description =
        |kind: &NodeKind<ContentDigest>| matches!(kind, NodeKind::File { content, .. } if contents.contains(content));
    let has_trigger = |path: &EntryPath| {
        let Some((directory, name)) = path.split() else { return false };
        let trigger = name.strip_prefix(b".cvmfsbundle-").filter(|trigger| !trigger.is_empty());
        let trigger = trigger.and_then(|trigger| tree.get(&directory.join(trigger)));
        trigger.is_some_and(|node| matches!(node.kind, NodeKind::File { .. }))
    };
    let found = tree.entries().filter(|(path, node)| is_description(&node.kind) && has_trigger(path));
    found.map(|(path, _)| path.clone()).collect()
}
