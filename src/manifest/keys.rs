//! The four key files of a repository, in the format of `cvmfs_server`.
//!
//! The master key may be kept offline: opening the keys does not need it, and only renewing the whitelist reads it. No message ever
//! contains a key.

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rsa::pkcs1::DecodeRsaPrivateKey as _;
use rsa::pkcs8::der::zeroize::Zeroizing;
use rsa::pkcs8::{
    DecodePrivateKey as _, DecodePublicKey as _, EncodePrivateKey as _, EncodePublicKey as _, LineEnding,
};
use rsa::{PrivateKey, PublicKey};

use super::certificate::CertificateError;
use super::letter::{SignError, system_rng};
use super::{Certificate, RepositoryManifest, RepositoryName, Whitelist};
use crate::file::open_regular;
use crate::metadata::Timestamp;
use crate::object::HashAlgorithm;

/// Length of new RSA keys in bits.
// The length of the keys of `cvmfs_server mkfs`.
const KEY_BITS: usize = 2048;

/// Maximum size of a key file in bytes. The file of an RSA key of 16,384 bits has a fifth of this size.
const FILE_LIMIT: usize = 64 * 1024;

// The modes of the files of `cvmfs_server mkfs`.
const SECRET: u32 = 0o400;
const PUBLIC: u32 = 0o444;

