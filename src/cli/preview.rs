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
use strata::source::{PlatformRequest, Platforms};
use strata::stage::{ImageOptions, Request};
use strata::work::convert;

use super::arguments::{
    Arguments, Preview as PreviewArguments, default_options, default_resources, randomness, threads,
};
use super::failure::UsageError;
use super::interrupt::Ending;
use super::mount::{answering_threads, end, guard, unmount};
use super::progress::Display;

/// What commands find the mount point in.
const MOUNTPOINT_VARIABLE: &str = "STRATA_PREVIEW";

/// Mounts an image as it would be published, until it is unmounted or a signal ends it.
pub fn run(arguments: &Arguments, command: &PreviewArguments) -> anyhow::Result<ExitCode> {
    let directory = arguments.repo.as_ref().map(|_| arguments.directory()).transpose()?;
    if command.keep && directory.is_none() {
        return Err(UsageError("--keep needs --repo, the repository to keep it in".to_owned()).into());
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
    let (preview, mounted) = Preview::start(&command.image, directory.as_ref(), &command.mountpoint, options)?;
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

/// How far a preview is.
#[derive(Default)]
struct Stage {
    mounted: Option<MountPoint>,
    is_read: bool,
}

const UNPOISONED: &str = "no thread panics while it notes how far the preview is";

/// Has signals unmount the preview, and end the program unless the whole image is read: then it ends by itself.
fn watch_for_signals() -> anyhow::Result<Arc<Mutex<Stage>>> {
    let stage = Arc::<Mutex<Stage>>::default();
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
                // The layers that are still missing are not needed.
                ending.end(signal);
            }
        });
    };
    thread::Builder::new().spawn(watch).context("cannot start a thread that waits for signals")?;
    Ok(stage)
}

/// Reads the image, and stores it if it is to be kept.
fn read(
    arguments: &Arguments,
    command: &PreviewArguments,
    directory: Option<&RepositoryDirectory>,
    preview: &Preview,
    mountpoint: &Path,
) -> anyhow::Result<()> {
    let progress = Arc::new(Progress::default());
    let display = Display::start(&progress, arguments.quiet);
    tracing::info!("{} is read; what is ready shows at '{}'", command.image, mountpoint.display());
    preview.read(&progress)?;
    if let Some(directory) = directory.filter(|_| command.keep) {
        progress.set_activity("storing it in the repository".to_owned());
        keep(command, directory, &progress)?;
    }
    drop(display);
    tracing::info!(
        "{} is mounted at '{}': /flat, /chains/1 to {count} and /layers/1 to {count}; unmount it or interrupt to leave",
        command.image,
        mountpoint.display(),
        count = preview.layers()
    );
    Ok(())
}

/// Stores the image in the repository without publishing it.
fn keep(command: &PreviewArguments, directory: &RepositoryDirectory, progress: &Arc<Progress>) -> anyhow::Result<()> {
    let platforms = Platforms::One(PlatformRequest::new(command.platform.clone()));
    // Nothing gets the name, but there has to be one.
    let name: FullName = "preview.invalid/image:preview".parse().context("the name is right")?;
    let image = ImageOptions { platforms, ..ImageOptions::default() };
    let request = Request { argument: command.image.clone(), name: Some(name), image };
    let engine = Engine::open(directory, default_resources()?, randomness())?;
    let report = convert(&engine, &[request], &default_options()?, progress)?;
    report.images.into_iter().try_for_each(|image| Ok(image.outcomes.map(drop)?))
}

/// Runs a shell command and returns its exit code; that of one that a signal ended is as in a shell.
fn run_command(command: &OsStr, mountpoint: &Path) -> anyhow::Result<ExitCode> {
    let status = Command::new("/bin/sh").arg("-c").arg(command).env(MOUNTPOINT_VARIABLE, mountpoint).status();
    let status = status.context("cannot run '/bin/sh'")?;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}
