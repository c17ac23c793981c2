//! `strata convert`.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use serde_json::{Value, json};
use strata::cancel::UnfinishedFiles;
use strata::consumer::podman::PodmanListing;
use strata::directory::{DirectoryError, RepositoryDirectory};
use strata::engine::Engine;
use strata::layer::LossKind;
use strata::layout::LossList;
use strata::manifest::RepositoryName;
use strata::message::causes;
use strata::progress::Progress;
use strata::publish::{NewRepository, create_provisional_repository};
use strata::source::ImageArgument;
use strata::stage::{ImageOptions, ImageOutcome, Request};
use strata::work::{ConvertOptions, ConvertReport, ImageReport, convert};

use super::arguments::{Arguments, Convert, time_of_publication};
use super::failure::{FAILED, LATE, PARTLY, UsageError, after, complain_late};
use super::interrupt::cancellation;
use super::progress::{Display, reporter};
use super::timings::Timings;
use super::{complain, print, print_line};

/// Explanation of masked links for users of the image.
const MASKED_LINK: &str = "    A layer has entries below these symbolic links, but no entry for a directory in place of the link. When containerd and \
     podman unpack such a layer, a directory hides the link. In .layers, the layer has the same form: programs that need the target \
     of the link may not start there. The root file system in .flat and podmanStore follows the link.\n";

/// Maximum number of paths that are printed for each kind of loss.
const MAX_PRINTED_LOSSES: usize = 20;

/// Converts images and publishes them.
pub fn run(arguments: &Arguments, command: &Convert, timings: &Timings) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    if command.name.is_some() && command.images.len() > 1 {
        return Err(UsageError("--name needs exactly one image".to_owned()).into());
    }
    let options = ConvertOptions { dry_run: command.dry_run, ..command.effort.options()? };
    let resources = command.effort.resources()?;
    super::interrupt::watch()?;
    let (directory, created) = open_or_create(arguments, command.create)?;
    let name = command.name.clone();
    let image = image_options(command);
    let request =
        |argument: &ImageArgument| Request { argument: argument.clone(), name: name.clone(), image: image.clone() };
    let requests: Vec<Request> = command.images.iter().map(request).collect();
    let progress = Arc::new(Progress::default());
    let display = Display::start(&progress, arguments.quiet);
    let report = Engine::open(&directory, resources)
        .map_err(anyhow::Error::from)
        .and_then(|engine| Ok(convert(&engine, &requests, &options, &progress)?));
    drop(display);
    if let Some(created) = created {
        match &report {
            Ok(ConvertReport { revision: Some(_), .. }) => created.keep(),
            _ => {
                drop(created);
                let path = directory.path().display();
                tracing::info!("nothing was published: the new repository in '{path}' is deleted again");
            }
        }
    }
    let report = report?;
    let stages = command.timings.then(|| (timings, start.elapsed(), resources.threads));
    let printed = print_report(arguments, &directory, &report, command.dry_run, stages);
    for image in &report.images {
        if let Err(error) = &image.outcomes {
            complain(format_args!("{}: {}", image.argument, causes(error)));
        }
    }
    complain_late(&report.late_errors);
    after(report.revision.map(|revision| revision.number), printed)?;
    Ok(ExitCode::from(exit_code(&report)))
}

/// Returns the exit code of a conversion that returned a report.
fn exit_code(report: &ConvertReport) -> u8 {
    let failed = report.images.iter().filter(|image| image.outcomes.is_err()).count();
    match failed {
        _ if !report.late_errors.is_empty() => LATE,
        0 => 0,
        _ if failed == report.images.len() => FAILED,
        _ => PARTLY,
    }
}

/// Prints the report and, if `--timings` is set, the timings. `stages` holds the timings, the elapsed time and the number of
/// threads.
fn print_report(
    arguments: &Arguments,
    directory: &RepositoryDirectory,
    report: &ConvertReport,
    dry_run: bool,
    stages: Option<(&Timings, Duration, usize)>,
) -> anyhow::Result<()> {
    if arguments.json {
        let mut json = to_json(directory, report, dry_run);
        if let Some((timings, wall, threads)) = stages {
            json["timings"] = timings.to_json(wall, threads, report.index_hits);
        }
        return print_line(format_args!("{json}"));
    }
    print(format_args!("{}", to_text(directory, report, dry_run)))?;
    if let Some((timings, wall, threads)) = stages {
        print(format_args!("{}", timings.to_text(wall, threads, report.index_hits)))?;
    }
    Ok(())
}

/// Opens the repository directory. A missing directory is created only if `create` is set: a misspelt path must not become a
/// new repository with new keys. When the second value is dropped, a repository that was created is deleted,
/// unless a revision is published in it.
fn open_or_create(
    arguments: &Arguments,
    create: bool,
) -> anyhow::Result<(RepositoryDirectory, Option<UnfinishedFiles>)> {
    arguments.require_directory()?;
    match arguments.open_directory() {
        Err(DirectoryError::NoDirectory(path)) if create => {
            create_at(&path).map(|(directory, unfinished)| (directory, Some(unfinished)))
        }
        Err(error @ DirectoryError::NoDirectory(_)) => {
            let hint = "'strata init', or 'convert' with --create, creates a repository";
            Err(UsageError(format!("{error}; {hint}")).into())
        }
        opened => Ok((opened?, None)),
    }
}