/// Errors from reading, creating or using key files.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A file or directory could not be read.
    #[error("cannot read '{}'", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// A file or directory could not be written.
    #[error("cannot write '{}'", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// New keys would replace old ones.
    #[error("'{}' already exists and is not overwritten: move it away to create new keys", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The file is larger than the limit.
    #[error("'{}' is not a key file: it has more than {FILE_LIMIT} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// The private key is protected by a password.
    #[error("private key '{}' is encrypted, which is not supported", path.display())]
    Encrypted {
        /// The file.
        path: PathBuf,
    },
    /// The file is not an RSA key.
    #[error("'{}' does not contain an RSA key in PEM format", path.display())]
    NotRsa {
        /// The file.
        path: PathBuf,
        /// The error of the parser.
        source: rsa::Error,
    },
    /// The file is not a certificate with an RSA key.
    #[error("'{}' does not contain a certificate for a repository", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// The error of the parser.
        source: CertificateError,
    },
    /// A private key and a certificate or public key do not belong together.
    #[error("private key {private:?} does not belong to {public:?}")]
    Mismatch {
        /// The file with the private key.
        private: PathBuf,
        /// The certificate or public key.
        public: PathBuf,
    },
    /// The master key is missing; it is needed to sign the whitelist.
    #[error("master key '{}' does not exist: it is needed to renew the whitelist", path.display())]
    NoMasterKey {
        /// The path where it should be.
        path: PathBuf,
    },
    /// A key could not be generated.
    #[error("cannot generate an RSA key")]
    Generate(#[source] rsa::Error),
    /// A certificate could not be created.
    #[error("cannot create a certificate for the repository key")]
    Certify(#[source] CertificateError),
    /// Signing failed.
    #[error(transparent)]
    Sign(#[from] SignError),
}

/// New keys that are not written yet. Generating keys takes seconds, so it is separate from the quick step of writing them.
pub struct NewKeys {
    directory: PathBuf,
    files: KeyFiles,
    master: PrivateKey,
    repository: PrivateKey,
    certificate: Certificate,
}

impl NewKeys {
    /// Generates keys for four files in `directory`. Fails if any of the files exists.
    pub fn generate(directory: &Path, name: &RepositoryName, now: Timestamp) -> Result<Self, KeyError> {
        let files = KeyFiles::new(directory, name);
        files.refuse_existing()?;
        let mut rng = system_rng();
        let master = PrivateKey::new(&mut rng, KEY_BITS).map_err(KeyError::Generate)?;
        let repository = PrivateKey::new(&mut rng, KEY_BITS).map_err(KeyError::Generate)?;
        let certificate = Certificate::create(name, &repository, now).map_err(KeyError::Certify)?;
        Ok(Self { directory: directory.to_owned(), files, master, repository, certificate })
    }

    /// Returns the paths of the files that [`Self::write`] writes.
    pub fn paths(&self) -> [&Path; 4] {
        [&self.files.master, &self.files.master_public, &self.files.repository, &self.files.certificate]
            .map(PathBuf::as_path)
    }

    /// Writes the files into their directory, which is created with mode 0700 if it is missing.
    ///
    /// Does not replace existing files. After an error none of the new files remain; after a crash some may remain.
    pub fn write(self) -> Result<Keys, KeyError> {
        let Self { directory, files, master, repository, certificate } = self;
        files.write(&directory, &master, &repository, &certificate)?;
        Ok(Keys { files, master_public: master.to_public_key(), repository, certificate })
    }
}

/// The keys of a repository that are needed to publish, and the path of the master key.
pub struct Keys {
    files: KeyFiles,
    master_public: PublicKey,
    repository: PrivateKey,
    certificate: Certificate,
}

impl Keys {
    /// Generates new keys and writes their four files into `directory`, which is created with mode 0700 if it is missing.
    ///
    /// Does not replace existing files. After an error none of the new files remain; after a crash some may remain.
    pub fn create(directory: &Path, name: &RepositoryName, now: Timestamp) -> Result<Self, KeyError> {
        NewKeys::generate(directory, name, now)?.write()
    }

    /// Reads the public master key, the repository key and its certificate. Key and certificate must belong together.
    pub fn open(directory: &Path, name: &RepositoryName) -> Result<Self, KeyError> {
        let files = KeyFiles::new(directory, name);
        let master_public = read_public_key(&files.master_public)?;
        let repository = read_private_key(&files.repository)?;
        let certificate = read_certificate(&files.certificate)?;
        // Clients would refuse every manifest that is signed with such a pair.
        if !certificate.belongs_to(&repository) {
            return Err(KeyError::Mismatch { private: files.repository, public: files.certificate });
        }
        Ok(Self { files, master_public, repository, certificate })
    }

    /// Returns the public master key, with which clients verify the repository.
    pub fn master_public_key(&self) -> &PublicKey {
        &self.master_public
    }

    /// Returns the certificate of the repository key.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// Returns the whole `.cvmfspublished`, signed with the repository key.
    pub fn sign_manifest(&self, manifest: &RepositoryManifest) -> Result<Vec<u8>, SignError> {
        manifest.sign(&self.repository)
    }

    /// Returns the whole `.cvmfswhitelist`, signed with the master key, which is read only for this call.
    pub fn sign_whitelist(&self, whitelist: &Whitelist) -> Result<Vec<u8>, KeyError> {
        Ok(whitelist.sign(&self.read_master_key()?)?)
    }

    fn read_master_key(&self) -> Result<PrivateKey, KeyError> {
        let path = &self.files.master;
        let master = read_private_key(path).map_err(|error| match error {
            KeyError::Read { path, source } if source.kind() == io::ErrorKind::NotFound => {
                KeyError::NoMasterKey { path }
            }
            other => other,
        })?;
        // Clients verify with the public key that they have, so a list that another key signed would end all mounts.
        if *master.as_public_key() != self.master_public {
            return Err(KeyError::Mismatch { private: path.clone(), public: self.files.master_public.clone() });
        }
        Ok(master)
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("certificate", &self.certificate.fingerprint(HashAlgorithm::Sha1))
            .finish_non_exhaustive()
    }
}

/// Reads a public key in the format for clients: PEM, `BEGIN PUBLIC KEY`.
pub fn read_public_key(path: &Path) -> Result<PublicKey, KeyError> {
    let text = read_text(path)?;
    PublicKey::from_public_key_pem(&text)
        .map_err(|error| KeyError::NotRsa { path: path.to_owned(), source: rsa::pkcs8::Error::from(error).into() })
}

fn read_private_key(path: &Path) -> Result<PrivateKey, KeyError> {
    let text = read_text(path)?;
    // The headers of encrypted keys in PKCS#8 and in OpenSSL's older format (RFC 1421). A parser would only say that the
    // key is damaged.
    if text.contains("BEGIN ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED") {
        return Err(KeyError::Encrypted { path: path.to_owned() });
    }
    // `openssl genrsa` writes PKCS#1 before OpenSSL 3, and PKCS#8 since then.
    let key = if text.contains("BEGIN RSA PRIVATE KEY") {
        PrivateKey::from_pkcs1_pem(&text).map_err(rsa::Error::from)
    } else {
        PrivateKey::from_pkcs8_pem(&text).map_err(rsa::Error::from)
    };
    key.map_err(|source| KeyError::NotRsa { path: path.to_owned(), source })
}

fn read_certificate(path: &Path) -> Result<Certificate, KeyError> {
    let text = read_text(path)?;
    Certificate::parse(text.as_bytes()).map_err(|source| KeyError::Certificate { path: path.to_owned(), source })
}

/// Reads a whole file into memory that is overwritten when it is freed. The memory is allocated once, so that no copy remains
/// after a reallocation.
fn read_text(path: &Path) -> Result<Zeroizing<String>, KeyError> {
    let mut text = Zeroizing::new(String::with_capacity(FILE_LIMIT + 1));
    let file = open_regular(path);
    file.and_then(|file| file.take(FILE_LIMIT as u64 + 1).read_to_string(&mut text))
        .map_err(|source| KeyError::Read { path: path.to_owned(), source })?;
    if text.len() > FILE_LIMIT { Err(KeyError::TooLong { path: path.to_owned() }) } else { Ok(text) }
}

/// Paths of the four files of a repository.
struct KeyFiles {
    master: PathBuf,
    master_public: PathBuf,
    repository: PathBuf,
    certificate: PathBuf,
}

impl KeyFiles {
    fn new(directory: &Path, name: &RepositoryName) -> Self {
        let file = |suffix: &str| directory.join(format!("{name}.{suffix}"));
        Self {
            master: file("masterkey"),
            master_public: file("pub"),
            repository: file("key"),
            certificate: file("crt"),
        }
    }

    fn refuse_existing(&self) -> Result<(), KeyError> {
        for path in [&self.master, &self.master_public, &self.repository, &self.certificate] {
            match path.symlink_metadata() {
                Ok(_) => return Err(KeyError::Exists { path: path.clone() }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => {
                    return Err(KeyError::Read { path: path.clone(), source });
                }
            }
        }
        Ok(())
    }

    fn write(
        &self,
        directory: &Path,
        master: &PrivateKey,
        repository: &PrivateKey,
        certificate: &Certificate,
    ) -> Result<(), KeyError> {
        let contents = [
            (&self.master, SECRET, private_pem(master)),
            (&self.master_public, PUBLIC, public_pem(master.as_public_key())),
            (&self.repository, SECRET, private_pem(repository)),
            (&self.certificate, PUBLIC, Zeroizing::new(certificate.pem().to_owned())),
        ];
        create_directory(directory).map_err(|source| KeyError::Write { path: directory.to_owned(), source })?;
        let mut made = NewFiles::default();
        for (path, mode, bytes) in &contents {
            made.create(path, *mode, bytes)?;
        }
        sync_directory(directory).map_err(|source| KeyError::Write { path: directory.to_owned(), source })?;
        made.keep();
        Ok(())
    }
}

fn private_pem(key: &PrivateKey) -> Zeroizing<Vec<u8>> {
    let pem = key.to_pkcs8_pem(LineEnding::LF).expect("a key that was just generated can be written");
    Zeroizing::new(pem.as_bytes().to_owned())
}

fn public_pem(key: &PublicKey) -> Zeroizing<Vec<u8>> {
    let pem =
        key.to_public_key_pem(LineEnding::LF).expect("the public half of a key that was just generated can be written");
    Zeroizing::new(pem.into_bytes())
}

fn create_directory(directory: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        // The entry of a new directory is in its parent, and is lost in a crash if only the directory is synced.
        Ok(()) => sync_directory(&directory.join("..")),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes the entries of `directory` durable.
fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Files created so far. They are removed on drop unless [`Self::keep`] is called.
#[derive(Default)]
struct NewFiles<'a>(Vec<&'a Path>);

impl<'a> NewFiles<'a> {
    fn create(&mut self, path: &'a Path, mode: u32, bytes: &[u8]) -> Result<(), KeyError> {
        // The mode is set at creation, so that no other user can read a private key in between.
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
        let file = file.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => KeyError::Exists { path: path.to_owned() },
            _ => KeyError::Write { path: path.to_owned(), source },
        })?;
        self.0.push(path);
        fill(file, mode, bytes).map_err(|source| KeyError::Write { path: path.to_owned(), source })
    }

    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for NewFiles<'_> {
    fn drop(&mut self) {
        for path in &self.0 {
            // Best effort: the caller returns the error of the failed creation.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn fill(mut file: File, mode: u32, bytes: &[u8]) -> io::Result<()> {
    file.write_all(bytes)?;
    // The umask may have removed read permissions of the public files.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::fixtures::{self, NOW};

    const SUFFIXES: [&str; 4] = ["masterkey", "pub", "key", "crt"];

    fn path(directory: &Path, suffix: &str) -> PathBuf {
        directory.join(format!("{}.{suffix}", fixtures::name()))
    }

    fn stock_directory() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let contents = [fixtures::MASTER_KEY, fixtures::PUBLIC_KEY, fixtures::REPOSITORY_KEY, fixtures::CERTIFICATE];
        for (suffix, text) in SUFFIXES.into_iter().zip(contents) {
            std::fs::write(path(directory.path(), suffix), text).unwrap();
        }
        directory
    }

    fn open(directory: &Path) -> Result<Keys, KeyError> {
        Keys::open(directory, &fixtures::name())
    }

    fn whitelist(keys: &Keys) -> Whitelist {
        Whitelist::new(fixtures::name(), vec![keys.certificate().fingerprint(HashAlgorithm::Sha1)], NOW).unwrap()
    }

    #[test]
    fn new_keys_are_in_a_private_directory_and_sign_after_reopening() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("keys");
        let mode_of = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
        let made = Keys::create(&directory, &fixtures::name(), NOW).unwrap();
        assert_eq!(mode_of(&directory), 0o700);
        for (suffix, mode) in SUFFIXES.into_iter().zip([0o400, 0o444, 0o400, 0o444]) {
            assert_eq!(mode_of(&path(&directory, suffix)), mode, "{suffix}");
        }
        let opened = open(&directory).unwrap();
        assert_eq!(opened.certificate(), made.certificate());
        let list = opened.sign_whitelist(&whitelist(&opened)).unwrap();
        let list = Whitelist::parse(&list).unwrap();
        list.verify(&[made.master_public_key().clone()], &fixtures::name(), NOW).unwrap();
    }

    #[test]
    fn existing_file_is_kept_and_prevents_the_creation_of_keys() {
        for suffix in SUFFIXES {
            let directory = tempfile::tempdir().unwrap();
            let old = path(directory.path(), suffix);
            std::fs::write(&old, "old").unwrap();
            let refused = Keys::create(directory.path(), &fixtures::name(), NOW);
            assert!(matches!(refused, Err(KeyError::Exists { path }) if path == old), "{suffix}");
            assert_eq!(std::fs::read_to_string(&old).unwrap(), "old");
            assert_eq!(directory.path().read_dir().unwrap().count(), 1);
        }
    }

    #[test]
    fn failed_creation_removes_its_files() {
        let directory = tempfile::tempdir().unwrap();
        let files = KeyFiles::new(directory.path(), &fixtures::name());
        std::fs::write(&files.certificate, "made by another in the meantime").unwrap();
        let certificate = Certificate::parse(fixtures::CERTIFICATE.as_bytes()).unwrap();
        let refused = files.write(directory.path(), fixtures::master_key(), fixtures::repository_key(), &certificate);
        assert!(matches!(refused, Err(KeyError::Exists { .. })));
        assert_eq!(directory.path().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn both_forms_of_private_keys_are_read() {
        let directory = stock_directory();
        let certificate = open(directory.path()).unwrap().certificate().clone();
        std::fs::write(path(directory.path(), "key"), fixtures::REPOSITORY_KEY_PKCS1).unwrap();
        assert_eq!(*open(directory.path()).unwrap().certificate(), certificate);
    }

    #[test]
    fn missing_and_damaged_files_are_named() {
        for suffix in &SUFFIXES[1..] {
            let directory = stock_directory();
            let damaged = path(directory.path(), suffix);
            std::fs::write(&damaged, "-----BEGIN PRIVATE KEY-----\nnonsense\n").unwrap();
            let message = open(directory.path()).unwrap_err().to_string();
            assert!(message.contains(&format!("'{}'", damaged.display())), "{message}");
            std::fs::remove_file(&damaged).unwrap();
            assert!(matches!(open(directory.path()), Err(KeyError::Read { path, .. }) if path == damaged));
        }
    }

    #[test]
    fn encrypted_and_too_large_keys_are_refused() {
        let directory = stock_directory();
        let key = path(directory.path(), "key");
        for head in ["-----BEGIN ENCRYPTED PRIVATE KEY-----", "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED"]
        {
            std::fs::write(&key, head).unwrap();
            assert!(matches!(open(directory.path()), Err(KeyError::Encrypted { .. })), "{head}");
        }
        std::fs::write(&key, "x".repeat(FILE_LIMIT + 1)).unwrap();
        assert!(matches!(open(directory.path()), Err(KeyError::TooLong { .. })));
        std::fs::write(&key, "x".repeat(FILE_LIMIT)).unwrap();
        assert!(matches!(open(directory.path()), Err(KeyError::NotRsa { .. })));
    }

    #[test]
    fn keys_that_do_not_belong_together_are_refused() {
        let directory = stock_directory();
        std::fs::write(path(directory.path(), "key"), fixtures::MASTER_KEY).unwrap();
        assert!(matches!(open(directory.path()), Err(KeyError::Mismatch { .. })));
    }

    #[test]
    fn master_key_is_needed_for_the_whitelist_only() {
        let directory = stock_directory();
        let master = path(directory.path(), "masterkey");
        std::fs::remove_file(&master).unwrap();
        let keys = open(directory.path()).unwrap();
        let refused = keys.sign_whitelist(&whitelist(&keys));
        assert!(matches!(refused, Err(KeyError::NoMasterKey { path }) if path == master));
        std::fs::write(&master, fixtures::REPOSITORY_KEY).unwrap();
        let refused = keys.sign_whitelist(&whitelist(&keys));
        assert!(matches!(refused, Err(KeyError::Mismatch { .. })));
    }

    #[test]
    fn debug_output_of_keys_contains_no_secret() {
        let text = format!("{:?}", open(stock_directory().path()).unwrap());
        assert_eq!(text, format!("Keys {{ certificate: {}, .. }}", fixtures::FINGERPRINT));
    }
}
