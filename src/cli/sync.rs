//! `strata sync`.

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::Context as _;
use strata::directory::RepositoryDirectory;
use strata::engine::Engine;
use strata::message::{causes, on_one_line};
use strata::notification::Notifications;
use strata::revise::Prune;
use strata::wishlist::Wishlist;
use strata::work::{
    ConvertOptions, Event, ImageState, SyncObserver, SyncOptions, ThinOutcome, ThinState, push_thin_images, sync,
};

use super::arguments::{Arguments, Sync};
use super::failure::{FAILED, LATE, PARTLY, UsageError, after, complain_late};
use super::notify::Notifier;
use super::progress::Display;
use super::sync_results::RoundResults;
use super::{complain, print, print_line};

/// Number of images that are converted in parallel, which is enough to hide the latency of registries.
const PARALLEL_IMAGES: usize = 4;

/// Brings the repository in step with a wishlist, once or repeatedly.
pub fn run(arguments: &Arguments, command: &Sync) -> anyhow::Result<ExitCode> {
    let directory = arguments.directory()?;
    super::interrupt::watch()?;
    let notifications = match &command.notification_file {
        // A dry run causes no events.
        Some(_) if command.dry_run => Notifications::none(),
        Some(path) => Notifications::open(path, directory.reporter())
            .with_context(|| format!("cannot write '{}'", path.display()))?,
        None => Notifications::none(),
    };
    let notifier = Notifier::start(notifications);
    if !command.watch {
        return once(arguments, command, &directory, &notifier);
    }
    loop {
        // The cause, such as a file that is being edited, may be gone in the next round.
        if let Err(error) = once(arguments, command, &directory, &notifier) {
            tracing::error!("{}", causes(error.as_ref()));
        }
        tracing::info!("the next round begins in {}", humantime::format_duration(command.every));
        thread::sleep(command.every);
    }
}

fn once(
    arguments: &Arguments,
    command: &Sync,
    directory: &RepositoryDirectory,
    notifier: &Notifier,
) -> anyhow::Result<ExitCode> {
    let wishlist = Wishlist::open(&command.wishlist)?;
    refuse_bad_lines(command, &wishlist)?;
    let thin = wishlist.thin.as_ref().filter(|_| command.thin_images);
    if command.thin_images && thin.is_none() && wishlist.bad_lines().next().is_none() {
        return Err(UsageError(
            "--thin-images requires a recipe of version 1, because only such a recipe defines the names of thin images"
                .to_owned(),
        )
        .into());
    }
    let options = SyncOptions {
        convert: ConvertOptions { dry_run: command.dry_run, ..command.effort.options()? },
        prune: prune(command),
        publish_every: directory.settings().publish_every,
        side_by_side: PARALLEL_IMAGES,
    };
    let reporter = EventReporter::new(Display::start_empty(arguments.quiet), notifier, &command.wishlist);
    let engine = Engine::open(directory, command.effort.resources()?)?;
    let report = sync(&engine, &wishlist, &options, &reporter)?;
    drop(reporter);
    // The images are published at this point, so an error must not end the command as if nothing was published.
    let pushed = thin.map(|thin| push_thin_images(directory, thin, &report)).transpose();
    let thin_is_lost = pushed.is_err();
    let thin = pushed.unwrap_or_else(|error| {
        tracing::error!("cannot push thin images: {}", causes(&error));
        None
    });
    let (wishlist, report, thin, dry_run) = (&wishlist, &report, &thin.unwrap_or_default(), command.dry_run);
    conclude(arguments, command, &RoundResults { directory, wishlist, report, thin, dry_run }, thin_is_lost)
}

