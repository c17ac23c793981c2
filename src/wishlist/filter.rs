//! Which of the names that a registry lists are wanted.

use std::num::NonZeroUsize;

use regex::Regex;
use semver::VersionReq;

use super::version;

/// A pattern for names: `*` stands for any characters, `?` for one, everything else for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob {
    pattern: String,
    has_question_marks: bool,
}

impl Glob {
    /// Returns a pattern in which `*` and `?` have a meaning.
    pub fn new(pattern: &str) -> Self {
        Self { pattern: pattern.to_owned(), has_question_marks: true }
    }

    /// Returns a pattern in which only `*` has a meaning, as in wishlists of version 1.
    pub fn stars_only(pattern: &str) -> Self {
        Self { pattern: pattern.to_owned(), has_question_marks: false }
    }

    /// Returns the pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.pattern
    }

    /// Tells whether the whole of `name` fits the pattern, byte by byte: names are ASCII.
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.pattern.as_bytes(), name.as_bytes());
        let (mut in_pattern, mut in_name) = (0, 0);
        // Only the last star ever needs to take more, so the time is at most the product of the lengths.
        let mut last_star = None;
        while in_name < name.len() {
            match pattern.get(in_pattern) {
                Some(b'*') => {
                    last_star = Some((in_pattern, in_name));
                    in_pattern += 1;
                }
                Some(&byte) if byte == name[in_name] || self.has_question_marks && byte == b'?' => {
                    in_pattern += 1;
                    in_name += 1;
                }
                _ => {
                    let Some((star, taken)) = last_star else { return false };
                    last_star = Some((star, taken + 1));
                    (in_pattern, in_name) = (star + 1, taken + 1);
                }
            }
        }
        pattern[in_pattern..].iter().all(|&byte| byte == b'*')
    }

    /// Tells whether the pattern asks for tags that registries keep signatures and other referrers under.
    fn names_referrers(&self) -> bool {
        self.pattern.starts_with("sha256-")
    }
}

/// Tells whether a tag holds what refers to an image: a signature, an attestation, a list of parts.
///
/// Such tags are `sha256-`, the 64 digits of the image's digest, and perhaps an ending (distribution-spec, "Referrers Tag
/// Schema", and cosign's `.sig`, `.att`, `.sbom`).
pub fn is_referrers_tag(tag: &str) -> bool {
    let Some(rest) = tag.strip_prefix("sha256-") else { return false };
    let (digits, ending) = rest.split_at_checked(64).unwrap_or((rest, ""));
    digits.len() == 64
        && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
        && ending.bytes().next().is_none_or(|byte| !byte.is_ascii_alphanumeric())
}

/// Which repositories of a project are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameFilter {
    /// One of these must match.
    pub include: Vec<Glob>,
    /// None of these may match.
    pub exclude: Vec<Glob>,
}

impl Default for NameFilter {
    fn default() -> Self {
        Self { include: vec![Glob::new("*")], exclude: Vec::new() }
    }
}

impl NameFilter {
    /// Tells whether a repository is wanted that lies in `project`.
    ///
    /// A pattern is held against the repository's name, `physics/tools/cache`, and against what follows the project in
    /// it, `tools/cache`.
    pub fn wants(&self, project: &str, name: &str) -> bool {
        let inner = name.strip_prefix(project).and_then(|rest| rest.strip_prefix('/')).unwrap_or(name);
        let any = |globs: &[Glob]| globs.iter().any(|glob| glob.matches(name) || glob.matches(inner));
        any(&self.include) && !any(&self.exclude)
    }
}

/// Which tags of a repository are wanted.
#[derive(Debug, Clone)]
pub struct TagFilter {
    /// One of these must match.
    pub include: Vec<Glob>,
    /// None of these may match.
    pub exclude: Vec<Glob>,
    /// This must match a part of the tag.
    pub regex: Option<Regex>,
    /// The version that the tag stands for must fulfil this. Pre-releases do so only where the requirement names one.
    pub semver: Option<VersionReq>,
    /// Only so many of the tags that are left, the highest versions.
    pub newest: Option<NonZeroUsize>,
}

impl Default for TagFilter {
    fn default() -> Self {
        Self::including(vec![Glob::new("*")])
    }
}

impl TagFilter {
    /// Returns the filter that wants what one of the patterns matches.
    pub fn including(include: Vec<Glob>) -> Self {
        Self { include, exclude: Vec::new(), regex: None, semver: None, newest: None }
    }

    /// Returns the tags that are wanted of those that there are: each once, the oldest version first.
    pub fn select(&self, tags: &[String]) -> Vec<String> {
        self.split(tags).1
    }

    /// Returns the tags that are not among the newest of those that are wanted, and the tags that are wanted: each once, the
    /// oldest version first.
    pub fn split(&self, tags: &[String]) -> (Vec<String>, Vec<String>) {
        let mut wanted: Vec<_> = tags.iter().filter(|tag| self.wants(tag)).map(|tag| version::sort_key(tag)).collect();
        wanted.sort();
        wanted.dedup();
        let left_out = self.newest.map_or(0, |newest| wanted.len().saturating_sub(newest.get()));
        let mut older: Vec<String> = wanted.iter().map(|key| key.tag.to_owned()).collect();
        let newest = older.split_off(left_out);
        (older, newest)
    }

