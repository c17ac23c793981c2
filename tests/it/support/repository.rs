//! Test repositories. Each has its own directory, is changed by the program, and is strictly checked at the end of the test.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::{TestImage, strata_command, write_oci_index};
use crate::strict::{self, Entry, Reader};

/// The name of every test repository.
pub const FQRN: &str = "unpacked.example.org";

/// Name of images in tests that do not depend on it.
pub const NAME: &str = "registry.example.org/test/image:1";

/// A repository in a temporary directory, which is deleted when the value is dropped.
///
/// When a test succeeds, the strict reader must find no fault in the repository.
pub struct TestRepository {
    home: TempDir,
    sources: AtomicUsize,
}

impl TestRepository {
    /// Creates an empty repository. All repositories of a test run have the same keys, because creating keys takes long.
    pub fn new() -> Self {
        let repository = Self { home: tempfile::tempdir().unwrap(), sources: AtomicUsize::new(0) };
        fs::create_dir(repository.home.path().join("images")).unwrap();
        Self::empty_files().restore(&repository.directory());
        repository
    }

    /// Creates an empty repository with keys of its own, whose objects are named by this hash algorithm.
    pub fn hashed_by(algorithm: &str) -> Self {
        let repository = Self { home: tempfile::tempdir().unwrap(), sources: AtomicUsize::new(0) };
        fs::create_dir(repository.home.path().join("images")).unwrap();
        repository.run(["init", FQRN, "--hash", algorithm]).expect_code(0);
        repository
    }

    /// Creates an empty repository with these lines in `strata.toml`.
    pub fn with_settings(settings: &str) -> Self {
        let repository = Self::new();
        repository.set(settings);
        repository
    }

    /// Replaces the settings of the repository by these lines of `strata.toml`.
    pub fn set(&self, settings: &str) {
        fs::write(self.directory().join("strata.toml"), format!("repository = \"{FQRN}\"\n{settings}\n")).unwrap();
    }

    /// Creates a repository that contains an image under the name [`NAME`].
    pub fn publish(image: &TestImage) -> Self {
        let repository = Self::new();
        repository.convert(image, NAME, &[]).expect_code(0);
        repository
    }

    /// Creates a copy of the repository.
    pub fn copy(&self) -> Self {
        let copy = Self { home: tempfile::tempdir().unwrap(), sources: AtomicUsize::new(0) };
        fs::create_dir(copy.home.path().join("images")).unwrap();
        Files::read(&self.directory()).restore(&copy.directory());
        copy
    }

    /// Returns the repository's directory.
    pub fn directory(&self) -> PathBuf {
        self.home.path().join(FQRN)
    }

    /// Returns the storage directory, which web servers would serve.
    pub fn storage(&self) -> PathBuf {
        self.directory().join("storage")
    }

    /// Returns a path beside the repository's directory, for files of the test.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Returns the directory of a layout that does not exist yet.
    fn new_layout(&self) -> PathBuf {
        let number = self.sources.fetch_add(1, Ordering::Relaxed);
        self.home.path().join("images").join(number.to_string())
    }

    /// Writes an image to a new layout and returns the argument that names it.
    pub fn source(&self, image: &TestImage) -> String {
        let directory = self.new_layout();
        image.write_oci_layout(&directory, "latest");
        format!("oci:{}", directory.display())
    }

    /// Writes images, one for each platform, and their index to a new layout, and returns the argument that names the index.
    pub fn source_of_index(&self, images: &[TestImage]) -> String {
        let directory = self.new_layout();
        write_oci_index(images, &directory, "latest");
        format!("oci:{}:latest", directory.display())
    }

    /// Converts an image under a name.
    pub fn convert(&self, image: &TestImage, name: &str, options: &[&str]) -> Run {
        let source = self.source(image);
        self.run([&["convert", &source, "--name", name], options].concat())
    }

