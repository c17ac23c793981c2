//! `strata mount`.

use std::io::{self, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use strata::message::causes;
use strata::metadata::Timestamp;
use strata::mount::{Mount, MountOptions, MountPoint, Unmounted};
use strata::path::EntryPath;
use strata::repository::RevisionSelector;

use super::arguments::{Arguments, Mount as MountArguments};
use super::failure::UsageError;
use super::interrupt::{SAME_SIGNAL, print_now};
use super::target::Target;

/// Mounts the repository until it is unmounted or a signal ends the program.
pub fn run(arguments: &Arguments, mount: &MountArguments) -> anyhow::Result<ExitCode> {
    let mut target = arguments.target()?;
    use_cache(&mut target, mount)?;
    let point = match (&mount.tag, mount.revision) {
        (Some(tag), _) => RevisionSelector::Tag(tag.clone()),
        (_, Some(number)) => RevisionSelector::Revision(number),
        _ => RevisionSelector::Head,
    };
    let head = target.head()?;
    let repository = head.open_at(&point)?;
    let path = EntryPath::normalise(mount.path.as_encoded_bytes()).map_err(|error| UsageError(error.to_string()))?;
    let options = MountOptions {
        path,
        follow: (point == RevisionSelector::Head).then(|| target.head_check_interval()),
        allow_other: mount.allow_other,
        cache: mount.cache.clone(),
        threads: match &target {
            Target::Directory(_) => answering_threads(),
            Target::Remote(_) => MAX_ANSWERING_THREADS,
        },
    };
    let revision = repository.revision()?;
    // Before the mount: an earlier signal would end the process and leave a mount that nothing serves.
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot wait for signals")?;
    let mounted = Mount::start(repository, &mount.mountpoint, &options)?;
    let point = mounted.point().clone();
    let _guard = guard(&point)?;
    tracing::info!(
        "revision {revision} of {} is mounted at '{}' until it is unmounted or strata is interrupted",
        target.name(),
        point.path().display()
    );
    warn_of_expiry(target);
    let unmount = move || signals.forever().for_each(|_| end(&point));
    thread::Builder::new().spawn(unmount).context("cannot start a thread that waits for signals")?;
    mounted.wait();
    Ok(ExitCode::SUCCESS)
}

/// Lets a repository that is read by its URL keep its objects in a cache directory.
fn use_cache(target: &mut Target, mount: &MountArguments) -> anyhow::Result<()> {
    let (Target::Remote(remote), capacity) = (target, mount.cache_size.as_u64()) else { return Ok(()) };
    if let Some(directory) = &mount.cache {
        remote.use_cache(directory, capacity)?;
    } else if let Some(directory) = user_cache()
        && let Err(error) = remote.use_cache(&directory, capacity)
    {
        // The user did not name this directory, so the mount works without it.
        tracing::warn!("objects are not kept: {}", causes(&error));
    }
    Ok(())
}

/// Returns the cache directory of the user (XDG Base Directory Specification), if the environment names one.
fn user_cache() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    cache.map(|cache| cache.join("strata"))
}

/// Interval between two checks of the whitelist.
const WHITELIST_CHECK_INTERVAL: Duration = Duration::from_secs(24 * 3600);

/// Warns of a whitelist that expires soon, now and once a day, because a mount may stay for months.
fn warn_of_expiry(target: Target) {
    let warn = |target: &Target| {
        if let Some(warning) = target.whitelist_warning(Timestamp::now()) {
            tracing::warn!("{warning}");
        }
    };
    warn(&target);
    let warn_daily = move || {
        loop {
            thread::sleep(WHITELIST_CHECK_INTERVAL);
            warn(&target);
        }
    };
    // If no thread can be started, the mount still works, but no further warnings are printed.
    thread::Builder::new().spawn(warn_daily).ok();
}

/// Maximum number of threads that answer requests, because each may hold two large objects in memory. A mount by URL has this
/// many, because a thread waits while it receives an object.
const MAX_ANSWERING_THREADS: usize = 16;

/// Returns the number of threads that answer requests. There are at least 4, because some wait for the disk.
pub fn answering_threads() -> usize {
    thread::available_parallelism().map_or(1, |cores| cores.get()).clamp(4, MAX_ANSWERING_THREADS)
}

/// Time for which processes may still use a file system after it was unmounted.
const GRACE: Duration = Duration::from_millis(1500);

/// Time at which the file system was unmounted while it was still in use.
static DETACHED: OnceLock<Instant> = OnceLock::new();

/// Unmounts because of a signal, and prints a message at once. Processes that still use the file system have a short time to
/// finish; a second signal ends this time.
pub fn end(point: &MountPoint) {
    let path = point.path().display();
    match DETACHED.get() {
        Some(since) if since.elapsed() >= SAME_SIGNAL => std::process::exit(0),
        Some(_) => return,
        None => {}
    }
    print_now(&format!("interrupted: unmounting '{path}'"));
    unmount(point);
}

/// Unmounts. Processes that still use the file system have a short time to finish.
pub fn unmount(point: &MountPoint) {
    match point.unmount() {
        Ok(Unmounted::AtOnce) => {}
        Ok(Unmounted::WhileBusy) => {
            DETACHED.set(Instant::now()).ok();
            let end_later = || {
                thread::sleep(GRACE);
                std::process::exit(0);
            };
            if thread::Builder::new().spawn(end_later).is_err() {
                std::process::exit(0);
            }
            let path = point.path().display();
            tracing::warn!(
                "'{path}' is unmounted, but still in use: processes that use it lose access after {GRACE:?}"
            );
        }
        Err(error) => tracing::error!("{}", causes(&error)),
    }
}

/// Starts a process that unmounts the file system if this process is killed.
pub fn guard(point: &MountPoint) -> anyhow::Result<Child> {
    let program = std::env::current_exe().context("cannot find the program that is running")?;
    Command::new(program)
        .args(["--quiet", "guard-mount"])
        .arg(point.path())
        .arg(point.id().to_string())
        // The kernel closes this pipe when the process ends, however it ends.
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        // Otherwise Ctrl-C in a terminal would end the guard together with this process.
        .process_group(0)
        .spawn()
        .context("cannot start a process that unmounts when this one is killed")
}

/// Waits until the process at the other end of standard input has ended, and unmounts the file system if it remains.
pub fn guard_mount(point: &MountPoint) -> anyhow::Result<ExitCode> {
    io::stdin().read_to_end(&mut Vec::new()).ok();
    point.clear_if_dead()?;
    Ok(ExitCode::SUCCESS)
}