/// Creates a repository whose name is the last component of a path.
fn create_at(path: &Path) -> anyhow::Result<(RepositoryDirectory, UnfinishedFiles)> {
    let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
        UsageError("--create needs --repo DIR, whose last component is the name of the repository".to_owned())
    })?;
    let name = RepositoryName::for_new_repository(name).map_err(|error| {
        UsageError(format!("--create names the repository after the last component of '{}': {error}", path.display()))
    })?;
    let new = NewRepository { now: time_of_publication()?, ..NewRepository::new(name) };
    let created = create_provisional_repository(path, new, &reporter(), cancellation())?;
    tracing::info!("created {} in {}; 'strata info' prints how to mount it", created.0.name(), path.display());
    Ok(created)
}

fn image_options(command: &Convert) -> ImageOptions {
    ImageOptions {
        platforms: command.platform.clone().unwrap_or_default(),
        skip_layers: command.skip_layers,
        skip_flat: command.skip_flat,
        skip_podman: command.skip_podman,
        chains: command.chains,
        force: command.force,
        strict: command.strict,
    }
}

fn to_text(directory: &RepositoryDirectory, report: &ConvertReport, dry_run: bool) -> String {
    let mut text = String::new();
    for outcome in report.images.iter().filter_map(|image| image.outcomes.as_ref().ok()).flatten() {
        writeln!(text, "{}", image_line(outcome, dry_run)).expect("writing to a string cannot fail");
        text.push_str(&losses_text(&outcome.losses));
    }
    let some_succeeded = report.images.iter().any(|image| image.outcomes.is_ok());
    match report.revision {
        Some(revision) => {
            let written = report.written;
            writeln!(
                text,
                "published revision {} of {}: {} new objects, {}; {} content index hits",
                revision.number,
                directory.name(),
                written.objects,
                ByteSize(written.bytes),
                report.index_hits,
            )
            .expect("writing to a string cannot fail");
        }
        None if some_succeeded && !dry_run => text.push_str("everything is published already: nothing to do\n"),
        None => {}
    }
    text
}

fn image_line(outcome: &ImageOutcome, dry_run: bool) -> String {
    let plan = &outcome.plan;
    let verb = if dry_run { "to read" } else { "read" };
    format!(
        "{}  {}  {} layers, {} {verb} ({})",
        outcome.place,
        outcome.manifest,
        plan.layers,
        plan.layers_to_read,
        ByteSize(plan.bytes_to_read)
    )
}

fn losses_text(losses: &LossList) -> String {
    let mut text = String::new();
    for (kind, losses) in losses.kinds() {
        writeln!(text, "  CVMFS cannot represent: {} x {kind}", losses.count).expect("writing to a string cannot fail");
        if kind == LossKind::MaskedLink {
            text.push_str(MASKED_LINK);
        }
        for path in losses.paths.iter().take(MAX_PRINTED_LOSSES) {
            writeln!(text, "    {path}").expect("writing to a string cannot fail");
        }
        if losses.count > MAX_PRINTED_LOSSES as u64 {
            let more = losses.count - MAX_PRINTED_LOSSES as u64;
            writeln!(text, "    and {more} more").expect("writing to a string cannot fail");
        }
    }
    text
}

fn to_json(directory: &RepositoryDirectory, report: &ConvertReport, dry_run: bool) -> Value {
    let outcome = |image: &ImageReport, outcome: &ImageOutcome| {
        let mut json = json!({
            "image": image.argument.to_string(),
            "name": outcome.place.name.to_string(),
            "manifest": outcome.manifest,
            "config": outcome.config,
            "layers": outcome.plan.layers,
            "layers-read": outcome.plan.layers_to_read,
            "bytes-read": outcome.plan.bytes_to_read,
            "losses": outcome.losses,
            "podman": outcome.podman == PodmanListing::Listed,
        });
        if let PodmanListing::Refused(refusal) = &outcome.podman {
            json["podman-refusal"] = refusal.to_string().into();
        }
        if let Some(platform) = &outcome.place.platform {
            json["platform"] = platform.to_string().into();
        }
        json
    };
    let image = |image: &ImageReport| match &image.outcomes {
        Ok(outcomes) => outcomes.iter().map(|platform| outcome(image, platform)).collect(),
        Err(error) => vec![json!({ "image": image.argument.to_string(), "error": causes(error) })],
    };
    json!({
        "repository": directory.name().as_str(),
        "dry-run": dry_run,
        "revision": report.revision.map(|revision| revision.number),
        "root-catalog": report.revision.map(|revision| revision.root.hash.to_string()),
        "new-objects": report.written.objects,
        "new-bytes": report.written.bytes,
        "images": report.images.iter().flat_map(image).collect::<Vec<_>>(),
    })
}
