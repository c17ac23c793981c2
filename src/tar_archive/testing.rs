//! Builds archives byte by byte, including invalid ones that no program would write.

/// Builder of a header block. Starts as a ustar header with mode 0644.
#[derive(Clone)]
pub(crate) struct Head([u8; 512]);

impl Head {
    pub(crate) fn new(type_flag: u8, path: impl AsRef<[u8]>) -> Self {
        let head = Self([0; 512]).bytes(0, path).number(100, 8, 0o644).number(108, 8, 0).number(116, 8, 0);
        head.number(124, 12, 0).number(136, 12, 0).bytes(156, [type_flag]).bytes(257, b"ustar\x0000")
    }

    pub(crate) fn file(path: impl AsRef<[u8]>) -> Self {
        Self::new(b'0', path)
    }

    /// Changes the dialect to GNU.
    pub(crate) fn gnu(self) -> Self {
        self.bytes(257, b"ustar  \0")
    }

    /// Changes the dialect to V7, which has no magic.
    pub(crate) fn v7(self) -> Self {
        self.bytes(257, [0; 8])
    }

    /// Overwrites the bytes at `offset`.
    pub(crate) fn bytes(mut self, offset: usize, bytes: impl AsRef<[u8]>) -> Self {
        self.0[offset..offset + bytes.as_ref().len()].copy_from_slice(bytes.as_ref());
        self
    }

    /// Writes an octal number to a field of `length` bytes.
    pub(crate) fn number(self, offset: usize, length: usize, value: u64) -> Self {
        self.bytes(offset, format!("{value:0width$o}\0", width = length - 1))
    }

    /// Writes a base-256 number of GNU to a field of `length` bytes.
    pub(crate) fn base_256(self, offset: usize, length: usize, value: i64) -> Self {
        let mut field = i128::from(value).to_be_bytes()[16 - length..].to_vec();
        field[0] |= 0x80;
        self.bytes(offset, field)
    }

    pub(crate) fn size(self, size: u64) -> Self {
        self.number(124, 12, size)
    }

    pub(crate) fn link(self, target: impl AsRef<[u8]>) -> Self {
        self.bytes(157, target)
    }

    /// Returns the block with its checksum.
    pub(crate) fn finish(self) -> [u8; 512] {
        let sum: u32 = self.clone().bytes(148, b"        ").0.iter().map(|&b| u32::from(b)).sum();
        self.bytes(148, format!("{sum:06o}\0 ")).0
    }
}

/// Builder of an archive.
#[derive(Clone, Default)]
pub(crate) struct Tar(pub(crate) Vec<u8>);

impl Tar {
    /// Appends an entry whose header states the size of `content`.
    pub(crate) fn entry(self, head: Head, content: impl AsRef<[u8]>) -> Self {
        let head = head.size(content.as_ref().len() as u64);
        self.raw(head.finish()).content(content)
    }

    /// Appends a header without content, even if the header states a size.
    pub(crate) fn head(self, head: Head) -> Self {
        self.raw(head.finish())
    }

    /// Appends a file.
    pub(crate) fn file(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        self.entry(Head::file(path), content)
    }

    /// Appends a PAX header.
    pub(crate) fn pax(self, records: &[(&str, &str)]) -> Self {
        self.extended(b'x', records)
    }

    /// Appends a PAX header of type `x` or `g`.
    pub(crate) fn extended(self, type_flag: u8, records: &[(&str, &str)]) -> Self {
        let records: String = records.iter().map(|(key, value)| record(key, value)).collect();
        self.entry(Head::new(type_flag, "PaxHeaders/0"), records)
    }

    /// Appends a GNU long name (`L`) or link target (`K`).
    pub(crate) fn long(self, type_flag: u8, text: &str) -> Self {
        self.entry(Head::new(type_flag, "././@LongLink").gnu(), format!("{text}\0"))
    }

    pub(crate) fn content(self, content: impl AsRef<[u8]>) -> Self {
        let mut tar = self.raw(content);
        tar.0.resize(tar.0.len().next_multiple_of(512), 0);
        tar
    }

    pub(crate) fn raw(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.0.extend_from_slice(bytes.as_ref());
        self
    }

    /// Returns the archive with its end marker.
    pub(crate) fn end(self) -> Vec<u8> {
        self.raw([0; 1024]).0
    }
}

fn record(key: &str, value: &str) -> String {
    let rest = format!(" {key}={value}\n");
    let mut length = rest.len();
    while length != rest.len() + length.to_string().len() {
        length = rest.len() + length.to_string().len();
    }
    format!("{length}{rest}")
}