/// Prints the results of a round, and returns its exit code.
fn conclude(
    arguments: &Arguments,
    command: &Sync,
    results: &RoundResults<'_>,
    thin_is_lost: bool,
) -> anyhow::Result<ExitCode> {
    let RoundResults { report, wishlist, thin, .. } = *results;
    thin.iter().for_each(report_thin);
    let printed = match arguments.json {
        true => print_line(format_args!("{}", results.to_json())),
        false => print(format_args!("{}", results.to_text())),
    };
    let refused = report.suspicion.filter(|_| prune(command) == Prune::Usual);
    if let Some(loss) = refused {
        complain(format_args!("nothing is removed, because {loss}; if this is intended, use --prune-all"));
    }
    complain_late(&report.late_errors);
    after(report.revisions.iter().map(|revision| revision.number), printed)?;
    let outcomes = RoundFacts {
        images: report.images.len(),
        failed: report.images.iter().filter(|(_, state)| matches!(state, ImageState::Failed(_))).count(),
        not_listed: report.failures.len(),
        bad_lines: wishlist.bad_lines().count(),
        thin_failed: thin.iter().filter(|thin| matches!(thin.state, ThinState::Failed(_))).count(),
        is_prune_refused: refused.is_some(),
        has_published: !report.revisions.is_empty(),
        has_late_failure: !report.late_errors.is_empty() || thin_is_lost,
    };
    Ok(ExitCode::from(outcomes.exit_code()))
}

fn prune(command: &Sync) -> Prune {
    match (command.prune_all, command.prune) {
        (true, _) => Prune::All,
        (false, true) => Prune::Usual,
        (false, false) => Prune::Nothing,
    }
}

/// The facts about a round that decide on the exit code.
#[derive(Debug, Clone, Copy, Default)]
struct RoundFacts {
    images: usize,
    failed: usize,
    not_listed: usize,
    bad_lines: usize,
    thin_failed: usize,
    is_prune_refused: bool,
    has_published: bool,
    has_late_failure: bool,
}

impl RoundFacts {
    fn exit_code(self) -> u8 {
        let failures = self.failed + self.not_listed + self.thin_failed + self.bad_lines;
        let is_all_well = failures == 0 && !self.is_prune_refused;
        match self.has_published {
            true if self.has_late_failure => LATE,
            _ if is_all_well && !self.has_late_failure => 0,
            // A revision that only removes images counts as published, too.
            false if self.failed == self.images && self.failed + self.not_listed > 0 => FAILED,
            _ => PARTLY,
        }
    }
}

/// Returns an error with every bad line of a wishlist, if the wishlist has no valid line, or `--strict` is set.
fn refuse_bad_lines(command: &Sync, wishlist: &Wishlist) -> anyhow::Result<()> {
    let path = command.wishlist.display();
    let bad: Vec<String> = wishlist.bad_lines().map(|problem| format!("'{path}', {problem}")).collect();
    if bad.is_empty() || !(command.strict || wishlist.wishes.is_empty()) {
        return Ok(());
    }
    let reason =
        if command.strict { "nothing is done, because of --strict" } else { "the file contains no valid line" };
    if let [line] = &bad[..] {
        anyhow::bail!("{line}; {reason}");
    }
    bad.iter().for_each(|line| tracing::error!("{line}"));
    anyhow::bail!("'{path}' has {} errors; {reason}", bad.len());
}

/// Reports events as they happen: on the terminal, in the log, and in the notification file.
struct EventReporter<'a> {
    display: Display,
    notifier: &'a Notifier,
    wishlist: &'a Path,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    all: AtomicUsize,
    unchanged: AtomicUsize,
    ready: AtomicUsize,
    published: AtomicUsize,
    failed: AtomicUsize,
}

impl<'a> EventReporter<'a> {
    fn new(display: Display, notifier: &'a Notifier, wishlist: &'a Path) -> Self {
        display.summarise("listing tags".to_owned());
        Self { display, notifier, wishlist, counts: Counts::default() }
    }

    fn summarise(&self) {
        let count = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        let Counts { all, unchanged, ready, published, failed } = &self.counts;
        let (all, unchanged, ready) = (count(all), count(unchanged), count(ready));
        let (published, failed) = (count(published), count(failed));
        let left = all.saturating_sub(unchanged + ready + failed);
        self.display.summarise(format!(
            "{all} images: {unchanged} unchanged, {published} published, {} ready, {failed} failed, {left} remaining",
            ready.saturating_sub(published)
        ));
    }
}

fn add(count: &AtomicUsize, number: usize) {
    count.fetch_add(number, Ordering::Relaxed);
}

