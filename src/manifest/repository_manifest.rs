//! `.cvmfspublished`: the small signed file that makes a revision visible.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use rsa::PrivateKey;

use super::letter::{HashTextError, Letter, LetterError, SignError, SignatureForm, parse_hash, quotable, seal};
use super::{Certificate, RepositoryName, RepositoryNameError};
use crate::object::ObjectHash;

/// The MD5 hash of the empty path: the value of field `R` in a manifest whose catalog is that of the repository's root.
pub(super) const ROOT_PATH_HASH: &str = "d41d8cd98f00b204e9800998ecf8427e";

/// Describes one revision: its root catalog and other root objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryManifest {
    /// The root catalog (`C`).
    pub root_catalog: ObjectHash,
    /// The size in bytes of the root catalog before compression (`B`).
    pub catalog_size: Option<u64>,
    /// Time in seconds for which a client uses this manifest before it fetches a new one (`D`).
    pub ttl: u32,
    /// The revision number, which increases with every publication (`S`). The root catalog has the same number.
    pub revision: u64,
    /// Whether garbage collection may delete unreferenced objects (`G`).
    pub garbage_collectable: bool,
    /// Whether clients fetch root catalog and certificate through the links `.cvmfsalt-<hash>` (`A`).
    pub alternative_path: bool,
    /// The repository name (`N`).
    pub name: RepositoryName,
    /// The certificate of the key that signs this manifest (`X`).
    pub certificate: ObjectHash,
    /// The tag database (`H`).
    pub history: Option<ObjectHash>,
    /// Time of publication in seconds since 1970, above 0 (`T`).
    pub published: Option<i64>,
    /// The meta info (`M`).
    pub meta_info: Option<ObjectHash>,
    /// The hash of `.cvmfsreflog` (`Y`). Out of date after `cvmfs_server gc`.
    pub reflog: Option<ObjectHash>,
}

/// A manifest as read, whose signature is not yet verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedManifest<'a> {
    /// The unverified content.
    pub manifest: RepositoryManifest,
    pub(super) root_path_hash: String,
    letter: Letter<'a>,
}

/// Errors from parsing a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The manifest is larger than the limit.
    #[error("manifest has {size} bytes, more than the limit of {}", RepositoryManifest::READ_LIMIT)]
    TooLong {
        /// Its size in bytes.
        size: usize,
    },
    /// A required field is missing.
    #[error("manifest has no field {0}")]
    Missing(char),
    /// The value of a field is not a hash.
    #[error("field {field} of the manifest is not a hash")]
    Hash {
        /// The field's letter.
        field: char,
        /// Description of the fault.
        source: HashTextError,
    },
    /// The value of a field is not a number, or is out of range.
    #[error("field {field} of the manifest is '{value}', which is not a number or is out of range")]
    Number {
        /// The field's letter.
        field: char,
        /// The value as found.
        value: String,
    },
    /// The field `N` is not a valid repository name.
    #[error("field N of the manifest is not a repository name")]
    Name(#[from] RepositoryNameError),
    /// The fields are valid, but the signature is missing or malformed.
    #[error("manifest is not signed")]
    Letter(#[from] LetterError),
}

impl RepositoryManifest {
    /// Maximum size of the file in bytes. Stock tools refuse a manifest of 4096 bytes or more.
    pub const READ_LIMIT: usize = 64 * 1024;

    /// Parses a whole `.cvmfspublished` without verifying its signature.
    ///
    /// As in stock tools, unknown fields are ignored, and the last value of a repeated field is used.
    pub fn parse(bytes: &[u8]) -> Result<SignedManifest<'_>, ManifestError> {
        if bytes.len() > Self::READ_LIMIT {
            return Err(ManifestError::TooLong { size: bytes.len() });
        }
        let fields = Fields::read(bytes);
        let manifest = Self {
            root_catalog: fields.required_hash('C')?,
            // `cvmfs_swissknife check` takes 0 for "not stated", too.
            catalog_size: fields.number('B')?.filter(|&size| size > 0),
            ttl: fields.required_number('D')?,
            revision: fields.required_number('S')?,
            garbage_collectable: fields.flag('G'),
            alternative_path: fields.flag('A'),
            name: quotable(fields.required('N')?).parse()?,
            certificate: fields.required_hash('X')?,
            history: fields.hash('H')?,
            published: fields.timestamp('T')?,
            meta_info: fields.hash('M')?,
            reflog: fields.hash('Y')?,
        };
        let root_path_hash = quotable(fields.required('R')?);
        Ok(SignedManifest { manifest, root_path_hash, letter: Letter::cut(bytes)? })
    }

    /// Returns the field lines in the order of the stock tools, without a signature.
    pub fn write(&self) -> String {
        let yes_or_no = |flag| if flag { "yes" } else { "no" };
        let mut text = format!(
            "C{}\nB{}\nR{ROOT_PATH_HASH}\nD{}\nS{}\nG{}\nA{}\nN{}\nX{}\n",
            self.root_catalog,
            self.catalog_size.unwrap_or(0),
            self.ttl,
            self.revision,
            yes_or_no(self.garbage_collectable),
            yes_or_no(self.alternative_path),
            self.name,
            self.certificate,
        );
        // Clients refuse a manifest that is older than the newest one that they have seen, and use a cached one offline
        // only if the time is above 0.
        let published = self.published.filter(|&seconds| seconds > 0);
        push_field(&mut text, 'H', self.history);
        push_field(&mut text, 'T', published);
        push_field(&mut text, 'M', self.meta_info);
        push_field(&mut text, 'Y', self.reflog);
        text
    }

    /// Returns the whole file, signed with the repository key. The signed hash has the algorithm of the root catalog's name.
    pub fn sign(&self, key: &PrivateKey) -> Result<Vec<u8>, SignError> {
        seal(self.write().as_bytes(), self.root_catalog.algorithm(), SignatureForm::Manifest, key)
    }
}

