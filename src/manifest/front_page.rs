//! Verifies manifest, certificate and whitelist together, as a client does.

use rsa::PublicKey;

use super::certificate::CertificateError;
use super::letter::LetterError;
use super::repository_manifest::ROOT_PATH_HASH;
use super::{Certificate, Fingerprint, ManifestError, RepositoryManifest, RepositoryName, Whitelist, WhitelistError};
use crate::metadata::Timestamp;

/// The three signed files as fetched.
///
/// The caller must check that `certificate` is the decompressed object that the manifest names.
#[derive(Debug, Clone, Copy)]
pub struct FrontPage<'a> {
    /// `.cvmfspublished`.
    pub manifest: &'a [u8],
    /// The decompressed certificate object, a PEM file.
    pub certificate: &'a [u8],
    /// `.cvmfswhitelist`.
    pub whitelist: &'a [u8],
}

/// Errors for which a client would not mount the repository.
#[derive(Debug, thiserror::Error)]
pub enum FrontPageError {
    /// The manifest cannot be read.
    #[error("cannot read the manifest")]
    Manifest(#[from] ManifestError),
    /// The manifest belongs to another repository.
    #[error("manifest is for repository '{actual}', not '{expected}'")]
    WrongName {
        /// The requested repository.
        expected: RepositoryName,
        /// The name in the manifest.
        actual: RepositoryName,
    },
    /// The manifest's catalog is not that of the repository's root.
    #[error("the root path hash in the manifest is '{0}', but must be {ROOT_PATH_HASH}")]
    WrongRootPath(String),
    /// The certificate cannot be read.
    #[error("cannot read the certificate that the manifest names")]
    Certificate(#[from] CertificateError),
    /// The manifest is damaged or signed with another key.
    #[error("the signature of the manifest is not valid")]
    ManifestLetter(#[from] LetterError),
    /// The whitelist is not valid.
    #[error("whitelist is not valid")]
    Whitelist(#[from] WhitelistError),
    /// The certificate is not listed in the whitelist.
    #[error("certificate {0} is not in the whitelist")]
    NotListed(Fingerprint),
}

impl FrontPage<'_> {
    /// Verifies the chain of trust from the master keys to the manifest, and returns the manifest.
    ///
    /// The checks run in the same order as in clients, so that the error is the one that a client would log. A client also
    /// refuses a manifest that is older than the last one that it used, and certificates in the client's blacklist; these two
    /// checks are not done here.
    pub fn verify(
        &self,
        master_keys: &[PublicKey],
        name: &RepositoryName,
        now: Timestamp,
    ) -> Result<RepositoryManifest, FrontPageError> {
        let signed = RepositoryManifest::parse(self.manifest)?;
        if signed.manifest.name != *name {
            return Err(FrontPageError::WrongName { expected: name.clone(), actual: signed.manifest.name });
        }
        // Clients refuse any other value, because the field would name a catalog below the root.
        if signed.root_path_hash != ROOT_PATH_HASH {
            return Err(FrontPageError::WrongRootPath(signed.root_path_hash));
        }
        let certificate = Certificate::parse(self.certificate)?;
        signed.verify(&certificate)?;
        let list = Whitelist::parse(self.whitelist)?;
        list.verify(master_keys, name, now)?;
        // Last, as in clients: the list counts only after its own signature was verified.
        if !list.whitelist.lists(&certificate) {
            return Err(FrontPageError::NotListed(certificate.fingerprint(list.whitelist.algorithm())));
        }
        Ok(signed.manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::fixtures::{self, NOW};
    use crate::manifest::letter::{SignatureForm, seal};
    use crate::object::HashAlgorithm;

    const PAGE: FrontPage<'static> = FrontPage {
        manifest: fixtures::MANIFEST,
        certificate: fixtures::CERTIFICATE.as_bytes(),
        whitelist: fixtures::WHITELIST,
    };

    fn verify(page: FrontPage<'_>) -> Result<RepositoryManifest, FrontPageError> {
        page.verify(&[fixtures::master_key().to_public_key()], &fixtures::name(), NOW)
    }

    /// Flips one bit of the byte at which `part` starts in `bytes`.
    fn damaged(bytes: &[u8], part: &str) -> Vec<u8> {
        let found = bytes.windows(part.len()).position(|window| window == part.as_bytes());
        flipped(bytes, found.unwrap_or_else(|| panic!("no {part} there")))
    }

    fn flipped(bytes: &[u8], position: usize) -> Vec<u8> {
        let mut bytes = bytes.to_owned();
        bytes[position] ^= 1;
        bytes
    }

    #[test]
    fn untouched_front_page_is_trusted() {
        assert_eq!(verify(PAGE).unwrap().revision, 7);
    }

    #[test]
    fn each_damaged_part_of_the_manifest_has_its_own_error() {
        let verdict = |manifest: &[u8]| verify(FrontPage { manifest, ..PAGE }).unwrap_err();
        let after = |part| verdict(&damaged(fixtures::MANIFEST, part));
        assert!(matches!(after("Ca2f6"), FrontPageError::Manifest(ManifestError::Missing('C'))));
        assert!(matches!(after("test.example"), FrontPageError::WrongName { .. }));
        assert!(matches!(after("d41d8"), FrontPageError::WrongRootPath(_)));
        assert!(matches!(after("7\n"), FrontPageError::ManifestLetter(LetterError::WrongHash { .. })));
        assert!(matches!(after("--\n"), FrontPageError::Manifest(ManifestError::Letter(LetterError::Unsigned))));
        let last = flipped(fixtures::MANIFEST, fixtures::MANIFEST.len() - 1);
        assert!(matches!(verdict(&last), FrontPageError::ManifestLetter(LetterError::WrongSignature)));
    }

    #[test]
    fn each_damaged_part_of_the_whitelist_has_its_own_error() {
        let verdict = |whitelist: &[u8]| match verify(FrontPage { whitelist, ..PAGE }).unwrap_err() {
            FrontPageError::Whitelist(error) => error,
            other => panic!("{other}"),
        };
        let after = |part| verdict(&damaged(fixtures::WHITELIST, part));
        assert!(matches!(after("2026092112"), WhitelistError::Letter(LetterError::WrongHash { .. })));
        assert!(matches!(after("E2026"), WhitelistError::Line { line: 2, .. }));
        assert!(matches!(after("26102112"), WhitelistError::Letter(LetterError::WrongHash { .. })));
        assert!(matches!(after("test.example"), WhitelistError::WrongName { .. }));
        assert!(matches!(after(fixtures::FINGERPRINT), WhitelistError::Letter(LetterError::WrongHash { .. })));
        let last = flipped(fixtures::WHITELIST, fixtures::WHITELIST.len() - 1);
        assert!(matches!(verdict(&last), WhitelistError::Letter(LetterError::WrongSignature)));
        assert!(matches!(verdict(b""), WhitelistError::Line { line: 1, .. }));
    }

    #[test]
    fn damaged_and_foreign_certificates_are_refused() {
        let verdict = |certificate: &[u8]| verify(FrontPage { certificate, ..PAGE }).unwrap_err();
        let armour = damaged(PAGE.certificate, "-----BEGIN");
        assert!(matches!(verdict(&armour), FrontPageError::Certificate(_)));
        let foreign = Certificate::create(&fixtures::name(), fixtures::master_key(), NOW).unwrap();
        assert!(matches!(verdict(foreign.pem()), FrontPageError::ManifestLetter(LetterError::WrongSignature)));
    }

    #[test]
    fn certificate_with_the_listed_key_is_refused_if_its_fingerprint_is_not_listed() {
        let anew = Certificate::create(&fixtures::name(), fixtures::repository_key(), NOW).unwrap();
        let verdict = verify(FrontPage { certificate: anew.pem(), ..PAGE });
        assert!(
            matches!(verdict, Err(FrontPageError::NotListed(fingerprint)) if fingerprint == anew.fingerprint(HashAlgorithm::Sha1))
        );
    }

    #[test]
    fn manifest_in_the_form_of_a_whitelist_is_refused() {
        let fields = RepositoryManifest::parse(fixtures::MANIFEST).unwrap().manifest.write();
        let form = SignatureForm::Whitelist;
        let manifest = seal(fields.as_bytes(), HashAlgorithm::Sha1, form, fixtures::repository_key()).unwrap();
        let verdict = verify(FrontPage { manifest: &manifest, ..PAGE });
        assert!(matches!(verdict, Err(FrontPageError::ManifestLetter(LetterError::WrongSignature))));
    }

    #[test]
    fn front_page_is_not_trusted_after_the_whitelist_has_expired() {
        let late = Timestamp { seconds: NOW.seconds + 40 * 86_400, nanoseconds: 0 };
        let verdict = PAGE.verify(&[fixtures::master_key().to_public_key()], &fixtures::name(), late);
        assert!(matches!(verdict, Err(FrontPageError::Whitelist(WhitelistError::Expired { .. }))));
    }
}
