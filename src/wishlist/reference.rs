//! Parses image references in wishlists.

use std::fmt;

use crate::image::{Digest, ImageName, ImageReference, NameError};
use crate::source::ImageArgument;

/// A repository at a registry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageRepository {
    /// Host and optional port of the registry, as written by the user.
    pub host: String,
    /// Name of the repository, such as `library/debian`.
    pub repository: String,
    /// Whether the registry uses plain HTTP.
    pub plain_http: bool,
}

impl ImageRepository {
    /// Returns the image with this tag. Fails if the tag is invalid or the whole name is too long.
    pub fn image(&self, tag: &str) -> Result<ImageArgument, NameError> {
        let text = format!("{}/{}:{tag}", self.host, self.repository);
        let name: ImageName = text.parse()?;
        // A text such as `1@sha256:…` is a valid end of an image name, but not a tag.
        if name.reference() != &ImageReference::Tag(tag.to_owned()) {
            return Err(NameError::Image { name: text, reason: "its tag is invalid" });
        }
        Ok(ImageArgument::Registry { name, digest: None, plain_http: self.plain_http })
    }
}

impl fmt::Display for ImageRepository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)
    }
}

/// A reference in a wishlist to an image, or with wildcards to several.
pub(super) struct WishReference<'t> {
    pub repository: ImageRepository,
    /// May contain `*`.
    pub tag: Option<&'t str>,
    pub digest: Option<Digest>,
}

impl<'t> WishReference<'t> {
    /// Parses `[scheme://]HOST[:PORT]/REPOSITORY[:TAG][@DIGEST]`.
    pub fn parse(text: &'t str) -> Result<Self, String> {
        let (rest, plain_http) = without_scheme(text)?;
        let (rest, digest) = rest.split_once('@').map_or((rest, None), |(rest, digest)| (rest, Some(digest)));
        let digest = digest.map(str::parse).transpose().map_err(|error: NameError| error.to_string())?;
        // As in DUCC, the first component is always a host. There is no default registry.
        let (host, path) =
            rest.split_once('/').ok_or_else(|| format!("{text:?} contains no registry or no repository"))?;
        let (repository, tag) = path.split_once(':').map_or((path, None), |(path, tag)| (path, Some(tag)));
        if tag == Some("") {
            return Err(format!("{text:?} ends with an empty tag"));
        }
        let repository = ImageRepository { host: host.to_owned(), repository: repository.to_owned(), plain_http };
        // This checks host and repository, and the tag unless it contains a wildcard.
        let checked = repository.image(tag.filter(|tag| !tag.contains('*')).unwrap_or("tag"));
        // The error must quote the text of the file, not the name that was checked.
        checked.map_err(|error| match error {
            NameError::Image { reason, .. } => NameError::Image { name: text.to_owned(), reason }.to_string(),
            error => error.to_string(),
        })?;
        Ok(Self { repository, tag, digest })
    }

    /// Returns the image. The tag must not contain a wildcard.
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

/// Removes the scheme, and returns whether it means plain HTTP.
pub(super) fn without_scheme(text: &str) -> Result<(&str, bool), String> {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    if rest.split('/').next().is_some_and(|authority| authority.contains('@')) {
        // The message must not quote the text, because a password could get into a log.
        return Err("a wishlist must not contain a user name or password".to_owned());
    }
    match text.split_once("://") {
        None => Ok((text, false)),
        Some(("https" | "docker", rest)) => Ok((rest, false)),
        Some(("http", rest)) => Ok((rest, true)),
        Some((scheme, _)) => Err(format!("{text:?} has the scheme {scheme:?}, which is neither https nor http")),
    }
}

/// Returns whether `host` is valid in an image name.
pub(super) fn is_host(host: &str) -> bool {
    !host.contains(['/', '@']) && format!("{host}/a:a").parse::<ImageName>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_has_a_host_a_repository_and_optionally_tag_and_digest() {
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
    fn invalid_reference_is_rejected() {
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
    fn tag_cannot_contain_a_digest_or_path() {
        let repository = ImageRepository { host: "h.org".to_owned(), repository: "a".to_owned(), plain_http: false };
        assert!(repository.image("t").is_ok());
        for wrong in [format!("t@{}", Digest::of(b"")), "a/b".to_owned(), "../../x".to_owned(), "t".repeat(129)] {
            assert!(repository.image(&wrong).is_err(), "{wrong}");
        }
    }
}