impl SignedManifest<'_> {
    /// Returns whether the manifest's catalog is that of the repository's root, as required.
    pub fn is_for_root(&self) -> bool {
        self.root_path_hash == ROOT_PATH_HASH
    }

    /// Checks that the key of the certificate signed exactly these fields.
    ///
    /// Does not check that the certificate may sign for the repository, which depends on the whitelist: see [`super::FrontPage`].
    pub fn verify(&self, certificate: &Certificate) -> Result<(), LetterError> {
        self.letter.verify(SignatureForm::Manifest, std::slice::from_ref(certificate.public_key()))
    }
}

fn push_field(text: &mut String, letter: char, value: Option<impl std::fmt::Display>) {
    if let Some(value) = value {
        writeln!(text, "{letter}{value}").expect("writing to a string cannot fail");
    }
}

/// The field lines before `--`, by their first letter.
struct Fields<'a>(BTreeMap<u8, &'a [u8]>);

impl<'a> Fields<'a> {
    fn read(bytes: &'a [u8]) -> Self {
        // Bytes after the separator are the signature, which may contain anything.
        let lines = bytes.split(|&b| b == b'\n').take_while(|line| line != b"--");
        Self(lines.filter_map(|line| line.split_first().map(|(&letter, value)| (letter, value))).collect())
    }

