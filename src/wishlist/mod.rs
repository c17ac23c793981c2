//! Wishlists: files that list the images of a repository.
//!
//! The format has two versions. Version 1 is DUCC's recipe, which is parsed leniently because of existing files. Version 2 is
//! the format of strata. In version 2, a wish with any error is skipped, because a misspelt option would silently have another
//! effect. In both versions, each invalid entry is skipped and reported as a [`WishlistProblem`] with its line, and the other
//! entries are used.
//!
//! A wish may match many images. A [`RegistryLister`] lists the tags and repositories of registries. The result is an
//! [`Expansion`]: the images in the order of the wishes in the file, and within a wish by repository and version.

mod caching_lister;
mod expand;
mod filter;
mod lenient;
mod node;
mod options;
mod project_api;
mod reference;
mod strict;
mod thin;
mod version;

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::image::ImageName;
use crate::source::ImageArgument;

pub(crate) use caching_lister::CachingLister;
pub use expand::{Expansion, ListingFailure, NewestImages, WantedImage};
pub(crate) use expand::{ImagePosition, IncrementalExpansion, expand_one};
pub use filter::{Glob, NameFilter, TagFilter, is_referrers_tag};
pub use options::WishOptions;
pub use project_api::{ListingError, Project, ProjectApi, ProjectError, RegistryLister};
pub use reference::ImageRepository;
pub use thin::{OutputFormat, ThinImages};
pub use version::compare_tags;

use expand::contradiction;
use node::{Fault, YamlNode};

/// Maximum size of a wishlist in bytes.
pub const MAX_WISHLIST: u64 = 16 << 20;

/// A wishlist cannot be read or parsed.
#[derive(Debug, thiserror::Error)]
pub enum WishlistError {
    /// The file cannot be read.
    #[error("cannot read '{}'", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// The file is too long.
    #[error("'{}' is longer than {MAX_WISHLIST} bytes, the limit for a wishlist", path.display())]
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
        /// The column in characters, from 1.
        column: usize,
        /// The error message.
        fault: String,
    },
}

/// A parsed wishlist.
#[derive(Debug, Clone)]
pub struct Wishlist {
    /// Name that identifies this wishlist among those of the repository: `name` in the file, or the file name without extension.
    pub name: String,
    /// Name of the repository that the wishlist is for, if the file contains it.
    pub repository: Option<String>,
    /// The wishes, in the order of the file.
    pub wishes: Vec<Wish>,
    /// Errors and warnings about parts of the file. The other parts are used.
    pub problems: Vec<WishlistProblem>,
    /// Options for thin images. `None` for version 2.
    pub thin: Option<ThinImages>,
}

/// One wish: an image, or a rule that matches several.
#[derive(Debug, Clone)]
pub struct Wish {
    /// Its first line, from 1.
    pub line: usize,
    /// The images.
    pub what: WishTarget,
    /// Options for publishing them.
    pub options: WishOptions,
}

/// The images that a wish matches.
#[derive(Debug, Clone)]
pub enum WishTarget {
    /// One image. The argument is always [`ImageArgument::Registry`].
    Image(ImageArgument),
    /// Some tags of a repository at a registry.
    Tags {
        /// The repository.
        repository: ImageRepository,
        /// Filter for its tags.
        filter: TagFilter,
    },
    /// Some tags of some repositories of a project.
    Project {
        /// The project.
        project: Project,
        /// Filter for its repositories.
        repositories: NameFilter,
        /// Filter for their tags.
        tags: TagFilter,
    },
}

/// An error in a wishlist, because of which an entry is skipped, or a warning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WishlistProblem {
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1, if known.
    pub column: Option<usize>,
    /// The message.
    pub text: String,
    /// Whether it is an error, because of which an entry is skipped. Otherwise it is a warning.
    pub is_bad: bool,
}

impl WishlistProblem {
    /// Returns a warning.
    fn hint(line: usize, text: String) -> Self {
        Self { line, column: None, text, is_bad: false }
    }

    /// Returns an error, because of which an entry is skipped.
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
    /// Returns the errors, because of which entries are skipped.
    pub fn bad_lines(&self) -> impl Iterator<Item = &WishlistProblem> {
        self.problems.iter().filter(|problem| problem.is_bad)
    }

    /// Reads the wishlist at `path`.
    pub fn open(path: &Path) -> Result<Self, WishlistError> {
        let read_error = |source| WishlistError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(read_error)?;
        let mut text = Vec::new();
        // One byte above the limit shows that the file is too long.
        file.take(MAX_WISHLIST + 1).read_to_end(&mut text).map_err(read_error)?;
        // The length is checked before the encoding: the text may have been cut inside a character.
        check_length(text.len(), path)?;
        let text = String::from_utf8(text).map_err(|error| read_error(io::Error::other(error.utf8_error())))?;
        Self::parse(&text, path)
    }

