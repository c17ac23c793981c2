//! File systems in memory: what a stack of layers gives, and what one layer looks like by itself.
//!
//! Trees hold metadata and the names of objects, never bytes, and share every directory that they have in common.

mod layer_form;
mod node;
mod other_parents;
mod overlay;
#[cfg(test)]
mod tests;
mod walk;

pub use layer_form::{LayerForm, OPAQUE_XATTRS, layer_entries, needed_whiteout};
pub use node::{Directory, Leaf, LeafKind, Node, join_links, links_across_directories};
pub use other_parents::ParentDifferences;
pub use overlay::{Applied, ApplyError, apply};
pub use walk::find_directory;
