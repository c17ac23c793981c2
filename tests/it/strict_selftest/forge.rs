//! Writes a small but complete repository without strata, with planted faults.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use flate2::Compression;
use flate2::write::ZlibEncoder;
use md5::{Digest as _, Md5};
use rsa::pkcs8::DecodePrivateKey as _;
use rsa::{Pkcs1v15Sign, PrivateKey};
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, MAIN_DB, params};
use sha1::Sha1;
use tempfile::TempDir;
use x509_cert::der::Document;

use crate::strict::hex;

/// The name of the repository.
pub const FQRN: &str = "strict.example.org";

/// The public half of the master key, which clients know.
pub const PUBLIC_KEY: &str = include_str!("../../../src/manifest/testdata/test.example.org.pub");
const MASTER_KEY: &str = include_str!("../../../src/manifest/testdata/test.example.org.masterkey");
const REPOSITORY_KEY: &str = include_str!("../../../src/manifest/testdata/test.example.org.key");
const CERTIFICATE: &str = include_str!("../../../src/manifest/testdata/test.example.org.crt");

const CATALOG_SCHEMA: &str = "
    CREATE TABLE catalog (md5path_1 INTEGER, md5path_2 INTEGER, parent_1 INTEGER, parent_2 INTEGER, hardlinks INTEGER,
        hash BLOB, size INTEGER, mode INTEGER, mtime INTEGER, mtimens INTEGER, flags INTEGER, name TEXT, symlink TEXT,
        uid INTEGER, gid INTEGER, xattr BLOB, CONSTRAINT pk_catalog PRIMARY KEY (md5path_1, md5path_2));
    CREATE INDEX idx_catalog_parent ON catalog (parent_1, parent_2);
    CREATE TABLE chunks (md5path_1 INTEGER, md5path_2 INTEGER, offset INTEGER, size INTEGER, hash BLOB,
        PRIMARY KEY (md5path_1, md5path_2, offset, size));
    CREATE TABLE nested_catalogs (path TEXT PRIMARY KEY, sha1 TEXT, size INTEGER);
    CREATE TABLE bind_mountpoints (path TEXT PRIMARY KEY, sha1 TEXT, size INTEGER);
    CREATE TABLE statistics (counter TEXT PRIMARY KEY, value INTEGER);
    CREATE TABLE properties (key TEXT PRIMARY KEY, value TEXT);
    INSERT INTO properties VALUES ('schema', '2.5'), ('schema_revision', '7'), ('last_modified', '1700000000');
    INSERT INTO statistics SELECT prefix || counter, 0 FROM
        (SELECT 'self_' AS prefix UNION SELECT 'subtree_'),
        (SELECT 'regular' AS counter UNION SELECT 'symlink' UNION SELECT 'special' UNION SELECT 'dir' UNION
         SELECT 'nested' UNION SELECT 'chunked' UNION SELECT 'chunks' UNION SELECT 'file_size' UNION
         SELECT 'chunked_size' UNION SELECT 'xattr' UNION SELECT 'external' UNION SELECT 'external_file_size');";

const HISTORY_SCHEMA: &str = "
    CREATE TABLE branches (branch TEXT, parent TEXT, initial_revision INTEGER, PRIMARY KEY (branch));
    CREATE TABLE tags (name TEXT, hash TEXT, revision INTEGER, timestamp INTEGER, channel INTEGER, description TEXT,
        size INTEGER, branch TEXT, PRIMARY KEY (name));
    CREATE TABLE recycle_bin (hash TEXT, flags INTEGER, PRIMARY KEY (hash));
    CREATE TABLE properties (key TEXT PRIMARY KEY, value TEXT);
    INSERT INTO branches VALUES ('', NULL, 0);
    INSERT INTO properties VALUES ('schema', '1.0'), ('schema_revision', '3'), ('fqrn', 'strict.example.org'),
        ('previous_revision', '0000000000000000000000000000000000000000');";