    /// Converts images under their names in one command.
    pub fn convert_together(&self, images: &[(&str, &TestImage)], options: &[&str]) -> Run {
        let directory = self.new_layout();
        images.iter().for_each(|(name, image)| image.write_oci_layout(&directory, name));
        let sources = images.iter().map(|(name, _)| format!("oci:{}:{name}", directory.display()));
        let arguments: Vec<String> = ["convert".to_owned()]
            .into_iter()
            .chain(sources)
            .chain(options.iter().map(|option| (*option).to_owned()))
            .collect();
        self.run(arguments)
    }

    /// Runs a command on the repository.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Run {
        Run::of(&mut self.command(arguments))
    }

    /// Runs a command that must fail with `code` and a message of one line that contains all of `words`, and change nothing.
    ///
    /// The command may leave new objects, which are harmless while no catalog refers to them.
    #[track_caller]
    pub fn refuse<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>, code: i32, words: &[&str]) -> Run {
        self.refuse_command(&mut self.command(arguments), code, words)
    }

    /// Does the same with a given command.
    #[track_caller]
    pub fn refuse_command(&self, command: &mut Command, code: i32, words: &[&str]) -> Run {
        let before = self.storage_files();
        let run = Run::of(command).expect_one_line(code, words);
        let after = self.storage_files();
        let is_new_object =
            |path: &Path| !before.0.contains_key(path) && path.starts_with("data") && !path.starts_with("data/txn");
        let changed: Vec<PathBuf> =
            after.differences(&before).into_iter().filter(|path| !is_new_object(path)).collect();
        assert_eq!(changed, Vec::<PathBuf>::new());
        strict::check(&self.storage(), FQRN).assert_good();
        run
    }

    /// Moves the repository to another directory, and leaves a symbolic link.
    pub fn move_to(&self, directory: &Path) {
        Files::read(&self.directory()).restore(directory);
        fs::remove_dir_all(self.directory()).unwrap();
        symlink(directory, self.directory()).unwrap();
    }

    /// Returns a command on the repository.
    pub fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        command_on(self.directory(), arguments)
    }

    /// Holds the lock of a publisher, until the file is dropped.
    pub fn lock(&self) -> File {
        let storage = File::open(self.storage()).unwrap();
        storage.lock().unwrap();
        storage
    }

    /// Sets up a `cvmfs_server` that manages `storage` under the name of the repository, and returns its spool directory.
    pub fn manage_by_server(&self, storage: &Path) -> PathBuf {
        let [settings, spool] = ["repositories.d", "spool"].map(|name| self.beside(name));
        fs::create_dir_all(settings.join(FQRN)).unwrap();
        fs::create_dir(&spool).unwrap();
        let storage = storage.display();
        let text = format!(
            "# Created by cvmfs_server.\nCVMFS_REPOSITORY_NAME={FQRN}\nCVMFS_SPOOL_DIR={}\n\
             CVMFS_UPSTREAM_STORAGE=local,{storage}/data/txn,{storage}\n",
            spool.display()
        );
        fs::write(settings.join(FQRN).join("server.conf"), text).unwrap();
        self.set(&format!("server_settings = {settings:?}"));
        spool
    }

    /// Sets the hash algorithm of the `cvmfs_server` that manages the repository.
    pub fn set_hash_of_server(&self, algorithm: &str) {
        let path = self.beside("repositories.d").join(FQRN).join("server.conf");
        let text = fs::read_to_string(&path).unwrap();
        let kept = text.lines().filter(|line| !line.starts_with("CVMFS_HASH_ALGORITHM"));
        let lines: String = kept.map(|line| format!("{line}\n")).collect();
        fs::write(path, format!("{lines}CVMFS_HASH_ALGORITHM={algorithm}\n")).unwrap();
    }

    /// Opens the head with the independent reader.
    pub fn reader(&self) -> Reader {
        Reader::open(&self.storage())
    }

    /// Returns the names that clients list in a directory.
    pub fn list(&self, directory: &str) -> Vec<String> {
        self.reader().list(directory)
    }

    /// Returns whether clients list a path.
    pub fn has(&self, path: &str) -> bool {
        let mut directory = String::new();
        path.trim_matches('/').split('/').all(|name| {
            let is_there = self.list(&directory).iter().any(|listed| listed == name);
            directory = format!("{directory}/{name}");
            is_there
        })
    }

    /// Lists the tree at a path, without hidden entries, which are the markers of nested catalogs that strata added.
    pub fn tree(&self, path: &str) -> Tree {
        let mut entries = self.reader().walk(path);
        entries.retain(|_, entry| !entry.hidden);
        let root = path.trim_matches('/').len() + 1;
        for (directory, _) in entries.values_mut().filter_map(|entry| entry.link_group.as_mut()) {
            // Groups are identified by their directory. Its path is made relative to the tree, so that trees can be compared.
            directory.drain(..root);
        }
        Tree(entries)
    }

    /// Lists the root file system of an image.
    pub fn flat(&self, image: &TestImage) -> Tree {
        self.tree(&flat_path(image))
    }

    /// Lists the final chain of an image: its file system without the files for Apptainer.
    pub fn chain(&self, image: &TestImage) -> Tree {
        self.tree(&chain_path(image, image.diff_ids().len()))
    }

    /// Lists a layer of an image as published for overlay mounts.
    pub fn layer(&self, image: &TestImage, number: usize) -> Tree {
        self.tree(&layer_path(image, number))
    }

    /// Returns a JSON file of the repository.
    pub fn json(&self, path: &str) -> Value {
        serde_json::from_slice(&self.reader().read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// Returns the losses of the image published under [`NAME`]: number and paths, by kind.
    pub fn losses(&self) -> BTreeMap<String, (u64, Vec<String>)> {
        let directory = format!(".metadata/{NAME}");
        if !self.list(&directory).contains(&"losses.json".to_owned()) {
            return BTreeMap::new();
        }
        losses_of(&self.json(&format!("{directory}/losses.json")))
    }

    /// Returns the bytes of the signed manifest, which change with every revision.
    pub fn manifest_bytes(&self) -> Vec<u8> {
        fs::read(self.storage().join(".cvmfspublished")).unwrap()
    }

    /// Returns the name and size of every object, such as `data/ab/cdef…C`.
    pub fn objects(&self) -> BTreeMap<String, u64> {
        let files = Files::read(&self.storage().join("data")).0;
        let files = files.into_iter().filter_map(|(path, file)| Some((path, file.content?.len() as u64)));
        files.map(|(path, size)| (format!("data/{}", path.display()), size)).collect()
    }

    /// Returns the files directly in the storage directory: manifest, whitelist and log of references.
    pub fn front_page(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let entries = fs::read_dir(self.storage()).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.is_file()).map(|path| (path.clone(), fs::read(path).unwrap())).collect()
    }

    /// Returns everything in the storage directory.
    pub fn storage_files(&self) -> Files {
        Files::read(&self.storage())
    }

    /// Panics if the storage directory differs from `before`.
    #[track_caller]
    pub fn assert_unchanged(&self, before: &Files) {
        assert_eq!(self.storage_files().differences(before), Vec::<PathBuf>::new());
    }

    fn empty_files() -> &'static Files {
        static FILES: OnceLock<Files> = OnceLock::new();
        FILES.get_or_init(|| {
            let home = tempfile::tempdir().unwrap();
            let directory = home.path().join(FQRN);
            Run::of(&mut strata_command([OsStr::new("init"), FQRN.as_ref(), "--repo".as_ref(), directory.as_ref()]))
                .expect_code(0);
            Files::read(&directory)
        })
    }
}

