//! Image names: host, repository, and tag or digest.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use super::{Digest, NameError};

const WRONG_HOST: &str = "the host before the first '/' is not valid: write a host name, an IPv4 address, or an IPv6 address in \
                          brackets, with an optional port, such as registry.example.org:5000";

const WRONG_REPOSITORY: &str = "the repository between host and tag is not valid: it must have 1 to 255 lower-case letters, digits, \
                                '.', '_', '-' and '/', and each part between slashes must begin and end with a letter or digit";

const WRONG_TAG: &str = "the tag is not valid: it must have 1 to 128 letters, digits, '.', '_' and '-', and must not begin with \
                         '.' or '-'";

const TOO_LONG: &str = "the last part of the repository and the tag or digest have more than 255 characters in total, the maximum \
                        length of a file name";

/// Public name of an image: `host/repository:tag`, or `host/repository@sha256:…`.
///
/// The host is kept as it was spelt: `registry.hub.docker.com` and `docker.io` are different names. The public path
/// never leaves the root of the CVMFS repository, and never enters `podmanStore` or a directory whose name begins with a dot, such
/// as `.flat`: strata and CVMFS use these.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageName {
    host: String,
    repository: String,
    reference: ImageReference,
}

/// The part of an image name that selects an image of a repository.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ImageReference {
    /// A tag. The owner of the image repository may move it to another image.
    Tag(String),
    /// Digest of a manifest or an index.
    Digest(Digest),
}

impl ImageName {
    /// Returns the host of the registry, with the port if the name has one.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the repository at the registry, such as `library/debian`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Returns the tag or digest.
    pub fn reference(&self) -> &ImageReference {
        &self.reference
    }

    /// Returns the path of the public link relative to the root of the CVMFS repository, without a leading slash.
    ///
    /// Before a digest, the path has a colon instead of `@`, as in `host/name:sha256:<hex>`: consumers expect that.
    pub fn public_path(&self) -> String {
        match &self.reference {
            ImageReference::Tag(tag) => format!("{}/{}:{tag}", self.host, self.repository),
            ImageReference::Digest(digest) => format!("{}/{}:{digest}", self.host, self.repository),
        }
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reference {
            ImageReference::Tag(tag) => write!(f, "{}/{}:{tag}", self.host, self.repository),
            ImageReference::Digest(digest) => write!(f, "{}/{}@{digest}", self.host, self.repository),
        }
    }
}

impl FromStr for ImageName {
    type Err = NameError;

    /// Parses `host[:port]/repository[:tag][@digest]`. If the text has both a tag and a digest, the digest is dropped, because the
    /// paths that consumers use do not contain it.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = |reason| NameError::Image { name: text.to_owned(), reason };
        let (host, rest) = text
            .split_once('/')
            .ok_or_else(|| wrong("the host is missing; write host/name:tag, such as docker.io/library/debian:12"))?;
        if !is_host(host) {
            return Err(wrong(WRONG_HOST));
        }
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (rest, None),
        };
        let (repository, tag) = match rest.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (rest, None),
        };
        if !is_repository(repository) {
            return Err(wrong(WRONG_REPOSITORY));
        }
        let reference = match (tag, digest) {
            (Some(tag), _) if is_tag(tag) => ImageReference::Tag(tag.to_owned()),
            (Some(_), _) => return Err(wrong(WRONG_TAG)),
            (None, Some(digest)) => ImageReference::Digest(digest),
            (None, None) => {
                return Err(wrong("the tag or digest is missing; write host/name:tag or host/name@sha256:<digest>"));
            }
        };
        let name = Self { host: host.to_owned(), repository: repository.to_owned(), reference };
        // 255 bytes is the maximum length of a file name on Linux (`NAME_MAX`).
        match name.public_path().split('/').all(|component| component.len() <= 255) {
            true => Ok(name),
            false => Err(wrong(TOO_LONG)),
        }
    }
}

/// An image name and the digest that the image must have, `host/repository:tag@sha256:…`. Tag or digest may be missing.
///
/// The public link is that of `name`, which contains the tag, or the digest if there is no tag.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FullName {
    /// The name.
    pub name: ImageName,
    /// Expected digest of the manifest or index that the name refers to.
    pub digest: Option<Digest>,
}

impl From<ImageName> for FullName {
    /// Uses the digest in the name, if it has one instead of a tag.
    fn from(name: ImageName) -> Self {
        let digest = match name.reference() {
            ImageReference::Digest(digest) => Some(*digest),
            ImageReference::Tag(_) => None,
        };
        Self { name, digest }
    }
}

impl FromStr for FullName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let digest = text.split_once('@').map(|(_, digest)| digest.parse()).transpose()?;
        Ok(Self { name: text.parse()?, digest })
    }
}

impl fmt::Display for FullName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        match (self.digest, self.name.reference()) {
            (Some(digest), ImageReference::Tag(_)) => write!(f, "@{digest}"),
            _ => Ok(()),
        }
    }
}

/// Returns whether `host` is a valid host of a registry that can also be the name of a directory at the root of the CVMFS repository.
///
/// It must be a host name, an IPv4 address, or an IPv6 address in brackets (RFC 3986, "Host"), with an optional port. An address
/// with a zone is refused, because zones are local to a machine.
fn is_host(host: &str) -> bool {
    let (is_right, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => (address.parse::<Ipv6Addr>().is_ok(), port),
        None => {
            let (name, port) = host.split_at(host.find(':').unwrap_or(host.len()));
            (is_host_name(name), port)
        }
    };
    is_right && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
}

