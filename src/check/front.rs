//! Checks the front page: manifest, certificate, whitelist and meta info.

use serde_json::Value;

use super::Check;
use super::finding::Location;
use super::name::ObjectName;
use super::reader::NOTHING;
use super::reference::{Reference, References};
use crate::manifest::{Certificate, RepositoryManifest, SignedManifest, Urgency, Whitelist, WhitelistError};
use crate::message::causes;
use crate::object::{ObjectHash, ObjectKind, SizeLimit};

/// Size of the buffer, in bytes, into which CVMFS clients read a local manifest.
const MANIFEST_BUFFER: usize = 4096;

/// Maximum size of a certificate or meta info object after decompression.
const MAX_SMALL_OBJECT: SizeLimit = SizeLimit::of(16 << 20);

/// Maximum size of a manifest or whitelist, in bytes.
const MAX_FRONT_FILE: u64 = 16 << 20;

impl Check<'_> {
    /// Checks the whole chain from the master key to the root catalog. Returns the manifest if it can be parsed, even if it
    /// is not trusted.
    pub(super) fn check_front_page(&self, references: &References) -> Option<RepositoryManifest> {
        let bytes = self.read_file(".cvmfspublished", MAX_FRONT_FILE);
        let signed = bytes.as_deref().and_then(|bytes| self.parse_manifest(bytes));
        let certificate = signed.as_ref().and_then(|signed| {
            self.check_manifest(signed);
            self.check_certificate(signed, references)
        });
        self.check_whitelist(certificate.as_ref());
        let manifest = signed?.manifest;
        if let Some(hash) = manifest.meta_info {
            self.check_meta_info(hash, references);
        }
        if manifest.alternative_path {
            self.check_alternative_paths(&manifest);
        }
        Some(manifest)
    }

    fn parse_manifest<'b>(&self, bytes: &'b [u8]) -> Option<SignedManifest<'b>> {
        let location = Location::file(".cvmfspublished");
        if bytes.len() >= MANIFEST_BUFFER {
            self.findings.note(&location, format_args!("fewer than {MANIFEST_BUFFER} bytes"), bytes.len());
        }
        let parsed = RepositoryManifest::parse(bytes);
        parsed.map_err(|error| self.findings.note(&location, "a signed manifest", causes(&error))).ok()
    }

    fn check_manifest(&self, signed: &SignedManifest<'_>) {
        let location = Location::file(".cvmfspublished");
        self.findings.require(&location, "the repository name", &self.repository.name, &signed.manifest.name);
        if !signed.is_for_root() {
            self.findings.note(&location, "the hash of the empty path in field R", "another hash");
        }
    }

    fn check_certificate(&self, signed: &SignedManifest<'_>, references: &References) -> Option<Certificate> {
        let (pem, location) = self.read_small(signed.manifest.certificate, ObjectKind::Certificate, references)?;
        let parsed = Certificate::parse(&pem);
        let certificate =
            parsed.map_err(|error| self.findings.note(&location, "an X.509 certificate", causes(&error))).ok()?;
        if let Err(error) = signed.verify(&certificate) {
            let location = Location::file(".cvmfspublished");
            self.findings.note(&location, "a signature by the key of the certificate", causes(&error));
        }
        Some(certificate)
    }

    fn check_whitelist(&self, certificate: Option<&Certificate>) {
        let location = Location::file(".cvmfswhitelist");
        let Some(bytes) = self.read_file(".cvmfswhitelist", MAX_FRONT_FILE) else { return };
        let signed = match Whitelist::parse(&bytes) {
            Ok(signed) => signed,
            Err(error) => return self.findings.note(&location, "a signed whitelist", causes(&error)),
        };
        let list = &signed.whitelist;
        self.findings.require(&location, "the repository name", &self.repository.name, list.name());
        self.check_expiry(list);
        let keys = &self.repository.master_keys;
        match if keys.is_empty() { Ok(()) } else { signed.verify_signature(keys).map(drop) } {
            Ok(_) => {}
            // Such a whitelist may be valid, so this is no finding.
            Err(error @ (WhitelistError::Pkcs7Unsupported | WhitelistError::CaChainUnsupported)) => {
                self.warn(format!(".cvmfswhitelist is not verified: {error}"));
            }
            Err(error) => self.findings.note(&location, "a signature by the master key", causes(&error)),
        }
        if let Some(certificate) = certificate.filter(|certificate| !list.lists(certificate)) {
            let fingerprint = certificate.fingerprint(list.algorithm());
            self.findings.note(
                &location,
                format_args!("the certificate's fingerprint {fingerprint}"),
                "others or none",
            );
        }
    }

    fn check_expiry(&self, list: &Whitelist) {
        match list.urgency(self.options.now) {
            Urgency::None => {}
            Urgency::Soon { days, hours } => self.warn(format!(
                ".cvmfswhitelist expires in {days} days and {hours} hours; after that, clients refuse to mount the repository"
            )),
            Urgency::Expired => {
                let ago = (self.options.now.seconds - list.expires()) / 3600;
                let found = format!("one that expired {ago} hours ago");
                self.findings.note(&Location::file(".cvmfswhitelist"), "a whitelist that has not expired", found);
            }
        }
    }

    fn check_meta_info(&self, hash: ObjectHash, references: &References) {
        let Some((json, location)) = self.read_small(hash, ObjectKind::MetaInfo, references) else { return };
        match serde_json::from_slice(&json) {
            Ok(Value::Object(_)) => {}
            Ok(_) => self.findings.note(&location, "a JSON object", "other JSON"),
            Err(error) => self.findings.note(&location, "a JSON object", error),
        }
    }

    /// Checks the links that clients use to find certificate and root catalog if the manifest sets field A.
    fn check_alternative_paths(&self, manifest: &RepositoryManifest) {
        for (hash, letter) in [(manifest.root_catalog, "C"), (manifest.certificate, "X")] {
            let name = format!(".cvmfsalt-{hash}{letter}");
            let expected = "a link to the object, which field A of the manifest requires";
            match self.store.head(&name) {
                Ok(Some(_)) => {}
                Ok(None) => self.findings.note(&Location::file(name), expected, NOTHING),
                Err(error) => self.note_unreadable(&Location::file(name), expected, error),
            }
        }
    }

    fn read_small(&self, hash: ObjectHash, kind: ObjectKind, references: &References) -> Option<(Vec<u8>, Location)> {
        let name = ObjectName::of(hash, kind);
        references.add(Reference::known(name));
        let location = Location::file(name.to_string()).referred_to_by(".cvmfspublished");
        Some((self.read_object(name, &location, MAX_SMALL_OBJECT)?, location))
    }
}
