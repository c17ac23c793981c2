//! `strata preview`.

use std::ffi::OsStr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::Context as _;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use strata::directory::RepositoryDirectory;
use strata::engine::Engine;
use strata::image::FullName;
use strata::layer::Limits;
use strata::mount::{MountOptions, MountPoint};
use strata::preview::{Preview, PreviewOptions};
use strata::progress::Progress;
use strata::source::{PlatformRequest, PlatformSelection};
use strata::stage::{ImageOptions, Request};
use strata::work::convert;

use super::arguments::{
    Arguments, Preview as PreviewArguments, default_options, default_resources, randomness, threads,
};
use super::failure::UsageError;
use super::interrupt::Ending;
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
    let options = PreviewOptions {
        platform: command.platform.clone(),
        limits: Limits::default(),
        threads: threads(None)?,
        mount,
    };
    let stage = watch_for_signals()?;
    let (preview, mounted) =
        Preview::start(&command.image, directory.as_ref(), &command.mountpoint, options, &reporter())?;
    let point = mounted.point().clone();
    let _guard = guard(&point)?;
    stage.lock().expect(UNPOISONED).mounted = Some(point.clone());
    let result = read(arguments, command, directory.as_ref(), &preview, point.path());
    stage.lock().expect(UNPOISONED).is_read = true;
    let result = result.and_then(|()| match &command.command {
        Some(command) => run_command(command, point.path()),
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
}

const UNPOISONED: &str = "no thread panics while it updates the progress of the preview";

/// Makes signals unmount the preview and end the program. After the whole image was read, the program ends by itself when
/// the preview is unmounted.
fn watch_for_signals() -> anyhow::Result<Arc<Mutex<PreviewProgress>>> {
    let stage = Arc::<Mutex<PreviewProgress>>::default();
    let watched = Arc::clone(&stage);
    let ending = Ending::prepare().context("cannot wait for signals")?;
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot wait for signals")?;
    let watch = move || {
        signals.forever().for_each(|signal| {
            let (mounted, is_read) = {
                let stage = watched.lock().expect(UNPOISONED);
                (stage.mounted.clone(), stage.is_read)
            };
            mounted.iter().for_each(end);
            if !is_read {
                // The missing layers are no longer needed.
                ending.end(signal);
            }
        });
    };
    thread::Builder::new().spawn(watch).context("cannot start a thread that waits for signals")?;
    Ok(stage)
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
    let engine = Engine::open(directory, default_resources()?, randomness())?;
    let report = convert(&engine, &[request], &default_options()?, progress)?;
    report.images.into_iter().try_for_each(|image| Ok(image.outcomes.map(drop)?))
}

/// Runs a shell command and returns its exit code. As in a shell, the code after a signal is 128 plus its number.
fn run_command(command: &OsStr, mountpoint: &Path) -> anyhow::Result<ExitCode> {
    let status = Command::new("/bin/sh").arg("-c").arg(command).env(MOUNTPOINT_VARIABLE, mountpoint).status();
    let status = status.context("cannot run '/bin/sh'")?;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}
