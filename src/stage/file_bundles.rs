//! Finds the descriptions of file bundles in a tree.
//!
//! From release 2.14 on, CVMFS clients can fetch a group of files when a program opens one of them, the trigger. The file
//! `.cvmfsbundle-NAME` in the directory of the trigger NAME lists the group by paths of the repository, not of an image.

use std::ops::Bound;

use serde_json::Value;

use super::{StageError, Stager};
use crate::object::{Content, ContentObjects, ObjectKind};
use crate::path::EntryPath;
use crate::store::{ContentError, ContentObject};
use crate::tree::{Directory, LeafKind, Node};

/// Beginning of the name of a description. The rest is the name of the trigger.
const PREFIX: &[u8] = b".cvmfsbundle-";

/// Maximum size of a description in bytes. Clients drop all but the first thousands of paths of larger descriptions.
const MAX_SIZE: u64 = 1 << 20;

impl Stager<'_> {
    /// Returns the descriptions in a tree that clients would obey if their files were marked as triggers.
    pub(super) fn file_bundles(&self, tree: &Directory) -> Result<Vec<EntryPath>, StageError> {
        let mut found = Vec::new();
        for (path, object) in named_as_descriptions(tree) {
            match self.staging.read_content(object) {
                Ok(content) if is_description(&content) => found.push(path),
                Ok(_) => {}
                // Clients cannot read the file either.
                Err(error) if error.is_damage() => {}
                Err(ContentError::Store(error)) => return Err(error.into()),
                Err(_) => {}
            }
        }
        Ok(found)
    }
}

/// Returns all small regular files with the name of a description that are in the directory of their trigger.
fn named_as_descriptions(tree: &Directory) -> Vec<(EntryPath, ContentObject)> {
    fn search<'t>(directory: &'t Directory, at: &mut Vec<&'t [u8]>, found: &mut Vec<(EntryPath, ContentObject)>) {
        let from_prefix = (Bound::Included(PREFIX), Bound::Unbounded);
        for (name, node) in directory.children.range::<[u8], _>(from_prefix) {
            let Some(trigger) = name.strip_prefix(PREFIX) else { break };
            if directory.children.get(trigger).is_some_and(|node| file(node).is_some())
                && let Some(object) = file(node).and_then(|(size, content)| object_of(size, content))
            {
                found.push((at.iter().fold(EntryPath::ROOT, |path, name| path.join(name)).join(name), object));
            }
        }
        for (name, node) in &directory.children {
            if let Node::Directory(child) = node {
                at.push(name);
                search(child, at, found);
                at.pop();
            }
        }
    }
    let mut found = Vec::new();
    search(tree, &mut Vec::new(), &mut found);
    found
}

fn file(node: &Node) -> Option<(u64, &Content)> {
    match node {
        Node::Leaf(leaf) => match &leaf.kind {
            LeafKind::File { size, content } => Some((*size, content)),
            _ => None,
        },
        Node::Directory(_) => None,
    }
}

/// Returns the object of a file that may be a description. Clients do not read descriptions that are stored in chunks.
fn object_of(size: u64, content: &Content) -> Option<ContentObject> {
    match content.objects {
        ContentObjects::Whole(hash) if size <= MAX_SIZE => {
            Some(ContentObject { hash, kind: ObjectKind::File, raw: content.raw, size })
        }
        _ => None,
    }
}

/// Returns whether clients find paths in the content: a JSON object with a list `dependencies`, after any lines that begin with
/// `#`.
fn is_description(content: &[u8]) -> bool {
    let mut json = content;
    while json.first() == Some(&b'#') {
        let end = json.iter().position(|&byte| byte == b'\n').map_or(json.len(), |end| end + 1);
        json = &json[end..];
    }
    let value: Value = serde_json::from_slice(json).unwrap_or_default();
    value["dependencies"].as_array().is_some_and(|paths| paths.iter().any(Value::is_string))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn description_is_a_json_object_with_paths_after_lines_of_comment() {
        let full = r#"{"name": "CVMFS_BUNDLE", "version": "1.0.0", "encoding": "UTF-8", "dependencies": ["/a"]}"#;
        for good in [full, &format!("#%CVMFS_BUNDLE version=1\n#\n{full}\n"), r#"{"dependencies": [7, "./b"]}"#] {
            assert!(is_description(good.as_bytes()), "{good}");
        }
        let bad = ["", "#", "# {}", "[]", "{}", r#"["/a"]"#, r#"{"dependencies": []}"#, r#"{"dependencies": "/a"}"#];
        for bad in bad.into_iter().chain([&full[1..], &format!(" #\n{full}"), &format!("{full}\0")]) {
            assert!(!is_description(bad.as_bytes()), "{bad}");
        }
    }
}