const REFLOG_SCHEMA: &str = "
    CREATE TABLE refs (hash TEXT, type INTEGER, timestamp INTEGER, PRIMARY KEY (hash));
    CREATE TABLE properties (key TEXT PRIMARY KEY, value TEXT);
    INSERT INTO properties VALUES ('schema', '1.0'), ('schema_revision', '0'), ('fqrn', 'strict.example.org');";

/// A repository under construction. Faults are SQL that runs before a database is stored, and edits of stored bytes.
pub struct Forge {
    directory: TempDir,
    root: String,
    nested: String,
    history: String,
    reflog: String,
    root_bytes: fn(&mut [u8]),
    zstd: &'static str,
    manifest: Box<dyn Fn(String) -> String>,
}

/// A finished repository.
pub struct Forged {
    directory: TempDir,
}

/// A row to be inserted. By default it has the attributes of an ordinary empty directory.
struct Planned<'p> {
    path: &'p [u8],
    mode: i64,
    flags: i64,
    content: Option<&'p str>,
    size: i64,
    links: (i64, i64),
    target: &'p [u8],
    owner: (i64, i64),
    xattr: Option<&'p [u8]>,
}

impl Default for Planned<'_> {
    fn default() -> Self {
        Self {
            path: b"",
            mode: 0o040755,
            flags: 1,
            content: None,
            size: 4096,
            links: (0, 2),
            target: b"",
            owner: (0, 0),
            xattr: None,
        }
    }
}

impl Planned<'_> {
    fn insert(&self, catalog: &Connection) {
        let slash = self.path.iter().rposition(|&b| b == b'/');
        let (md5path_1, md5path_2) = halves(self.path);
        let (parent_1, parent_2) = slash.map_or((0, 0), |slash| halves(&self.path[..slash]));
        let name = slash.map_or(&b""[..], |slash| &self.path[slash + 1..]);
        let text = |bytes| ToSqlOutput::Borrowed(ValueRef::Text(bytes));
        let stored = self.content.map(|content| {
            if self.flags & 0x800 != 0 { content.as_bytes().to_vec() } else { deflate(content.as_bytes()) }
        });
        let hash = stored.map(|stored| Sha1::digest(stored).to_vec());
        let (group, linkcount) = self.links;
        catalog
            .execute(
                "INSERT INTO catalog VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 1600000000, 5, ?9, ?10, ?11, ?12, ?13, ?14)",
                params![
                    md5path_1,
                    md5path_2,
                    parent_1,
                    parent_2,
                    group << 32 | linkcount,
                    hash,
                    self.size,
                    self.mode,
                    self.flags,
                    text(name),
                    text(self.target),
                    self.owner.0,
                    self.owner.1,
                    self.xattr
                ],
            )
            .unwrap();
    }
}

impl Forge {
    /// Creates a repository without faults.
    pub fn new() -> Self {
        let (root, nested, history, reflog) = Default::default();
        let directory = tempfile::tempdir().unwrap();
        Self { directory, root, nested, history, reflog, root_bytes: |_| {}, zstd: "", manifest: Box::new(|text| text) }
    }

    /// Changes the root catalog.
    pub fn root(mut self, sql: &str) -> Self {
        self.root.push_str(sql);
        self
    }

    /// Changes the root catalog's file once it is complete.
    pub fn root_bytes(mut self, edit: fn(&mut [u8])) -> Self {
        self.root_bytes = edit;
        self
    }

    /// Compresses all objects of these kinds with zstd instead of zlib. Each kind is the letter at the end of the names.
    pub fn compress_with_zstd(mut self, kinds: &'static str) -> Self {
        self.zstd = kinds;
        self
    }

    /// Changes the nested catalog.
    pub fn nested(mut self, sql: &str) -> Self {
        self.nested.push_str(sql);
        self
    }

    /// Changes the tag database.
    pub fn history(mut self, sql: &str) -> Self {
        self.history.push_str(sql);
        self
    }

    /// Changes the log of references.
    pub fn reflog(mut self, sql: &str) -> Self {
        self.reflog.push_str(sql);
        self
    }