    /// Tells whether a tag is wanted, however many newer ones there may be.
    fn wants(&self, tag: &str) -> bool {
        let is_referrer = is_referrers_tag(tag);
        let is_version_wanted =
            |requirement: &VersionReq| version::parse(tag).is_some_and(|version| requirement.matches(&version));
        self.include.iter().any(|glob| (!is_referrer || glob.names_referrers()) && glob.matches(tag))
            && self.regex.as_ref().is_none_or(|regex| regex.is_match(tag))
            && self.semver.as_ref().is_none_or(is_version_wanted)
            && !self.exclude.iter().any(|glob| glob.matches(tag))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    fn select(filter: &TagFilter, tags: &[&str]) -> Vec<String> {
        filter.select(&tags.iter().map(|&tag| tag.to_owned()).collect::<Vec<_>>())
    }

    fn including(pattern: &str) -> TagFilter {
        TagFilter::including(vec![Glob::new(pattern)])
    }

    #[test]
    fn only_star_and_question_mark_have_a_meaning() {
        for (pattern, name, matches) in [
            ("21.0.*", "21.0.100", true),
            ("21.0.*", "21.0.", true),
            ("21.0.*", "21x0x1", false),
            ("21.0.*", "121.0.1", false),
            ("v[0-9]*", "v1", false),
            ("v[0-9]*", "v[0-9]x", true),
            ("a+", "aa", false),
            ("a+", "a+", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("?.?", "1.2", true),
            ("?.?", "1.23", false),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("**", "abc", true),
        ] {
            assert_eq!(Glob::new(pattern).matches(name), matches, "{pattern} {name}");
        }
        assert!(!Glob::stars_only("?.*").matches("1.2") && Glob::stars_only("?.*").matches("?.2"));
    }

    #[test]
    fn signatures_are_left_out_unless_a_pattern_names_them() {
        let digits = "0a".repeat(32);
        let tags: Vec<String> =
            ["", ".sig", ".att", ".sbom", "-abc"].iter().map(|ending| format!("sha256-{digits}{ending}")).collect();
        let all: Vec<&str> = tags.iter().map(String::as_str).chain(["1.0", "sha256-short"]).collect();
        assert_eq!(select(&TagFilter::default(), &all), ["sha256-short", "1.0"]);
        assert_eq!(select(&including("sha256-*.sig"), &all), [tags[1].clone()]);
        assert_eq!(select(&including("*.sig"), &all), [""; 0]);
        assert!(!is_referrers_tag(&format!("sha256-{digits}0")));
    }

    #[test]
    fn all_conditions_hold_at_once() {
        let mut filter = including("v*");
        filter.regex = Some(Regex::new("^v[0-9]").unwrap());
        filter.exclude = vec![Glob::new("*-rc*")];
        filter.semver = Some(version::parse_requirement(">=1.2, <3").unwrap());
        let tags = ["v1.1", "v1.2", "1.5", "v2.0.0-rc1", "v2.10", "v2.9", "v3.0.0", "vx", "v2.10"];
        assert_eq!(select(&filter, &tags), ["v1.2", "v2.9", "v2.10"]);
        filter.newest = NonZeroUsize::new(2);
        assert_eq!(select(&filter, &tags), ["v2.9", "v2.10"]);
    }

    #[test]
    fn leading_zeros_do_not_break_versions() {
        let semver = Some(version::parse_requirement(">=20.04").unwrap());
        let filter = TagFilter { semver, ..TagFilter::default() };
        assert_eq!(select(&filter, &["18.04", "20.04", "22.04", "22.10", "latest"]), ["20.04", "22.04", "22.10"]);
    }

    #[test]
    fn repositories_match_by_their_name_or_by_what_follows_the_project() {
        let filter = NameFilter { include: vec![Glob::new("tool*")], exclude: vec![Glob::new("*/cache")] };
        assert!(filter.wants("physics", "physics/tool-a") && filter.wants("physics", "physics/tools/b"));
        assert!(!filter.wants("physics", "physics/tools/cache") && !filter.wants("physics", "physics/other"));
        let filter = NameFilter { exclude: vec![Glob::new("*/cache")], ..NameFilter::default() };
        assert!(!filter.wants("physics", "physics/cache") && filter.wants("", "cache"));
    }

    proptest! {
        #[test]
        fn pattern_matches_as_a_regular_expression_would(pattern in "[ab.*?]{0,8}", name in "[ab.]{0,8}") {
            let regex = regex::escape(&pattern).replace("\\*", ".*").replace("\\?", ".");
            let expected = Regex::new(&format!("^(?:{regex})$")).unwrap().is_match(&name);
            prop_assert_eq!(Glob::new(&pattern).matches(&name), expected);
        }

        #[test]
        fn selection_does_not_depend_on_the_order_of_the_list(
            mut tags in proptest::collection::vec("v?[0-2]{1,2}(\\.[0-2]{1,2}){0,3}(-rc[0-9])?", 0..12),
            newest in 1_usize..5,
        ) {
            let filter = TagFilter { newest: NonZeroUsize::new(newest), ..TagFilter::default() };
            let selected = filter.select(&tags);
            tags.reverse();
            prop_assert_eq!(&filter.select(&tags), &selected);
            prop_assert!(selected.len() <= newest);
        }
    }
}
