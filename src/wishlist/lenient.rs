//! Parses version 1 of the wishlist format: DUCC's recipe.

use super::filter::{Glob, TagFilter};
use super::node::{Fault, YamlNode, YamlValue};
use super::options::WishOptions;
use super::reference::WishReference;
use super::thin::{OutputFormat, ThinImages};
use super::{Wish, WishTarget, Wishlist, WishlistProblem};

const KEYS: [&str; 5] = ["version", "user", "cvmfs_repo", "output_format", "input"];

/// Parses a recipe. Invalid entries become problems.
pub(super) fn read(document: &YamlNode, name: String) -> Result<Wishlist, Fault> {
    let mut problems: Vec<WishlistProblem> = document.repeated_keys().into_iter().map(WishlistProblem::bad).collect();
    for (key, _) in document.map()? {
        match key.text() {
            Ok(text) if !KEYS.contains(&text) => {
                problems.push(WishlistProblem::hint(key.line, format!("unknown key {text:?} is ignored")));
            }
            Ok(_) => {}
            Err(fault) => problems.push(WishlistProblem::bad(fault)),
        }
    }
    // A file without the key `input` is probably not a wishlist. Treating the file as an empty wishlist could remove all images.
    let input =
        document.get("input").ok_or_else(|| document.fault("the key 'input' with the list of images is missing"))?;
    let mut wishes = Vec::new();
    for item in items(input)? {
        match wish(item, &mut problems) {
            Ok(wish) => wishes.push(wish),
            Err(text) => problems.push(WishlistProblem::bad(item.fault(format!("skipped: {text}")))),
        }
    }
    let text_of = |key: &str| document.get(key).filter(|node| !is_empty(node)).map(YamlNode::text).transpose();
    let repository = text_of("cvmfs_repo")?.map(str::to_owned);
    // With an invalid name template or user, no thin image is pushed, because thin images would get a wrong name or owner.
    let thin = text_of("output_format").and_then(|format| {
        let format = format.map(OutputFormat::new).unwrap_or_default();
        Ok(ThinImages { format, user: text_of("user")?.map(str::to_owned) })
    });
    let thin = thin.map_err(|fault| problems.push(WishlistProblem::bad(fault))).ok();
    problems.sort_by_key(|problem| (problem.line, problem.column));
    Ok(Wishlist { name, repository, wishes, problems, thin })
}

/// Returns the items of the list. A key without a value is an empty list, because all its items may be commented out.
fn items(input: &YamlNode) -> Result<&[YamlNode], Fault> {
    match &input.value {
        YamlValue::Nothing => Ok(&[]),
        YamlValue::List(items) => Ok(items),
        _ => Err(input.fault("'input' must be a list of images")),
    }
}

fn is_empty(node: &YamlNode) -> bool {
    match &node.value {
        YamlValue::Nothing => true,
        YamlValue::Text(text) => text.is_empty(),
        _ => false,
    }
}

fn wish(item: &YamlNode, problems: &mut Vec<WishlistProblem>) -> Result<Wish, String> {
    let text = item.text().map_err(|fault| fault.text)?.trim();
    let reference = WishReference::parse(text)?;
    let what = match reference.tag {
        Some(tag) if tag.contains('*') => {
            if reference.digest.is_some() {
                return Err(format!("{text:?} has both a wildcard and a digest"));
            }
            // For DUCC, the pattern is a regular expression, so recipes may contain characters that no tag contains, such as `[` and `+`.
            if let Some(sign) = tag.chars().find(|&c| !is_of_tags(c)) {
                let text = format!("{text:?} matches nothing: {sign:?} is not a wildcard, and tags cannot contain it");
                problems.push(WishlistProblem::hint(item.line, text));
            }
            WishTarget::Tags {
                repository: reference.repository,
                filter: TagFilter::including(vec![Glob::stars_only(tag)]),
            }
        }
        _ => WishTarget::Image(reference.image().map_err(|error| format!("{text:?}: {error}"))?),
    };
    Ok(Wish { line: item.line, what, options: WishOptions::default() })
}

/// Returns whether tags, or patterns for them, may contain a character.
fn is_of_tags(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '_' | '.' | '-' | '*')
}

#[cfg(test)]
mod tests {
    use super::super::tests::parse;
    use super::*;

    use crate::source::ImageArgument;