    /// Changes the fields of the manifest before they are hashed.
    pub fn manifest(mut self, edit: impl Fn(String) -> String + 'static) -> Self {
        self.manifest = Box::new(edit);
        self
    }

    /// Writes the repository.
    pub fn build(self) -> Forged {
        for name in (0..=255).map(|byte| format!("{byte:02x}")).chain(["txn".to_owned()]) {
            fs::create_dir_all(self.path().join("data").join(name)).unwrap();
        }
        for (content, suffix) in [("root\n", ""), ("", ""), ("twin\n", ""), ("odd", ""), ("012345", "P"), ("6789", "P")]
        {
            self.put(&deflate(content.as_bytes()), suffix);
        }
        self.put(b"raw", "");
        let previous = self.previous_catalog();
        let nested = self.nested_catalog();
        let root = self.root_catalog(&nested, &previous.0);
        let history = self.history_database(&root, &previous);
        let (certificate, meta_info) = (self.put_packed(CERTIFICATE.as_bytes(), "X"), self.put_packed(b"{}\n", "M"));
        let reflog = self.reflog_database(&[&root.0, &previous.0], &certificate, &history, &meta_info);
        let fields = format!(
            "C{}\nB{}\nRd41d8cd98f00b204e9800998ecf8427e\nD240\nS2\nGyes\nAno\nN{FQRN}\nX{certificate}\nH{history}\n\
             T1700000001\nM{meta_info}\nY{reflog}\n",
            root.0, root.1
        );
        let key = private_key(&REPOSITORY, REPOSITORY_KEY);
        self.write_signed(".cvmfspublished", &(self.manifest)(fields), |hash_text| {
            key.sign(Pkcs1v15Sign::new::<Sha1>(), &Sha1::digest(hash_text)).unwrap()
        });
        let pairs: Vec<String> = Sha1::digest(der()).iter().map(|byte| format!("{byte:02X}")).collect();
        let key = private_key(&MASTER, MASTER_KEY);
        self.write_signed(
            ".cvmfswhitelist",
            &format!("20260101000000\nE20990201000000\nN{FQRN}\n{} # ours\n", pairs.join(":")),
            |hash_text| key.sign(Pkcs1v15Sign::new_unprefixed(), hash_text).unwrap(),
        );
        Forged { directory: self.directory }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn put(&self, stored: &[u8], suffix: &str) -> String {
        put(self.path(), stored, suffix)
    }

    fn put_packed(&self, content: &[u8], suffix: &str) -> String {
        match self.zstd.contains(suffix) {
            true => self.put(&zstd(content), suffix),
            false => self.put(&deflate(content), suffix),
        }
    }

    fn put_catalog(&self, mut catalog: Connection, sql: &str, edit: fn(&mut [u8])) -> (String, usize) {
        catalog.execute_batch(sql).unwrap();
        let mut bytes = catalog.serialize(MAIN_DB).unwrap().to_vec();
        edit(&mut bytes);
        (self.put_packed(&bytes, "C"), bytes.len())
    }

    fn previous_catalog(&self) -> (String, usize) {
        let catalog = database(CATALOG_SCHEMA);
        Planned::default().insert(&catalog);
        let sql = "INSERT INTO properties VALUES ('revision', '1');
            UPDATE statistics SET value = 1 WHERE counter = 'self_dir';";
        self.put_catalog(catalog, sql, |_| {})
    }

    fn nested_catalog(&self) -> (String, usize) {
        let catalog = database(CATALOG_SCHEMA);
        let nested = Planned { path: b"/nested", links: (0, 3), owner: (7, 8), ..Planned::default() };
        Planned { flags: 33, xattr: Some(b"\x01\x01\x06\x01user.ab"), ..nested }.insert(&catalog);
        let file = |path, flags, content: &'static str| Planned {
            path,
            mode: 0o100644,
            flags,
            content: Some(content),
            size: content.len() as i64,
            links: (0, 1),
            ..Planned::default()
        };
        file(b"/nested/.cvmfscatalog", 0x8004, "").insert(&catalog);
        Planned { path: b"/nested/deep", ..Planned::default() }.insert(&catalog);
        file(b"/nested/deep/\xff", 4, "odd").insert(&catalog);
        let sql = "INSERT INTO properties VALUES ('revision', '2'), ('root_prefix', '/nested');
            UPDATE statistics SET value = 2 WHERE counter IN ('self_regular', 'self_dir');
            UPDATE statistics SET value = 3 WHERE counter = 'self_file_size';
            UPDATE statistics SET value = 1 WHERE counter = 'self_xattr';";
        self.put_catalog(catalog, &format!("{sql}{}", self.nested), |_| {})
    }

