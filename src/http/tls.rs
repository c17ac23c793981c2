//! TLS configuration: root certificates.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::{ConfigurationError, HttpError};
use crate::observer::Reporter;

/// Returns the TLS configuration with the root certificates of the system and those in the file `certificates`.
pub(super) fn tls(certificates: Option<&Path>, reporter: &Reporter) -> Result<rustls::ClientConfig, HttpError> {
    let mut roots = rustls::RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(system.certs);
    if roots.is_empty() {
        reporter.debug(format_args!(
            "this system has no root certificates: HTTPS works only for hosts with `ca` in the settings"
        ));
    }
    if let Some(path) = certificates {
        add_certificates(&mut roots, path)?;
    }
    // The provider is named explicitly: with none or several compiled in, rustls panics instead of choosing one.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| HttpError::Client(error.into()))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn add_certificates(roots: &mut rustls::RootCertStore, path: &Path) -> Result<(), ConfigurationError> {
    let text = std::fs::read(path).map_err(|source| ConfigurationError::Read { path: path.to_owned(), source })?;
    let invalid = |fault| ConfigurationError::Invalid { path: path.to_owned(), fault };
    let before = roots.len();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|_| invalid("it is not in PEM format"))?;
        roots.add(certificate).map_err(|_| invalid("it contains an invalid certificate"))?;
    }
    if roots.len() == before { Err(invalid("it contains no certificate")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_without_certificates_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for text in ["", "garbage", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            std::fs::write(file.path(), text).unwrap();
            assert!(
                matches!(
                    tls(Some(file.path()), &Reporter::silent()),
                    Err(HttpError::Configuration(ConfigurationError::Invalid { .. }))
                ),
                "{text}"
            );
        }
        assert!(matches!(
            tls(Some(Path::new("/nonexistent")), &Reporter::silent()),
            Err(HttpError::Configuration(ConfigurationError::Read { .. }))
        ));
        assert!(tls(None, &Reporter::silent()).is_ok());
    }
}
