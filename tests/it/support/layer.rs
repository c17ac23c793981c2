//! Builds layers: real tar streams, including unusual headers.

use std::io::Write as _;

use flate2::GzBuilder;
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// Default modification time of entries.
///
/// Differs from the time of directories without an entry (1970), so that a test can distinguish the two.
const DEFAULT_MTIME: i64 = 1_500_000_000;

/// Largest number that fits into the seven octal digits of owner and group.
const LARGEST_OCTAL_ID: u32 = 0o7777777;

/// Compression of a layer's tar stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    Plain,
    Gzip,
    Zstd,
}

/// Types of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    Character,
    Block,
}

/// A layer under construction. Entries are written in the order of the calls; setters change the entry that was added last.
#[derive(Debug, Clone)]
pub struct TestLayer {
    members: Vec<Member>,
    compression: Compression,
    blob: Option<(String, Vec<u8>)>,
}

#[derive(Debug, Clone)]
enum Member {
    Entry(Box<Entry>),
    /// A header with its data, padded to whole blocks.
    Raw(Box<Header>, Vec<u8>),
    /// Bytes that are written unchanged.
    Bytes(Vec<u8>),
}

#[derive(Debug, Clone)]
struct Entry {
    path: Vec<u8>,
    kind: EntryType,
    content: Vec<u8>,
    target: Vec<u8>,
    device: (u32, u32),
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, u32),
    /// Names and values of additional PAX records.
    records: Vec<(Vec<u8>, Vec<u8>)>,
}

impl TestLayer {
    /// Creates a layer without entries, compressed with gzip.
    pub fn new() -> Self {
        Self { members: Vec::new(), compression: Compression::Gzip, blob: None }
    }

    /// Adds a regular file, mode 0644.
    pub fn file(self, path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Self {
        self.entry(path, EntryType::Regular, 0o644, |entry| entry.content = content.as_ref().to_vec())
    }

    /// Adds a directory, mode 0755.
    pub fn dir(self, path: impl AsRef<[u8]>) -> Self {
        let path = [path.as_ref(), b"/"].concat();
        self.entry(path, EntryType::Directory, 0o755, |_| {})
    }

    /// Adds a symbolic link.
    pub fn symlink(self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.entry(path, EntryType::Symlink, 0o777, |entry| entry.target = target.as_ref().to_vec())
    }

    /// Adds a hard link to `target`, a path of the image.
    pub fn hardlink(self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.entry(path, EntryType::Link, 0o644, |entry| entry.target = target.as_ref().to_vec())
    }

    /// Adds a device, mode 0666.
    pub fn device(self, path: impl AsRef<[u8]>, kind: DeviceKind, major: u32, minor: u32) -> Self {
        let kind = match kind {
            DeviceKind::Character => EntryType::Char,
            DeviceKind::Block => EntryType::Block,
        };
        self.entry(path, kind, 0o666, |entry| entry.device = (major, minor))
    }

    /// Adds a named pipe, mode 0600.
    pub fn fifo(self, path: impl AsRef<[u8]>) -> Self {
        self.entry(path, EntryType::Fifo, 0o600, |_| {})
    }

    /// Adds a whiteout, which hides a path of lower layers.
    pub fn whiteout(self, path: impl AsRef<[u8]>) -> Self {
        let path = path.as_ref();
        let name = path.iter().rposition(|&b| b == b'/').map_or(0, |slash| slash + 1);
        self.file([&path[..name], b".wh.", &path[name..]].concat(), "")
    }

    /// Adds an opaque marker, which hides everything that lower layers have in a directory.
    pub fn opaque(self, directory: impl AsRef<[u8]>) -> Self {
        self.file([directory.as_ref(), b"/.wh..wh..opq"].concat(), "")
    }

    /// Sets the permissions of the last entry.
    pub fn mode(self, mode: u32) -> Self {
        self.change(|entry| entry.mode = mode)
    }

    /// Sets the owner and group of the last entry.
    pub fn owner(self, uid: u32, gid: u32) -> Self {
        self.change(|entry| entry.owner = (uid, gid))
    }

    /// Sets the time of the last entry, in seconds and nanoseconds; seconds may be negative.
    pub fn mtime(self, seconds: i64, nanoseconds: u32) -> Self {
        self.change(|entry| entry.mtime = (seconds, nanoseconds))
    }

    /// Adds an extended attribute to the last entry.
    pub fn xattr(self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.record([b"SCHILY.xattr.", name.as_ref()].concat(), value)
    }

    /// Adds any PAX record to the last entry.
    pub fn record(self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.change(|entry| entry.records.push((name.as_ref().to_vec(), value.as_ref().to_vec())))
    }

    /// Adds a header without changing it, and data padded to whole blocks. Checksum and size may be wrong.
    pub fn raw_entry(mut self, header: Header, data: impl AsRef<[u8]>) -> Self {
        self.members.push(Member::Raw(Box::new(header), data.as_ref().to_vec()));
        self
    }

    /// Adds bytes to the tar stream without changing them.
    pub fn raw_bytes(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.members.push(Member::Bytes(bytes.as_ref().to_vec()));
        self
    }

    /// Sets the compression of the layer.
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// Sets the blob's media type and its bytes, which must be the layer's tar stream in some unusual compression.
    pub fn blob(mut self, media_type: &str, bytes: impl AsRef<[u8]>) -> Self {
        self.blob = Some((media_type.to_owned(), bytes.as_ref().to_vec()));
        self
    }

    /// Returns the tar stream.
    pub fn tar(&self) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for member in &self.members {
            match member {
                Member::Entry(entry) => entry.write(&mut builder),
                Member::Raw(header, data) => append(&mut builder, header, data),
                Member::Bytes(bytes) => builder.get_mut().write_all(bytes).expect("writing to memory cannot fail"),
            }
        }
        builder.into_inner().expect("writing to memory cannot fail")
    }