    fn root_catalog(&self, nested: &(String, usize), previous: &str) -> (String, usize) {
        let catalog = database(CATALOG_SCHEMA);
        let directory = |path, links| Planned { path, links: (0, links), ..Planned::default() };
        let other = |path, mode, flags, size| Planned { path, mode, flags, size, links: (0, 1), ..Planned::default() };
        let file = |path, content: &'static str| Planned {
            content: Some(content),
            ..other(path, 0o100644, 4, content.len() as i64)
        };
        directory(b"", 4).insert(&catalog);
        directory(b"/etc", 2).insert(&catalog);
        let xattr = Some(b"\x01\x02\x06\x01user.ab\x06\x00user.c".as_slice());
        Planned { owner: (4_000_000_000, 5), xattr, ..file(b"/etc/passwd", "root\n") }.insert(&catalog);
        file(b"/etc/empty", "").insert(&catalog);
        Planned { links: (1, 2), ..file(b"/etc/a", "twin\n") }.insert(&catalog);
        Planned { links: (1, 2), ..file(b"/etc/b", "twin\n") }.insert(&catalog);
        other(b"/big", 0o100644, 68, 10).insert(&catalog);
        Planned { flags: 0x804, ..file(b"/raw", "raw") }.insert(&catalog);
        Planned { target: b"x$(:-$()FOO)y", ..other(b"/link", 0o120777, 12, 13) }.insert(&catalog);
        other(b"/null", 0o020666, 20, 259).insert(&catalog);
        other(b"/pipe", 0o010600, 20, 0).insert(&catalog);
        let xattr = Some(b"\x01\x01\x06\x01user.ab".as_slice());
        Planned { flags: 3, owner: (7, 8), xattr, ..directory(b"/nested", 3) }.insert(&catalog);
        for (offset, content) in [(0, "012345"), (6, "6789")] {
            let (first, second) = halves(b"/big");
            let hash = Sha1::digest(deflate(content.as_bytes())).to_vec();
            let chunk = params![first, second, offset, content.len() as i64, hash];
            catalog.execute("INSERT INTO chunks VALUES (?1, ?2, ?3, ?4, ?5)", chunk).unwrap();
        }
        let sql = format!(
            "INSERT INTO properties VALUES ('revision', '2'), ('TTL', '240'), ('previous_revision', '{previous}');
             INSERT INTO nested_catalogs VALUES ('/nested', '{}', {});
             UPDATE statistics SET value = 1 WHERE counter IN
                 ('self_symlink', 'self_nested', 'self_chunked', 'subtree_xattr');
             UPDATE statistics SET value = 2 WHERE counter IN
                 ('self_special', 'self_chunks', 'self_xattr', 'subtree_regular', 'subtree_dir');
             UPDATE statistics SET value = 3 WHERE counter IN ('self_dir', 'subtree_file_size');
             UPDATE statistics SET value = 6 WHERE counter = 'self_regular';
             UPDATE statistics SET value = 10 WHERE counter = 'self_chunked_size';
             UPDATE statistics SET value = 28 WHERE counter = 'self_file_size';",
            nested.0, nested.1
        );
        self.put_catalog(catalog, &format!("{sql}{}", self.root), self.root_bytes)
    }

    fn history_database(&self, root: &(String, usize), previous: &(String, usize)) -> String {
        let mut history = database(HISTORY_SCHEMA);
        let sql = format!(
            "INSERT INTO tags VALUES ('trunk', '{}', 2, 1700000000, 0, 'current HEAD', {}, ''),
                 ('trunk-previous', '{}', 1, 1700000000, 0, 'default undo target', {}, '');{}",
            root.0, root.1, previous.0, previous.1, self.history
        );
        history.execute_batch(&sql).unwrap();
        self.put_packed(&history.serialize(MAIN_DB).unwrap(), "H")
    }

    fn reflog_database(&self, roots: &[&str], certificate: &str, history: &str, meta_info: &str) -> String {
        let mut reflog = database(REFLOG_SCHEMA);
        let roots = roots.iter().map(|&root| (root, 0));
        for (hash, kind) in roots.chain([(certificate, 1), (history, 2), (meta_info, 3)]) {
            // If no fault changed the root catalog, both revisions have the same hash.
            reflog.execute("INSERT OR IGNORE INTO refs VALUES (?1, ?2, 1700000000)", params![hash, kind]).unwrap();
        }
        reflog.execute_batch(&self.reflog).unwrap();
        let bytes = reflog.serialize(MAIN_DB).unwrap();
        fs::write(self.path().join(".cvmfsreflog"), &*bytes).unwrap();
        hex(&Sha1::digest(&*bytes))
    }

    fn write_signed(&self, name: &str, text: &str, sign: impl Fn(&[u8]) -> Vec<u8>) {
        let hash_text = hex(&Sha1::digest(text));
        let signed = [format!("{text}--\n{hash_text}\n").as_bytes(), &sign(hash_text.as_bytes())].concat();
        fs::write(self.path().join(name), signed).unwrap();
    }
}

