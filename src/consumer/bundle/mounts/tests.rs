use std::collections::BTreeSet;

use super::*;

/// A root file system of directories, files (without a slash at the end) and links to directories (`from->to`).
struct Sketch(BTreeSet<&'static str>);

impl Sketch {
    fn new(entries: &[&'static str]) -> Self {
        Self(entries.iter().copied().collect())
    }

    fn followed(&self, path: &[u8]) -> String {
        let path = std::str::from_utf8(path).unwrap().trim_start_matches('/');
        for link in &self.0 {
            if let Some((from, to)) = link.split_once("->")
                && let Some(rest) = path.strip_prefix(from)
            {
                return format!("{to}{rest}");
            }
        }
        path.to_owned()
    }

    fn below(&self, directory: &str) -> Vec<&str> {
        let prefix = format!("{directory}/");
        self.0.iter().filter_map(|entry| entry.strip_prefix(&prefix)).filter(|rest| !rest.is_empty()).collect()
    }
}

impl Root for Sketch {
    fn directory(&self, path: &[u8]) -> Result<Option<EntryPath>, RepositoryError> {
        let path = self.followed(path);
        let is_there = path.is_empty() || self.0.contains(format!("{path}/").as_str());
        Ok(is_there.then(|| EntryPath::normalise(path.as_bytes()).unwrap()))
    }

    fn file(&self, path: &[u8]) -> Result<Option<EntryPath>, RepositoryError> {
        let path = self.followed(path);
        Ok(self.0.contains(path.as_str()).then(|| EntryPath::normalise(path.as_bytes()).unwrap()))
    }

    fn has(&self, path: &[u8]) -> Result<bool, RepositoryError> {
        Ok(self.directory(path)?.is_some() || self.file(path)?.is_some())
    }

    fn holds(&self, directory: &EntryPath) -> Result<DirectoryContent, RepositoryError> {
        let below = self.below(std::str::from_utf8(directory.as_bytes()).unwrap());
        Ok(match below.iter().all(|entry| entry.ends_with('/') && entry.matches('/').count() == 1) {
            _ if below.is_empty() => DirectoryContent::Nothing,
            true => DirectoryContent::EmptyDirectories,
            false => DirectoryContent::Something,
        })
    }

    fn read(&self, _: &[u8]) -> Result<Vec<u8>, RepositoryError> {
        Ok(Vec::new())
    }
}

/// Entries of every root file system that strata publishes.
const USUAL: [&str; 6] = ["proc/", "dev/", "sys/", "tmp/", "etc/", "etc/hosts"];

fn plan(entries: &[&'static str], options: &BundleOptions) -> Mounts {
    Mounts::plan(&Sketch::new(&[&USUAL, entries].concat()), options).unwrap()
}

fn rootless() -> BundleOptions {
    BundleOptions { rootless: Some((1000, 1000)), ..BundleOptions::default() }
}

fn find<'m>(mounts: &'m Mounts, target: &str) -> Option<&'m Mount> {
    mounts.mounts.iter().find(|mount| mount.target == target)
}

fn targets(mounts: &Mounts) -> Vec<&str> {
    mounts.mounts.iter().map(|mount| mount.target.as_str()).collect()
}

#[test]
fn missing_directories_have_no_mount() {
    let system = ["/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup"];
    let mounts = plan(&[], &BundleOptions::default());
    assert_eq!(targets(&mounts), [&system[..], &["/tmp"]].concat());
    assert!(mounts.warnings.is_empty());
    let bare = Mounts::plan(&Sketch::new(&["proc/", "data/sys/", "sys->data/sys", "dev"]), &rootless()).unwrap();
    assert_eq!(targets(&bare), ["/proc"]);
    assert_eq!(bare.warnings.len(), 2);
    assert!(bare.warnings[1].contains("'/sys'"), "{:?}", bare.warnings);
}

#[test]
fn writable_directories_keep_their_content_if_owners_can_be_preserved() {
    let options = |mounts: &Mounts, target| find(mounts, target).unwrap().options.join(",");
    for (entries, as_root, by_user, warnings) in [
        (&["run/"][..], "", "", 0),
        (&["run/", "run/lock/"], ",tmpcopyup", "", 0),
        (&["run/", "run/lock/", "run/lock/file"], ",tmpcopyup", "", 1),
    ] {
        let mounts = plan(entries, &BundleOptions::default());
        assert_eq!(options(&mounts, "/run"), format!("nosuid,nodev,mode=755{as_root}"));
        assert!(mounts.warnings.is_empty());
        let mounts = plan(entries, &rootless());
        assert_eq!(options(&mounts, "/run"), format!("nosuid,nodev,mode=755{by_user}"));
        assert_eq!(mounts.warnings.len(), warnings, "{entries:?}");
    }
    let linked = plan(&["var/", "var/run/", "run->var/run"], &BundleOptions::default());
    assert!(find(&linked, "/var/run").is_some() && find(&linked, "/run").is_none());
    let odd = Mounts::plan(&Sketch::new(&["tmp->dev/shm", "dev/", "dev/shm/", "run->"]), &BundleOptions::default());
    assert!(targets(&odd.unwrap()).iter().all(|target| target.starts_with("/dev")));
}

#[test]
fn network_files_are_mounted_only_with_the_network_of_the_host() {
    let shared = BundleOptions { host_network: true, ..BundleOptions::default() };
    for (options, is_there) in [(BundleOptions::default(), false), (shared, true), (rootless(), true)] {
        let mounts = plan(&[], &options);
        assert_eq!(find(&mounts, "/etc/hosts").is_some(), is_there && Path::new("/etc/hosts").is_file());
        assert!(find(&mounts, "/etc/resolv.conf").is_none(), "the image has no such file");
    }
}

#[test]
fn working_directory_is_that_of_the_image_or_in_memory_or_the_root() {
    let entries = ["app/", "home/", "srv/", "srv/x", "opt->srv", "file", "mnt->home"];
    for (wanted, directory, memory) in [
        ("", "/", None),
        ("/", "/", None),
        ("app", "/app", None),
        ("//app/./x/..", "/app", None),
        ("/../app", "/app", None),
        ("/opt", "/opt", None),
        ("/tmp/a/b", "/tmp/a/b", None),
        ("/dev/shm/x", "/dev/shm/x", None),
        ("/home/user/work", "/home/user/work", Some("/home")),
        ("/mnt/user", "/home/user", Some("/home")),
        ("/srv/none", "/", None),
        ("/none", "/", None),
        ("/file", "/", None),
        ("/file/x", "/", None),
        ("/proc/none", "/", None),
        ("/home/a\0b", "/", None),
        ("/tmp/a\0b", "/", None),
    ] {
        let root = Sketch::new(&[&USUAL[..], &entries].concat());
        let mut mounts = Mounts::plan(&root, &BundleOptions::default()).unwrap();
        let before = mounts.mounts.len();
        assert_eq!(mounts.start_in(&root, wanted).unwrap(), directory, "{wanted:?}");
        assert_eq!(mounts.mounts[before..].first().map(|mount| mount.target.as_str()), memory, "{wanted:?}");
        let is_as_wanted = memory.is_none() && (directory != "/" || matches!(wanted, "" | "/"));
        assert_eq!(mounts.warnings.is_empty(), is_as_wanted, "{wanted:?}: {:?}", mounts.warnings);
    }
}
