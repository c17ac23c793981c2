//! Answers the requests of the kernel's FUSE driver.
//!
//! Opening a directory or a file sends no request (`FUSE_NO_OPEN_SUPPORT`, `FUSE_NO_OPENDIR_SUPPORT`). The kernel caches
//! everything that it has read for an inode number, including directory listings, until it is notified of a change.
//! Therefore a request is needed only for data that was never read.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Generation, INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags,
    ReplyAttr, ReplyData, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};

use super::links::LinkTargets;
use super::mountable::MountableTree;
use super::view::{AnswerError, View};
use crate::catalog::CatalogEntry;
use crate::message::causes;
use crate::metadata::Metadata;
use crate::repository::NamedRow;

/// Implements the FUSE operations on a view.
#[derive(Debug)]
pub(super) struct Filesystem<S: MountableTree> {
    pub(super) view: Arc<View<S>>,
    pub(super) links: LinkTargets,
    /// Notified when the file system is unmounted.
    pub(super) end: Sender<()>,
}

/// Time for which the kernel may cache attributes and names. The kernel is notified of every change, so this limit matters
/// only if a notification is lost.
const CACHE_LIFETIME: Duration = Duration::from_secs(60 * 60);

impl<S: MountableTree> Filesystem<S> {
    /// Writes the entries of a directory into a reply. `offset` is the position after the last entry that the kernel has: 1
    /// and 2 are the positions after `.` and `..`, and larger values come from the view.
    fn list_into(&self, number: u64, offset: u64, reply: &mut ReplyDirectoryPlus) -> Result<(), AnswerError> {
        let (listing, start) = self.view.listing(number, offset)?;
        let mut nodes = self.view.nodes();
        let parent = nodes.parent(number).unwrap_or(number);
        let attributes = |number, entry: &_| self.attributes(number, entry);
        for (index, own, name) in [(0, number, "."), (1, parent, "..")] {
            let row = nodes.row(own).ok_or(AnswerError::Missing)?;
            let attributes = attributes(own, &row.entry);
            if offset <= index && reply.add(INodeNo(own), index + 1, name, &CACHE_LIFETIME, &attributes, Generation(0))
            {
                return Ok(());
            }
        }
        for (index, NamedRow { name, row }) in listing.rows.iter().enumerate().skip(start) {
            let Some(found) = nodes.add(number, &listing.directory, name, row) else {
                // The directory changed at this moment. A reply without entries would mean the end of the list, so the list
                // continues with the new entries.
                let is_empty = index == start && offset >= 2;
                drop(nodes);
                return if is_empty { self.list_into(number, offset, reply) } else { Ok(()) };
            };
            let attributes = attributes(found.number, &found.entry);
            let (number, next) = (INodeNo(found.number), listing.offset_after(index));
            if reply.add(number, next, OsStr::from_bytes(name), &CACHE_LIFETIME, &attributes, Generation(0)) {
                // The entry did not fit into the reply, so the kernel did not receive its number.
                nodes.remove_if_unused(found.number);
                return Ok(());
            }
            nodes.count_lookup(found.number);
        }
        Ok(())
    }

    fn attributes(&self, number: u64, entry: &CatalogEntry) -> FileAttr {
        let kind = kind(entry);
        let size = match kind {
            FileType::RegularFile | FileType::Directory => entry.size.max(0).cast_unsigned(),
            FileType::Symlink => self.links.target(entry).len() as u64,
            _ => 0,
        };
        let time = time(entry);
        FileAttr {
            ino: INodeNo(number),
            size,
            // `st_blocks` counts units of 512 bytes, regardless of the block size (stat(2)).
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm: (entry.mode & 0o7777) as u16,
            nlink: entry.link_count,
            uid: entry.uid,
            gid: entry.gid,
            // FUSE has 32 bits for it: 12 for the major and 20 for the minor number.
            rdev: entry.device_number(),
            blksize: 4096,
            flags: 0,
        }
    }

    /// Returns the error number for the kernel. Also reports the error, unless it only means that a path does not exist or
    /// is not a directory.
    fn refuse(&self, number: u64, error: &AnswerError) -> Errno {
        if !matches!(error, AnswerError::Missing | AnswerError::NotADirectory) {
            self.view.reporter.error(format_args!("cannot read {}: {}", self.view.nodes().path(number), causes(error)));
        }
        error.number()
    }
}

impl AnswerError {
    fn number(&self) -> Errno {
        match self {
            Self::Missing => Errno::ENOENT,
            Self::NotADirectory => Errno::ENOTDIR,
            Self::Repository(_) | Self::Content(_) | Self::NoContent(_) => Errno::EIO,
        }
    }
}

fn kind(entry: &CatalogEntry) -> FileType {
    match entry.mode & 0o170_000 {
        0o040_000 => FileType::Directory,
        0o120_000 => FileType::Symlink,
        0o020_000 => FileType::CharDevice,
        0o060_000 => FileType::BlockDevice,
        0o010_000 => FileType::NamedPipe,
        0o140_000 => FileType::Socket,
        _ => FileType::RegularFile,
    }
}

fn time(entry: &CatalogEntry) -> SystemTime {
    let whole = Duration::from_secs(entry.mtime.unsigned_abs());
    let second = match entry.mtime < 0 {
        true => SystemTime::UNIX_EPOCH.checked_sub(whole),
        false => SystemTime::UNIX_EPOCH.checked_add(whole),
    };
    let nanoseconds = Duration::from_nanos(entry.mtime_nanoseconds.unwrap_or(0).into());
    second.and_then(|second| second.checked_add(nanoseconds)).unwrap_or(SystemTime::UNIX_EPOCH)
}

