//! An independently written reader of CVMFS repositories mounts what strata publishes.
//!
//! The reader is `cvmfs-cli` of the crate `cvmfs`, in `target/tools/bin` or in `PATH`. It checks fewer signatures and
//! hashes than the CVMFS client, but it was written from the format, not from the code of strata.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::random::noise;
use crate::support::server::Server;
use crate::support::{Reply, TestImage, TestRepository, flat_path, names_in, need, need_fuse};

/// Time limit for mounting a small repository.
const PATIENCE: Duration = Duration::from_secs(60);

/// Files that a replica of a repository has in addition.
///
/// The reader requests them, too. If they are missing, it repeats each request three times, with long pauses.
const FILES_OF_A_COPY: [&str; 2] = [".cvmfs_last_snapshot", ".cvmfs_is_snapshotting"];
const TIME_OF_A_COPY: &[u8] = b"Fri Jul 14 02:40:00 UTC 2017\n";

/// Serves the files below a directory over HTTP.
fn serve(directory: PathBuf) -> Server {
    Server::http(move |request| {
        let path = request.path.trim_start_matches('/');
        if FILES_OF_A_COPY.contains(&path) {
            return Reply::status(200).body(|body| *body = TIME_OF_A_COPY.to_vec());
        }
        match fs::read(directory.join(path)) {
            Ok(content) if request.method == "GET" && !path.contains("..") => {
                Reply::status(200).body(|body| *body = content)
            }
            _ => Reply::status(404),
        }
    })
}

/// A mounted repository. Dropping the value unmounts it, however the test ends.
struct Mount {
    directory: PathBuf,
    reader: Child,
}

impl Mount {
    fn start(program: &Path, url: &str, directory: PathBuf, cache: &Path) -> Self {
        fs::create_dir(&directory).unwrap();
        fs::create_dir(cache).unwrap();
        let mut command = Command::new(program);
        let reader = command.arg(url).arg(&directory).arg(cache).stdout(Stdio::null()).spawn().unwrap();
        let mut mount = Self { directory, reader };
        let (start, outside) = (Instant::now(), mount.device_of_parent());
        while fs::metadata(&mount.directory).map_or(outside, |metadata| metadata.dev()) == outside {
            assert_eq!(mount.reader.try_wait().unwrap(), None, "the reader gave up");
            assert!(start.elapsed() < PATIENCE, "the reader does not mount");
            thread::park_timeout(Duration::from_millis(10));
        }
        mount
    }

    fn device_of_parent(&self) -> u64 {
        fs::metadata(self.directory.parent().unwrap()).unwrap().dev()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("fusermount3").arg("-uz").arg(&self.directory).status();
        let _ = self.reader.kill();
        let _ = self.reader.wait();
    }
}

/// Returns the independent reader, if it is installed and mounts are possible.
fn independent_reader() -> Option<PathBuf> {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin/cvmfs-cli");
    let program = if installed.is_file() { Some(installed) } else { need("cvmfs-cli").then(|| "cvmfs-cli".into()) };
    program.filter(|_| need_fuse())
}

#[test]
fn independent_reader_lists_and_reads_what_is_published() {
    let Some(program) = independent_reader() else { return };
    let large = noise(1, 9_000_000);
    let image = TestImage::new()
        .layer(|layer| {
            layer.file("usr/share/doc/readme", "read me\n").file("usr/gone", "").symlink("doc", "usr/share/doc")
        })
        .layer(|layer| {
            layer.whiteout("usr/gone").file("usr/bin/tool", "#!/bin/sh\n").mode(0o755).file("large", &large)
        });
    let repository = TestRepository::publish(&image);
    let server = serve(repository.storage());
    let url = format!("http://{}", server.host());
    let mount = Mount::start(&program, &url, repository.beside("mount"), &repository.beside("cache"));
    let root = mount.directory.join(flat_path(&image));

    assert_eq!(names_in(&root.join("usr")), ["bin", "share"]);
    assert_eq!(fs::read_to_string(root.join("usr/share/doc/readme")).unwrap(), "read me\n");
    assert_eq!(fs::read_link(root.join("doc")).unwrap(), Path::new("usr/share/doc"));
    let tool = fs::metadata(root.join("usr/bin/tool")).unwrap();
    assert_eq!((tool.mode() & 0o7777, tool.len(), tool.mtime()), (0o755, 10, 1_500_000_000));
    assert!(fs::read(root.join("large")).unwrap() == large, "a chunked file reads back");
    assert!(fs::read_to_string(root.join(".singularity.d/runscript")).unwrap().starts_with("#!/bin/sh"));
}
