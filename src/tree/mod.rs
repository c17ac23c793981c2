//! File system trees in memory: the merged tree of a stack of layers, and the tree of one layer by itself.
//!
//! Trees hold metadata and the names of objects, never file content. The trees before and after a layer share the directories
//! that the layer leaves unchanged.

mod edits;
mod layer_form;
mod node;
mod other_parents;
mod overlay;
#[cfg(test)]
mod tests;
mod walk;

pub use edits::ApplyError;
pub use layer_form::{LayerForm, OPAQUE_XATTRS, layer_entries, needed_whiteout};
pub use node::{Directory, Leaf, LeafKind, Node, join_links, links_across_directories};
pub use other_parents::ParentDifferences;
pub use overlay::{Applied, apply};
pub use walk::find_directory;