impl<S: MountableTree> fuser::Filesystem for Filesystem<S> {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // All of these are optional: an older kernel works without them.
        for capability in [
            // A listing contains the attributes of its entries, which `ls -l` would otherwise request one by one.
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_NO_OPEN_SUPPORT,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            // Otherwise the kernel sends only one lookup or listing of a directory at a time.
            InitFlags::FUSE_PARALLEL_DIROPS,
            // A link keeps its target as long as it keeps its inode number.
            InitFlags::FUSE_CACHE_SYMLINKS,
        ] {
            config.add_capabilities(capability).ok();
        }
        if let Err(max) = config.set_max_readahead(MAX_READ_AHEAD) {
            config.set_max_readahead(max).ok();
        }
        Ok(())
    }

    fn destroy(&mut self) {
        // Fails only if nothing waits for the end of the mount any more.
        self.end.send(()).ok();
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name.len() > MAX_NAME_LENGTH as usize {
            return reply.error(Errno::ENAMETOOLONG);
        }
        let _no_change = self.view.block_changes();
        match self.view.find(parent.0, name.as_bytes()) {
            Ok(Some(found)) => {
                // Inode numbers are not reused, so all have the same generation.
                reply.entry(&CACHE_LIFETIME, &self.attributes(found.number, &found.entry), Generation(0));
            }
            Ok(None) => {
                // Inode number 0 lets the kernel cache that the name does not exist.
                let nothing = CatalogEntry::of_symlink(&Metadata::of_implied_directory(), b"");
                reply.entry(&CACHE_LIFETIME, &self.attributes(0, &nothing), Generation(0));
            }
            Err(error) => reply.error(self.refuse(parent.0, &error)),
        }
    }

    fn forget(&self, _request: &Request, number: INodeNo, times: u64) {
        self.view.nodes().forget(number.0, times);
    }

    fn getattr(&self, _request: &Request, number: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        let _no_change = self.view.block_changes();
        match self.view.entry(number.0) {
            Ok(entry) => reply.attr(&CACHE_LIFETIME, &self.attributes(number.0, &entry)),
            Err(error) => reply.error(self.refuse(number.0, &error)),
        }
    }

    fn readlink(&self, _request: &Request, number: INodeNo, reply: ReplyData) {
        match self.view.entry(number.0) {
            Ok(entry) if entry.is_symlink() => reply.data(&self.links.target(&entry)),
            Ok(_) => reply.error(Errno::EINVAL),
            Err(error) => reply.error(self.refuse(number.0, &error)),
        }
    }

    fn open(&self, _request: &Request, _number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // With this answer, the kernel sends no further `open` requests (`FUSE_NO_OPEN_SUPPORT`).
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.view.read_content(number.0, offset, size) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(self.refuse(number.0, &error)),
        }
    }

    fn flush(&self, _request: &Request, _number: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        // The file system is read-only. `ENOSYS` stops further flush requests.
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _request: &Request, _number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // With this answer, the kernel sends no further `opendir` requests (`FUSE_NO_OPENDIR_SUPPORT`).
        reply.error(Errno::ENOSYS);
    }

    fn readdirplus(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let _no_change = self.view.block_changes();
        match self.list_into(number.0, offset, &mut reply) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(self.refuse(number.0, &error)),
        }
    }

    fn statfs(&self, _request: &Request, _number: INodeNo, reply: ReplyStatfs) {
        let blocks = self.view.totals.bytes.div_ceil(u64::from(BLOCK_SIZE));
        // overlayfs takes its maximum name length from its layers. Where all report 0, as the CVMFS client does,
        // every lookup fails.
        reply.statfs(blocks, 0, 0, self.view.totals.entries, 0, BLOCK_SIZE, MAX_NAME_LENGTH, BLOCK_SIZE);
    }

    fn getxattr(&self, _request: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let xattrs = match self.view.entry(number.0) {
            Ok(entry) => entry.xattrs(),
            Err(error) => return reply.error(self.refuse(number.0, &error)),
        };
        match xattrs.as_ref().and_then(|xattrs| xattrs.get(name.as_bytes())) {
            Some(value) => reply_xattr(value, size, reply),
            // Not reported: overlayfs asks each directory for its marks, which few directories have.
            None => reply.error(Errno::NO_XATTR),
        }
    }

    fn listxattr(&self, _request: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        match self.view.entry(number.0) {
            Ok(entry) => {
                let xattrs = entry.xattrs().unwrap_or_default();
                let names: Vec<u8> = xattrs.keys().flat_map(|name| [name, &b"\0"[..]].concat()).collect();
                reply_xattr(&names, size, reply);
            }
            Err(error) => reply.error(self.refuse(number.0, &error)),
        }
    }
}

fn reply_xattr(value: &[u8], size: u32, reply: ReplyXattr) {
    match size {
        // With size 0, a program asks for the size of the value (getxattr(2)).
        0 => reply.size(u32::try_from(value.len()).expect("a value or all names of an entry are below 100 KiB")),
        size if value.len() > size as usize => reply.error(Errno::ERANGE),
        _ => reply.data(value),
    }
}

/// Maximum number of bytes that the kernel reads ahead.
const MAX_READ_AHEAD: u32 = 1 << 20;

/// Maximum length of a file name in bytes.
const MAX_NAME_LENGTH: u32 = 255;

/// Block size in bytes, the unit in which `statfs` reports the total size.
const BLOCK_SIZE: u32 = 4096;
