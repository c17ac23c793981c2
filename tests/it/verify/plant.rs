//! Published repositories with a planted fault and valid signatures.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use flate2::read::ZlibDecoder;
use rsa::pkcs8::DecodePrivateKey as _;
use rsa::{Pkcs1v15Sign, PrivateKey};
use rusqlite::{Connection, OptionalExtension as _, params};
use sha1::{Digest as _, Sha1};
use tempfile::{NamedTempFile, TempDir};

use crate::strict::hex;
use crate::strict_selftest::forge::{deflate, put};
use crate::support::{FQRN, NAME, Run, TestRepository, command_on};

/// A copy of a repository whose databases can be changed.
pub struct Planted {
    home: TempDir,
}

impl Planted {
    /// Copies a repository.
    pub fn copy_of(repository: &TestRepository) -> Self {
        let home = tempfile::tempdir().unwrap();
        copy(&repository.directory(), &home.path().join(FQRN));
        Self { home }
    }

    /// Verifies the image that `source` names.
    pub fn verify(&self, source: &str) -> Run {
        Run::of(&mut self.command(["verify", source, "--name", NAME]))
    }

    /// Changes the catalog of the directory `path`, and signs the result.
    pub fn change(&self, path: &str, sql: &str) {
        let (hash, size) = self.change_catalog(&self.field('C'), path, sql, false);
        self.publish(&[('C', hash), ('B', size.to_string())]);
    }

    /// Does the same, but keeps the old size of the catalog in the reference to it.
    pub fn change_and_hide_size(&self, path: &str, sql: &str) {
        let (hash, size) = self.change_catalog(&self.field('C'), path, sql, true);
        let size = if path.is_empty() { self.field('B') } else { size.to_string() };
        self.publish(&[('C', hash), ('B', size)]);
    }

    /// Changes the tag database, and signs the result.
    pub fn change_history(&self, sql: &str) {
        let hash = self.field('H');
        let stored = fs::File::open(self.storage().join(format!("data/{}/{}H", &hash[..2], &hash[2..]))).unwrap();
        let mut plain = Vec::new();
        ZlibDecoder::new(stored).read_to_end(&mut plain).unwrap();
        let changed = change_database(&plain, |database| database.execute_batch(sql).unwrap());
        self.publish(&[('H', put(&self.storage(), &deflate(&changed), "H"))]);
    }

    /// Changes the log of references.
    pub fn change_log(&self, sql: &str) {
        let path = self.storage().join(".cvmfsreflog");
        let changed = change_database(&fs::read(&path).unwrap(), |database| database.execute_batch(sql).unwrap());
        fs::write(path, changed).unwrap();
    }

    /// Returns a command on the repository.
    pub fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        command_on(self.directory(), arguments)
    }

    /// Returns the contents of the files that a publisher replaces.
    pub fn front_page(&self) -> [Vec<u8>; 2] {
        [".cvmfspublished", ".cvmfsreflog"].map(|name| fs::read(self.storage().join(name)).unwrap())
    }

    /// Returns a path beside the repository.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn fields(&self) -> String {
        let manifest = fs::read(self.storage().join(".cvmfspublished")).unwrap();
        let end = manifest.windows(4).position(|window| window == b"\n--\n").unwrap() + 1;
        String::from_utf8(manifest[..end].to_vec()).unwrap()
    }

    fn field(&self, letter: char) -> String {
        self.fields().lines().find_map(|line| line.strip_prefix(letter)).unwrap().to_owned()
    }

    /// Replaces fields of the manifest and signs it.
    fn publish(&self, others: &[(char, String)]) {
        let fields = self.fields();
        let changed = fields.lines().map(|line| match others.iter().find(|(letter, _)| line.starts_with(*letter)) {
            Some((letter, value)) => format!("{letter}{value}\n"),
            None => format!("{line}\n"),
        });
        self.sign(&changed.collect::<String>());
    }

    /// Replaces the content of a file in the catalog of the directory `path`.
    pub fn replace(&self, path: &str, name: &str, content: &[u8]) {
        let hash = put(&self.storage(), &deflate(content), "");
        let size = content.len();
        self.change(path, &format!("UPDATE catalog SET hash = x'{hash}', size = {size} WHERE name = '{name}'"));
    }

    /// Returns the file of an object.
    pub fn file(&self, object: &str) -> PathBuf {
        self.storage().join(object)
    }

    fn directory(&self) -> PathBuf {
        self.home.path().join(FQRN)
    }

    fn storage(&self) -> PathBuf {
        self.directory().join("storage")
    }

    /// Changes the catalog of `path`, which is the catalog `hash` or below it, and returns the new hash and size of the latter.
    ///
    /// With `hides_size`, the parent of the changed catalog keeps the old size in its reference.
    fn change_catalog(&self, hash: &str, path: &str, sql: &str, hides_size: bool) -> (String, usize) {
        let stored = fs::File::open(self.storage().join(format!("data/{}/{}C", &hash[..2], &hash[2..]))).unwrap();
        let mut plain = Vec::new();
        ZlibDecoder::new(stored).read_to_end(&mut plain).unwrap();
        let bytes = change_database(&plain, |catalog| {
            let next = "SELECT path, sha1, size FROM nested_catalogs
                WHERE ?1 = path OR substr(?1, 1, length(path) + 1) = path || '/'";
            let below: Option<(String, String, usize)> =
                catalog.query_row(next, [path], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).optional().unwrap();
            match below {
                Some((below, hash, before)) => {
                    let (hash, size) = self.change_catalog(&hash, path, sql, hides_size);
                    let size = if hides_size && below == path { before } else { size };
                    let update = "UPDATE nested_catalogs SET sha1 = ?1, size = ?2 WHERE path = ?3";
                    catalog.execute(update, params![hash, size, below]).unwrap();
                }
                None => {
                    let before = catalog.total_changes();
                    catalog.execute_batch(sql).unwrap();
                    assert!(catalog.total_changes() > before, "nothing changes: {sql}");
                }
            }
        });
        (put(&self.storage(), &deflate(&bytes), "C"), bytes.len())
    }

    fn sign(&self, fields: &str) {
        let pem = fs::read_to_string(self.directory().join(format!("keys/{FQRN}.key"))).unwrap();
        let key = PrivateKey::from_pkcs8_pem(&pem).unwrap();
        let hash = hex(&Sha1::digest(fields));
        let signature = key.sign(Pkcs1v15Sign::new::<Sha1>(), &Sha1::digest(&hash)).unwrap();
        let signed = [format!("{fields}--\n{hash}\n").as_bytes(), &signature].concat();
        fs::write(self.storage().join(".cvmfspublished"), signed).unwrap();
    }
}

/// Returns the bytes of a database after a change.
fn change_database(bytes: &[u8], change: impl FnOnce(&Connection)) -> Vec<u8> {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    let database = Connection::open(file.path()).unwrap();
    // Foreign keys would forbid some of the faults.
    database.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
    change(&database);
    drop(database);
    fs::read(file.path()).unwrap()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
