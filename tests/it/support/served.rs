//! A repository that is served over HTTP, and read by its URL.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use super::fuse::Mount;
use super::server::Server;
use super::{FQRN, Reply, Request, Run, TestRepository, strata_command};

/// How a command reads a repository.
#[derive(Debug, Clone, Copy)]
pub enum Access {
    Directory,
    Url,
}

/// A repository that is mounted by its directory or by its URL.
pub struct Mountable<'r> {
    repository: &'r TestRepository,
    /// `None` if it is mounted by its directory.
    served: Option<Served>,
}

impl Access {
    /// Returns a repository for mounts of this kind, served if they need its URL.
    pub fn to(self, repository: &TestRepository) -> Mountable<'_> {
        let served = match self {
            Self::Directory => None,
            Self::Url => Some(Served::of(repository)),
        };
        Mountable { repository, served }
    }
}

impl Mountable<'_> {
    /// Mounts the repository.
    pub fn start(&self, options: &[&str]) -> Mount {
        match &self.served {
            None => Mount::start(self.repository, options),
            Some(served) => served.mount(options),
        }
    }

    /// Mounts the repository on `directory`.
    pub fn start_on(&self, directory: PathBuf, options: &[&str]) -> Mount {
        match &self.served {
            None => Mount::start_on(self.repository, directory, options),
            Some(served) => served.mount_on(directory, options),
        }
    }

    /// Returns a command on the repository.
    pub fn command(&self, arguments: &[&str]) -> Command {
        match &self.served {
            None => self.repository.command(arguments),
            Some(served) => served.command_at(&served.url(), arguments),
        }
    }
}

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
        self.mount_on(self.mount_point(), options)
    }

    /// Does the same on `directory`.
    pub fn mount_on(&self, directory: PathBuf, options: &[&str]) -> Mount {
        // The directory may exist as the mount point of a killed process, in which case this fails.
        fs::create_dir_all(&directory).ok();
        fs::create_dir_all(&self.beside).unwrap();
        Mount::of(self.mount_command_on(&directory, options), directory, self.beside.join("mount.log"))
    }

    /// Returns the command that mounts the repository.
    pub fn mount_command(&self, options: &[&str]) -> Command {
        self.mount_command_on(&self.mount_point(), options)
    }

    fn mount_point(&self) -> PathBuf {
        self.beside.join("mount")
    }

    fn mount_command_on(&self, directory: &Path, options: &[&str]) -> Command {
        let cache = self.beside.join("cache");
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
