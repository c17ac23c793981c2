//! Writes archives member by member, in every form that programs use, and generates them.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

/// A dialect of tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    V7,
    Ustar,
    /// ustar with a version that is not "00".
    OldUstar,
    Star,
    Gnu,
}

/// A number in a header.
#[derive(Debug, Clone)]
pub enum Number {
    Octal(u64),
    Spaces(u64),
    Base256(i64),
    Text(&'static str),
}

impl Number {
    fn field(&self, length: usize) -> Vec<u8> {
        match self {
            Self::Octal(value) => format!("{value:0width$o}\0", width = length - 1).into_bytes(),
            Self::Spaces(value) => format!("{value:>width$o} ", width = length - 1).into_bytes(),
            Self::Base256(value) => {
                let mut field = i128::from(*value).to_be_bytes()[16 - length..].to_vec();
                field[0] |= 0x80;
                field
            }
            Self::Text(text) => text.as_bytes().to_vec(),
        }
    }
}

/// An extension header.
#[derive(Debug, Clone)]
pub enum Extension {
    LongPath(Vec<u8>),
    LongLink(Vec<u8>),
    Pax(Vec<(Vec<u8>, Vec<u8>)>),
    Global(Vec<(Vec<u8>, Vec<u8>)>),
}

/// A form of sparse file.
#[derive(Debug, Clone, Copy)]
pub enum SparseForm {
    OldGnu,
    Pax00,
    Pax01,
    Pax10,
}

/// Where the data of a sparse file are: lengths of a hole and of the data after it, in turn, and of the hole at the end.
#[derive(Debug, Clone)]
pub struct Sparse {
    pub form: SparseForm,
    pub parts: Vec<(u64, u64)>,
    pub last_hole: u64,
}

impl Sparse {
    /// Returns offset and length of each segment.
    fn segments(&self) -> Vec<(u64, u64)> {
        let mut position = 0;
        let segment = |&(hole, data): &(u64, u64)| {
            let offset = position + hole;
            position = offset + data;
            (offset, data)
        };
        self.parts.iter().map(segment).collect()
    }

    fn size(&self) -> u64 {
        self.parts.iter().map(|(hole, data)| hole + data).sum::<u64>() + self.last_hole
    }

    fn stored(&self) -> u64 {
        self.parts.iter().map(|(_, data)| data).sum()
    }
}

/// A member of an archive.
#[derive(Debug, Clone)]
pub struct Member {
    pub flag: u8,
    pub dialect: Dialect,
    pub path: Vec<u8>,
    pub prefix: Vec<u8>,
    pub link: Vec<u8>,
    pub mode: Number,
    pub uid: Number,
    pub gid: Number,
    pub mtime: Number,
    pub device: [Number; 2],
    pub content: Vec<u8>,
    /// The size in the header, if it is not that of the content.
    pub size: Option<Number>,
    pub extensions: Vec<Extension>,
    pub sparse: Option<Sparse>,
}

impl Member {
    /// Returns a ustar member of mode 0644 without content.
    pub fn new(flag: u8, path: impl Into<Vec<u8>>) -> Self {
        let zero = || Number::Octal(0);
        Self {
            flag,
            dialect: Dialect::Ustar,
            path: path.into(),
            prefix: Vec::new(),
            link: Vec::new(),
            mode: Number::Octal(0o644),
            uid: zero(),
            gid: zero(),
            mtime: zero(),
            device: [zero(), zero()],
            content: Vec::new(),
            size: None,
            extensions: Vec::new(),
            sparse: None,
        }
    }

    pub fn content(self, content: impl Into<Vec<u8>>) -> Self {
        Self { content: content.into(), ..self }
    }

    pub fn link(self, target: &str) -> Self {
        Self { link: target.into(), ..self }
    }

    pub fn dialect(self, dialect: Dialect) -> Self {
        Self { dialect, ..self }
    }

    pub fn extension(mut self, extension: Extension) -> Self {
        self.extensions.push(extension);
        self
    }

    pub fn pax(self, records: &[(&str, &str)]) -> Self {
        let bytes = |(key, value): &(&str, &str)| (key.as_bytes().to_vec(), value.as_bytes().to_vec());
        self.extension(Extension::Pax(records.iter().map(bytes).collect()))
    }

