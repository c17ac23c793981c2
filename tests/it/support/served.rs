//! A repository that is served over HTTP, and read by its URL.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};

use super::fuse::Mount;
use super::server::Server;
use super::{FQRN, Reply, Request, Run, TestRepository, strata_command};

/// Changes the reply to a request for a file with this name relative to the storage.
type Change = Box<dyn Fn(&Request, &str, Reply) -> Reply + Send + Sync>;

/// A web server with the storage of a repository.
pub struct Served {
    server: Server,
    key: PathBuf,
    /// Directory for the mount, its log and its cache.
    beside: PathBuf,
    change: Arc<Mutex<Change>>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Served {
    /// Serves the storage of a repository.
    pub fn of(repository: &TestRepository) -> Self {
        let (storage, requests): (PathBuf, Arc<Mutex<Vec<String>>>) = (repository.storage(), Arc::default());
        let change: Arc<Mutex<Change>> = Arc::new(Mutex::new(Box::new(|_, _, reply| reply)));
        let (changed, seen) = (Arc::clone(&change), Arc::clone(&requests));
        let server = Server::http(move |request| {
            let prefix = format!("/cvmfs/{FQRN}/");
            let Some(name) = request.path.strip_prefix(&prefix) else { return Reply::status(404) };
            seen.lock().unwrap().push(format!("{} {name}", request.method));
            let reply = match fs::read(storage.join(name)) {
                Ok(bytes) => Reply::status(200).body(|body| *body = bytes),
                Err(_) => Reply::status(404),
            };
            changed.lock().unwrap()(request, name, reply)
        });
        let key = repository.directory().join("keys").join(format!("{FQRN}.pub"));
        Self { server, key, beside: repository.beside("served"), change, requests }
    }

    /// Changes the replies from now on.
    pub fn change(&self, change: impl Fn(&Request, &str, Reply) -> Reply + Send + Sync + 'static) {
        *self.change.lock().unwrap() = Box::new(change);
    }

    /// Returns the methods and names of the requests since the last call.
    pub fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }

    /// Returns the URL of the repository.
    pub fn url(&self) -> String {
        format!("http://{}/cvmfs/{FQRN}", self.server.host())
    }

    /// Returns a command on the repository at these URLs, with its public key.
    pub fn command_at<A: AsRef<OsStr>>(&self, urls: &str, arguments: impl IntoIterator<Item = A>) -> Command {
        let repository: [OsString; 4] = ["--repo".into(), urls.into(), "--public-key".into(), self.key.clone().into()];
        let arguments = arguments.into_iter().map(|argument| argument.as_ref().to_owned());
        strata_command(repository.into_iter().chain(arguments))
    }

    /// Runs a command on the repository by its URL.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Run {
        Run::of(&mut self.command_at(&self.url(), arguments))
    }

    /// Mounts the repository by its URL, with a cache that the next mount uses again.
    pub fn mount(&self, options: &[&str]) -> Mount {
        let directory = self.beside.join("mount");
        fs::create_dir_all(&directory).unwrap();
        Mount::of(self.mount_command(options), directory, self.beside.join("mount.log"))
    }

    /// Returns the command that mounts the repository.
    pub fn mount_command(&self, options: &[&str]) -> Command {
        let [directory, cache] = ["mount", "cache"].map(|name| self.beside.join(name));
        let mount = ["mount".as_ref(), directory.as_os_str(), "--cache".as_ref(), cache.as_os_str()];
        let mut command = self.command_at(&self.url(), mount);
        command.args(options);
        command
    }

    /// Returns the directory with the kept objects.
    pub fn cache(&self) -> PathBuf {
        self.beside.join("cache").join(FQRN)
    }
}