    /// Parses the text of the wishlist at `path`. The path is used in messages and for the default name of the wishlist.
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
    // DUCC does not check the version, so a recipe without it works there.
    let Some(version) = document.get("version") else {
        if let Some(images) = document.get("images") {
            return Err(images.fault("'images' belongs to version 2 of the format: add 'version: 2' above it"));
        }
        return lenient::read(&document, name).map(without_contradictions);
    };
    match version.text()? {
        "1" => lenient::read(&document, name).map(without_contradictions),
        "2" => strict::read(&document, name).map(without_contradictions),
        other => Err(version.fault(format!("version {other:?} is not supported, only 1 and 2"))),
    }
}

/// Replaces each wish for a single image that contradicts an earlier wish for the same name by a problem. Images that rules
/// match are compared during expansion.
fn without_contradictions(mut wishlist: Wishlist) -> Wishlist {
    let mut kept: Vec<Wish> = Vec::with_capacity(wishlist.wishes.len());
    let mut first: HashMap<ImageName, usize> = HashMap::new();
    for wish in wishlist.wishes {
        if let Some(name) = wish.image_name() {
            if let Some(problem) = first.get(name).and_then(|&index| wish.contradiction(&kept[index], name)) {
                wishlist.problems.push(problem);
                continue;
            }
            first.entry(name.clone()).or_insert(kept.len());
        }
        kept.push(wish);
    }
    wishlist.problems.sort_by_key(|problem| (problem.line, problem.column));
    Wishlist { wishes: kept, ..wishlist }
}

impl Wish {
    /// Returns the problem if this wish and an earlier one for the same single image contradict each other.
    fn contradiction(&self, first: &Self, name: &ImageName) -> Option<WishlistProblem> {
        let (WishTarget::Image(own), WishTarget::Image(others)) = (&self.what, &first.what) else { return None };
        let matter = contradiction((others, &first.options), (own, &self.options))?;
        let text = format!("'{name}' is already listed {matter} in line {}: this wish is skipped", first.line);
        Some(WishlistProblem { is_bad: true, ..WishlistProblem::hint(self.line, text) })
    }
}

/// Returns the message of a parser in one line.
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
    fn version_is_a_number_or_a_text_and_defaults_to_1() {
        for text in ["input: []", "version: 1\ninput: []", "version: \"1\"\ninput: []", "version: '2'\nimages: []"] {
            assert_eq!(parse(text).unwrap().name, "hep", "{text}");
        }
        let message = parse("version: 3\ninput: []").unwrap_err().to_string();
        assert_eq!(message, "'lists/hep.yaml', line 1, column 10: version \"3\" is not supported, only 1 and 2");
        assert!(parse("images: []").unwrap_err().to_string().contains("version: 2"));
    }

    #[test]
    fn wish_that_contradicts_an_earlier_one_is_a_bad_line() {
        let text = "version: 2\nimages:\n- h.org/a:1\n- {image: h.org/a:1, layers: false}\n- {image: h.org/b:1, name: h.org/a:1}\n\
                    - h.org/a:1\n- http://h.org/a:1\n- {image: h.org/a:1, tags: {newest: 1}}\n- 'h.org/a:*'\n";
        let wishlist = parse(text).unwrap();
        let bad: Vec<String> = wishlist.bad_lines().map(ToString::to_string).collect();
        assert_eq!(
            bad[..3],
            [
                "line 4: 'h.org/a:1' is already listed with other options in line 3: this wish is skipped",
                "line 5: 'h.org/a:1' is already listed from another location in line 3: this wish is skipped",
                "line 7: 'h.org/a:1' is already listed from another location in line 3: this wish is skipped",
            ]
        );
        assert_eq!(bad.len(), 4, "{bad:?}");
        assert_eq!(wishlist.wishes.iter().map(|wish| wish.line).collect::<Vec<_>>(), [3, 6, 9]);
        let recipe = parse("version: 1\ninput:\n- https://h.org/a:1\n- h.org/a:1\n- http://h.org/a:1\n").unwrap();
        assert_eq!(recipe.bad_lines().map(|problem| problem.line).collect::<Vec<_>>(), [5]);
    }

    #[test]
    fn errors_quote_the_text_of_the_file() {
        for written in ["127.0.0.1:5101/BAD", "http://h.org/BAD:1", "h.org/BAD:*", "h.org/a:-x"] {
            for text in [format!("input: ['{written}']"), format!("version: 2\nimages: ['{written}']")] {
                let problem = parse(&text).unwrap().problems[0].to_string();
                assert!(problem.contains(&format!("'{written}' is not an image name")), "{problem}");
            }
        }
    }

    #[test]
    fn text_that_is_not_a_map_is_rejected() {
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
