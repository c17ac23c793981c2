//! Builds the images for measurements, from packages of Debian and PyPI, each once.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;

use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::commands::{UNFINISHED, forget};

/// An OCI layout with the images of one kind.
pub struct Layout(PathBuf);

/// An OCI layout under construction.
struct Draft {
    directory: PathBuf,
    manifests: Mutex<Vec<Value>>,
}

/// A layer in a layout: its values in the manifest and the config.
#[derive(Clone)]
pub struct Layer {
    digest: String,
    size: u64,
    diff_id: String,
}

/// Packages of the reference image, which also gets their dependencies.
const COMPILERS: &str =
    "g++,gfortran,clang-14,llvm-14-dev,libboost-all-dev,qtbase5-dev,cmake,git,libhepmc3-dev,libclhep-dev";
const TEXT: &str =
    "texlive-latex-extra,texlive-fonts-recommended,texlive-science,libreoffice,default-jdk-headless,emacs-nox";
const PYTHON: &[&str] = &[
    "uproot",
    "awkward",
    "coffea",
    "hist",
    "scipy",
    "astropy",
    "jupyterlab",
    "sympy",
    "django",
    "ansible",
    "pandas",
    "scikit-learn",
    "pyarrow",
    "numba",
    "matplotlib",
];
const LIBRARIES: &[&str] = &["nvidia-cublas-cu12", "nvidia-curand-cu12"];
const USER: &[&str] = &["--no-deps", "statsmodels"];

impl Layout {
    /// Returns the name by which strata and umoci find an image of this layout.
    pub fn image(&self, tag: &str) -> String {
        format!("oci:{}:{tag}", self.0.display())
    }

    /// Returns the files of the layers of an image, in order.
    pub fn layers(&self, tag: &str) -> Vec<PathBuf> {
        let manifest: Value = serde_json::from_slice(&self.manifest(tag)).expect("manifests are JSON");
        let layers = manifest["layers"].as_array().expect("a manifest lists layers");
        layers.iter().map(|layer| self.blob(layer["digest"].as_str().expect("digests are text"))).collect()
    }

    /// Returns the manifest of an image.
    pub fn manifest(&self, tag: &str) -> Vec<u8> {
        let index = fs::read(self.0.join("index.json")).expect("layouts are whole");
        let index: Value = serde_json::from_slice(&index).expect("an index is JSON");
        let manifests = index["manifests"].as_array().expect("an index lists manifests");
        let named = |entry: &&Value| entry["annotations"]["org.opencontainers.image.ref.name"] == tag;
        let digest = &manifests.iter().find(named).expect("the image was made")["digest"];
        fs::read(self.blob(digest.as_str().expect("digests are text"))).expect("layouts are whole")
    }

    /// Returns the file of a blob.
    pub fn blob(&self, digest: &str) -> PathBuf {
        blob(&self.0, digest)
    }
}

/// Returns the file of a blob in a layout.
fn blob(directory: &Path, digest: &str) -> PathBuf {
    directory.join("blobs/sha256").join(&digest["sha256:".len()..])
}

/// Creates `hep`, `user` and `rebuild`, unless they exist.
///
/// `hep` has about 7 GB and 160,000 entries in six layers; `user` one more layer of 20 MB; `rebuild` is `hep` with 5 % of
/// its files changed, so that all layers differ.
pub fn hep(directory: &Path) -> Layout {
    make_once(&directory.join("hep"), |layout, scratch| {
        let builders: [&(dyn Fn(&Path) + Sync); 6] = [
            &|tar| mmdebstrap("minbase", "", tar),
            &|tar| mmdebstrap("extract", COMPILERS, tar),
            &|tar| pip(PYTHON, "usr/local/lib/python3.11/dist-packages", tar),
            &|tar| mmdebstrap("extract", TEXT, tar),
            &|tar| pip(LIBRARIES, "opt/cuda", tar),
            &|tar| data(tar),
        ];
        let layers = make_with_rebuild("hep", &builders, layout, scratch);
        let tar = scratch.join("user.tar");
        pip(USER, "home/user/lib", &tar);
        layout.add_image("user", &[layers.as_slice(), &[layout.add_layer_of(&tar)]].concat());
        forget("files that images were made from");
    })
}

/// Creates `base`, a Debian base system, and `rebuild`, the same with 5 % of its files changed, unless they exist.
pub fn base(directory: &Path) -> Layout {
    make_once(&directory.join("base"), |layout, scratch| {
        make_with_rebuild("base", &[&|tar| mmdebstrap("minbase", "", tar)], layout, scratch);
    })
}

/// Creates an image of layers, and the image `rebuild` of changed layers. Returns the layers of the former.
fn make_with_rebuild(tag: &str, builders: &[&(dyn Fn(&Path) + Sync)], layout: &Draft, scratch: &Path) -> Vec<Layer> {
    let tar = |number: usize| scratch.join(format!("{number}.tar"));
    let layers = in_pairs(builders.len(), &|number| {
        builders[number](&tar(number));
        layout.add_layer_of(&tar(number))
    });
    layout.add_image(tag, &layers);
    let rebuilt = in_pairs(builders.len(), &|number| {
        let changed = scratch.join(format!("{number}.rebuilt.tar"));
        change(&tar(number), &changed);
        layout.add_layer_of(&changed)
    });
    layout.add_image("rebuild", &rebuilt);
    layers
}

