//! A FUSE file system that forwards all operations to a directory, except those that the test makes fail.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::need_fuse;

/// An operation on the file system, with paths relative to its root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// A file is renamed to this path.
    Rename(PathBuf),
    /// A file is opened.
    Open(PathBuf),
    /// The content of a file is synced.
    SyncFile(PathBuf),
    /// A directory is synced.
    SyncDirectory(PathBuf),
}

/// The outcome that a test chooses for an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The operation is done.
    Done,
    /// The operation is not done and fails with `EIO`.
    Refused,
    /// The operation is done, but `EIO` is reported.
    DoneAndDenied,
}

/// The mounted file system. Dropping it unmounts.
pub struct FaultyMount {
    /// Mount point.
    pub path: PathBuf,
    _session: BackgroundSession,
}

impl FaultyMount {
    /// Creates `path` and mounts a file system there whose files are those of `directory`. Where that is not permitted, the test is
    /// skipped.
    #[track_caller]
    pub fn start(
        directory: &Path,
        path: PathBuf,
        fate: impl FnMut(&Operation) -> Fate + Send + 'static,
    ) -> Option<Self> {
        if !need_fuse() {
            return None;
        }
        fs::create_dir(&path).unwrap();
        let nodes = Nodes { paths: HashMap::from([(1, PathBuf::new())]), numbers: HashMap::new(), last: 1 };
        let filesystem = Passing {
            directory: directory.to_owned(),
            nodes: Mutex::new(nodes),
            files: Mutex::default(),
            lists: Mutex::default(),
            fate: Mutex::new(Box::new(fate)),
        };
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("faulty".to_owned())];
        let session = fuser::spawn_mount(filesystem, &path, &config).unwrap();
        Some(Self { path, _session: session })
    }
}

type Decide = Box<dyn FnMut(&Operation) -> Fate + Send>;

struct Passing {
    directory: PathBuf,
    nodes: Mutex<Nodes>,
    files: Mutex<HashMap<u64, File>>,
    lists: Mutex<HashMap<u64, Vec<(OsString, FileType)>>>,
    fate: Mutex<Decide>,
}

/// The inode numbers by which the kernel refers to paths below the root.
struct Nodes {
    paths: HashMap<u64, PathBuf>,
    numbers: HashMap<PathBuf, u64>,
    last: u64,
}

impl Nodes {
    fn number(&mut self, path: PathBuf) -> u64 {
        if let Some(&number) = self.numbers.get(&path) {
            return number;
        }
        self.last += 1;
        self.numbers.insert(path.clone(), self.last);
        self.paths.insert(self.last, path);
        self.last
    }

    /// Changes the paths of `from` and everything below it to paths at and below `to`.
    fn rename(&mut self, from: &Path, to: &Path) {
        self.numbers.remove(to);
        for (number, path) in &mut self.paths {
            if let Ok(below) = path.strip_prefix(from) {
                let moved = if below.as_os_str().is_empty() { to.to_owned() } else { to.join(below) };
                self.numbers.remove(path);
                self.numbers.insert(moved.clone(), *number);
                *path = moved;
            }
        }
    }
}

/// How long the kernel may cache attributes and names: not at all.
const TTL: Duration = Duration::ZERO;

