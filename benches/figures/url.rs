//! Compares a mount by URL with the CVMFS client. Both read one repository from one nginx on this machine, alternately.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use strata::object::Compression;

use super::commands::{Scratch, best, convert, run, settle, strata};
use super::images;
use super::table::{Promise, Table};

use Promise::AtMost;

/// Number of rounds. In each, both readers are measured one after the other.
const ROUNDS: usize = 3;

/// Number of files of the image beside the two Debian base systems.
const FILES: usize = 20_000;

/// Time by which the proxy delays what the server sends. Requests are not delayed, so that this is the round-trip time.
const DELAY: Duration = Duration::from_millis(20);

/// Directory whose 1,000 files are read through the proxy.
const PART: &str = "bench.example.org/base:1/usr/lib/x86_64-linux-gnu";

/// Directory whose 900 files are read by several processes through the proxy.
const SMALL_FILES: &str = "bench.example.org/base:1/usr/share/zoneinfo";

/// Environment variable with the path of the CVMFS client, which is else looked up in `PATH`. The tests use it, too.
const CLIENT: &str = "STRATA_TEST_CVMFS2";

/// A program that mounts the repository by its URL.
#[derive(Clone, Copy)]
enum Reader {
    Strata,
    Client,
}

/// Times of the passes of one reader.
#[derive(Default)]
struct Times {
    first_find: Vec<Duration>,
    first_tar: Vec<Duration>,
    first_cat: Vec<Duration>,
    second_find: Vec<Duration>,
    second_tar: Vec<Duration>,
    find_again: Vec<Duration>,
    tar_again: Vec<Duration>,
}

/// Measures `find` on the whole repository, `tar` and `cat`: with an empty cache through a delay, a second time, and in a new mount with
/// the cache of the last one.
pub fn compare(directory: &Path, scratch: &mut Scratch, table: &mut Table) {
    let repository = publish(directory, scratch);
    let nginx = Nginx::start(&scratch.path("nginx"), &repository.join("storage"));
    let slow = delayed(nginx.port);
    let mut times = [Times::default(), Times::default()];
    for round in 0..ROUNDS {
        let mut order = [(Reader::Strata, 0), (Reader::Client, 1)];
        order.rotate_left(round % 2);
        for (reader, index) in order {
            let mut mount = |port, cache: &Path| Mount::start(reader, port, &repository, cache, scratch.path("mount"));
            let cache = repository.join(format!("cache-{index}-{round}"));
            measure(&mut times[index], &mut mount, [slow, nginx.port], &cache);
        }
    }
    let [ours, theirs] = times;
    for (what, ours, theirs, most) in [
        ("first `find`, 20 ms away", ours.first_find, theirs.first_find, 1.5),
        ("first `tar`, 20 ms away", ours.first_tar, theirs.first_tar, 1.5),
        ("16 processes with `cat`, 20 ms away", ours.first_cat, theirs.first_cat, 1.5),
        ("second `find`", ours.second_find, theirs.second_find, 1.0),
        ("second `tar`", ours.second_tar, theirs.second_tar, 1.0),
        ("`find` in a new mount, same cache", ours.find_again, theirs.find_again, 1.5),
        ("`tar` in a new mount, same cache", ours.tar_again, theirs.tar_again, 1.5),
    ] {
        eprintln!("{what}: {ours:.2?}; client: {theirs:.2?}");
        table.time(&format!("{what}, by URL"), best(ours), "the CVMFS client", best(theirs), AtMost(most));
    }
}

/// Publishes three images: 33,000 files with 330 MB.
fn publish(directory: &Path, scratch: &mut Scratch) -> PathBuf {
    let repository = scratch.repository(Compression::Balanced);
    let base = images::base(directory);
    convert(&repository, &base.image("base"), "base:1", &[]);
    convert(&repository, &base.image("rebuild"), "rebuild:1", &[]);
    convert(&repository, &images::small_files(directory, FILES).image("files"), "files:1", &[]);
    repository
}

/// Measures all passes of one reader. The first port is that of the proxy.
fn measure(times: &mut Times, mount: &mut impl FnMut(u16, &Path) -> Mount, ports: [u16; 2], cache: &Path) {
    let [slow, fast] = ports;
    let mounted = mount(slow, &cache.join("slow"));
    times.first_find.push(find(&mounted.point));
    times.first_tar.push(tar(&mounted.point.join(PART)));
    times.first_cat.push(cat(&mounted.point.join(SMALL_FILES)));
    drop(mounted);
    let image = "bench.example.org/base:1";
    let mounted = mount(fast, &cache.join("fast"));
    find(&mounted.point);
    tar(&mounted.point.join(image));
    times.second_find.push(find(&mounted.point));
    times.second_tar.push(tar(&mounted.point.join(image)));
    drop(mounted);
    let mounted = mount(fast, &cache.join("fast"));
    times.find_again.push(find(&mounted.point));
    times.tar_again.push(tar(&mounted.point.join(image)));
}

fn find(directory: &Path) -> Duration {
    timed("find \"$0\" | wc -l", directory)
}

/// Reads all files: if GNU tar wrote to `/dev/null`, it would not.
fn tar(directory: &Path) -> Duration {
    timed("tar -C \"$0\" -cf - . | wc -c", directory)
}

fn cat(directory: &Path) -> Duration {
    timed("find \"$0\" -type f -print0 | xargs -0 -P16 -n20 cat | wc -c", directory)
}

