//! The certificate of the repository key, and the fingerprint by which a whitelist lists it.
//!
//! Clients use only the key of the certificate and the hash of its DER form. They ignore its dates and its issuer.

use std::fmt;
use std::str::FromStr as _;
use std::time::Duration;

use rsa::pkcs1v15::{Signature, SigningKey};
use rsa::sha2::Sha256;
use rsa::{PrivateKey, PublicKey};
use x509_cert::TbsCertificate;
use x509_cert::builder::profile::BuilderProfile;
use x509_cert::builder::{self, Builder as _, CertificateBuilder};
use x509_cert::der::pem::LineEnding;
use x509_cert::der::referenced::OwnedToRef as _;
use x509_cert::der::{DateTime, Decode as _, Document, EncodePem as _};
use x509_cert::ext::Extension;
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{SubjectPublicKeyInfo, SubjectPublicKeyInfoRef};
use x509_cert::time::Validity;

use super::RepositoryName;
use super::letter::{HashTextError, refuse_md5, system_rng};
use crate::metadata::Timestamp;
use crate::object::{HashAlgorithm, ObjectHash};

/// Fingerprint of a certificate: the hash of its DER form, written as `01:23:…:EF` or `01:23:…:EF-SHAKE128`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(ObjectHash);

impl Fingerprint {
    /// Parses a line of a whitelist. A space, a tab or `#` starts a comment; colons and case are ignored.
    ///
    /// Returns `None` if the line is not a fingerprint.
    pub(super) fn from_line(line: &[u8]) -> Result<Option<Self>, HashTextError> {
        let text = line.split(|b| b" \t#".contains(b)).next().unwrap_or_default();
        let text: Vec<u8> = text.iter().filter(|&&b| b != b':').map(u8::to_ascii_lowercase).collect();
        // An error, not a comment: otherwise, a list of MD5 fingerprints would look as if it lacked the certificate.
        refuse_md5(&text)?;
        Ok(str::from_utf8(&text).ok().and_then(|text| text.parse().ok()).map(Self))
    }

