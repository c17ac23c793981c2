//! The front page: manifest, certificate, whitelist and description.

use std::fs;

use serde_json::Value;

use super::Check;
use super::finding::Place;
use super::name::ObjectName;
use super::reader::NOTHING;
use super::reference::{Reference, References};
use crate::manifest::{Certificate, RepositoryManifest, SignedManifest, Urgency, Whitelist, WhitelistError};
use crate::message::causes;
use crate::object::{ObjectHash, ObjectKind, SizeLimit};

/// Clients read a local manifest into a buffer of this many bytes.
const MANIFEST_BUFFER: usize = 4096;

/// No certificate or description is read that unpacks to more bytes.
const SMALL_OBJECT: SizeLimit = SizeLimit::of(16 << 20);

/// No manifest or whitelist is read that has more bytes.
const FRONT_FILE: u64 = 16 << 20;

impl Check<'_> {
    /// Checks everything that leads from the master key to the root catalog, and returns the manifest if it says which
    /// that is, trusted or not.
    pub(super) fn check_front_page(&self, references: &References) -> Option<RepositoryManifest> {
        let bytes = self.read_file(".cvmfspublished", FRONT_FILE);
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
        let place = Place::file(".cvmfspublished");
        if bytes.len() >= MANIFEST_BUFFER {
            self.findings.note(&place, format_args!("fewer than {MANIFEST_BUFFER} bytes"), bytes.len());
        }
        let parsed = RepositoryManifest::parse(bytes);
        parsed.map_err(|error| self.findings.note(&place, "a signed manifest", causes(&error))).ok()
    }

    fn check_manifest(&self, signed: &SignedManifest<'_>) {
        let place = Place::file(".cvmfspublished");
        self.findings.require(&place, "the repository name", self.name, &signed.manifest.name);
        if !signed.is_for_root() {
            self.findings.note(&place, "the hash of the empty path in field R", "another");
        }
    }

    fn check_certificate(&self, signed: &SignedManifest<'_>, references: &References) -> Option<Certificate> {
        let (pem, place) = self.read_small(signed.manifest.certificate, ObjectKind::Certificate, references)?;
        let parsed = Certificate::parse(&pem);
        let certificate =
            parsed.map_err(|error| self.findings.note(&place, "an X.509 certificate", causes(&error))).ok()?;
        if let Err(error) = signed.verify(&certificate) {
            let place = Place::file(".cvmfspublished");
            self.findings.note(&place, "a signature by the key of the certificate", causes(&error));
        }
        Some(certificate)
    }

    fn check_whitelist(&self, certificate: Option<&Certificate>) {
        let place = Place::file(".cvmfswhitelist");
        let Some(bytes) = self.read_file(".cvmfswhitelist", FRONT_FILE) else { return };
        let signed = match Whitelist::parse(&bytes) {
            Ok(signed) => signed,
            Err(error) => return self.findings.note(&place, "a signed whitelist", causes(&error)),
        };
        let list = &signed.whitelist;
        self.findings.require(&place, "the repository name", self.name, list.name());
        self.check_expiry(list);
        match self.master_key.as_ref().map(|key| signed.verify_signature(std::slice::from_ref(key))).transpose() {
            Ok(_) => {}
            Err(error @ (WhitelistError::Pkcs7Unsupported | WhitelistError::CaChainUnsupported)) => {
                self.warn(format!(".cvmfswhitelist is not verified: {error}"));
            }
            Err(error) => self.findings.note(&place, "a signature by the master key", causes(&error)),
        }
        if let Some(fingerprint) = certificate.map(Certificate::fingerprint)
            && !list.fingerprints().contains(&fingerprint)
        {
            self.findings.note(&place, format_args!("the certificate's fingerprint {fingerprint}"), "others or none");
        }
    }

    fn check_expiry(&self, list: &Whitelist) {
        match list.urgency(self.options.now) {
            Urgency::None => {}
            Urgency::Soon { days, hours } => self.warn(format!(
                ".cvmfswhitelist expires in {days} days and {hours} hours: then no client mounts the repository any more"
            )),
            Urgency::Expired => {
                let ago = (self.options.now.seconds - list.expires()) / 3600;
                let found = format!("one that expired {ago} hours ago");
                self.findings.note(&Place::file(".cvmfswhitelist"), "a whitelist that holds", found);
            }
        }
    }

    fn check_meta_info(&self, hash: ObjectHash, references: &References) {
        let Some((json, place)) = self.read_small(hash, ObjectKind::MetaInfo, references) else { return };
        match serde_json::from_slice(&json) {
            Ok(Value::Object(_)) => {}
            Ok(_) => self.findings.note(&place, "a JSON object", "other JSON"),
            Err(error) => self.findings.note(&place, "a JSON object", error),
        }
    }

    /// Checks the links through which clients then find certificate and root catalog.
    fn check_alternative_paths(&self, manifest: &RepositoryManifest) {
        for (hash, letter) in [(manifest.root_catalog, "C"), (manifest.certificate, "X")] {
            let name = format!(".cvmfsalt-{hash}{letter}");
            if fs::metadata(self.store.root().join(&name)).is_err() {
                self.findings.note(&Place::file(name), "a link to the object, as field A demands", NOTHING);
            }
        }
    }

    fn read_small(&self, hash: ObjectHash, kind: ObjectKind, references: &References) -> Option<(Vec<u8>, Place)> {
        let name = ObjectName::of(hash, kind);
        references.add(Reference::known(name));
        let place = Place::file(name.to_string()).referred_to_by(".cvmfspublished");
        Some((self.read_object(name, &place, SMALL_OBJECT)?, place))
    }
}