    pub fn sparse(self, form: SparseForm, parts: &[(u64, u64)], last_hole: u64) -> Self {
        Self { sparse: Some(Sparse { form, parts: parts.to_vec(), last_hole }), ..self }
    }

    fn write(&self, archive: &mut Vec<u8>) {
        let mut member = self.clone();
        let (mut fields, mut before) = (Vec::new(), Vec::new());
        if let Some(sparse) = &self.sparse {
            member.become_sparse(sparse, &mut fields, &mut before);
        }
        for extension in &member.extensions {
            extension.write(archive);
        }
        archive.extend(member.header(&fields));
        archive.extend(before);
        archive.extend(&member.content);
        pad(archive);
    }

    /// Changes a file to a sparse one. Adds `fields` to the header, and writes blocks that follow it to `after`.
    fn become_sparse(&mut self, sparse: &Sparse, fields: &mut Vec<(usize, Vec<u8>)>, after: &mut Vec<u8>) {
        let segments = sparse.segments();
        self.content = self.content.iter().copied().cycle().take(sparse.stored() as usize).collect();
        self.content.resize(sparse.stored() as usize, b'x');
        let record = |key: &str, value: String| (format!("GNU.sparse.{key}").into_bytes(), value.into_bytes());
        let mut records = match sparse.form {
            SparseForm::OldGnu => {
                (self.flag, self.dialect) = (b'S', Dialect::Gnu);
                self.size = Some(Number::Octal(sparse.stored()));
                *fields = old_map(sparse, &segments, after);
                return;
            }
            SparseForm::Pax10 => {
                vec![
                    record("major", "1".into()),
                    record("minor", "0".into()),
                    record("realsize", sparse.size().to_string()),
                ]
            }
            SparseForm::Pax00 | SparseForm::Pax01 => vec![record("size", sparse.size().to_string())],
        };
        let numbers = segments.iter().flat_map(|&(offset, length)| [offset, length]).map(|number| number.to_string());
        match sparse.form {
            SparseForm::Pax00 => {
                let pair = |&(offset, length): &(u64, u64)| {
                    [record("offset", offset.to_string()), record("numbytes", length.to_string())]
                };
                records.extend(segments.iter().flat_map(pair));
            }
            SparseForm::Pax01 => records.push(record("map", numbers.collect::<Vec<_>>().join(","))),
            SparseForm::Pax10 | SparseForm::OldGnu => {
                let lines: String = [segments.len().to_string()].into_iter().chain(numbers).map(|n| n + "\n").collect();
                let mut map = lines.into_bytes();
                pad(&mut map);
                self.content.splice(0..0, map);
            }
        }
        match self.extensions.iter_mut().rev().find_map(|extension| match extension {
            Extension::Pax(records) => Some(records),
            _ => None,
        }) {
            Some(others) => others.extend(records),
            None => self.extensions.push(Extension::Pax(records)),
        }
    }