    /// Returns the hash algorithm.
    pub fn algorithm(self) -> HashAlgorithm {
        self.0.algorithm()
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, byte) in self.0.as_bytes().iter().enumerate() {
            let separator = if position == 0 { "" } else { ":" };
            write!(f, "{separator}{byte:02X}")?;
        }
        f.write_str(&self.algorithm().suffix().to_uppercase())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Errors from parsing or creating a certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The bytes are not a PEM file.
    #[error("certificate is not in PEM format")]
    NotPem(#[source] x509_cert::der::Error),
    /// The PEM file is not an X.509 certificate.
    #[error("the PEM file is not an X.509 certificate")]
    NotX509(#[source] x509_cert::der::Error),
    /// The key of the certificate is not a supported RSA key.
    #[error("the key of the certificate is not a supported RSA key")]
    NotRsa(#[source] x509_cert::spki::Error),
    /// The certificate could not be created.
    #[error("cannot create a certificate for the key")]
    Create(#[from] builder::Error),
    /// The time is outside the range of dates in a certificate.
    #[error("cannot write the time {0} (seconds since 1970) as a date into a certificate")]
    Clock(i64),
}

/// The certificate of a repository key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    pem: Vec<u8>,
    // The original bytes: encoding the parsed certificate again could give other bytes, and another fingerprint.
    der: Vec<u8>,
    public_key: PublicKey,
}

impl Certificate {
    /// Stated validity of a new certificate: 365 days, as in `cvmfs_server`. Clients ignore it.
    pub const VALIDITY: Duration = Duration::from_secs(365 * 24 * 60 * 60);

    /// Parses a PEM file, which is also the content of the repository's certificate object.
    pub fn parse(pem: &[u8]) -> Result<Self, CertificateError> {
        let (_, document) = decode_pem(pem).map_err(CertificateError::NotPem)?;
        let parsed = x509_cert::Certificate::from_der(document.as_bytes()).map_err(CertificateError::NotX509)?;
        let key = parsed.tbs_certificate().subject_public_key_info().owned_to_ref();
        Ok(Self {
            pem: pem.to_owned(),
            der: document.as_bytes().to_owned(),
            public_key: PublicKey::try_from(key).map_err(CertificateError::NotRsa)?,
        })
    }

    /// Creates a self-signed certificate for `key`, valid from `now` for [`Self::VALIDITY`].
    pub fn create(name: &RepositoryName, key: &PrivateKey, now: Timestamp) -> Result<Self, CertificateError> {
        let profile = ReleaseManagers::of(name)?;
        let public_key = SubjectPublicKeyInfo::from_key(key.as_public_key()).map_err(builder::Error::from)?;
        let serial_number = SerialNumber::generate(&mut system_rng());
        let certificate = CertificateBuilder::new(profile, serial_number, validity(now)?, public_key)?;
        // Clients do not verify this signature: they only compare the fingerprint of the whole certificate.
        let signer = SigningKey::<Sha256>::new(key.clone());
        let certificate = certificate.build_with_rng::<_, Signature, _>(&signer, &mut system_rng())?;
        let pem = certificate.to_pem(LineEnding::LF).map_err(builder::Error::from)?;
        Self::parse(pem.as_bytes())
    }

    /// Returns the PEM file for the key directory and, compressed, for the store.
    pub fn pem(&self) -> &[u8] {
        &self.pem
    }

    /// Returns the fingerprint, by which a whitelist lists the certificate.
    pub fn fingerprint(&self, algorithm: HashAlgorithm) -> Fingerprint {
        Fingerprint(algorithm.hash(&self.der))
    }

    /// Returns the key that verifies manifests.
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// Returns whether the certificate is for the public half of `key`.
    pub fn belongs_to(&self, key: &PrivateKey) -> bool {
        self.public_key == *key.as_public_key()
    }
}

/// Profile of the certificate: the same subject as in `cvmfs_server`, and no extensions.
struct ReleaseManagers(Name);

impl ReleaseManagers {
    /// Maximum number of characters of the repository name in the subject: X.509 limits a common name to 64 characters.
    const NAME_LIMIT: usize = 30;

    fn of(name: &RepositoryName) -> Result<Self, CertificateError> {
        let name = name.as_str();
        let cut = name.get(..Self::NAME_LIMIT).filter(|_| name.len() > Self::NAME_LIMIT);
        let name = cut.map_or_else(|| name.to_owned(), |start| format!("{start}[...]"));
        let name = Name::from_str(&format!("CN={name} CernVM-FS Release Managers"));
        Ok(Self(name.map_err(builder::Error::from)?))
    }
}

impl BuilderProfile for ReleaseManagers {
    fn get_issuer(&self, subject: &Name) -> Name {
        subject.clone()
    }

    fn get_subject(&self) -> Name {
        self.0.clone()
    }

    fn build_extensions(
        &self,
        _: SubjectPublicKeyInfoRef<'_>,
        _: SubjectPublicKeyInfoRef<'_>,
        _: &TbsCertificate,
    ) -> builder::Result<Vec<Extension>> {
        // As in the certificates of `cvmfs_server`. Clients read no extension.
        Ok(Vec::new())
    }
}

fn validity(now: Timestamp) -> Result<Validity, CertificateError> {
    let out_of_range = || CertificateError::Clock(now.seconds);
    let start = u64::try_from(now.seconds).map(Duration::from_secs).map_err(|_| out_of_range())?;
    let date = |since_epoch| DateTime::from_unix_duration(since_epoch).map_err(|_| out_of_range());
    let end = start.checked_add(Certificate::VALIDITY).ok_or_else(out_of_range)?;
    Ok(Validity::new(date(start)?.into(), date(end)?.into()))
}

fn decode_pem(pem: &[u8]) -> Result<(&str, Document), x509_cert::der::Error> {
    Document::from_pem(str::from_utf8(pem)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::fixtures::{self, NOW};

    #[test]
    fn fingerprint_is_the_same_as_from_openssl() {
        let certificate = Certificate::parse(fixtures::CERTIFICATE.as_bytes()).unwrap();
        for (algorithm, text) in HashAlgorithm::ALL.into_iter().zip(fixtures::FINGERPRINTS) {
            let fingerprint = certificate.fingerprint(algorithm);
            assert_eq!(fingerprint.to_string(), text);
            assert_eq!(Fingerprint::from_line(text.as_bytes()), Ok(Some(fingerprint)));
            assert_eq!(fingerprint.algorithm(), algorithm);
        }
    }

    #[test]
    fn certificate_belongs_to_its_own_key_only() {
        let certificate = Certificate::parse(fixtures::CERTIFICATE.as_bytes()).unwrap();
        assert!(certificate.belongs_to(fixtures::repository_key()));
        assert!(!certificate.belongs_to(fixtures::master_key()));
    }

    #[test]
    fn new_certificate_has_the_stock_subject_and_is_valid_for_a_year() {
        let key = fixtures::repository_key();
        let made = Certificate::create(&fixtures::name(), key, NOW).unwrap();
        assert!(made.belongs_to(key));
        let (_, document) = decode_pem(made.pem()).unwrap();
        let parsed = x509_cert::Certificate::from_der(document.as_bytes()).unwrap();
        let stated = parsed.tbs_certificate();
        assert_eq!(stated.subject().to_string(), "CN=test.example.org CernVM-FS Release Managers");
        assert_eq!(stated.subject(), stated.issuer());
        let validity = stated.validity();
        assert_eq!(validity.not_before.to_string(), "2026-10-01T00:00:00Z");
        assert_eq!(validity.not_after.to_string(), "2027-10-01T00:00:00Z");
    }

    #[test]
    fn repository_name_in_the_subject_is_truncated_to_thirty_characters() {
        let stated = |name: String| ReleaseManagers::of(&name.parse().unwrap()).unwrap().0.to_string();
        assert_eq!(stated("n".repeat(30)), format!("CN={} CernVM-FS Release Managers", "n".repeat(30)));
        assert_eq!(stated("n".repeat(31)), format!("CN={}[...] CernVM-FS Release Managers", "n".repeat(30)));
    }

    #[test]
    fn times_outside_the_range_of_dates_are_refused() {
        for seconds in [-1, i64::MAX, 253_402_300_799] {
            let now = Timestamp { seconds, nanoseconds: 0 };
            assert!(matches!(validity(now), Err(CertificateError::Clock(named)) if named == seconds), "{seconds}");
        }
        assert!(validity(Timestamp::default()).is_ok());
    }

    #[test]
    fn text_before_the_certificate_is_skipped_and_garbage_is_refused() {
        let described = format!("Certificate:\n    Data: 1\n{}", fixtures::CERTIFICATE);
        let certificate = Certificate::parse(described.as_bytes()).unwrap();
        assert_eq!(certificate.fingerprint(HashAlgorithm::Sha1).to_string(), fixtures::FINGERPRINT);
        assert!(matches!(Certificate::parse(b""), Err(CertificateError::NotPem(_))));
        assert!(matches!(Certificate::parse(b"\xff"), Err(CertificateError::NotPem(_))));
        assert!(matches!(Certificate::parse(fixtures::PUBLIC_KEY.as_bytes()), Err(CertificateError::NotX509(_))));
    }
}