    /// Returns the media type in an OCI manifest, and the bytes of the blob.
    pub(super) fn packed(&self) -> (String, Vec<u8>) {
        if let Some(blob) = &self.blob {
            return blob.clone();
        }
        let tar = self.tar();
        let (suffix, bytes) = match self.compression {
            Compression::Plain => ("", tar),
            Compression::Gzip => {
                let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), flate2::Compression::default());
                encoder.write_all(&tar).expect("writing to memory cannot fail");
                ("+gzip", encoder.finish().expect("writing to memory cannot fail"))
            }
            Compression::Zstd => ("+zstd", zstd::encode_all(tar.as_slice(), 3).expect("writing to memory cannot fail")),
        };
        (format!("application/vnd.oci.image.layer.v1.tar{suffix}"), bytes)
    }

    /// Returns the digest of the tar stream.
    pub fn diff_id(&self) -> String {
        digest(&self.tar())
    }

    fn entry(mut self, path: impl AsRef<[u8]>, kind: EntryType, mode: u32, fill: impl FnOnce(&mut Entry)) -> Self {
        let (path, mtime) = (path.as_ref().to_vec(), (DEFAULT_MTIME, 0));
        let (content, target, records, device, owner) = Default::default();
        let mut entry = Entry { path, kind, content, target, device, mode, owner, mtime, records };
        fill(&mut entry);
        self.members.push(Member::Entry(Box::new(entry)));
        self
    }

    fn change(mut self, edit: impl FnOnce(&mut Entry)) -> Self {
        match self.members.last_mut() {
            Some(Member::Entry(entry)) => edit(entry),
            _ => panic!("this setter must follow an entry"),
        }
        self
    }
}

impl Entry {
    fn write(&self, builder: &mut Builder<Vec<u8>>) {
        let records = self.all_records();
        if !records.is_empty() {
            let body: Vec<u8> = records.iter().flat_map(|(name, value)| pax_record(name, value)).collect();
            let mut header = Header::new_ustar();
            header.set_entry_type(EntryType::XHeader);
            header.set_size(body.len() as u64);
            header.set_mode(0o644);
            header.as_old_mut().name[..10].copy_from_slice(b"PaxHeaders");
            header.set_cksum();
            append(builder, &header, &body);
        }
        append(builder, &self.header(), &self.content);
    }

    /// Returns the PAX records: the additional ones, and those for values that do not fit into the header.
    fn all_records(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut records = Vec::new();
        let mut add = |name: &str, value: Vec<u8>| records.push((name.as_bytes().to_vec(), value));
        if self.path.len() > 100 {
            add("path", self.path.clone());
        }
        if self.target.len() > 100 {
            add("linkpath", self.target.clone());
        }
        for (name, id) in [("uid", self.owner.0), ("gid", self.owner.1)] {
            if id > LARGEST_OCTAL_ID {
                add(name, id.to_string().into_bytes());
            }
        }
        if self.mtime.1 != 0 || u32::try_from(self.mtime.0).is_err() {
            add("mtime", pax_time(self.mtime).into_bytes());
        }
        records.extend(self.records.iter().cloned());
        records
    }

    fn header(&self) -> Header {
        let mut header = Header::new_ustar();
        header.set_entry_type(self.kind);
        header.set_size(self.content.len() as u64);
        header.set_mode(self.mode);
        header.set_uid(self.owner.0.min(LARGEST_OCTAL_ID).into());
        header.set_gid(self.owner.1.min(LARGEST_OCTAL_ID).into());
        header.set_mtime(u32::try_from(self.mtime.0).unwrap_or(0).into());
        if matches!(self.kind, EntryType::Char | EntryType::Block) {
            header.set_device_major(self.device.0).expect("the header has room for device numbers");
            header.set_device_minor(self.device.1).expect("the header has room for device numbers");
        }
        fill(&mut header.as_old_mut().name, &self.path);
        fill(&mut header.as_old_mut().linkname, &self.target);
        header.set_cksum();
        header
    }
}

fn fill(field: &mut [u8; 100], bytes: &[u8]) {
    let length = bytes.len().min(field.len());
    field[..length].copy_from_slice(&bytes[..length]);
}

fn append(builder: &mut Builder<Vec<u8>>, header: &Header, data: &[u8]) {
    builder.append(header, data).expect("writing to memory cannot fail");
}

/// Returns a record, `length name=value`. The length includes its own digits.
fn pax_record(name: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = name.len() + value.len() + b" =\n".len();
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length += 1;
    }
    [length.to_string().as_bytes(), b" ", name, b"=", value, b"\n"].concat()
}

/// Returns a time in the format of PAX. Times before 1970 are negative numbers: -0.5 is half a second before 1970.
fn pax_time((seconds, nanoseconds): (i64, u32)) -> String {
    let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    let (sign, total) = (if total < 0 { "-" } else { "" }, total.unsigned_abs());
    format!("{sign}{}.{:09}", total / 1_000_000_000, total % 1_000_000_000)
}

/// Returns the digest of bytes in its text form.
pub(super) fn digest(bytes: &[u8]) -> String {
    let digits: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}
