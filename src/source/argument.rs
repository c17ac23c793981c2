//! Parses images on the command line.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::image::{Digest, ImageName, NameError};
use crate::registry::{ImageLocation, Transport};

/// Schemes of other tools, which get an error message of their own.
// Without this list, the error would be about an invalid image name.
const FOREIGN_SCHEMES: [&str; 6] = ["dir", "docker-daemon", "containers-storage", "ostree", "sif", "oras"];

/// An image argument: the kind of source and the image in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageArgument {
    /// `oci:DIR[:REF]`, a directory in the OCI image layout.
    OciLayout {
        /// The directory.
        directory: PathBuf,
        /// Name or digest of the image in it.
        reference: Option<String>,
    },
    /// `oci-archive:FILE[:REF]`, a tar file of such a directory.
    OciArchive {
        /// The tar file.
        file: PathBuf,
        /// Name or digest of the image in it.
        reference: Option<String>,
    },
    /// `docker-archive:FILE[:REF]`, a tar file of `docker save`.
    DockerArchive {
        /// The tar file.
        file: PathBuf,
        /// Name or digest of the image in it.
        reference: Option<String>,
    },
    /// `docker://host/name:tag`, or the same with `https://`, `http://` or without a scheme.
    Registry {
        /// The name under which the image is published.
        name: ImageName,
        /// Digest of the manifest to fetch. With a digest, the tag is ignored, because the tag may have moved.
        digest: Option<Digest>,
        /// Whether the registry uses plain HTTP.
        plain_http: bool,
    },
}

impl ImageArgument {
    /// Returns the location of an image at a registry; `None` for an image on this machine.
    pub fn registry_location(&self) -> Option<ImageLocation> {
        let Self::Registry { name, digest, plain_http } = self else { return None };
        let transport = Transport::of(*plain_http);
        Some(ImageLocation { name: name.clone(), digest: *digest, transport })
    }
}

/// A string is not a valid image argument.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentError {
    /// A path or reference is empty.
    #[error(
        "'{argument}' has no {part}: the form is {scheme}:PATH or {scheme}:PATH:REFERENCE, and PATH contains no colon"
    )]
    EmptyPart {
        /// The argument.
        argument: String,
        /// Which part is empty.
        part: &'static str,
        /// The scheme.
        scheme: &'static str,
    },
    /// Only other tools support this scheme.
    #[error(
        "strata does not support the scheme of '{0}': copy the image with skopeo to oci:, oci-archive: or docker-archive:"
    )]
    ForeignScheme(String),
    /// The argument has no scheme and is not a valid image name.
    #[error(transparent)]
    Name(#[from] NameError),
}

impl FromStr for ImageArgument {
    type Err = ArgumentError;

    /// Parses an argument. As in skopeo, a path ends at the first colon, and the reference may contain further colons.
    fn from_str(text: &str) -> Result<Self, ArgumentError> {
        match text.split_once(':') {
            Some(("oci", _)) => {
                path_and_reference(text, "oci").map(|(directory, reference)| Self::OciLayout { directory, reference })
            }
            Some(("oci-archive", _)) => {
                path_and_reference(text, "oci-archive").map(|(file, reference)| Self::OciArchive { file, reference })
            }
            Some(("docker-archive", _)) => path_and_reference(text, "docker-archive")
                .map(|(file, reference)| Self::DockerArchive { file, reference }),
            Some(("docker" | "https", rest)) if rest.starts_with("//") => registry(&rest[2..], false),
            Some(("http", rest)) if rest.starts_with("//") => registry(&rest[2..], true),
            Some((scheme, _)) if FOREIGN_SCHEMES.contains(&scheme) => {
                Err(ArgumentError::ForeignScheme(text.to_owned()))
            }
            _ => registry(text, false),
        }
    }
}

/// Splits the part after the scheme at the first colon into a path and an optional reference.
fn path_and_reference(argument: &str, scheme: &'static str) -> Result<(PathBuf, Option<String>), ArgumentError> {
    let empty = |part| ArgumentError::EmptyPart { argument: argument.to_owned(), part, scheme };
    let rest = &argument[scheme.len() + 1..];
    let (path, reference) = rest.split_once(':').map_or((rest, None), |(path, reference)| (path, Some(reference)));
    if path.is_empty() {
        return Err(empty("path"));
    }
    if reference == Some("") {
        return Err(empty("reference after its last colon"));
    }
    Ok((PathBuf::from(path), reference.map(str::to_owned)))
}

