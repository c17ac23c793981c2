//! `strata preview`.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, test_kill_process_group, waitid,
};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use strata::directory::RepositoryDirectory;
use strata::engine::{Engine, Resources};
use strata::image::FullName;
use strata::message::causes;
use strata::mount::{MountOptions, MountPoint};
use strata::preview::{Preview, PreviewOptions};
use strata::progress::Progress;
use strata::source::{PlatformRequest, PlatformSelection};
use strata::stage::{ImageOptions, Request};
use strata::work::convert;

use super::arguments::{Arguments, Preview as PreviewArguments, default_options};
use super::failure::UsageError;
use super::interrupt::{Ending, SAME_SIGNAL, print_now};
use super::mount::{answering_threads, end, guard, unmount};
use super::progress::{Display, reporter};

/// Environment variable that passes the mount point to `--command`.
const MOUNTPOINT_VARIABLE: &str = "STRATA_PREVIEW";

/// Mounts an image in its published form, until it is unmounted or a signal ends the program.
pub fn run(arguments: &Arguments, command: &PreviewArguments) -> anyhow::Result<ExitCode> {
    let directory = arguments.repo.as_ref().map(|_| arguments.directory()).transpose()?;
    if command.keep && directory.is_none() {
        return Err(UsageError("--keep needs --repo, the repository that stores the image".to_owned()).into());
    }
    let mount = MountOptions {
        allow_other: command.allow_other,
        cache: command.cache.clone(),
        threads: answering_threads(),
        ..MountOptions::default()
    };
    let options = PreviewOptions { platform: command.platform.clone(), mount, ..PreviewOptions::default() };
    let stage = watch_for_signals()?;
    let (preview, mounted) =
        Preview::start(&command.image, directory.as_ref(), &command.mountpoint, options, &reporter())?;
    let point = mounted.point().clone();
    let _guard = guard(&point)?;
    stage.lock().expect(UNPOISONED).mounted = Some(point.clone());
    let result = read(arguments, command, directory.as_ref(), &preview, point.path());
    stage.lock().expect(UNPOISONED).is_read = true;
    let result = result.and_then(|()| match &command.command {
        Some(command) => run_command(command, point.path(), &stage),
        None => Ok(ExitCode::SUCCESS),
    });
    if command.command.is_some() || result.is_err() {
        unmount(&point);
    }
    mounted.wait();
    result
}

/// The progress of a preview, which decides on the effect of a signal.
#[derive(Default)]
struct PreviewProgress {
    mounted: Option<MountPoint>,
    is_read: bool,
    /// The running command, if any.
    command: Option<RunningCommand>,
    /// Whether a signal is ending the command and then the program.
    is_ending: bool,
}

/// A running command. The kernel does not reuse its process ID before this program has waited for the process, nor while the
/// process group has members.
#[derive(Clone, Copy)]
struct RunningCommand {
    process: Pid,
    /// Whether the command has a separate process group.
    is_group: bool,
}

impl RunningCommand {
    fn send(self, signal: Signal) {
        // The process may have ended.
        let _ = match self.is_group {
            true => kill_process_group(self.process, signal),
            false => kill_process(self.process, signal),
        };
    }
}

const UNPOISONED: &str = "no thread panics while it updates the progress of the preview";

/// Time for which the command may continue after the signal. Then it is killed.
const COMMAND_GRACE: Duration = Duration::from_secs(1);

/// Interval at which the end of the command and further signals are checked.
const TICK: Duration = Duration::from_millis(10);

/// Makes signals unmount the preview and end the program. After the whole image was read, the program ends by itself when
/// the preview is unmounted. A running command ends first, by the same signal.
fn watch_for_signals() -> anyhow::Result<Arc<Mutex<PreviewProgress>>> {
    let stage = Arc::<Mutex<PreviewProgress>>::default();
    let watched = Arc::clone(&stage);
    let ending = Ending::prepare()?;
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot wait for signals")?;
    let watch = move || {
        while let Some(signal) = signals.forever().next() {
            let (mounted, is_read, command) = {
                let mut stage = watched.lock().expect(UNPOISONED);
                stage.is_ending = stage.command.is_some();
                (stage.mounted.clone(), stage.is_read, stage.command)
            };
            if let (Some(command), Some(point)) = (command, &mounted) {
                end_command(command, signal, &watched, &mut signals);
                if let Err(error) = point.unmount() {
                    tracing::error!("{}", causes(&error));
                }
                ending.end(signal);
            }
            mounted.iter().for_each(end);
            if !is_read {
                // The missing layers are no longer needed.
                ending.end(signal);
            }
        }
    };
    thread::Builder::new().spawn(watch).context("cannot start a thread that waits for signals")?;
    Ok(stage)
}