impl Drop for TestRepository {
    fn drop(&mut self) {
        if !thread::panicking() {
            strict::check(&self.storage(), FQRN).assert_good();
        }
    }
}

/// Returns a command on the repository in a directory.
pub fn command_on<A: AsRef<OsStr>>(directory: PathBuf, arguments: impl IntoIterator<Item = A>) -> Command {
    let repository: [OsString; 2] = ["--repo".into(), directory.into()];
    strata_command(arguments.into_iter().map(|argument| argument.as_ref().to_owned()).chain(repository))
}

/// The result of a command.
#[derive(Debug)]
pub struct Run(Output);

impl Run {
    /// Runs a command and waits until it ends.
    pub fn of(command: &mut Command) -> Self {
        Self(command.output().expect("strata was built with its tests"))
    }

    /// Runs a command and waits until it ends. Kills it and panics if it takes longer than `limit`.
    #[track_caller]
    pub fn within(limit: Duration, command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let start = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if start.elapsed() > limit {
                child.kill().unwrap();
                panic!("not done after {limit:?}: {:?}", Self::ended(child.wait_with_output().unwrap()));
            }
            thread::park_timeout(Duration::from_millis(10));
        }
        Self::ended(child.wait_with_output().unwrap())
    }

    /// Returns the result of a command that has ended.
    pub fn ended(output: Output) -> Self {
        Self(output)
    }

    /// Panics with the output of the command unless its exit code is `code`.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.0.status.code(), Some(code), "{}{}", self.stdout(), self.stderr());
        self
    }

    /// Panics unless the exit code is `code` and stderr, apart from progress (`INFO`), is one line that contains all of `words`.
    #[track_caller]
    pub fn expect_one_line(self, code: i32, words: &[&str]) -> Self {
        let run = self.expect_code(code);
        let stderr = run.stderr();
        let complaints: Vec<&str> = stderr.lines().filter(|line| !line.trim_start().starts_with("INFO ")).collect();
        let [complaint] = complaints[..] else { panic!("not one line: {stderr}") };
        assert!(complaint.starts_with("strata: ") && !complaint.contains(char::is_control), "{stderr}");
        assert!(complaint.chars().count() < 1500, "{stderr}");
        for word in words {
            assert!(complaint.contains(word), "'{word}' is not in: {stderr}");
        }
        run
    }

    /// Returns the exit code; `None` if a signal ended the command.
    pub fn exit_code(&self) -> Option<i32> {
        self.0.status.code()
    }

    /// Returns the standard output.
    pub fn stdout(&self) -> String {
        String::from_utf8(self.0.stdout.clone()).unwrap()
    }

    /// Returns the standard error.
    pub fn stderr(&self) -> String {
        String::from_utf8(self.0.stderr.clone()).unwrap()
    }

    /// Returns the standard output of a command with `--json`.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout()).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A published tree as clients see it: entries by path relative to its root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree(BTreeMap<Vec<u8>, Entry>);