/// Creates `count` images of one host that share a layer of `shared` small files, and each have a layer of ten files, unless they
/// exist. Their tags are full names.
pub fn synthetic(directory: &Path, name: &str, count: usize, shared: usize) -> Layout {
    make_once(&directory.join(name), |layout, _| {
        let common = layout.add_files("common", shared);
        for number in 0..count {
            let own = layout.add_files(&format!("image-{number}"), 10);
            layout.add_image(&synthetic_name(number), &[common.clone(), own]);
        }
    })
}

/// Returns the name of one of many images.
pub fn synthetic_name(number: usize) -> String {
    format!("bench.example.org/project-{}/image:{number}", number % 100)
}

/// Creates `files`, an image with one layer of `count` small files, unless it exists.
pub fn small_files(directory: &Path, count: usize) -> Layout {
    make_once(&directory.join(format!("files-{count}")), |layout, _| {
        let layer = layout.add_files("many", count);
        layout.add_image("files", &[layer]);
    })
}

/// Runs functions, two at a time, and returns the results in order.
fn in_pairs(count: usize, work: &(dyn Fn(usize) -> Layer + Sync)) -> Vec<Layer> {
    let numbers: Vec<usize> = (0..count).collect();
    let pair = |pair: &[usize]| {
        thread::scope(|scope| {
            let threads: Vec<_> = pair.iter().map(|&number| scope.spawn(move || work(number))).collect();
            threads.into_iter().map(|thread| thread.join().expect("a layer could be made")).collect::<Vec<_>>()
        })
    };
    numbers.chunks(2).flat_map(pair).collect()
}

/// Creates a layout with `fill`, unless a complete one exists.
fn make_once(directory: &Path, fill: impl FnOnce(&Draft, &Path)) -> Layout {
    if !directory.exists() {
        eprintln!("making the images in {} ...", directory.display());
        let unfinished = directory.with_extension(UNFINISHED);
        let layout = Draft { directory: unfinished.join("layout"), manifests: Mutex::default() };
        let scratch = unfinished.join("scratch");
        [layout.directory.join("blobs/sha256"), scratch.clone()].iter().for_each(|directory| {
            fs::create_dir_all(directory).expect("there is room for images");
        });
        fill(&layout, &scratch);
        layout.write("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}));
        let manifests = layout.manifests.into_inner().expect("no thread panics");
        let index = json!({"schemaVersion": 2, "manifests": manifests}).to_string();
        fs::write(layout.directory.join("index.json"), index).expect("there is room for an index");
        fs::rename(&layout.directory, directory).expect("an image can be renamed");
    }
    Layout(directory.to_owned())
}

impl Draft {
    /// Adds a layer from the archive in a file, compressed with gzip.
    fn add_layer_of(&self, tar: &Path) -> Layer {
        self.add_layer(&mut File::open(tar).expect("the archive was made"))
    }

    /// Adds a layer of `count` small files in directories of a hundred, each with its own content.
    fn add_files(&self, name: &str, count: usize) -> Layer {
        let mut archive = tar::Builder::new(Vec::new());
        for number in 0..count {
            let content = format!("{name} {number}\n").repeat(1 + number % 16);
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            header.set_mtime(1_700_000_000);
            let path = format!("opt/{name}/{}/{number}", number / 100);
            archive.append_data(&mut header, path, content.as_bytes()).expect("memory takes everything");
        }
        self.add_layer(&mut io::Cursor::new(archive.into_inner().expect("memory takes everything")))
    }

    /// Adds a layer from an archive, compressed with gzip.
    fn add_layer(&self, tar: &mut dyn Read) -> Layer {
        let scratch = tempfile::NamedTempFile::new_in(&self.directory).expect("there is room for a layer");
        let mut gzip = GzEncoder::new(Hashed::new(BufWriter::new(scratch)), flate2::Compression::default());
        let mut plain = Hashed::new(&mut gzip);
        io::copy(tar, &mut plain).expect("an archive can be compressed");
        let diff_id = plain.digest();
        let blob = gzip.finish().expect("an archive can be compressed");
        let (digest, size) = (blob.digest(), blob.size);
        let scratch = blob.inner.into_inner().expect("there is room for a layer");
        scratch.persist(self.blob(&digest)).expect("a layer can be renamed");
        Layer { digest, size, diff_id }
    }

    /// Adds an image of layers, under a tag.
    fn add_image(&self, tag: &str, layers: &[Layer]) {
        let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        let config = self.add_json(
            "application/vnd.oci.image.config.v1+json",
            &json!({
                "architecture": "amd64",
                "os": "linux",
                "config": {"Cmd": ["/bin/sh"]},
                "rootfs": {"type": "layers", "diff_ids": diff_ids},
            }),
        );
        let layer = |layer: &Layer| {
            json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": layer.digest,
                "size": layer.size,
            })
        };
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let mut manifest = self.add_json(
            media_type,
            &json!({
                "schemaVersion": 2,
                "mediaType": media_type,
                "config": config,
                "layers": layers.iter().map(layer).collect::<Vec<_>>(),
            }),
        );
        manifest["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        self.manifests.lock().expect("no thread panics").push(manifest);
    }

    fn add_json(&self, media_type: &str, document: &Value) -> Value {
        let text = document.to_string();
        let digest = format!("sha256:{}", hex(&Sha256::digest(&text)));
        fs::write(self.blob(&digest), &text).expect("there is room for a document");
        json!({"mediaType": media_type, "digest": digest, "size": text.len()})
    }

    fn blob(&self, digest: &str) -> PathBuf {
        blob(&self.directory, digest)
    }

    fn write(&self, name: &str, document: &Value) {
        fs::write(self.directory.join(name), document.to_string()).expect("there is room for a document");
    }
}

