//! Places at registries, as people write them in wishlists.

use std::fmt;

use crate::image::{Digest, ImageName, ImageReference, NameError};
use crate::source::ImageArgument;

/// A repository at a registry: images that differ by their tags.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageRepository {
    /// The registry's host, with its port if it has one, as it is spelt.
    pub host: String,
    /// The repository's name there, such as `library/debian`.
    pub repository: String,
    /// Whether the registry speaks HTTP without encryption.
    pub plain_http: bool,
}

impl ImageRepository {
    /// Returns the image with this tag, unless the tag is none or the whole name would be too long.
    pub fn image(&self, tag: &str) -> Result<ImageArgument, NameError> {
        let text = format!("{}/{}:{tag}", self.host, self.repository);
        let name: ImageName = text.parse()?;
        if name.reference() != &ImageReference::Tag(tag.to_owned()) {
            return Err(NameError::Image { name: text, reason: "its tag is not of the form that tags have" });
        }
        Ok(ImageArgument::Registry { name, digest: None, plain_http: self.plain_http })
    }
}

impl fmt::Display for ImageRepository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)
    }
}

/// An image or several, as a wishlist names them.
pub(super) struct WishReference<'t> {
    pub repository: ImageRepository,
    /// May hold `*`.
    pub tag: Option<&'t str>,
    pub digest: Option<Digest>,
}

impl<'t> WishReference<'t> {
    /// Parses `[scheme://]HOST[:PORT]/REPOSITORY[:TAG][@DIGEST]`.
    pub fn parse(text: &'t str) -> Result<Self, String> {
        let (rest, plain_http) = without_scheme(text)?;
        let (rest, digest) = rest.split_once('@').map_or((rest, None), |(rest, digest)| (rest, Some(digest)));
        let digest = digest.map(str::parse).transpose().map_err(|error: NameError| error.to_string())?;
        let (host, path) = rest.split_once('/').ok_or_else(|| format!("{text:?} names no registry and repository"))?;
        let (repository, tag) = path.split_once(':').map_or((path, None), |(path, tag)| (path, Some(tag)));
        if tag == Some("") {
            return Err(format!("{text:?} ends with an empty tag"));
        }
        let repository = ImageRepository { host: host.to_owned(), repository: repository.to_owned(), plain_http };
        // Checks host and repository, and a tag without wildcard, too.
        repository.image(tag.filter(|tag| !tag.contains('*')).unwrap_or("tag")).map_err(|error| error.to_string())?;
        Ok(Self { repository, tag, digest })
    }

    /// Returns the one image that this names; no tag with a wildcard may be in it.
    pub fn image(&self) -> Result<ImageArgument, String> {
        match (self.tag, self.digest) {
            (Some(tag), digest) => match self.repository.image(tag).map_err(|error| error.to_string())? {
                ImageArgument::Registry { name, plain_http, .. } => {
                    Ok(ImageArgument::Registry { name, digest, plain_http })
                }
                other => Ok(other),
            },
            (None, Some(digest)) => {
                let name =
                    format!("{}@{digest}", self.repository).parse().map_err(|error: NameError| error.to_string())?;
                Ok(ImageArgument::Registry { name, digest: Some(digest), plain_http: self.repository.plain_http })
            }
            (None, None) => Err("it has neither tag nor digest".to_owned()),
        }
    }
}

/// Splits a scheme off and tells whether it stands for HTTP without encryption.
pub(super) fn without_scheme(text: &str) -> Result<(&str, bool), String> {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    if rest.split('/').next().is_some_and(|authority| authority.contains('@')) {
        // Quoting it could put a password into a log.
        return Err("a user name or password does not belong in a wishlist".to_owned());
    }
    match text.split_once("://") {
        None => Ok((text, false)),
        Some(("https" | "docker", rest)) => Ok((rest, false)),
        Some(("http", rest)) => Ok((rest, true)),
        Some((scheme, _)) => Err(format!("{text:?} has the scheme {scheme:?}, which is neither https nor http")),
    }
}

/// Tells whether `host` may stand in an image name.
pub(super) fn is_host(host: &str) -> bool {
    !host.contains(['/', '@']) && format!("{host}/a:a").parse::<ImageName>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_has_a_host_a_repository_and_perhaps_tag_and_digest() {
        let digest = Digest::of(b"");
        let text = format!("http://localhost:5000/a/b:t@{digest}");
        let reference = WishReference::parse(&text).unwrap();
        let repository =
            ImageRepository { host: "localhost:5000".to_owned(), repository: "a/b".to_owned(), plain_http: true };
        assert_eq!((&reference.repository, reference.tag, reference.digest), (&repository, Some("t"), Some(digest)));
        assert_eq!(reference.image().unwrap(), text.parse().unwrap());
        let text = format!("registry.hub.docker.com/library/a@{digest}");
        assert_eq!(WishReference::parse(&text).unwrap().image().unwrap(), text.parse().unwrap());
    }

    #[test]
    fn host_may_be_an_ipv6_address() {
        let text = "http://[::1]:5000/a/b:t";
        let reference = WishReference::parse(text).unwrap();
        assert_eq!(
            (reference.repository.host.as_str(), reference.repository.repository.as_str()),
            ("[::1]:5000", "a/b")
        );
        assert_eq!(reference.image().unwrap(), text.parse().unwrap());
        assert_eq!(WishReference::parse("[2001:db8::1]/a:v*").unwrap().tag, Some("v*"));
        assert!(is_host("[::1]") && is_host("[::1]:5000") && !is_host("[::1") && !is_host("::1"));
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for wrong in [
            "",
            "debian",
            "debian:12",
            "ftp://h.org/a:t",
            "h.org/A:t",
            "h.org/a*:t",
            "*.org/a:t",
            "h.org/a:",
            "h.org/a:b c",
            "h.org/a@sha256:0",
            "oci:dir",
            "h.org/../a:*",
            "[::1/a:t",
            "::1/a:t",
        ] {
            let parsed = WishReference::parse(wrong);
            assert!(parsed.is_err(), "{wrong:?}");
        }
        assert!(WishReference::parse("h.org/a").unwrap().image().is_err());
    }

    #[test]
    fn password_is_never_quoted() {
        for text in
            ["https://u:secret@h.org/a:t", "u:secret@h.org/a:*", "ftp://u:secret@h.org/a", "http://u:secret@h.org"]
        {
            let message = WishReference::parse(text).err().unwrap();
            assert!(!message.contains("secret"), "{message}");
        }
    }

    #[test]
    fn tag_of_a_registry_cannot_smuggle_in_a_digest() {
        let repository = ImageRepository { host: "h.org".to_owned(), repository: "a".to_owned(), plain_http: false };
        assert!(repository.image("t").is_ok());
        for wrong in [format!("t@{}", Digest::of(b"")), "a/b".to_owned(), "../../x".to_owned(), "t".repeat(129)] {
            assert!(repository.image(&wrong).is_err(), "{wrong}");
        }
    }
}