impl Forged {
    /// Returns the storage directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Returns the file of the object with this content.
    pub fn object(&self, content: &str, suffix: &str) -> PathBuf {
        let hash = hex(&Sha1::digest(deflate(content.as_bytes())));
        self.path().join(format!("data/{}/{}{suffix}", &hash[..2], &hash[2..]))
    }

    /// Stores an object that nothing refers to and returns its path below the storage directory.
    pub fn put(&self, content: &str) -> String {
        let hash = put(self.path(), &deflate(content.as_bytes()), "");
        format!("data/{}/{}", &hash[..2], &hash[2..])
    }
}

/// Stores an object and returns its hash, without the letter of its kind.
pub fn put(storage: &Path, stored: &[u8], suffix: &str) -> String {
    let hash = hex(&Sha1::digest(stored));
    fs::write(storage.join(format!("data/{}/{}{suffix}", &hash[..2], &hash[2..])), stored).unwrap();
    hash
}

fn database(schema: &str) -> Connection {
    let database = Connection::open_in_memory().unwrap();
    database.execute_batch(schema).unwrap();
    database
}

/// Compresses content in the format of objects.
pub fn deflate(content: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// Compresses content as newer releases of CVMFS may do.
pub fn zstd(content: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(content, 3).unwrap()
}

fn halves(path: &[u8]) -> (i64, i64) {
    let digest: [u8; 16] = Md5::digest(path).into();
    let number = u128::from_le_bytes(digest);
    (number as i64, (number >> 64) as i64)
}

static MASTER: OnceLock<PrivateKey> = OnceLock::new();
static REPOSITORY: OnceLock<PrivateKey> = OnceLock::new();

/// Reads a key once, because parsing and validating it takes longer than the rest of the test.
fn private_key(read: &'static OnceLock<PrivateKey>, pem: &str) -> &'static PrivateKey {
    read.get_or_init(|| PrivateKey::from_pkcs8_pem(pem).unwrap())
}

/// Returns the certificate in its binary form.
fn der() -> Vec<u8> {
    let (_, document) = Document::from_pem(CERTIFICATE).unwrap();
    document.as_bytes().to_vec()
}