fn timed(script: &str, directory: &Path) -> Duration {
    settle();
    let start = Instant::now();
    let counted = run(Command::new("bash").args(["-o", "pipefail", "-c", script]).arg(directory));
    let time = start.elapsed();
    assert!(counted.len() > 4, "a thousand entries at least");
    time
}

/// A mount of the repository by its URL.
struct Mount {
    point: PathBuf,
    program: Child,
}

impl Mount {
    /// Mounts the repository that a port serves, below `directory`.
    fn start(reader: Reader, port: u16, repository: &Path, cache: &Path, directory: PathBuf) -> Self {
        let point = directory.join("bench.example.org");
        for path in [&point, cache] {
            fs::create_dir_all(path).expect("there is room for directories");
        }
        let url = format!("http://127.0.0.1:{port}/cvmfs/bench.example.org");
        let key = repository.join("keys/bench.example.org.pub");
        let mut command = match reader {
            Reader::Strata => {
                let mut command = strata(Path::new(&url));
                command.arg("--public-key").arg(key).arg("mount").arg(&point).arg("--cache").arg(cache);
                command
            }
            Reader::Client => client(&url, &key, cache, &directory),
        };
        let program = command.stdout(Stdio::null()).spawn();
        let program = program.unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        let mut mount = Self { point, program };
        while !mount.is_ready() {
            let ended = mount.program.try_wait().expect("a child can be waited for");
            assert!(ended.is_none(), "{command:?} ended");
            thread::sleep(Duration::from_millis(5));
        }
        mount
    }

    fn is_ready(&self) -> bool {
        fs::read_dir(&self.point).is_ok_and(|mut entries| entries.next().is_some())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        Command::new("umount").arg(&self.point).status().ok();
        self.program.wait().ok();
    }
}

/// Returns the command that mounts with the CVMFS client, below `directory`.
fn client(url: &str, key: &Path, cache: &Path, directory: &Path) -> Command {
    let settings = [
        ("SERVER_URL", url.to_owned()),
        ("PUBLIC_KEY", key.display().to_string()),
        ("HTTP_PROXY", "DIRECT".to_owned()),
        ("MOUNT_DIR", directory.display().to_string()),
        ("CACHE_BASE", cache.display().to_string()),
        ("RELOAD_SOCKETS", cache.display().to_string()),
        ("SHARED_CACHE", "no".to_owned()),
        ("CLAIM_OWNERSHIP", "no".to_owned()),
        ("QUOTA_LIMIT", "4000".to_owned()),
        ("USE_GEOAPI", "no".to_owned()),
        ("USYSLOG", cache.join("log").display().to_string()),
    ];
    let settings: String = settings.iter().map(|(name, value)| format!("CVMFS_{name}={value}\n")).collect();
    let file = directory.join("client.conf");
    fs::write(&file, settings).expect("there is room for settings");
    let mut command = Command::new(std::env::var_os(CLIENT).unwrap_or_else(|| "cvmfs2".into()));
    command.args(["-f", "-o", &format!("config={}", file.display()), "bench.example.org"]);
    command.arg(directory.join("bench.example.org"));
    command
}

/// A web server with the storage of the repository, which runs until the value is dropped.
struct Nginx {
    port: u16,
    server: Child,
}

impl Nginx {
    /// Starts nginx with its files in a directory, which must not exist yet.
    fn start(directory: &Path, storage: &Path) -> Self {
        fs::create_dir(directory).expect("there is room for a server");
        // nginx resolves relative paths against its own directory.
        let [directory, storage] = [directory, storage].map(|path| path.canonicalize().expect("the directory exists"));
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
        let port = free.expect("this machine has a free port").port();
        let directory = directory.display();
        let settings = format!(
            "daemon off; pid {directory}/pid; error_log {directory}/error.log; user root; events {{}}\n\
             http {{ access_log off; sendfile on; client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;\n\
             fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;\n\
             server {{ listen 127.0.0.1:{port}; location /cvmfs/bench.example.org/ {{ alias {}/; }} }} }}\n",
            storage.display()
        );
        let file = format!("{directory}/nginx.conf");
        fs::write(&file, settings).expect("there is room for settings");
        let server = Command::new("nginx").args(["-c", &file]).stderr(Stdio::null()).spawn();
        let server = server.expect("nginx is installed");
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            thread::sleep(Duration::from_millis(10));
        }
        Self { port, server }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Its signal for a fast shutdown, which also ends its worker processes.
        Command::new("kill").args(["-TERM", &self.server.id().to_string()]).status().ok();
        self.server.wait().ok();
    }
}

/// Starts a proxy for the server at a port, and returns the proxy's port. It delays what the server sends by [`DELAY`], without a
/// limit of the rate, until the process ends.
fn delayed(server: u16) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("this machine has a free port");
    let port = listener.local_addr().expect("a listener has an address").port();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let server = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).expect("nginx accepts connections");
            for connection in [&client, &server] {
                connection.set_nodelay(true).expect("the connection is open");
            }
            let [to_server, to_client] =
                [&server, &client].map(|it| it.try_clone().expect("there are few connections"));
            thread::spawn(move || pass_on(client, to_server, Duration::ZERO));
            thread::spawn(move || pass_on(server, to_client, DELAY));
        }
    });
    port
}

/// Passes all bytes on, each `delay` after it arrived.
fn pass_on(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let (sender, arrived) = mpsc::channel::<(Instant, Vec<u8>)>();
    let send = move || {
        for (time, bytes) in arrived {
            thread::sleep((time + delay).saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        to.shutdown(Shutdown::Both).ok();
    };
    thread::spawn(send);
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if sender.send((Instant::now(), buffer[..count].to_vec())).is_err() {
            break;
        }
    }
}
