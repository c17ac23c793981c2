//! Wishlists: which images a repository should hold.
//!
//! There are two versions of the file. Version 1 is DUCC's recipe as people have it: it is read leniently. Version 2 is
//! strata's own: a misspelt option in it would quietly do something else, so that each mistake spoils its wish. In both, what
//! cannot be used is skipped with a [`WishlistProblem`] that says where it stands, so that one bad line does not stop the others.
//!
//! A wish may stand for many images. Registries are asked, through a [`RegistryLister`], what there is, and the answer is an
//! [`Expansion`]: the exact images, always in the same order, that of the file, and within a wish by repository and version.

mod caching_lister;
mod expand;
mod filter;
mod lenient;
mod node;
mod options;
mod project;
mod reference;
mod strict;
mod thin;
mod version;

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::source::ImageArgument;

pub(crate) use caching_lister::CachingLister;
pub use expand::{Expansion, ListingFailure, NewestImages, WantedImage};
pub(crate) use expand::{ImagePosition, IncrementalExpansion, expand_one};
pub use filter::{Glob, NameFilter, TagFilter, is_referrers_tag};
pub use options::{ChainOption, PlatformOption, WishOptions};
pub use project::{ListingError, Project, ProjectApi, ProjectError, RegistryLister};
pub use reference::ImageRepository;
pub use thin::{OutputFormat, ThinImages};
pub use version::compare_tags;

use node::{Fault, YamlNode};

/// The longest wishlist in bytes.
pub const MAX_WISHLIST: u64 = 16 << 20;

/// Why a wishlist cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WishlistError {
    /// The file cannot be read.
    #[error("cannot read '{}'", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is too long.
    #[error("'{}' is longer than the {MAX_WISHLIST} bytes that are read of a wishlist", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// The file is not a wishlist.
    #[error("'{}', line {line}, column {column}: {fault}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The character in it, from 1.
        column: usize,
        /// What is wrong there.
        fault: String,
    },
}

/// What a wishlist asks for.
#[derive(Debug, Clone)]
pub struct Wishlist {
    /// Tells this wishlist from others of the same repository: what the file says, or its name without extension.
    pub name: String,
    /// The repository that the wishlist is for, if it says so.
    pub repository: Option<String>,
    /// The wishes, in the order of the file.
    pub wishes: Vec<Wish>,
    /// What is wrong with the file, but does not stop the rest of it.
    pub problems: Vec<WishlistProblem>,
    /// What is said of thin images. Wishlists of version 2 say nothing.
    pub thin: Option<ThinImages>,
}

/// One wish: an image, or a rule that stands for several.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The line it begins at, from 1.
    pub line: usize,
    /// Which images.
    pub what: WishTarget,
    /// How they are published.
    pub options: WishOptions,
}

/// Which images a wish stands for.
#[derive(Debug, Clone)]
pub enum WishTarget {
    /// One image. The argument is always [`ImageArgument::Registry`].
    Image(ImageArgument),
    /// Some tags of a repository at a registry.
    Tags {
        /// The repository.
        repository: ImageRepository,
        /// Which of its tags.
        filter: TagFilter,
    },
    /// Some tags of some repositories of a project.
    Project {
        /// The project.
        project: Project,
        /// Which of its repositories.
        repositories: NameFilter,
        /// Which of their tags.
        tags: TagFilter,
    },
}

/// Something in a wishlist that is skipped or looks like a mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WishlistProblem {
    /// The line, from 1.
    pub line: usize,
    /// The character in the line, from 1, if that is known.
    pub column: Option<usize>,
    /// What is the matter.
    pub text: String,
    /// Whether something is not followed for it. Otherwise it only looks like a mistake.
    pub is_bad: bool,
}

impl WishlistProblem {
    /// Tells that something looks like a mistake.
    fn hint(line: usize, text: String) -> Self {
        Self { line, column: None, text, is_bad: false }
    }

    /// Tells that something is not followed, as it is wrong.
    fn bad(Fault { line, column, text }: Fault) -> Self {
        Self { line, column: Some(column), text, is_bad: true }
    }
}

impl fmt::Display for WishlistProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.column {
            Some(column) => write!(f, "line {}, column {column}: {}", self.line, self.text),
            None => write!(f, "line {}: {}", self.line, self.text),
        }
    }
}

impl Wishlist {
    /// Returns what of the file is not followed, as it is wrong.
    pub fn bad_lines(&self) -> impl Iterator<Item = &WishlistProblem> {
        self.problems.iter().filter(|problem| problem.is_bad)
    }

    /// Reads the wishlist at `path`.
    pub fn open(path: &Path) -> Result<Self, WishlistError> {
        let read_error = |source| WishlistError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(read_error)?;
        let mut text = Vec::new();
        file.take(MAX_WISHLIST + 1).read_to_end(&mut text).map_err(read_error)?;
        // A text that is cut within a character is too long before it is anything else.
        check_length(text.len(), path)?;
        let text = String::from_utf8(text).map_err(|error| read_error(io::Error::other(error.utf8_error())))?;
        Self::parse(&text, path)
    }

