//! Options for thin images in version 1 of the wishlist format.

use crate::image::ImageReference;
use crate::source::ImageArgument;

/// Maximum number of times that one variable is replaced, as in DUCC.
const MAX_REPLACEMENTS: usize = 5;

/// Options for thin images.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ThinImages {
    /// Template of their names.
    pub format: OutputFormat,
    /// User name for pushing them.
    pub user: Option<String>,
}

/// The `output_format` of a recipe: a template with variables such as `$(image)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputFormat(String);

impl Default for OutputFormat {
    fn default() -> Self {
        Self::new("$(scheme)://$(registry)/$(repository)_thin:$(tag)")
    }
}

impl OutputFormat {
    /// Returns a template. Any text is valid.
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// Returns the registry of all thin images, if the template contains it without variables.
    pub fn host(&self) -> Option<&str> {
        let (_, rest) = self.0.split_once("://")?;
        let host = rest.split('/').next().unwrap_or_default();
        (!host.is_empty() && !host.contains("$(")).then_some(host)
    }

    /// Returns whether the template starts with `http://`, which selects plain HTTP.
    pub fn is_plain(&self) -> bool {
        self.0.starts_with("http://")
    }

    /// Returns the name of the thin image for an image at a registry. `None` for other images.
    ///
    /// `$(reference)` is the tag with its colon, the digest with its `@`, or both, and `$(image)` is the repository with
    /// the reference. A variable without a value is empty.
    pub fn thin_name(&self, image: &ImageArgument) -> Option<String> {
        let ImageArgument::Registry { name, digest, plain_http } = image else { return None };
        let tag = match name.reference() {
            ImageReference::Tag(tag) => tag.as_str(),
            ImageReference::Digest(_) => "",
        };
        let digest = digest.map(|digest| digest.to_string()).unwrap_or_default();
        let prefixed = |sign, text: &str| if text.is_empty() { String::new() } else { format!("{sign}{text}") };
        let reference = prefixed(':', tag) + &prefixed('@', &digest);
        let whole = format!("{}{reference}", name.repository());
        let values = [
            ("$(scheme)", if *plain_http { "http" } else { "https" }),
            ("$(registry)", name.host()),
            ("$(repository)", name.repository()),
            ("$(digest)", &digest),
            ("$(tag)", tag),
            ("$(reference)", &reference),
            ("$(image)", &whole),
        ];
        Some(
            values
                .iter()
                .fold(self.0.clone(), |text, (variable, value)| text.replacen(variable, value, MAX_REPLACEMENTS)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::image::Digest;

    fn thin(format: &str, image: &str) -> String {
        OutputFormat::new(format).thin_name(&image.parse().unwrap()).unwrap()
    }

    #[test]
    fn variables_are_replaced_by_parts_of_the_name() {
        let digest = Digest::of(b"");
        let image = format!("http://h.org:5000/atlas/athena:21.0@{digest}");
        assert_eq!(
            thin("$(scheme) $(registry) $(repository) $(digest) $(tag) $(reference) $(image)", &image),
            format!("http h.org:5000 atlas/athena {digest} 21.0 :21.0@{digest} atlas/athena:21.0@{digest}")
        );
        let image = "https://h.org/atlas/athena:21.0";
        assert_eq!(thin("$(scheme)://r.org/thin/$(image)", image), "https://r.org/thin/atlas/athena:21.0");
        assert_eq!(thin("$(repository)$(reference)|$(digest)|$(image", image), "atlas/athena:21.0||$(image");
        let image = format!("h.org/a@{digest}");
        assert_eq!(thin("$(image) '$(tag)'", &image), format!("a@{digest} ''"));
    }

    #[test]
    fn host_comes_from_the_template_or_from_the_image() {
        let host = |format: &str| OutputFormat::new(format).host().map(str::to_owned);
        assert_eq!(host("$(scheme)://r.org:5000/thin/$(image)").as_deref(), Some("r.org:5000"));
        assert_eq!(OutputFormat::default().host(), None);
        assert_eq!((host("https://r.$(tag)/a"), host("https:///a"), host("r.org/a")), (None, None, None));
        assert!(OutputFormat::new("http://r.org/a").is_plain() && !OutputFormat::default().is_plain());
    }

    #[test]
    fn default_adds_thin_to_the_repository() {
        let name = OutputFormat::default().thin_name(&"http://h.org/a/b:t".parse().unwrap());
        assert_eq!(name.as_deref(), Some("http://h.org/a/b_thin:t"));
        assert_eq!(OutputFormat::default().thin_name(&"oci:dir".parse().unwrap()), None);
    }

    #[test]
    fn variable_is_replaced_at_most_five_times() {
        assert_eq!(thin(&"$(tag)".repeat(6), "h.org/a:t"), "ttttt$(tag)");
    }
}
