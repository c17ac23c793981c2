//! The results of `strata sync` as text and as JSON.

use bytesize::ByteSize;
use serde_json::{Value, json};
use strata::directory::RepositoryDirectory;
use strata::image::ImageName;
use strata::message::{causes, on_one_line};
use strata::stage::ImageOutcome;
use strata::wishlist::{ListingFailure, WantedImage, Wishlist, WishlistProblem};
use strata::work::{ImageState, SyncReport, ThinOutcome, ThinState};

/// The results of one round.
pub(super) struct RoundResults<'a> {
    pub(super) directory: &'a RepositoryDirectory,
    pub(super) wishlist: &'a Wishlist,
    pub(super) report: &'a SyncReport,
    pub(super) thin: &'a [ThinOutcome],
    pub(super) dry_run: bool,
}

impl RoundResults<'_> {
    /// Returns a line for each change, and a line with totals.
    pub(super) fn to_text(&self) -> String {
        let mut text: String = self.report.images.iter().map(|(_, state)| image_lines(state)).collect();
        let going = if self.dry_run { &self.report.prunable } else { &self.report.removed };
        for name in going {
            text += &format!("{name}  {}\n", self.removal(name));
        }
        let is_pushed = |thin: &&ThinOutcome| thin.state == ThinState::Pushed;
        for ThinOutcome { image, name, .. } in self.thin.iter().filter(is_pushed) {
            text += &format!("{name}  pushed, thin image of {image}\n");
        }
        text + &self.totals() + "\n"
    }

    /// Returns the text for an image that was or would be removed.
    fn removal(&self, name: &ImageName) -> &'static str {
        match (self.dry_run, self.report.removed.contains(name), self.report.suspicion) {
            (false, ..) => "removed",
            (true, true, _) => "to be removed",
            (true, false, None) => "would be removed with --prune",
            (true, false, Some(_)) => "would be removed with --prune-all only",
        }
    }

    fn totals(&self) -> String {
        let Self { directory, wishlist, report, dry_run, .. } = self;
        let count = |is: fn(&ImageState) -> bool| report.images.iter().filter(|(_, state)| is(state)).count();
        let unchanged = count(|state| matches!(state, ImageState::Unchanged));
        let published = count(|state| matches!(state, ImageState::Published(_) | ImageState::Planned(_)));
        let failed = count(|state| matches!(state, ImageState::Failed(_)));
        let [to_publish, to_remove] = if *dry_run { ["to publish", "to remove"] } else { ["published", "removed"] };
        let images = report.images.len();
        let mut text = format!("{images} images: {unchanged} unchanged, {published} {to_publish}, {failed} failed");
        for (separator, number, what) in [
            (",", report.removed.len(), to_remove),
            (";", report.artifacts.len(), "artifacts skipped"),
            (";", report.failures.len(), "lists failed"),
            (";", wishlist.bad_lines().count(), "errors in the wishlist"),
        ] {
            if number > 0 {
                text += &format!("{separator} {number} {what}");
            }
        }
        let revisions: Vec<String> = report.revisions.iter().map(|revision| revision.number.to_string()).collect();
        if !revisions.is_empty() {
            let (objects, bytes) = (report.written.objects, ByteSize(report.written.bytes));
            let word = if revisions.len() == 1 { "revision" } else { "revisions" };
            let (revisions, name) = (revisions.join(", "), directory.name());
            text += &format!("; {word} {revisions} of {name}: {objects} new objects, {bytes}");
        }
        text
    }

    pub(super) fn to_json(&self) -> Value {
        let Self { directory, wishlist, report, thin, dry_run } = self;
        let names = |names: &[ImageName]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        json!({
            "repository": directory.name().as_str(),
            "dry-run": dry_run,
            "revisions": report.revisions.iter().map(|revision| revision.number).collect::<Vec<_>>(),
            "new-objects": report.written.objects,
            "new-bytes": report.written.bytes,
            "removed": names(&report.removed),
            "prunable": names(&report.prunable),
            "not-listed": report.failures.iter().map(failure_json).collect::<Vec<_>>(),
            "bad-lines": wishlist.bad_lines().map(bad_line_json).collect::<Vec<_>>(),
            "images": report.images.iter().map(image_json).collect::<Vec<_>>(),
            "artifacts": report.artifacts.iter().map(artifact_json).collect::<Vec<_>>(),
            "thin-images": thin.iter().map(thin_json).collect::<Vec<_>>(),
        })
    }
}

/// Returns a line for each platform of an image that was or would be published.
fn image_lines(state: &ImageState) -> String {
    let published = |ImageOutcome { place, manifest, .. }: &ImageOutcome| format!("{place}  {manifest}\n");
    let planned = |ImageOutcome { place, manifest, plan, .. }: &ImageOutcome| {
        let (read, layers, bytes) = (plan.layers_to_read, plan.layers, ByteSize(plan.bytes_to_read));
        format!("{place}  {manifest}  {layers} layers, {read} to read ({bytes})\n")
    };
    match state {
        ImageState::Published(outcomes) => outcomes.iter().map(published).collect(),
        ImageState::Planned(outcomes) => outcomes.iter().map(planned).collect(),
        ImageState::Unchanged | ImageState::Failed(_) | ImageState::Artifact(_) => String::new(),
    }
}

fn image_json((image, state): &(WantedImage, ImageState)) -> Value {
    let mut json = json!({"image": image.argument.to_string(), "name": image.name().to_string()});
    match state {
        ImageState::Unchanged => json["state"] = "unchanged".into(),
        ImageState::Published(outcomes) => {
            json["state"] = "published".into();
            json["platforms"] = outcomes.iter().map(platform_json).collect();
        }
        ImageState::Planned(outcomes) => {
            json["state"] = "planned".into();
            json["platforms"] = outcomes.iter().map(platform_json).collect();
        }
        ImageState::Failed(error) => {
            json["state"] = "failed".into();
            json["error"] = error.as_str().into();
        }
        ImageState::Artifact(_) => {}
    }
    json
}

fn platform_json(outcome: &ImageOutcome) -> Value {
    json!({
        "platform": outcome.place.platform.as_ref().map(ToString::to_string),
        "manifest": outcome.manifest,
        "config": outcome.config,
        "layers": outcome.plan.layers,
        "layers-read": outcome.plan.layers_to_read,
        "bytes-read": outcome.plan.bytes_to_read,
        "losses": outcome.losses,
    })
}

fn artifact_json((image, artifact_type): &(WantedImage, String)) -> Value {
    json!({"image": image.argument.to_string(), "name": image.name().to_string(), "type": artifact_type})
}

fn failure_json(failure: &ListingFailure) -> Value {
    let error = on_one_line(&causes(&*failure.error));
    json!({"line": failure.line, "host": failure.host, "what": failure.what, "error": error})
}

fn bad_line_json(problem: &WishlistProblem) -> Value {
    json!({"line": problem.line, "column": problem.column, "error": on_one_line(&problem.text)})
}

fn thin_json(thin: &ThinOutcome) -> Value {
    let (state, reason) = match &thin.state {
        ThinState::Pushed => ("pushed", None),
        ThinState::Unchanged => ("unchanged", None),
        ThinState::LeftOut(reason) => ("left-out", Some(reason)),
        ThinState::Failed(error) => ("failed", Some(error)),
    };
    json!({"name": thin.name, "image": thin.image.to_string(), "state": state, "reason": reason})
}