    fn header(&self, fields: &[(usize, Vec<u8>)]) -> [u8; 512] {
        let mut block = [0; 512];
        let mut put = |offset: usize, bytes: &[u8]| block[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(0, cut(&self.path, 100));
        put(100, &self.mode.field(8));
        put(108, &self.uid.field(8));
        put(116, &self.gid.field(8));
        put(124, &self.size.clone().unwrap_or(Number::Octal(self.content.len() as u64)).field(12));
        put(136, &self.mtime.field(12));
        put(156, &[self.flag]);
        put(157, cut(&self.link, 100));
        match self.dialect {
            Dialect::V7 => {}
            Dialect::Ustar => put(257, b"ustar\x0000"),
            Dialect::OldUstar => put(257, b"ustar\x00x\0"),
            Dialect::Star => {
                put(257, b"ustar\x0000");
                put(508, b"tar\0");
            }
            Dialect::Gnu => put(257, b"ustar  \0"),
        }
        if matches!(self.flag, b'3' | b'4') {
            put(329, &self.device[0].field(8));
            put(337, &self.device[1].field(8));
        }
        put(345, cut(&self.prefix, 131));
        for (offset, bytes) in fields {
            put(*offset, bytes);
        }
        with_checksum(block)
    }
}

impl Extension {
    fn write(&self, archive: &mut Vec<u8>) {
        let text = |text: &[u8]| [text, b"\0"].concat();
        let (flag, content) = match self {
            Self::LongPath(path) => (b'L', text(path)),
            Self::LongLink(target) => (b'K', text(target)),
            Self::Pax(records) => (b'x', records.iter().flat_map(|(key, value)| record(key, value)).collect()),
            Self::Global(records) => (b'g', records.iter().flat_map(|(key, value)| record(key, value)).collect()),
        };
        Member::new(flag, "extension").content(content).write(archive);
    }
}

/// Returns the fields of an old GNU header with a map, and writes the rest of the map to `after`.
fn old_map(sparse: &Sparse, segments: &[(u64, u64)], after: &mut Vec<u8>) -> Vec<(usize, Vec<u8>)> {
    let table = |segments: &[(u64, u64)]| -> Vec<u8> {
        let row = |&(offset, length): &(u64, u64)| [Number::Octal(offset).field(12), Number::Octal(length).field(12)];
        segments.iter().flat_map(row).flatten().collect()
    };
    let (first, rest) = segments.split_at(segments.len().min(4));
    let blocks = rest.chunks(21).count();
    for (number, segments) in rest.chunks(21).enumerate() {
        let start = after.len();
        after.extend(table(segments));
        after.resize(start + 504, 0);
        after.extend([u8::from(number + 1 < blocks), 0, 0, 0, 0, 0, 0, 0]);
    }
    vec![(386, table(first)), (482, vec![u8::from(blocks > 0)]), (483, Number::Octal(sparse.size()).field(12))]
}

fn cut(bytes: &[u8], length: usize) -> &[u8] {
    &bytes[..bytes.len().min(length)]
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(512), 0);
}

fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = [b" ", key, b"=", value, b"\n"].concat();
    let mut length = rest.len() + 1;
    while length != rest.len() + length.to_string().len() {
        length = rest.len() + length.to_string().len();
    }
    [length.to_string().into_bytes(), rest].concat()
}

