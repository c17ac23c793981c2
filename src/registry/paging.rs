//! Reads lists in pages (distribution-spec, "Listing Tags"; `Link` header: RFC 8288).

use std::collections::{BTreeSet, HashSet};

use reqwest::Url;
use reqwest::header::{HeaderMap, LINK};

use super::error::RegistryError;
use crate::http::{HttpError, is_same_origin, redacted};
use crate::observer::Reporter;

/// Maximum number of pages of one list.
const MAX_PAGES: usize = 10_000;
/// Maximum number of names in one list.
const MAX_NAMES: usize = 1_000_000;

/// Returns the URL of the next page, if there is one. Fails if that URL has another origin, because credentials must not be sent
/// to it.
pub(super) fn next_page(url: &Url, headers: &HeaderMap) -> Result<Option<Url>, RegistryError> {
    let texts = headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok());
    let Some(target) = texts.flat_map(links).find_map(|(target, is_next)| is_next.then_some(target)) else {
        return Ok(None);
    };
    let reason = |reason| RegistryError::Link { url: redacted(url), reason };
    // The target may be relative to the URL of the request (RFC 8288, section 3.1).
    let next = url.join(target).map_err(|_| reason("the URL of the next page is invalid"))?;
    if !is_same_origin(url, &next) {
        return Err(reason("the next page is at another server"));
    }
    Ok(Some(next))
}

/// Splits a header into link targets. The flag of a target is true if it is the next page. Targets may contain commas.
fn links(text: &str) -> impl Iterator<Item = (&str, bool)> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (_, after) = rest.split_once('<')?;
        let (target, after) = after.split_once('>')?;
        let (parameters, next) = after.split_at(after.find('<').unwrap_or(after.len()));
        rest = next;
        Some((target, is_next(parameters)))
    })
}

/// Returns whether the parameters of a link contain the relation `next`.
fn is_next(parameters: &str) -> bool {
    parameters.split([';', ',']).filter_map(|parameter| parameter.split_once('=')).any(|(name, value)| {
        // `rel` may contain several relations, which are case-insensitive (RFC 8288, section 3.3).
        let relations = value.trim().trim_matches('"');
        name.trim().eq_ignore_ascii_case("rel")
            && relations.split_ascii_whitespace().any(|relation| relation.eq_ignore_ascii_case("next"))
    })
}

/// Reads all pages of a list, and returns the names sorted and without duplicates.
///
/// `page` returns the names of a page and the URL of the next one. Names that `is_valid` rejects are left out.
pub(super) fn collect(
    first: Url,
    mut page: impl FnMut(&Url) -> Result<(Vec<String>, Option<Url>), RegistryError>,
    is_valid: impl Fn(&str) -> bool,
    reporter: &Reporter,
) -> Result<Vec<String>, RegistryError> {
    // Not all registries return names in lexical order, as distribution-spec requires.
    let (mut names, mut seen) = (BTreeSet::new(), HashSet::new());
    let mut next = Some(first);
    while let Some(url) = next {
        let refuse = |reason: &str| HttpError::InvalidResponse { url: redacted(&url), reason: reason.to_owned() };
        // A page that links to itself would never end.
        if !seen.insert(url.to_string()) {
            return Err(refuse("the next page of the list is one that was already read").into());
        }
        if seen.len() > MAX_PAGES || names.len() > MAX_NAMES {
            return Err(refuse("the list has more than 10000 pages or 1000000 names").into());
        }
        let (found, after) = page(&url)?;
        let (valid, wrong): (Vec<_>, Vec<_>) = found.into_iter().partition(|name| is_valid(name));
        if let Some(name) = wrong.first() {
            reporter.debug(format_args!("{} lists {} invalid names, such as {name:?}", redacted(&url), wrong.len()));
        }
        names.extend(valid);
        next = after;
    }
    Ok(names.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    fn next(link: &'static str) -> Result<Option<String>, RegistryError> {
        let headers = HeaderMap::from_iter([(LINK, HeaderValue::from_static(link))]);
        Ok(next_page(&url("https://h.org/v2/a/tags/list?n=2"), &headers)?.map(String::from))
    }

    #[test]
    fn next_page_is_relative_or_absolute_and_its_query_stays() {
        let absolute = "https://h.org/v2/a/tags/list?last=b%2Fc&n=2";
        for link in [
            r#"</v2/a/tags/list?last=b%2Fc&n=2>; rel="next""#,
            "<https://h.org/v2/a/tags/list?last=b%2Fc&n=2>;rel=next",
            r#"<?last=b%2Fc&n=2>; title="x"; REL="prev Next""#,
            r#"</first>; rel="first", </v2/a/tags/list?last=b%2Fc&n=2>; rel="next", </x>; rel="last""#,
        ] {
            assert_eq!(next(link).unwrap().as_deref(), Some(absolute), "{link}");
        }
        assert_eq!(next("</v2/x,y;z?last=a,b>; rel=next").unwrap().as_deref(), Some("https://h.org/v2/x,y;z?last=a,b"));
        for none in ["", "</v2/b>", r#"</v2/b>; rel="prev""#, "</v2/b; rel=next", "x; rel=next", r#"</v2>; title=next"#]
        {
            assert_eq!(next(none).unwrap(), None, "{none}");
        }
    }

    #[test]
    fn next_page_at_another_origin_is_rejected() {
        for link in ["<https://evil.org/v2>; rel=next", "<http://h.org/v2>; rel=next", "<//h.org:8443/x>; rel=next"] {
            assert!(matches!(next(link), Err(RegistryError::Link { .. })), "{link}");
        }
    }

    #[test]
    fn pages_are_merged_in_order_without_invalid_names() {
        let pages = |url: &Url| {
            Ok(match url.path() {
                "/1" => (vec!["b".to_owned(), "../x".to_owned(), "a".to_owned()], Some(url.join("/2").unwrap())),
                _ => (vec!["c".to_owned(), "a".to_owned()], None),
            })
        };
        let names = collect(url("https://h.org/1"), pages, |name| !name.contains('/'), &Reporter::silent()).unwrap();
        assert_eq!(names, ["a", "b", "c"]);
    }

    #[test]
    fn list_without_an_end_is_rejected() {
        let circle =
            |url: &Url| Ok((Vec::new(), Some(url.join(if url.path() == "/1" { "/2" } else { "/1" }).unwrap())));
        let error = collect(url("https://h.org/1"), circle, |_| true, &Reporter::silent()).unwrap_err();
        assert!(error.to_string().contains("already read"), "{error}");
        let mut number = 0;
        let endless = |url: &Url| {
            number += 1;
            Ok((Vec::new(), Some(url.join(&format!("/{number}")).unwrap())))
        };
        let error = collect(url("https://h.org/x"), endless, |_| true, &Reporter::silent()).unwrap_err();
        assert!(error.to_string().contains("more than 10000 pages"), "{error}");
    }
}