    /// A recipe in the style of unpacked.cern.ch.
    const RECIPE: &str = "\
version: 1
user: cvmfsunpacker
cvmfs_repo: 'unpacked.cern.ch'
output_format: >
  https://gitlab-registry.cern.ch/unpacked/sync/$(image)
input:
    # base images
    - 'https://registry.hub.docker.com/library/fedora:latest'
    - 'https://registry.hub.docker.com/library/debian:*'
    - https://gitlab-registry.cern.ch/sft/docker:lcg
    - 'https://registry.hub.docker.com/atlas/athena:21.0.*' # releases
    - \"http://registry.example.org:5000/a/b:1.10@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\"
    - ghcr.io/org/tool:2
";

    #[test]
    fn typical_recipe_is_parsed() {
        let wishlist = parse(RECIPE).unwrap();
        assert_eq!(wishlist.problems, []);
        assert_eq!(wishlist.repository.as_deref(), Some("unpacked.cern.ch"));
        let lines: Vec<usize> = wishlist.wishes.iter().map(|wish| wish.line).collect();
        assert_eq!(lines, [8, 9, 10, 11, 12, 13]);
        let WishTarget::Image(image) = &wishlist.wishes[0].what else { panic!("is no image") };
        assert_eq!(image.to_string(), "docker://registry.hub.docker.com/library/fedora:latest");
        let WishTarget::Tags { repository, filter } = &wishlist.wishes[3].what else { panic!("has no wildcard") };
        assert_eq!((repository.repository.as_str(), filter.include[0].as_str()), ("atlas/athena", "21.0.*"));
        let WishTarget::Image(ImageArgument::Registry { plain_http, digest, .. }) = &wishlist.wishes[4].what else {
            panic!("is no image");
        };
        assert!(*plain_http && digest.is_some());
        let thin = wishlist.thin.unwrap();
        assert_eq!(thin.user.as_deref(), Some("cvmfsunpacker"));
        assert_eq!(
            thin.format.thin_name(image).unwrap().trim(),
            "https://gitlab-registry.cern.ch/unpacked/sync/library/fedora:latest"
        );
    }

    #[test]
    fn invalid_entry_is_skipped_with_its_line() {
        let text = "maintainer: someone\ninput:\n- h.org/a:1\n- h.org/b\n- 'not an image'\n- {a: b}\n-\n- h.org/c:*@x\n- h.org/d:2\n";
        let wishlist = parse(text).unwrap();
        let lines: Vec<usize> = wishlist.problems.iter().map(|problem| problem.line).collect();
        assert_eq!(lines, [1, 4, 5, 6, 7, 8]);
        assert_eq!(wishlist.problems[0].to_string(), "line 1: unknown key \"maintainer\" is ignored");
        assert_eq!(wishlist.problems[1].text, "skipped: \"h.org/b\": it has neither tag nor digest");
        assert_eq!(wishlist.problems[1].column, Some(3));
        assert_eq!(wishlist.problems.iter().filter(|problem| problem.is_bad).count(), 5);
        let lines: Vec<usize> = wishlist.wishes.iter().map(|wish| wish.line).collect();
        assert_eq!(lines, [3, 9]);
    }

    #[test]
    fn characters_of_regular_expressions_are_literal_and_reported() {
        let wishlist = parse("input:\n- 'h.org/a:v[0-9]*'\n- 'h.org/a:1.0+*'\n- 'h.org/a:1.*'\n").unwrap();
        assert_eq!(wishlist.wishes.len(), 3);
        let lines: Vec<usize> = wishlist.problems.iter().map(|problem| problem.line).collect();
        assert_eq!(lines, [2, 3]);
        let WishTarget::Tags { filter, .. } = &wishlist.wishes[2].what else { panic!("has no wildcard") };
        let tags = ["1.5", "1x5", "11.5"].map(str::to_owned);
        assert_eq!(filter.select(&tags), ["1.5"]);
    }

    #[test]
    fn errors_outside_the_input_are_reported_and_the_input_is_used() {
        let wishlist = parse("input: [h.org/a:1]\ninput: [h.org/b:1]\n? [x]\n: y\noutput_format: [z]\n").unwrap();
        let lines: Vec<usize> = wishlist.problems.iter().map(|problem| problem.line).collect();
        assert_eq!((lines, wishlist.wishes.len()), (vec![2, 3, 5], 1));
        assert!(wishlist.problems.iter().all(|problem| problem.is_bad) && wishlist.thin.is_none());
        assert!(parse("input: []\ncvmfs_repo: [a]\n").is_err(), "its repository is unknown");
    }

    #[test]
    fn missing_input_is_an_error_and_an_empty_one_is_not() {
        assert!(parse("version: 1\ncvmfs_repo: a.b\n").is_err());
        assert!(parse("version: 1\ninput: h.org/a:1\n").is_err());
        assert_eq!(parse("version: 1\ninput:\n#- h.org/a:1\n").unwrap().wishes.len(), 0);
    }
}