fn is_host_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 240
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        // A name that begins with a dot could be a directory of strata's own, such as `.flat`.
        && name.as_bytes()[0].is_ascii_alphanumeric()
        && name != "podmanStore"
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

/// Returns whether `text` is a valid name of a repository in a registry.
pub(crate) fn is_repository(text: &str) -> bool {
    text.len() <= 255 && text.split('/').all(is_repository_component)
}

/// Returns whether `text` is a valid component of a repository name (distribution-spec, "Pulling manifests").
fn is_repository_component(text: &str) -> bool {
    let bytes = text.as_bytes();
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    !bytes.is_empty()
        && is_word(bytes[0])
        && is_word(bytes[bytes.len() - 1])
        && bytes.iter().all(|&b| is_word(b) || matches!(b, b'.' | b'_' | b'-'))
}

/// Returns whether `text` is a valid tag (distribution-spec, "Pulling manifests").
pub(crate) fn is_tag(text: &str) -> bool {
    let bytes = text.as_bytes();
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    !bytes.is_empty()
        && bytes.len() <= 128
        && is_word(bytes[0])
        && bytes.iter().all(|&b| is_word(b) || matches!(b, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn image_name_keeps_its_host_and_joins_a_digest_with_a_colon() {
        let name: ImageName = "registry.hub.docker.com/library/debian:12".parse().unwrap();
        assert_eq!(name.public_path(), "registry.hub.docker.com/library/debian:12");
        let name: ImageName = format!("localhost:5000/a@{EMPTY}").parse().unwrap();
        assert_eq!(name.public_path(), format!("localhost:5000/a:{EMPTY}"));
        assert_eq!(name.to_string(), format!("localhost:5000/a@{EMPTY}"));
        let name: ImageName = format!("h/a/b:t@{EMPTY}").parse().unwrap();
        assert_eq!(name.public_path(), "h/a/b:t");
    }

    #[test]
    fn image_name_cannot_leave_its_directory() {
        for wrong in [
            "debian:12",
            "/a:t",
            ".flat/a:t",
            "podmanStore/a:t",
            "../a:t",
            "h/../a:t",
            "h/a",
            "h//a:t",
            "h/A:t",
            "h/a:",
            "h/a:t:u",
            "h/a:.t",
            "h:x/a:t",
            "h:70000/a:t",
            "h:+80/a:t",
            "h/a\n:t",
            "h/a@sha256:0",
        ] {
            assert!(wrong.parse::<ImageName>().is_err(), "{wrong:?} was accepted");
        }
        let long = |length: usize| format!("h/{}:{}", "a".repeat(length - 129), "t".repeat(128)).parse::<ImageName>();
        assert!(long(255).is_ok() && long(256).is_err());
    }

    #[test]
    fn host_may_be_an_ipv6_address_in_brackets() {
        for host in ["[::1]", "[::1]:5000", "[2001:db8::A]:443", "[::ffff:192.0.2.1]:80", "[fe80::1]"] {
            let name: ImageName = format!("{host}/a/b:1").parse().unwrap();
            assert_eq!((name.host(), name.repository()), (host, "a/b"));
            assert_eq!((name.to_string(), name.public_path()), (format!("{host}/a/b:1"), format!("{host}/a/b:1")));
            let name: ImageName = format!("{host}/a@{EMPTY}").parse().unwrap();
            assert_eq!(name.public_path(), format!("{host}/a:{EMPTY}"));
        }
        for wrong in [
            "::1",
            "::1:5000",
            "[::1",
            "::1]",
            "[]",
            "[]:5000",
            "[::1]5000",
            "[::1]:",
            "[::1]:x",
            "[::1]:70000",
            "[::1]:+80",
            "[::1]:5000:1",
            "[::1]x",
            "[127.0.0.1]",
            "[h.org]:5000",
            "[fe80::1%eth0]",
            "[fe80::1%25eth0]",
            "[::1][::1]",
            "[..]",
            "[.flat]",
        ] {
            assert!(format!("{wrong}/a:1").parse::<ImageName>().is_err(), "{wrong:?} was accepted");
        }
    }

    #[test]
    fn full_name_keeps_tag_and_digest() {
        let digest = Digest::of(b"");
        let parse = |text: &str| text.parse::<FullName>().unwrap();
        for (text, expected) in [
            ("h.org/a:t".to_owned(), None),
            (format!("h.org/a:t@{EMPTY}"), Some(digest)),
            (format!("h.org/a@{EMPTY}"), Some(digest)),
            (format!("[::1]:5000/a:t@{EMPTY}"), Some(digest)),
        ] {
            let name = parse(&text);
            assert_eq!((name.digest, name.to_string()), (expected, text));
        }
        assert_eq!(parse(&format!("h.org/a:t@{EMPTY}")).name.public_path(), "h.org/a:t");
        for wrong in ["h.org/a", "h.org/a:t@", "h.org/a:t@sha256:0", "h.org/a:t@sha512:00"] {
            assert!(wrong.parse::<FullName>().is_err(), "{wrong}");
        }
    }
}
