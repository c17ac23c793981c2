//! The storage directory: the files that it may contain, and the objects.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use flate2::bufread::ZlibDecoder;

use super::hash::{hash_all, suffix};
use super::{Finding, Findings, is_hash};

/// Files that may exist beside `data/`, other than links for the alternative catalog path.
const TOP_FILES: &[&str] = &[
    ".cvmfspublished",
    ".cvmfswhitelist",
    ".cvmfsreflog",
    ".cvmfs_master_replica",
    ".cvmfs_is_snapshotting",
    ".cvmfs_last_snapshot",
    ".cvmfs_status.json",
];

/// A storage directory.
pub struct Store {
    root: PathBuf,
}

/// Sizes of an object's file.
#[derive(Debug, Clone, Copy)]
pub struct StoredObject {
    /// Bytes in the file.
    pub stored: u64,
    /// Size of the content in bytes, if the file is exactly one complete zlib stream.
    pub inflated: Option<u64>,
}

/// Returns the path of an object below the storage directory.
pub fn object_path(hash: &str, suffix: &str) -> String {
    format!("data/{}/{}{suffix}", &hash[..2], &hash[2..])
}

impl Store {
    /// Names a storage directory.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Reads a file of the directory as it is.
    pub fn read_raw(&self, path: &str) -> Result<Vec<u8>, Finding> {
        fs::read(self.root.join(path)).map_err(|error| Finding {
            place: path.to_owned(),
            expected: "a readable file".to_owned(),
            found: error.to_string(),
        })
    }

    /// Reads an object and inflates it.
    pub fn read(&self, hash: &str, suffix: &str) -> Result<Vec<u8>, Finding> {
        let path = object_path(hash, suffix);
        let stored = self.read_raw(&path)?;
        let mut content = Vec::new();
        match ZlibDecoder::new(stored.as_slice()).read_to_end(&mut content) {
            Ok(_) => Ok(content),
            Err(error) => {
                let expected = "a whole zlib stream".to_owned();
                Err(Finding { place: path, expected, found: error.to_string() })
            }
        }
    }

    /// Checks the entries of the storage directory itself.
    pub fn check_top_directory(&self, findings: &mut Findings) {
        for name in [".cvmfspublished", ".cvmfswhitelist", ".cvmfsreflog"] {
            if !self.root.join(name).is_file() {
                findings.note(name, "a file", "none");
            }
        }
        for (name, metadata) in entries(&self.root, "", findings) {
            let is_lawful = match name.as_str() {
                "data" | "stats" => metadata.is_dir(),
                name if name.starts_with(".cvmfsalt-") => metadata.is_symlink(),
                name => TOP_FILES.contains(&name) && metadata.is_file(),
            };
            if !is_lawful {
                findings.note(&name, "only files that a repository has", "a stray one");
            }
        }
    }

    /// Checks that everything below `data/` is an object under its own hash, and returns the objects by path.
    pub fn scan(&self, findings: &mut Findings) -> BTreeMap<String, StoredObject> {
        let mut objects = BTreeMap::new();
        let prefixes: Vec<String> = (0..=255).map(|byte| format!("{byte:02x}")).collect();
        for (name, metadata) in entries(&self.root.join("data"), "data", findings) {
            if (name != "txn" && !prefixes.contains(&name)) || !metadata.is_dir() {
                findings.note(format_args!("data/{name}"), "only the directories 00 to ff and txn", "a stray entry");
            }
        }
        if let Some((name, _)) = entries(&self.root.join("data/txn"), "data/txn", findings).first() {
            findings.note(format_args!("data/txn/{name}"), "an empty directory data/txn", "a leftover");
        }
        for prefix in prefixes {
            self.scan_directory(&prefix, &mut objects, findings);
        }
        objects
    }

    fn scan_directory(&self, prefix: &str, objects: &mut BTreeMap<String, StoredObject>, findings: &mut Findings) {
        let directory = self.root.join("data").join(prefix);
        let readers = fs::metadata(&directory).map_or(0, |metadata| metadata.mode() & 0o444);
        for (name, metadata) in entries(&directory, &format!("data/{prefix}"), findings) {
            let path = format!("data/{prefix}/{name}");
            let digits = name.trim_end_matches(['C', 'H', 'P', 'X', 'M']);
            if !metadata.is_file() || name.len() - digits.len() > 1 || !is_hash(&format!("{prefix}{digits}")) {
                findings.note(&path, "a regular file named by a hash and a letter of CHPXM", "another entry");
                continue;
            }
            let mode = metadata.permissions().mode() & 0o7777;
            if mode & readers != readers || mode & 0o7111 != 0 {
                let expected = format!("a plain file whom all may read who may list its directory ({readers:03o})");
                findings.note(&path, expected, format_args!("mode {mode:03o}"));
            }
            match examine(&directory.join(&name), suffix(&format!("{prefix}{digits}"))) {
                Err(error) => findings.note(&path, "a readable file", error),
                Ok((hash, object)) => {
                    findings.require(&path, "stored bytes with hash", format!("{prefix}{digits}"), hash);
                    if name.ends_with(['C', 'H', 'X', 'M']) && object.inflated.is_none() {
                        findings.note(&path, "one whole zlib stream", "something else");
                    }
                    objects.insert(path, object);
                }
            }
        }
    }
}

/// Lists a directory in the order of names; a directory that cannot be listed is a finding.
fn entries(directory: &Path, place: &str, findings: &mut Findings) -> Vec<(String, fs::Metadata)> {
    let list = || -> io::Result<Vec<(String, fs::Metadata)>> {
        let named = |entry: io::Result<fs::DirEntry>| {
            let entry = entry?;
            Ok((entry.file_name().to_string_lossy().into_owned(), entry.metadata()?))
        };
        fs::read_dir(directory)?.map(named).collect()
    };
    let mut entries = list().unwrap_or_else(|error| {
        findings.note(place, "a directory", error);
        Vec::new()
    });
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    entries
}

/// Returns the hash of a file by the algorithm with this suffix, and the sizes of the file, without loading it into memory.
fn examine(path: &Path, suffix: &str) -> io::Result<(String, StoredObject)> {
    let hash = hash_all(File::open(path)?, suffix)?;
    let stored = fs::metadata(path)?.len();
    let mut decoder = ZlibDecoder::new(BufReader::new(File::open(path)?));
    let inflated = io::copy(&mut decoder, &mut io::sink()).ok().filter(|_| decoder.total_in() == stored && stored > 0);
    Ok((hash, StoredObject { stored, inflated }))
}