    /// Parses the text of the wishlist at `path`, which messages name and which lends the wishlist its name.
    pub fn parse(text: &str, path: &Path) -> Result<Self, WishlistError> {
        check_length(text.len(), path)?;
        let name = path.file_stem().map_or_else(|| "wishlist".to_owned(), |stem| stem.to_string_lossy().into_owned());
        read(text, name).map_err(|Fault { line, column, text }| WishlistError::Parse {
            path: path.to_owned(),
            line,
            column,
            fault: text,
        })
    }
}

fn check_length(length: usize, path: &Path) -> Result<(), WishlistError> {
    let is_too_long = length as u64 > MAX_WISHLIST;
    if is_too_long { Err(WishlistError::TooLong { path: path.to_owned() }) } else { Ok(()) }
}

fn read(text: &str, name: String) -> Result<Wishlist, Fault> {
    let document = YamlNode::parse(text)?;
    document.map()?;
    let Some(version) = document.get("version") else {
        if let Some(images) = document.get("images") {
            return Err(images.fault("'images' belongs to version 2 of the file: write 'version: 2' above it"));
        }
        return lenient::read(&document, name);
    };
    match version.text()? {
        "1" => lenient::read(&document, name),
        "2" => strict::read(&document, name),
        other => Err(version.fault(format!("version {other:?} is not known, only 1 and 2 are"))),
    }
}

/// Returns a parser's message on one line.
fn one_line(message: &str) -> String {
    message.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    pub(super) fn parse(text: &str) -> Result<Wishlist, WishlistError> {
        Wishlist::parse(text, Path::new("lists/hep.yaml"))
    }

    #[test]
    fn version_is_a_number_or_a_text_and_one_where_it_is_missing() {
        for text in ["input: []", "version: 1\ninput: []", "version: \"1\"\ninput: []", "version: '2'\nimages: []"] {
            assert_eq!(parse(text).unwrap().name, "hep", "{text}");
        }
        let message = parse("version: 3\ninput: []").unwrap_err().to_string();
        assert_eq!(message, "'lists/hep.yaml', line 1, column 10: version \"3\" is not known, only 1 and 2 are");
        assert!(parse("images: []").unwrap_err().to_string().contains("version: 2"));
    }

    #[test]
    fn text_that_is_no_map_is_refused() {
        for text in ["", "\n# only a comment\n", "- a\n", "text", "version: [1]\ninput: []"] {
            assert!(matches!(parse(text), Err(WishlistError::Parse { .. })), "{text:?}");
        }
    }

    #[test]
    fn length_is_bounded() {
        let padded = |length: u64| format!("input: []{}", "\n".repeat(usize::try_from(length).unwrap() - 9));
        assert!(parse(&padded(MAX_WISHLIST)).is_ok());
        assert!(matches!(parse(&padded(MAX_WISHLIST + 1)), Err(WishlistError::TooLong { .. })));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("long.yaml");
        std::fs::write(&path, padded(MAX_WISHLIST + 1)).unwrap();
        assert!(matches!(Wishlist::open(&path), Err(WishlistError::TooLong { .. })));
        assert!(matches!(Wishlist::open(directory.path()), Err(WishlistError::Read { .. })));
        std::fs::write(&path, b"input: ['\xff']").unwrap();
        assert!(matches!(Wishlist::open(&path), Err(WishlistError::Read { .. })));
    }

    #[test]
    fn example_is_a_wishlist() {
        let wishlist = Wishlist::open(Path::new("examples/wishlist.yaml")).unwrap();
        assert_eq!((wishlist.name.as_str(), wishlist.problems.len()), ("physics", 0));
        assert_eq!(wishlist.repository.as_deref(), Some("unpacked.example.org"));
        let kinds: Vec<&str> = wishlist
            .wishes
            .iter()
            .map(|wish| match wish.what {
                WishTarget::Image(_) => "image",
                WishTarget::Tags { .. } => "tags",
                WishTarget::Project { .. } => "project",
            })
            .collect();
        assert_eq!(kinds, ["image", "tags", "tags", "tags", "image", "project", "project"]);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,200}") {
            let _ = parse(&text);
        }

        #[test]
        fn no_lines_of_a_wishlist_make_the_parser_panic(
            version in "version: [12]\n",
            lines in proptest::collection::vec(
                "( {0,4}(- )?(input|images|image|tags|include|newest|semver|regex|project|api|name|platforms|defaults)?(: )?\
                 ('[a-z*:/.@]{0,12}'|[a-z0-9*:/.@&\\[\\]{}>=-]{0,12})\n)", 0..12),
        ) {
            let _ = parse(&(version + &lines.concat()));
        }
    }
}
