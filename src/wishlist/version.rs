//! Parses tags as versions, leniently, and sorts them.

use std::cmp::Ordering;

use semver::{BuildMetadata, Prerelease, Version, VersionReq};

/// Parses a tag as a semantic version. A leading `v` is ignored, `1.2` is `1.2.0`, and `22.04` is `22.4.0`.
pub(super) fn parse(tag: &str) -> Option<Version> {
    let text = without_leading_zeros(without_v(tag));
    let (core, prerelease) = text.split_once('-').map_or((text.as_str(), ""), |(core, rest)| (core, rest));
    if text.ends_with('-') {
        return None;
    }
    let mut numbers = [0; 3];
    for (index, part) in core.split('.').enumerate() {
        let is_number = part.bytes().all(|byte| byte.is_ascii_digit());
        *numbers.get_mut(index)? = part.parse().ok().filter(|_| is_number)?;
    }
    let pre = Prerelease::new(prerelease).ok()?;
    Some(Version { major: numbers[0], minor: numbers[1], patch: numbers[2], pre, build: BuildMetadata::EMPTY })
}

/// Parses a requirement such as `>=1.2, <3`. Its numbers may have leading zeros, like those of tags.
pub(super) fn parse_requirement(text: &str) -> Result<VersionReq, semver::Error> {
    VersionReq::parse(&without_leading_zeros(text))
}

/// Compares tags by version; older versions are less.
///
/// Runs of digits are compared by value, a pre-release is less than its release, and words are less than numbers. Tags of the
/// same version are compared as texts. This is a total order.
pub fn compare_tags(a: &str, b: &str) -> Ordering {
    sort_key(a).cmp(&sort_key(b))
}

/// Sort key of a tag.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SortKey<'t> {
    core: Vec<TextRun>,
    is_release: bool,
    suffix: Vec<TextRun>,
    pub tag: &'t str,
}

/// A run of digits, or of anything else.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum TextRun {
    Word(String),
    /// Number of digits, and the digits without leading zeros: numbers of any length are compared by value.
    Number(usize, String),
}

/// Returns the sort key of a tag.
pub(super) fn sort_key(tag: &str) -> SortKey<'_> {
    let Some(version) = parse(tag) else {
        return SortKey { core: runs(without_v(tag)), is_release: true, suffix: Vec::new(), tag };
    };
    let core = runs(&format!("{}.{}.{}", version.major, version.minor, version.patch));
    SortKey { core, is_release: version.pre.is_empty(), suffix: runs(version.pre.as_str()), tag }
}

fn runs(text: &str) -> Vec<TextRun> {
    let mut runs = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let is_number = first.is_ascii_digit();
        let end = rest.find(|c: char| c.is_ascii_digit() != is_number).unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        rest = after;
        runs.push(if is_number {
            let digits = run.trim_start_matches('0');
            TextRun::Number(digits.len(), digits.to_owned())
        } else {
            TextRun::Word(run.to_owned())
        });
    }
    runs
}

fn without_v(tag: &str) -> &str {
    tag.strip_prefix(['v', 'V']).filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit())).unwrap_or(tag)
}

/// Removes leading zeros from all numbers in the text, because semantic versions must not have them.
fn without_leading_zeros(text: &str) -> String {
    let mut shorter = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let goes_on = characters.peek().is_some_and(char::is_ascii_digit);
        let starts = !shorter.ends_with(|c: char| c.is_ascii_alphanumeric());
        if !(character == '0' && starts && goes_on) {
            shorter.push(character);
        }
    }
    shorter
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    fn sorted(mut tags: Vec<&str>) -> Vec<&str> {
        tags.sort_by(|a, b| compare_tags(a, b));
        tags
    }

    #[test]
    fn tags_are_parsed_as_versions() {
        for (tag, version) in [
            ("1.2.3", "1.2.3"),
            ("v1.2.3", "1.2.3"),
            ("1.2", "1.2.0"),
            ("22.04", "22.4.0"),
            ("7", "7.0.0"),
            ("1.2-rc1", "1.2.0-rc1"),
            ("1.2.3-rc.01", "1.2.3-rc.1"),
            ("00.0.000", "0.0.0"),
        ] {
            assert_eq!(parse(tag), Some(version.parse().unwrap()), "{tag}");
        }
        for tag in ["", "latest", "v", "1.2.3.4", "1..2", "1.x", "1-", "vv1", "1.2+b", ".1", "99999999999999999999"] {
            assert_eq!(parse(tag), None, "{tag}");
        }
    }

    #[test]
    fn requirements_may_have_leading_zeros() {
        let matches =
            |requirement: &str, tag: &str| parse_requirement(requirement).unwrap().matches(&parse(tag).unwrap());
        assert!(matches(">=22.04", "22.10") && matches(">=22.04, <24.04", "22.04") && matches("=0.04", "0.4.7"));
        assert!(!matches(">=22.04", "20.04") && !matches(">=1.2, <3", "3.0.0"));
        assert!(parse_requirement(">=x").is_err());
    }

    #[test]
    fn numbers_compare_by_value() {
        assert_eq!(
            sorted(vec!["21.0.100", "21.0.99", "21.0.9", "v21.0.101", "21.2"]),
            ["21.0.9", "21.0.99", "21.0.100", "v21.0.101", "21.2"]
        );
        assert_eq!(sorted(vec!["1.2.3.10", "1.2.3.9", "1.2.3"]), ["1.2.3", "1.2.3.9", "1.2.3.10"]);
        assert_eq!(sorted(vec!["b10", "b9", "b09"]), ["b09", "b9", "b10"]);
    }

    #[test]
    fn prerelease_is_less_than_its_release_in_any_notation() {
        assert_eq!(
            sorted(vec!["1.2.0", "1.2", "1.2.0-rc10", "1.2.0-rc9", "1.1.9", "v1.2-alpha"]),
            ["1.1.9", "v1.2-alpha", "1.2.0-rc9", "1.2.0-rc10", "1.2", "1.2.0"]
        );
    }

    #[test]
    fn words_are_less_than_any_version() {
        assert_eq!(sorted(vec!["latest", "0.1", "main", "v0.2"]), ["latest", "main", "0.1", "v0.2"]);
    }

    proptest! {
        #[test]
        fn order_of_tags_is_total(tags in proptest::collection::vec("v?[0-2.a-]{0,6}", 3)) {
            let [a, b, c] = [&tags[0], &tags[1], &tags[2]];
            prop_assert_eq!(compare_tags(a, b), compare_tags(b, a).reverse());
            prop_assert_eq!(compare_tags(a, b) == Ordering::Equal, a == b);
            if compare_tags(a, b).is_le() && compare_tags(b, c).is_le() {
                prop_assert!(compare_tags(a, c).is_le());
            }
        }

        #[test]
        fn any_text_has_a_place_in_the_order(a in ".*", b in ".*") {
            prop_assert_eq!(compare_tags(&a, &b), compare_tags(&b, &a).reverse());
        }
    }
}
