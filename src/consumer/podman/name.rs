//! Image names that podman accepts.

/// Maximum length of a name without tag and digest in characters (distribution/reference).
const MAX_NAME_LENGTH: usize = 255;

/// Returns a name in the form for the store, or `None` if podman refuses the name. podman refuses a whole store that contains
/// such a name.
///
/// DUCC separates a digest with a colon; the result has an `@`.
pub fn store_name(text: &str) -> Option<String> {
    let name = match text.split_once(":sha256:") {
        Some((before, digest)) => format!("{before}@sha256:{digest}"),
        None => text.to_owned(),
    };
    is_reference(&name).then_some(name)
}

/// Returns whether `text` is a reference in the grammar of distribution/reference: `[host[:port]/]path[:tag][@digest]`.
fn is_reference(text: &str) -> bool {
    let (text, digest) = split(text, '@');
    // A colon before a slash separates a port.
    let slash = text.rfind('/').map_or(0, |slash| slash + 1);
    let (last, tag) = split(&text[slash..], ':');
    let name = &text[..slash + last.len()];
    let (host, path) = match name.split_once('/') {
        Some((host, path)) if is_taken_for_host(host) => (Some(host), path),
        _ => (None, name),
    };
    name.len() <= MAX_NAME_LENGTH
        && host.is_none_or(is_host)
        && path.split('/').all(is_path_component)
        // distribution/reference reads 64 hexadecimal digits as an image ID.
        && !(host.is_none() && is_hex(path, 64))
        && tag.is_none_or(crate::image::is_tag)
        && digest.is_none_or(is_digest)
}

fn split(text: &str, at: char) -> (&str, Option<&str>) {
    text.split_once(at).map_or((text, None), |(before, after)| (before, Some(after)))
}

/// Returns whether the first component of a name is a host, and not part of the path at Docker Hub.
fn is_taken_for_host(text: &str) -> bool {
    text.contains(['.', ':']) || text == "localhost"
}

fn is_host(text: &str) -> bool {
    let (name, port) = split(text, ':');
    let is_word = |word: &str| {
        !word.is_empty()
            && !word.starts_with('-')
            && !word.ends_with('-')
            && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    name.split('.').all(is_word) && port.is_none_or(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
}

/// Returns whether `text` consists of words of lowercase letters and digits, joined by one `.`, one or two `_`, or any number of `-`.
fn is_path_component(text: &str) -> bool {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_joint = |joint: &str| matches!(joint, "." | "_" | "__") || joint.bytes().all(|b| b == b'-');
    text.starts_with(is_word) && text.ends_with(is_word) && text.split(is_word).all(is_joint)
}

/// Returns whether `text` is a digest with an algorithm that podman supports.
pub fn is_digest(text: &str) -> bool {
    let lengths = [("sha256:", 64), ("sha384:", 96), ("sha512:", 128)];
    lengths.iter().any(|(prefix, length)| text.strip_prefix(prefix).is_some_and(|digits| is_hex(digits, *length)))
}

/// Returns whether `text` consists of exactly `length` lowercase hexadecimal digits.
pub fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    // As observed with podman 4.3.
    #[test]
    fn names_that_podman_accepts_are_accepted() {
        let longest = format!("h.org/{}:1", "a".repeat(249));
        let with_digest = format!("h.org/a@sha256:{}", "0".repeat(64));
        for name in [
            "h.org/a:1",
            "myhost/a:1",
            "HOST.org/a:1",
            "localhost/a:1",
            "h:5000/a:1",
            "h.org/a__b:1",
            "h.org/a--b:1",
            "h.org/a",
            "a:1",
            "a",
            "h.org/a:1.",
            "h.org/b/c.d-e_f:A_b",
            "docker.io/library/a:1",
            &longest,
            &with_digest,
        ] {
            assert_eq!(store_name(name).as_deref(), Some(name));
        }
    }

    // Each of these names made podman 4.3 refuse the whole store.
    #[test]
    fn names_that_podman_refuses_are_refused() {
        let too_long = format!("h.org/{}:1", "a".repeat(250));
        let (long_tag, hex) = (format!("h.org/a:{}", "t".repeat(129)), "0".repeat(64));
        let short_digest = format!("h.org/a@sha256:{}", "0".repeat(63));
        for name in [
            "Host/a:1",
            "h-.org/a:1",
            "h..org/a:1",
            "h.org./a:1",
            "h.org:/a:1",
            "h.org:x/a:1",
            "h.org/a..b:1",
            "h.org/a___b:1",
            "h.org/a._b:1",
            "h.org/A:1",
            "h.org/a:-x",
            "h.org//a:1",
            "h.org/a-:1",
            "[::1]/a:1",
            "",
            "h.org/",
            ":1",
            "h.org/a b:1",
            &too_long,
            &long_tag,
            &hex,
            &short_digest,
        ] {
            assert_eq!(store_name(name), None, "{name}");
        }
    }

    #[test]
    fn digest_after_a_colon_is_converted_to_the_form_of_podman() {
        let digest = format!("sha256:{}", "0".repeat(64));
        assert_eq!(store_name(&format!("h.org/a:{digest}")), Some(format!("h.org/a@{digest}")));
        assert_eq!(store_name(&format!("h.org/a:1:{digest}")), Some(format!("h.org/a:1@{digest}")));
        assert_eq!(store_name("h.org/a:sha256:00"), None);
    }
}