/// Returns a header block with the right checksum.
pub fn with_checksum(mut block: [u8; 512]) -> [u8; 512] {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// Returns an archive of these members, with the blocks of zeros at its end.
pub fn archive(members: &[Member]) -> Vec<u8> {
    let mut archive = Vec::new();
    members.iter().for_each(|member| member.write(&mut archive));
    archive.resize(archive.len() + 1024, 0);
    archive
}

/// Generates members of every type and form. Some of them are invalid.
pub fn any_member() -> impl Strategy<Value = Member> {
    let flag = select(b"00000000\0\x007\x31\x31\x31\x32\x32\x333455556s9".to_vec());
    let dialect = select(vec![
        Dialect::Ustar,
        Dialect::Ustar,
        Dialect::Gnu,
        Dialect::Gnu,
        Dialect::V7,
        Dialect::OldUstar,
        Dialect::Star,
    ]);
    let names = (any_path(), option::weighted(0.1, any_path()), any_path());
    let numbers = (any_number(0o7777), any_number(0o7_777_777), any_number(0o7_777_777), any_number(1 << 33));
    let devices = [any_number(4096), any_number(1 << 20)];
    let content = (vec(any::<u8>(), 0..1200), option::weighted(0.08, any_number(700)));
    let more = (vec(any_extension(), 0..3), option::weighted(0.25, any_sparse()));
    (flag, dialect, names, numbers, devices, content, more).prop_map(
        |(flag, dialect, names, numbers, device, (content, size), (extensions, sparse))| {
            let is_file = matches!(flag, b'0' | 0 | b'7');
            let has_content = is_file || matches!(flag, b's' | b'9');
            Member {
                flag,
                dialect,
                path: names.0,
                prefix: names.1.unwrap_or_default(),
                link: names.2,
                mode: numbers.0,
                uid: numbers.1,
                gid: numbers.2,
                mtime: numbers.3,
                device,
                content: if has_content { content } else { Vec::new() },
                // The size of a link counts in no reader; that of a file would have to be right.
                size: size.filter(|_| !has_content),
                extensions,
                sparse: sparse.filter(|_| is_file),
            }
        },
    )
}

fn any_number(max: u64) -> impl Strategy<Value = Number> {
    prop_oneof![
        20 => (0..max).prop_map(Number::Octal),
        3 => (0..max).prop_map(Number::Spaces),
        3 => (0..(max as i64) << 8).prop_map(Number::Base256),
        1 => (-5..0_i64).prop_map(Number::Base256),
        1 => select(vec!["", "   \0", "12\0junk", "7 \0", "\0 17"]).prop_map(Number::Text),
    ]
}

fn any_name() -> impl Strategy<Value = String> {
    prop_oneof![
        12 => "[ab]{1,2}",
        1 => select(vec![".wh.a", ".wh.b", ".wh..wh..opq", ".wh..wh.plnk", ".wh..wh.orph", ".wh..a"]).prop_map(str::to_owned),
        1 => select(vec!["..", ".", "", "\u{e9}", "a b"]).prop_map(str::to_owned),
        1 => "[ab]{90,120}",
    ]
}

fn any_path() -> impl Strategy<Value = Vec<u8>> {
    (select(vec!["", "", "", "./", "/"]), vec(any_name(), 1..4), select(vec!["", "", "", "", "/"]))
        .prop_map(|(start, names, end)| format!("{start}{}{end}", names.join("/")).into_bytes())
}

fn any_extension() -> impl Strategy<Value = Extension> {
    prop_oneof![
        3 => any_path().prop_map(Extension::LongPath),
        3 => any_path().prop_map(Extension::LongLink),
        8 => vec(any_record(), 0..6).prop_map(Extension::Pax),
        1 => vec(any_record(), 0..3).prop_map(Extension::Global),
    ]
}

fn any_record() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let time = select(vec!["1", "0.5", "-1.25", "1600000000.123456789", "-0.0000000001", "7.", "1.9999999999", ""]);
    let id = select(vec!["0", "1000", "4294967294", "70000", ""]);
    let key = |key: &'static str| move |value: Vec<u8>| (key.as_bytes().to_vec(), value);
    let text = |value: &'static str| value.as_bytes().to_vec();
    let value = || prop_oneof![6 => vec(any::<u8>(), 0..20), 1 => vec(any::<u8>(), 250..260)];
    prop_oneof![
        4 => any_path().prop_map(key("path")),
        4 => any_path().prop_map(key("linkpath")),
        3 => time.prop_map(text).prop_map(key("mtime")),
        2 => id.clone().prop_map(text).prop_map(key("uid")),
        2 => id.prop_map(text).prop_map(key("gid")),
        1 => select(vec!["0", "5", "600"]).prop_map(text).prop_map(key("size")),
        1 => select(vec!["0", "8", "4095"]).prop_map(text).prop_map(key("SCHILY.devmajor")),
        1 => select(vec!["0", "1", "1048575"]).prop_map(text).prop_map(key("SCHILY.devminor")),
        1 => select(vec!["", "user::rwx"]).prop_map(text).prop_map(key("SCHILY.acl.access")),
        1 => select(vec!["a", ""]).prop_map(text).prop_map(key("comment")),
        4 => (any_xattr(), value()).prop_map(|(name, value)| ([b"SCHILY.xattr.", &name[..]].concat(), value)),
        2 => (any_xattr(), select(vec!["aGkh", "AA==", "AA", "aGk=", ""])).prop_map(|(name, value)| {
            ([b"LIBARCHIVE.xattr.", &name[..]].concat(), value.as_bytes().to_vec())
        }),
    ]
}

fn any_xattr() -> impl Strategy<Value = Vec<u8>> {
    let name = select(vec![
        "user.a",
        "user.a",
        "user.b",
        "security.capability",
        "user.hash",
        "user.host_list",
        "user.nothing",
        "xfsroot.rawlink",
        "user.a~1",
        "trusted.overlay.opaque",
        "user.overlay.",
        "overlay.",
        "user.containers.override_stat",
        "user.containers.other",
        "user.fuseoverlayfs.origin",
        "user.c%3Dd%2",
        "",
    ]);
    name.prop_map(|name| name.as_bytes().to_vec())
}

fn any_sparse() -> impl Strategy<Value = Sparse> {
    let form = select(vec![SparseForm::OldGnu, SparseForm::Pax00, SparseForm::Pax01, SparseForm::Pax10]);
    let length = || prop_oneof![2 => Just(0_u64), 6 => 1..900_u64, 1 => 1..0x4000_0000_u64];
    let parts = prop_oneof![8 => vec((length(), 0..600_u64), 0..6), 1 => vec((length(), 0..9_u64), 20..60)];
    (form, parts, length()).prop_map(|(form, parts, last_hole)| Sparse { form, parts, last_hole })
}