    fn get(&self, field: char) -> Option<&'a [u8]> {
        u8::try_from(field).ok().and_then(|letter| self.0.get(&letter).copied())
    }

    fn required(&self, field: char) -> Result<&'a [u8], ManifestError> {
        self.get(field).ok_or(ManifestError::Missing(field))
    }

    fn flag(&self, field: char) -> bool {
        self.get(field) == Some(b"yes")
    }

    fn hash(&self, field: char) -> Result<Option<ObjectHash>, ManifestError> {
        let parse = |text| parse_hash(text).map_err(|source| ManifestError::Hash { field, source });
        self.get(field).map(parse).transpose()
    }

    fn required_hash(&self, field: char) -> Result<ObjectHash, ManifestError> {
        self.hash(field)?.ok_or(ManifestError::Missing(field))
    }

    fn number<N: TryFrom<u64>>(&self, field: char) -> Result<Option<N>, ManifestError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        // `parse` would accept a plus sign.
        let is_decimal = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
        let number = str::from_utf8(value).ok().filter(|_| is_decimal).and_then(|text| text.parse::<u64>().ok());
        let number = number.and_then(|number| N::try_from(number).ok());
        number.map(Some).ok_or_else(|| ManifestError::Number { field, value: quotable(value) })
    }

    fn required_number<N: TryFrom<u64>>(&self, field: char) -> Result<N, ManifestError> {
        self.number(field)?.ok_or(ManifestError::Missing(field))
    }

    fn timestamp(&self, field: char) -> Result<Option<i64>, ManifestError> {
        Ok(self.number(field)?.filter(|&seconds| seconds > 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::fixtures;
    use crate::object::HashAlgorithm;

    fn hash(seed: &str) -> ObjectHash {
        ObjectHash::of(seed.as_bytes())
    }

    fn long_hash(seed: &str) -> Option<ObjectHash> {
        Some(HashAlgorithm::Shake128.hash(seed.as_bytes()))
    }

    fn smallest() -> RepositoryManifest {
        RepositoryManifest {
            root_catalog: hash("catalog"),
            catalog_size: None,
            ttl: 240,
            revision: 1,
            garbage_collectable: false,
            alternative_path: false,
            name: fixtures::name(),
            certificate: hash("certificate"),
            history: None,
            published: None,
            meta_info: None,
            reflog: None,
        }
    }

    fn longest() -> RepositoryManifest {
        RepositoryManifest {
            catalog_size: Some(u64::MAX),
            ttl: u32::MAX,
            revision: u64::MAX,
            garbage_collectable: true,
            alternative_path: true,
            name: "n".repeat(60).parse().unwrap(),
            root_catalog: HashAlgorithm::Shake128.hash(b"catalog"),
            certificate: HashAlgorithm::Shake128.hash(b"certificate"),
            history: long_hash("history"),
            published: Some(i64::MAX),
            meta_info: long_hash("meta info"),
            reflog: long_hash("reflog"),
        }
    }

    fn signed(manifest: &RepositoryManifest) -> Vec<u8> {
        manifest.sign(fixtures::repository_key()).unwrap()
    }

    /// Parses field lines with a dummy signature.
    fn parse_fields(fields: &str) -> Result<RepositoryManifest, ManifestError> {
        let bytes = format!("{fields}--\n{}\nsignature", hash(fields));
        RepositoryManifest::parse(bytes.as_bytes()).map(|signed| signed.manifest)
    }

    #[test]
    fn manifest_signed_by_openssl_is_read_verified_and_written_back_byte_for_byte() {
        let read = RepositoryManifest::parse(fixtures::MANIFEST).unwrap();
        assert_eq!((read.manifest.revision, read.manifest.published), (7, Some(1_790_000_000)));
        assert!(read.manifest.garbage_collectable && !read.manifest.alternative_path);
        read.verify(&Certificate::parse(fixtures::CERTIFICATE.as_bytes()).unwrap()).unwrap();
        assert_eq!(signed(&read.manifest), fixtures::MANIFEST);
    }

    #[test]
    fn manifest_round_trips_with_all_and_without_optional_fields() {
        for manifest in [smallest(), longest()] {
            assert_eq!(RepositoryManifest::parse(&signed(&manifest)).unwrap().manifest, manifest);
        }
        assert!(smallest().write().contains("\nB0\n") && !smallest().write().contains("\nT"));
    }

    #[test]
    fn longest_manifest_fits_the_buffer_of_the_stock_tools() {
        const LONGEST_SIGNATURE: usize = 8192 / 8;
        let hash_block = "--\n".len() + 41 + HashAlgorithm::Shake128.suffix().len();
        assert!(longest().write().len() + hash_block + LONGEST_SIGNATURE < 4096);
    }

    #[test]
    fn unknown_fields_are_ignored_and_the_last_value_of_a_repeated_field_is_used() {
        let fields = format!("Zone\nQ\n\n{}S9\nZtwo\n", smallest().write());
        assert_eq!(parse_fields(&fields).unwrap(), RepositoryManifest { revision: 9, ..smallest() });
    }

    #[test]
    fn missing_field_is_named() {
        for field in ['C', 'R', 'D', 'S', 'N', 'X'] {
            let fields: String = smallest().write().split_inclusive('\n').filter(|l| !l.starts_with(field)).collect();
            assert!(matches!(parse_fields(&fields), Err(ManifestError::Missing(named)) if named == field), "{field}");
        }
    }

    #[test]
    fn malformed_values_are_refused_by_field() {
        let with = |line: &str| parse_fields(&format!("{}{line}\n", smallest().write())).unwrap_err();
        for (line, letter) in [("S", 'S'), ("S-1", 'S'), ("S+1", 'S'), ("B 1", 'B'), ("D4294967296", 'D')] {
            assert!(matches!(with(line), ManifestError::Number { field, .. } if field == letter), "{line}");
        }
        assert!(matches!(with("T9223372036854775808"), ManifestError::Number { field: 'T', .. }));
        assert!(matches!(with("Cxyz"), ManifestError::Hash { field: 'C', .. }));
        assert!(matches!(with("N../etc"), ManifestError::Name(_)));
        let md5 = with("X0123456789abcdef0123456789abcdef");
        assert!(matches!(md5, ManifestError::Hash { field: 'X', source: HashTextError::Unsupported(_) }));
    }

    #[test]
    fn too_large_manifest_is_refused() {
        let padded = |size: usize| {
            let fields = smallest().write();
            let filling = "Q".repeat(size - fields.len() - 1 - 3 - 41);
            format!("{filling}\n{fields}--\n{}\n", hash("")).into_bytes()
        };
        assert!(RepositoryManifest::parse(&padded(RepositoryManifest::READ_LIMIT)).is_ok());
        let too_long = padded(RepositoryManifest::READ_LIMIT + 1);
        assert!(matches!(RepositoryManifest::parse(&too_long), Err(ManifestError::TooLong { size: 65_537 })));
    }

    #[test]
    fn unsigned_manifest_is_refused() {
        let unsigned = smallest().write();
        assert!(matches!(
            RepositoryManifest::parse(unsigned.as_bytes()),
            Err(ManifestError::Letter(LetterError::Unsigned))
        ));
    }
}
