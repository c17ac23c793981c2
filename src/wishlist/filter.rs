//! Filters for the tags and repositories that a registry lists.

use std::num::NonZeroUsize;

use regex::Regex;
use semver::VersionReq;

use super::version;

/// A pattern for names: `*` matches any characters, `?` matches one, and other characters match themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob {
    pattern: String,
    has_question_marks: bool,
}

impl Glob {
    /// Returns a pattern with the wildcards `*` and `?`.
    pub fn new(pattern: &str) -> Self {
        Self { pattern: pattern.to_owned(), has_question_marks: true }
    }

    /// Returns a pattern whose only wildcard is `*`, as in version 1 of the wishlist format.
    pub fn stars_only(pattern: &str) -> Self {
        // DUCC replaces `*` by `.*` and leaves the rest unescaped, so that `.` matches anything. Here it matches itself.
        Self { pattern: pattern.to_owned(), has_question_marks: false }
    }

    /// Returns the pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.pattern
    }

    /// Returns whether the pattern matches the whole `name`, byte by byte: names are ASCII.
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.pattern.as_bytes(), name.as_bytes());
        let (mut in_pattern, mut in_name) = (0, 0);
        // Backtracking is needed only for the last star, so the time is at most proportional to the product of the lengths.
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

    /// Returns whether the pattern is for tags of signatures and other referrers.
    fn names_referrers(&self) -> bool {
        self.pattern.starts_with("sha256-")
    }
}

/// Returns whether a tag is that of a referrer of an image: a signature, an attestation or an SBOM.
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

/// Filter for the repositories of a project.
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
    /// Returns whether the filter matches a repository in `project`.
    ///
    /// A pattern may match the whole name, such as `physics/tools/cache`, or the part after the project, such as `tools/cache`.
    pub fn wants(&self, project: &str, name: &str) -> bool {
        let inner = name.strip_prefix(project).and_then(|rest| rest.strip_prefix('/')).unwrap_or(name);
        let any = |globs: &[Glob]| globs.iter().any(|glob| glob.matches(name) || glob.matches(inner));
        any(&self.include) && !any(&self.exclude)
    }
}

/// Filter for the tags of a repository.
#[derive(Debug, Clone)]
pub struct TagFilter {
    /// One of these must match.
    pub include: Vec<Glob>,
    /// None of these may match.
    pub exclude: Vec<Glob>,
    /// This must match the tag or a part of it.
    pub regex: Option<Regex>,
    /// The version in the tag must satisfy this requirement. A pre-release can do so only if the requirement contains a
    /// pre-release.
    pub semver: Option<VersionReq>,
    /// Maximum number of the remaining tags; those with the highest versions are kept.
    pub newest: Option<NonZeroUsize>,
}

impl Default for TagFilter {
    fn default() -> Self {
        Self::including(vec![Glob::new("*")])
    }
}

impl TagFilter {
    /// Returns a filter that accepts tags matching any of the patterns.
    pub fn including(include: Vec<Glob>) -> Self {
        Self { include, exclude: Vec::new(), regex: None, semver: None, newest: None }
    }

    /// Returns the accepted tags without duplicates, the oldest version first.
    pub fn select(&self, tags: &[String]) -> Vec<String> {
        self.split(tags).1
    }

    /// Returns the tags that only [`newest`](Self::newest) excludes, and the accepted tags. Both are without duplicates, the
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

    /// Returns whether a tag is accepted, apart from [`newest`](Self::newest).
    fn wants(&self, tag: &str) -> bool {
        let is_referrer = is_referrers_tag(tag);
        let is_version_wanted =
            |requirement: &VersionReq| version::parse(tag).is_some_and(|version| requirement.matches(&version));
        // `*` also matches the tags of signatures, which are not images.
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
    fn only_star_and_question_mark_are_wildcards() {
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
    fn signatures_are_excluded_unless_a_pattern_is_for_them() {
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
    fn all_conditions_must_be_satisfied() {
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
    fn versions_may_have_leading_zeros() {
        let semver = Some(version::parse_requirement(">=20.04").unwrap());
        let filter = TagFilter { semver, ..TagFilter::default() };
        assert_eq!(select(&filter, &["18.04", "20.04", "22.04", "22.10", "latest"]), ["20.04", "22.04", "22.10"]);
    }

    #[test]
    fn pattern_matches_the_whole_name_or_the_part_after_the_project() {
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