/// A writer that also computes the digest.
struct Hashed<W> {
    inner: W,
    hasher: Sha256,
    size: u64,
}

impl<W> Hashed<W> {
    fn new(inner: W) -> Self {
        Self { inner, hasher: Sha256::new(), size: 0 }
    }

    fn digest(&self) -> String {
        format!("sha256:{}", hex(&self.hasher.clone().finalize()))
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..length]);
        self.size += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes an archive of Debian packages.
fn mmdebstrap(variant: &str, packages: &str, tar: &Path) {
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", &format!("--variant={variant}"), "--include", packages, "bookworm"]).arg(tar);
    run(&mut command);
}

/// Writes an archive of PyPI packages below a directory.
fn pip(packages: &[&str], below: &str, tar: &Path) {
    let root = tempfile::tempdir_in(tar.parent().expect("an archive lies in a directory")).expect("there is room");
    let mut install = Command::new("pip");
    install.args(["install", "--quiet", "--root-user-action=ignore", "--target"]).arg(root.path().join(below));
    run(install.args(packages));
    let mut archive = Command::new("tar");
    archive.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "-C"]).arg(root.path());
    run(archive.arg("-cf").arg(tar).arg("."));
}

/// Writes an archive of a few large files that resemble data of detectors: numbers that repeat in part.
fn data(tar: &Path) {
    let mut archive = tar::Builder::new(BufWriter::new(File::create(tar).expect("there is room")));
    for number in 0..6_u64 {
        let size = 100 << 20;
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        let path = format!("opt/data/events-{number}.dat");
        archive.append_data(&mut header, path, Numbers::new(number).take(size)).expect("there is room for data");
    }
    archive.into_inner().and_then(|mut tar| tar.flush()).expect("there is room for data");
}

/// Numbers of four bytes that change little in the upper two, from a seed.
///
/// This is not the generator of the tests, as another one would change the reference image, and so all measured figures.
struct Numbers {
    state: u64,
    value: u32,
}

impl Numbers {
    fn new(seed: u64) -> Self {
        Self { state: seed ^ 0x9e37_79b9_7f4a_7c15, value: 0 }
    }
}

impl Read for Numbers {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let whole = buffer.len() / 4 * 4;
        if whole == 0 {
            buffer.fill(0);
            return Ok(buffer.len());
        }
        for number in buffer[..whole].chunks_exact_mut(4) {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            self.value = self.value.wrapping_add((self.state >> 32) as u32 & 0xfff);
            number.copy_from_slice(&self.value.to_be_bytes());
        }
        Ok(whole)
    }
}

/// Writes a changed copy of an archive: every twentieth file has other bytes at its end, and every entry is a second younger.
fn change(from: &Path, to: &Path) {
    let mut archive = tar::Archive::new(File::open(from).expect("the archive was made"));
    let mut changed = tar::Builder::new(BufWriter::new(File::create(to).expect("there is room")));
    let mut files = 0_u64;
    for entry in archive.entries().expect("the archive can be read") {
        let mut entry = entry.expect("the archive can be read");
        let mut header = entry.header().clone();
        header.set_mtime(header.mtime().expect("entries have times") + 1);
        let path = entry.path().expect("entries have paths").into_owned();
        let link = entry.link_name().expect("links have targets").map(|target| target.into_owned());
        let done = match link {
            Some(target) => changed.append_link(&mut header, path, target),
            None => {
                let is_file = header.entry_type().is_file() && entry.size() > 0;
                files += u64::from(is_file);
                if is_file && files.is_multiple_of(20) {
                    let mut mark = io::Cursor::new(files.to_string().into_bytes());
                    header.set_size(entry.size() + mark.get_ref().len() as u64);
                    changed.append_data(&mut header, path, (&mut entry).chain(&mut mark))
                } else {
                    changed.append_data(&mut header, path, &mut entry)
                }
            }
        };
        done.expect("there is room for an archive");
    }
    changed.into_inner().and_then(|mut tar| tar.flush()).expect("there is room for an archive");
}

fn run(command: &mut Command) {
    let done = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
    let done = done.unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(done.success(), "{command:?}: {done}");
}