fn registry(text: &str, plain_http: bool) -> Result<ImageArgument, ArgumentError> {
    let digest = text.split_once('@').map(|(_, digest)| digest.parse()).transpose()?;
    Ok(ImageArgument::Registry { name: text.parse()?, digest, plain_http })
}

impl fmt::Display for ImageArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, path, reference) = match self {
            Self::OciLayout { directory, reference } => ("oci", directory, reference),
            Self::OciArchive { file, reference } => ("oci-archive", file, reference),
            Self::DockerArchive { file, reference } => ("docker-archive", file, reference),
            Self::Registry { name, digest, plain_http } => {
                let scheme = if *plain_http { "http" } else { "docker" };
                write!(f, "{scheme}://{name}")?;
                let digest_is_in_name = name.to_string().contains('@');
                return digest.iter().filter(|_| !digest_is_in_name).try_for_each(|digest| write!(f, "@{digest}"));
            }
        };
        write!(f, "{scheme}:{}", path.display())?;
        reference.iter().try_for_each(|reference| write!(f, ":{reference}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ImageArgument, ArgumentError> {
        text.parse()
    }

    #[test]
    fn path_ends_at_the_first_colon_and_the_reference_contains_the_others() {
        let argument = parse("oci:a/b:docker.io/library/alpine:3").unwrap();
        let (directory, reference) = (PathBuf::from("a/b"), Some("docker.io/library/alpine:3".to_owned()));
        assert_eq!(argument, ImageArgument::OciLayout { directory, reference });
        let argument = parse("docker-archive:/x.tar").unwrap();
        assert_eq!(argument, ImageArgument::DockerArchive { file: PathBuf::from("/x.tar"), reference: None });
        let argument = parse("oci-archive:x y.tar:v1").unwrap();
        let (file, reference) = (PathBuf::from("x y.tar"), Some("v1".to_owned()));
        assert_eq!(argument, ImageArgument::OciArchive { file, reference });
    }

    #[test]
    fn display_of_a_parsed_argument_is_its_text() {
        let digest = Digest::of(b"");
        for text in [
            "oci:dir".to_owned(),
            "oci:dir:tag".to_owned(),
            "oci-archive:file:a/b:c".to_owned(),
            "docker-archive:file:a:b".to_owned(),
            "docker://localhost:5000/a/b:tag".to_owned(),
            "http://h.org/a:tag".to_owned(),
            "docker://[::1]:5000/a/b:tag".to_owned(),
            "http://[2001:db8::1]/a:tag".to_owned(),
            format!("docker://[::1]:5000/a@{digest}"),
            format!("docker://[::1]:5000/a:tag@{digest}"),
            format!("docker://h.org/a@{digest}"),
            format!("docker://h.org/a:tag@{digest}"),
        ] {
            assert_eq!(parse(&text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn registry_image_may_be_written_in_four_ways() {
        let plain = parse("h.org/a:tag").unwrap();
        assert_eq!(plain, parse("docker://h.org/a:tag").unwrap());
        assert_eq!(plain, parse("https://h.org/a:tag").unwrap());
        assert_eq!(parse("[::1]:5000/a:tag"), parse("docker://[::1]:5000/a:tag"));
        let name = "h.org/a:tag".parse().unwrap();
        assert_eq!(parse("http://h.org/a:tag"), Ok(ImageArgument::Registry { name, digest: None, plain_http: true }));
    }

    #[test]
    fn digest_after_a_tag_is_kept() {
        let digest = Digest::of(b"manifest");
        let ImageArgument::Registry { digest: parsed, name, .. } = parse(&format!("h.org/a:t@{digest}")).unwrap()
        else {
            panic!("is no registry image");
        };
        assert_eq!((parsed, name.public_path().as_str()), (Some(digest), "h.org/a:t"));
    }

    #[test]
    fn invalid_argument_is_rejected_with_a_reason() {
        for wrong in ["oci:", "oci::tag", "oci:dir:", "docker-archive:", "oci-archive:f:"] {
            assert!(matches!(parse(wrong), Err(ArgumentError::EmptyPart { .. })), "{wrong:?}");
        }
        for wrong in ["dir:/x", "docker-daemon:alpine:3", "containers-storage:h.org/a:b"] {
            assert!(matches!(parse(wrong), Err(ArgumentError::ForeignScheme(_))), "{wrong:?}");
        }
        for wrong in ["", "alpine", "alpine:3", "docker:h.org/a:t", "docker://", "ftp://h.org/a:t", "h.org/a@sha512:0"]
        {
            assert!(matches!(parse(wrong), Err(ArgumentError::Name(_))), "{wrong:?}");
        }
    }
}