impl Tree {
    /// Returns the entry at a path.
    #[track_caller]
    pub fn get(&self, path: impl AsRef<[u8]>) -> &Entry {
        let path = path.as_ref();
        self.0.get(path).unwrap_or_else(|| panic!("nothing at '{}' in {:?}", path.escape_ascii(), self.paths()))
    }

    /// Returns whether there is an entry at a path.
    pub fn has(&self, path: impl AsRef<[u8]>) -> bool {
        self.0.contains_key(path.as_ref())
    }

    /// Returns the content of a regular file, as text.
    #[track_caller]
    pub fn text(&self, path: impl AsRef<[u8]>) -> String {
        let path = path.as_ref();
        match &self.get(path).content {
            Some(strict::Content::Whole(bytes)) => String::from_utf8(bytes.clone()).unwrap(),
            other => panic!("'{}' has no short content: {other:?}", path.escape_ascii()),
        }
    }

    /// Returns the target of a symbolic link, as text.
    #[track_caller]
    pub fn target(&self, path: impl AsRef<[u8]>) -> String {
        let target = self.get(path).target.clone();
        String::from_utf8(target.expect("a symbolic link")).unwrap()
    }

    /// Returns all paths, in order. The root is the empty path. Non-printable bytes are escaped.
    pub fn paths(&self) -> Vec<String> {
        self.0.keys().map(|path| path.escape_ascii().to_string()).collect()
    }