impl SyncObserver for EventReporter<'_> {
    fn note(&self, event: Event<'_>) {
        self.notifier.note(&event);
        match event {
            Event::Listed(number) => add(&self.counts.all, number),
            Event::Problem(problem) if problem.is_bad => {
                tracing::error!("'{}', {problem}", self.wishlist.display());
            }
            Event::Problem(problem) => tracing::warn!("{problem}"),
            Event::NotListed(failure) => {
                tracing::error!("{failure}: {}", strata::message::causes(&*failure.error));
            }
            Event::Unchanged(image) => {
                self.display.remove(&image.name().to_string());
                tracing::debug!("{} is unchanged", image.name());
                add(&self.counts.unchanged, 1);
            }
            Event::Artifact(image, artifact_type) => {
                self.display.remove(&image.name().to_string());
                let artifact_type = on_one_line(artifact_type);
                tracing::info!(
                    "{} is skipped: it is not an image, but an artifact of type {artifact_type}",
                    image.name()
                );
                self.counts.all.fetch_sub(1, Ordering::Relaxed);
            }
            Event::Quarantined(image, reason) => {
                tracing::warn!("{}: {reason}", image.name());
                add(&self.counts.failed, 1);
            }
            Event::Started(image, progress) => self.display.add(&image.name().to_string(), progress),
            Event::WaitsFor(hosts) => {
                let hosts: Vec<String> =
                    hosts.iter().map(|(host, count)| format!("{host} ({count} remaining)")).collect();
                tracing::info!("all other images are done; waiting for {}", hosts.join(", "));
            }
            Event::Ready(image, _) => {
                self.display.remove(&image.name().to_string());
                tracing::info!("{} is ready to be published", image.name());
                add(&self.counts.ready, 1);
            }
            Event::Planned(image) => {
                self.display.remove(&image.name().to_string());
                tracing::debug!("{} would be converted", image.name());
                add(&self.counts.ready, 1);
            }
            Event::Failed(image, error) => {
                self.display.remove(&image.name().to_string());
                tracing::error!("{}: {error}", image.name());
                add(&self.counts.failed, 1);
            }
            Event::Published(revision, images) => {
                tracing::info!("published revision {} with {} new or changed images", revision.number, images.len());
                add(&self.counts.published, images.len());
            }
        }
        self.summarise();
    }
}

/// Logs the result for a thin image, unless the printed results include it.
fn report_thin(thin: &ThinOutcome) {
    match &thin.state {
        ThinState::Pushed => {}
        ThinState::Unchanged => tracing::debug!("{} is unchanged", thin.name),
        ThinState::LeftOut(reason) => tracing::warn!("no thin image of {}: {reason}", thin.image),
        ThinState::Failed(error) => tracing::error!("{}: {error}", thin.image),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_code_for_nothing_published_is_returned_only_in_that_case() {
        let none = RoundFacts { images: 2, ..RoundFacts::default() };
        let all_failed = RoundFacts { failed: 2, ..none };
        let lists_failed = RoundFacts { images: 0, not_listed: 1, ..none };
        for (outcomes, code) in [
            (none, 0),
            (RoundFacts { has_published: true, ..none }, 0),
            (RoundFacts { failed: 1, ..none }, PARTLY),
            (RoundFacts { thin_failed: 2, ..none }, PARTLY),
            (RoundFacts { not_listed: 1, ..none }, PARTLY),
            (all_failed, FAILED),
            (lists_failed, FAILED),
            (RoundFacts { has_published: true, ..all_failed }, PARTLY),
            (RoundFacts { has_published: true, ..lists_failed }, PARTLY),
            (RoundFacts { is_prune_refused: true, ..none }, PARTLY),
            (RoundFacts { images: 0, is_prune_refused: true, ..none }, PARTLY),
            (RoundFacts { has_late_failure: true, ..none }, PARTLY),
            (RoundFacts { has_late_failure: true, has_published: true, ..none }, LATE),
            (RoundFacts { has_late_failure: true, has_published: true, ..all_failed }, LATE),
        ] {
            assert_eq!(outcomes.exit_code(), code, "{outcomes:?}");
        }
    }
}