/// Sends the signal to the command, and kills the command after a further signal or the grace period.
fn end_command(command: RunningCommand, signal: i32, stage: &Mutex<PreviewProgress>, signals: &mut Signals) {
    print_now("interrupted: ending the command; press Ctrl-C again to kill it");
    let start = Instant::now();
    // The terminal has sent SIGINT to its whole foreground group, which contains a command without a group of its own.
    if let Some(signal) = Signal::from_named_raw(signal).filter(|&signal| command.is_group || signal != Signal::INT) {
        command.send(signal);
        // A stopped command handles the signal only after it continues.
        command.send(Signal::CONT);
    }
    let is_running = || match command.is_group {
        true => test_kill_process_group(command.process).is_ok(),
        false => stage.lock().expect(UNPOISONED).command.is_some(),
    };
    let mut is_again = false;
    while is_running() && !is_again && start.elapsed() < COMMAND_GRACE {
        thread::sleep(TICK);
        is_again = signals.pending().count() > 0 && start.elapsed() >= SAME_SIGNAL;
    }
    if is_running() {
        command.send(Signal::KILL);
    }
}

/// Reads the image, and stores it in the repository if `--keep` is set.
fn read(
    arguments: &Arguments,
    command: &PreviewArguments,
    directory: Option<&RepositoryDirectory>,
    preview: &Preview,
    mountpoint: &Path,
) -> anyhow::Result<()> {
    let progress = Arc::new(Progress::default());
    let display = Display::start(&progress, arguments.quiet);
    tracing::info!("reading {}; each tree appears at '{}' when it is complete", command.image, mountpoint.display());
    preview.read(&progress)?;
    if let Some(directory) = directory.filter(|_| command.keep) {
        progress.set_activity("storing the image in the repository".to_owned());
        keep(command, directory, &progress)?;
    }
    drop(display);
    tracing::info!(
        "{} is mounted at '{}': /flat, /chains/1 to {count} and /layers/1 to {count}; to end, unmount it or interrupt strata",
        command.image,
        mountpoint.display(),
        count = preview.layers()
    );
    Ok(())
}

/// Stores the image in the repository without publishing it.
fn keep(command: &PreviewArguments, directory: &RepositoryDirectory, progress: &Arc<Progress>) -> anyhow::Result<()> {
    let platforms = PlatformSelection::One(PlatformRequest::new(command.platform.clone()));
    // The name is required, but not published.
    let name: FullName = "preview.invalid/image:preview".parse().context("invalid name")?;
    let image = ImageOptions { platforms, ..ImageOptions::default() };
    let request = Request { argument: command.image.clone(), name: Some(name), image };
    let engine = Engine::open(directory, Resources::default())?;
    let report = convert(&engine, &[request], &default_options()?, progress)?;
    report.images.into_iter().try_for_each(|image| Ok(image.outcomes.map(drop)?))
}

/// Runs a shell command and returns its exit code. As in a shell, the code after a signal is 128 plus the number of the
/// signal.
///
/// The command gets a new process group, to which signals are sent. If there is a controlling terminal, the command stays in
/// the group of this process, because the terminal stops background groups that read from it.
fn run_command(command: &OsStr, mountpoint: &Path, stage: &Mutex<PreviewProgress>) -> anyhow::Result<ExitCode> {
    let is_group = File::open("/dev/tty").is_err();
    let mut shell = Command::new("/bin/sh");
    shell.arg("-c").arg(command).env(MOUNTPOINT_VARIABLE, mountpoint);
    if is_group {
        shell.process_group(0);
    }
    let mut child = {
        // The thread that handles signals waits for this lock, and then finds the command.
        let mut stage = stage.lock().expect(UNPOISONED);
        let child = shell.spawn().context("cannot run '/bin/sh'")?;
        stage.command = Some(RunningCommand { process: Pid::from_child(&child), is_group });
        child
    };
    // `NOWAIT` leaves a zombie, whose process ID is not reused while the other thread may still signal it.
    let wait = || waitid(WaitId::Pid(Pid::from_child(&child)), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
    while matches!(wait(), Err(Errno::INTR)) {}
    let (is_ending, status) = {
        let mut stage = stage.lock().expect(UNPOISONED);
        stage.command = None;
        (stage.is_ending, child.wait())
    };
    if is_ending {
        // The signal ends this program.
        loop {
            thread::park();
        }
    }
    let status = status.context("cannot run '/bin/sh'")?;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}