impl Passing {
    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap()
    }

    fn path(&self, number: INodeNo) -> PathBuf {
        self.nodes().paths[&number.0].clone()
    }

    fn below(&self, parent: INodeNo, name: &OsStr) -> PathBuf {
        self.path(parent).join(name)
    }

    fn real(&self, path: &Path) -> PathBuf {
        self.directory.join(path)
    }

    fn attributes(&self, path: &Path) -> io::Result<FileAttr> {
        let metadata = fs::symlink_metadata(self.real(path))?;
        let number = if path.as_os_str().is_empty() { 1 } else { self.nodes().number(path.to_owned()) };
        let time = |seconds: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.max(0).cast_unsigned());
        Ok(FileAttr {
            ino: INodeNo(number),
            size: metadata.size(),
            blocks: metadata.blocks(),
            atime: time(metadata.atime()),
            mtime: metadata.modified()?,
            ctime: time(metadata.ctime()),
            crtime: time(metadata.ctime()),
            kind: kind(&metadata.file_type()),
            perm: (metadata.mode() & 0o7777) as u16,
            nlink: metadata.nlink() as u32,
            uid: metadata.uid(),
            gid: metadata.gid(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn answer(&self, path: &Path, reply: ReplyEntry) {
        match self.attributes(path) {
            Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            Err(error) => reply.error(error.into()),
        }
    }

    /// Performs an operation with the outcome that the test chooses.
    fn act(&self, operation: &Operation, act: impl FnOnce() -> io::Result<()>) -> Result<(), Errno> {
        let fate = (self.fate.lock().unwrap())(operation);
        if fate != Fate::Refused {
            act()?;
        }
        if fate == Fate::Done { Ok(()) } else { Err(Errno::EIO) }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<(OsString, FileType)>> {
        let mut names: Vec<(OsString, FileType)> =
            [".", ".."].map(|name| (OsString::from(name), FileType::Directory)).into();
        for entry in fs::read_dir(self.real(path))? {
            let entry = entry?;
            names.push((entry.file_name(), kind(&entry.file_type()?)));
        }
        Ok(names)
    }

    fn keep(&self, file: File) -> FileHandle {
        let mut files = self.files.lock().unwrap();
        let number = files.keys().max().map_or(1, |last| last + 1);
        files.insert(number, file);
        FileHandle(number)
    }

    fn file(&self, handle: FileHandle) -> io::Result<File> {
        self.files.lock().unwrap()[&handle.0].try_clone()
    }
}

fn kind(kind: &fs::FileType) -> FileType {
    match (kind.is_dir(), kind.is_symlink()) {
        (true, _) => FileType::Directory,
        (_, true) => FileType::Symlink,
        _ => FileType::RegularFile,
    }
}

fn finish(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Passing {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.answer(&self.below(parent, name), reply);
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(&self.path(number)) {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(error) => reply.error(error.into()),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let path = self.path(number);
        let set = || {
            let real = self.real(&path);
            if let Some(mode) = mode {
                fs::set_permissions(&real, fs::Permissions::from_mode(mode & 0o7777))?;
            }
            if let Some(size) = size {
                OpenOptions::new().write(true).open(&real)?.set_len(size)?;
            }
            match mtime {
                Some(TimeOrNow::Now) => File::open(&real)?.set_modified(SystemTime::now())?,
                Some(TimeOrNow::SpecificTime(time)) => File::open(&real)?.set_modified(time)?,
                None => {}
            }
            self.attributes(&path)
        };
        match set() {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(error) => reply.error(error.into()),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        let path = self.below(parent, name);
        match fs::DirBuilder::new().mode(mode).create(self.real(&path)) {
            Ok(()) => self.answer(&path, reply),
            Err(error) => reply.error(error.into()),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        finish(reply, fs::remove_file(self.real(&self.below(parent, name))).map_err(Errno::from));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        finish(reply, fs::remove_dir(self.real(&self.below(parent, name))).map_err(Errno::from));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        // Like many network file systems, this one supports only replacing renames, without flags.
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let (from, to) = (self.below(parent, name), self.below(new_parent, new_name));
        let renamed = self.act(&Operation::Rename(to.clone()), || {
            fs::rename(self.real(&from), self.real(&to))?;
            self.nodes().rename(&from, &to);
            Ok(())
        });
        finish(reply, renamed);
    }

    fn open(&self, _: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let path = self.path(number);
        let mut opened = None;
        let result = self.act(&Operation::Open(path.clone()), || {
            let is_written = flags.0 & 0o3 != 0;
            opened = Some(OpenOptions::new().read(true).write(is_written).open(self.real(&path))?);
            Ok(())
        });
        match (result, opened) {
            (Ok(()), Some(file)) => reply.opened(self.keep(file), FopenFlags::empty()),
            (result, _) => reply.error(result.err().unwrap_or(Errno::EIO)),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut bytes = vec![0; size as usize];
        match self.file(handle).and_then(|file| file.read_at(&mut bytes, offset)) {
            Ok(length) => reply.data(&bytes[..length]),
            Err(error) => reply.error(error.into()),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.file(handle).and_then(|file| file.write_all_at(data, offset)) {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(error.into()),
        }
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, _: i32, reply: ReplyCreate) {
        let path = self.below(parent, name);
        let mut options = OpenOptions::new();
        let created = options.read(true).write(true).create_new(true).mode(mode).open(self.real(&path));
        match created.and_then(|file| Ok((file, self.attributes(&path)?))) {
            Ok((file, attributes)) => {
                reply.created(&TTL, &attributes, Generation(0), self.keep(file), FopenFlags::empty());
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.files.lock().unwrap().remove(&handle.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, number: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        let synced = self.act(&Operation::SyncFile(self.path(number)), || self.file(handle)?.sync_all());
        finish(reply, synced);
    }

    fn fsyncdir(&self, _: &Request, number: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let path = self.path(number);
        let synced = self.act(&Operation::SyncDirectory(path.clone()), || File::open(self.real(&path))?.sync_all());
        finish(reply, synced);
    }

    fn opendir(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let path = self.path(number);
        let mut opened = None;
        let result = self.act(&Operation::Open(path.clone()), || {
            opened = Some(self.list(&path)?);
            Ok(())
        });
        match (result, opened) {
            (Ok(()), Some(names)) => {
                let mut lists = self.lists.lock().unwrap();
                let handle = lists.keys().max().map_or(1, |last| last + 1);
                lists.insert(handle, names);
                reply.opened(FileHandle(handle), FopenFlags::empty());
            }
            (result, _) => reply.error(result.err().unwrap_or(Errno::EIO)),
        }
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        // The list is the one at the time of opening: a program may delete entries while it reads the list.
        for (index, (name, kind)) in self.lists.lock().unwrap()[&handle.0].iter().enumerate().skip(offset as usize) {
            if reply.add(INodeNo(u64::MAX), index as u64 + 1, *kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.lists.lock().unwrap().remove(&handle.0);
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(1 << 30, 1 << 30, 1 << 30, 1 << 30, 1 << 30, 4096, 255, 4096);
    }
}
