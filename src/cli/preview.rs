//! `strata preview`.

use std::ffi::OsStr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::Context as _;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;
use strata::convert::{ImageOptions, Request, convert};
use strata::folder::RepositoryFolder;
use strata::image::FullName;
use strata::layer::Limits;
use strata::mount::MountOptions;
use strata::preview::{Preview, PreviewOptions};
use strata::progress::Progress;
use strata::source::{PlatformRequest, Platforms};
use strata::store::abandon_runs;

use super::arguments::{Arguments, Preview as PreviewArguments, default_options, randomness, threads};
use super::failure::UsageError;
use super::mount::{answering_threads, end, guard};
use super::progress::Display;

/// What commands find the mount point in.
const MOUNTPOINT_VARIABLE: &str = "STRATA_PREVIEW";

/// Mounts an image as it would be published, until it is unmounted or a signal ends it.
pub fn run(arguments: &Arguments, command: &PreviewArguments) -> anyhow::Result<ExitCode> {
    let folder = arguments.repo.as_ref().map(|_| arguments.folder()).transpose()?;
    if command.keep && folder.is_none() {
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
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot wait for signals")?;
    let (preview, mounted) = Preview::start(&command.image, folder.as_ref(), &command.mountpoint, options)?;
    let point = mounted.point().clone();
    let _guard = guard(&point)?;
    let (ending, is_read) = (point.clone(), Arc::new(AtomicBool::new(false)));
    let is_done = Arc::clone(&is_read);
    thread::spawn(move || {
        signals.forever().for_each(|signal| {
            end(&ending);
            if !is_done.load(Ordering::Relaxed) {
                // Nobody needs the rest.
                abandon_runs();
                emulate_default_handler(signal).ok();
            }
        });
    });
    let result = read(arguments, command, folder.as_ref(), &preview, point.path());
    is_read.store(true, Ordering::Relaxed);
    let result = result.and_then(|()| match &command.command {
        Some(command) => run_command(command, point.path()),
        None => Ok(ExitCode::SUCCESS),
    });
    if command.command.is_some() || result.is_err() {
        end(&point);
    }
    mounted.wait();
    result
}

/// Reads the image, and stores it if it is to be kept.
fn read(
    arguments: &Arguments,
    command: &PreviewArguments,
    folder: Option<&RepositoryFolder>,
    preview: &Preview,
    mountpoint: &Path,
) -> anyhow::Result<()> {
    let progress = Arc::new(Progress::default());
    let display = Display::start(&progress, arguments.quiet);
    tracing::info!("{} is read; what is ready shows at '{}'", command.image, mountpoint.display());
    preview.read(&progress)?;
    if let Some(folder) = folder.filter(|_| command.keep) {
        progress.set_stage("storing it in the repository".to_owned());
        keep(command, folder, &progress)?;
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
fn keep(command: &PreviewArguments, folder: &RepositoryFolder, progress: &Arc<Progress>) -> anyhow::Result<()> {
    let platforms = Platforms::One(PlatformRequest::new(command.platform.clone()));
    // Nothing gets the name, but there has to be one.
    let name: FullName = "preview.invalid/image:preview".parse().context("the name is right")?;
    let image = ImageOptions { platforms, ..ImageOptions::default() };
    let request = Request { argument: command.image.clone(), name: Some(name), image };
    let report = convert(folder, &[request], &default_options()?, progress, &mut randomness())?;
    report.images.into_iter().try_for_each(|image| Ok(image.outcomes.map(drop)?))
}

/// Runs a shell command and returns its exit code; that of one that a signal ended is as in a shell.
fn run_command(command: &OsStr, mountpoint: &Path) -> anyhow::Result<ExitCode> {
    let status = Command::new("/bin/sh").arg("-c").arg(command).env(MOUNTPOINT_VARIABLE, mountpoint).status();
    let status = status.context("cannot run '/bin/sh'")?;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}