    /// Returns all entries, by path.
    pub fn entries(&self) -> &BTreeMap<Vec<u8>, Entry> {
        &self.0
    }
}

/// The files and directories below a directory, with their permissions; for files, also the content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files(BTreeMap<PathBuf, SavedFile>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct SavedFile {
    mode: u32,
    content: Option<Vec<u8>>,
}

impl Files {
    /// Reads a directory.
    pub fn read(directory: &Path) -> Self {
        let mut files = BTreeMap::new();
        let mut directories = vec![directory.to_owned()];
        while let Some(at) = directories.pop() {
            for entry in fs::read_dir(&at).unwrap() {
                let entry = entry.unwrap();
                let (path, metadata) = (entry.path(), entry.metadata().unwrap());
                let content = metadata.is_file().then(|| fs::read(&path).unwrap());
                let below = path.strip_prefix(directory).unwrap().to_owned();
                files.insert(below, SavedFile { mode: metadata.permissions().mode(), content });
                if metadata.is_dir() {
                    directories.push(path);
                }
            }
        }
        Self(files)
    }

    /// Returns the paths whose files or directories differ, or that only one of the two has.
    pub fn differences(&self, other: &Self) -> Vec<PathBuf> {
        let paths = self.0.keys().chain(other.0.keys().filter(|path| !self.0.contains_key(*path)));
        paths.filter(|path| self.0.get(*path) != other.0.get(*path)).cloned().collect()
    }

    /// Returns the content of every file, by path.
    pub fn contents(&self) -> impl Iterator<Item = (&Path, &[u8])> {
        self.0.iter().filter_map(|(path, file)| Some((path.as_path(), file.content.as_deref()?)))
    }

    fn restore(&self, directory: &Path) {
        fs::create_dir(directory).unwrap();
        for (path, file) in &self.0 {
            let path = directory.join(path);
            match &file.content {
                None => fs::create_dir(&path).unwrap(),
                Some(content) => fs::write(&path, content).unwrap(),
            }
            fs::set_permissions(&path, fs::Permissions::from_mode(file.mode)).unwrap();
        }
    }
}

/// Returns the losses in `losses.json`: number and paths, by kind.
pub fn losses_of(json: &Value) -> BTreeMap<String, (u64, Vec<String>)> {
    let paths = |value: &Value| -> Vec<String> { serde_json::from_value(value["paths"].clone()).unwrap() };
    let kinds = json.as_object().unwrap().iter();
    kinds.map(|(kind, value)| (kind.clone(), (value["count"].as_u64().unwrap(), paths(value)))).collect()
}

/// Returns the path of the root file system of an image.
pub fn flat_path(image: &TestImage) -> String {
    path_of_digest(".flat", &image.config_digest())
}

/// Returns the path of a layer of an image; the lowest layer has number 0.
pub fn layer_path(image: &TestImage, number: usize) -> String {
    format!("{}/layerfs", path_of_digest(".layers", &image.layer_digests()[number]))
}

/// Returns the path of the chain of the lowest `length` layers of an image.
pub fn chain_path(image: &TestImage, length: usize) -> String {
    let chain = image.diff_ids()[..length].iter().cloned().reduce(|below, diff_id| {
        let digest = Sha256::digest(format!("{below} {diff_id}"));
        let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("sha256:{digits}")
    });
    path_of_digest(".chains", &chain.expect("a chain has a layer"))
}

fn path_of_digest(top: &str, digest: &str) -> String {
    let digits = digest.strip_prefix("sha256:").expect("all digests are of one kind");
    format!("{top}/{}/{digits}", &digits[..2])
}
