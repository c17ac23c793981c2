//! `strata diff`.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;

use bytesize::ByteSize;
use serde_json::{Value, json};
use strata::diff::{ChangeKind, ChangedAttribute, PathChange, RevisionDiff, diff, diff_rows};
use strata::directory::RepositoryDirectory;
use strata::engine::Resources;
use strata::image::Digest;
use strata::path::EntryPath;
use strata::progress::Progress;
use strata::repository::RevisionSelector;
use strata::source::{ArgumentError, ImageArgument, PlatformRequest, PlatformSelection};
use strata::stage::{ImageOptions, Request};
use strata::work::{Rehearsal, rehearse};

use super::arguments::{Arguments, Diff, default_options};
use super::failure::{FINDINGS, UsageError};
use super::progress::Display;
use super::{print, print_line};

/// Prints the differences between two revisions, or what converting an image would change.
pub fn run(arguments: &Arguments, command: &Diff) -> anyhow::Result<ExitCode> {
    let differs = match &command.to {
        Some(to) => revisions(arguments, &command.what, to)?,
        None => image(arguments, &arguments.directory()?, command)?,
    };
    Ok(if differs { ExitCode::from(FINDINGS) } else { ExitCode::SUCCESS })
}

fn revisions(arguments: &Arguments, from: &str, to: &RevisionSelector) -> anyhow::Result<bool> {
    let head = arguments.target()?.head()?;
    let Ok(from) = from.parse::<RevisionSelector>();
    let (old, new) = (head.open_at(&from)?, head.open_at(to)?);
    let (from, to) = (old.revision()?, new.revision()?);
    let difference = diff(&old, &new)?;
    if arguments.json {
        let mut json = to_json(&difference);
        json["from"] = json!(from);
        json["to"] = json!(to);
        print_line(format_args!("{json}"))?;
    } else {
        difference.changes.iter().try_for_each(|change| print(format_args!("{}", line(change))))?;
        print_line(format_args!("revision {from} to {to}: {}", totals(&difference)))?;
    }
    Ok(!difference.changes.is_empty())
}

/// Prints what converting an image would change.
fn image(arguments: &Arguments, directory: &RepositoryDirectory, command: &Diff) -> anyhow::Result<bool> {
    super::interrupt::watch()?;
    let argument: ImageArgument = command.what.parse().map_err(|error: ArgumentError| UsageError(error.to_string()))?;
    let platforms = PlatformSelection::One(PlatformRequest::new(command.platform.clone()));
    let image = ImageOptions { platforms, ..ImageOptions::default() };
    let request = Request { argument, name: command.name.clone(), image };
    let options = default_options()?;
    let progress = Arc::new(Progress::default());
    let display = Display::start(&progress, arguments.quiet);
    let rehearsal = rehearse(directory, &request, &options, Resources::default(), &progress)?;
    let (before, after) = (rehearsal.before.as_ref(), rehearsal.after.as_ref());
    let difference = diff_rows(&rehearsal.head, &rehearsal.next, before, after)?;
    drop(display);
    let root = after.and_then(|row| row.directory.as_ref()).map_or(EntryPath::ROOT, |directory| directory.path.clone());
    let difference = below(difference, &root);
    let layers = difference.changes.iter().map(|change| rehearsal.layer_of(&change.path)).collect::<Result<_, _>>()?;
    if arguments.json {
        print_line(format_args!("{}", image_json(&rehearsal, &difference, layers)))?;
    } else {
        print(format_args!("{}", image_text(&rehearsal, &difference, &layers)))?;
    }
    Ok(rehearsal.changes)
}

/// Makes the paths of changes relative to the root of the image.
fn below(difference: RevisionDiff, root: &EntryPath) -> RevisionDiff {
    let skipped = root.components().count();
    let inside = |change: PathChange| {
        let names = change.path.components().skip(skipped);
        PathChange { path: names.fold(EntryPath::ROOT, |path, name| path.join(name)), ..change }
    };
    RevisionDiff { changes: difference.changes.into_iter().map(inside).collect(), ..difference }
}

/// Formats the report. Each change begins with the number of the layer that causes it, counted from 1 for the lowest, or `-`
/// if no layer does.
fn image_text(rehearsal: &Rehearsal, difference: &RevisionDiff, layers: &[Option<Digest>]) -> String {
    let number = |digest: &Option<Digest>| rehearsal.layers.iter().rposition(|layer| Some(layer.digest) == *digest);
    let mut text = String::new();
    for (change, digest) in difference.changes.iter().zip(layers) {
        let number = number(digest).map_or_else(|| "-".to_owned(), |number| (number + 1).to_string());
        text += &format!("{number:>3}  {}", line(change));
    }
    let against = if rehearsal.before.is_some() { "the published image" } else { "no published image" };
    text += &format!(
        "{} compared with {against}: {} paths differ\n",
        rehearsal.outcome.place.name,
        difference.changes.len()
    );
    for (directory, [added, removed, changed, bytes]) in directories(difference) {
        text += &format!("  {directory}: {added} added, {removed} removed, {changed} changed; {}\n", ByteSize(bytes));
    }
    for (number, layer) in rehearsal.layers.iter().enumerate() {
        let cost = match layer.is_published {
            true => "is published".to_owned(),
            false => format!("{} new objects, {}", layer.new_objects, ByteSize(layer.new_bytes)),
        };
        text += &format!("layer {} {}: {cost}\n", number + 1, layer.digest);
    }
    let (written, shared) = (rehearsal.written, difference.shared);
    text += &match rehearsal.changes {
        true => format!(
            "converting it would store {} new objects, {}, including {} catalogs, and reuse {} objects, {}\n",
            written.objects,
            ByteSize(written.bytes),
            rehearsal.catalogs,
            shared.objects,
            ByteSize(shared.bytes)
        ),
        false => "everything is published already: nothing would change\n".to_owned(),
    };
    text
}

fn image_json(rehearsal: &Rehearsal, difference: &RevisionDiff, layers: Vec<Option<Digest>>) -> Value {
    let mut json = to_json(difference);
    for (number, digest) in layers.into_iter().enumerate() {
        json["changes"][number]["layer"] = json!(digest);
    }
    let directory = |(path, [added, removed, changed, bytes]): (EntryPath, [u64; 4])| json!({"path": path, "added": added, "removed": removed, "changed": changed, "bytes": bytes});
    json["name"] = json!(rehearsal.outcome.place.name.to_string());
    json["manifest"] = json!(rehearsal.outcome.manifest);
    json["is-published"] = json!(rehearsal.before.is_some());
    json["would-change"] = json!(rehearsal.changes);
    // Programs that read the JSON expect this former name.
    json["folders"] = directories(difference).into_iter().map(directory).collect();
    json["layers"] = json!(rehearsal.layers);
    json["stored"] = json!({"objects": rehearsal.written.objects, "bytes": rehearsal.written.bytes});
    json["catalogs"] = json!(rehearsal.catalogs);
    json
}

/// Counts, for each top-level directory, the added, removed and changed entries, and the bytes of new content.
fn directories(difference: &RevisionDiff) -> BTreeMap<EntryPath, [u64; 4]> {
    let mut directories: BTreeMap<EntryPath, [u64; 4]> = BTreeMap::new();
    for change in &difference.changes {
        let Some(top) = change.path.components().next() else { continue };
        let [added, removed, changed, bytes] = directories.entry(EntryPath::ROOT.join(top)).or_default();
        match &change.kind {
            ChangeKind::Added => (*added, *bytes) = (*added + change.entries, *bytes + change.bytes),
            ChangeKind::Removed => *removed += change.entries,
            ChangeKind::Changed(attributes) => {
                *changed += 1;
                *bytes += if attributes.contains(&ChangedAttribute::Content) { change.bytes } else { 0 };
            }
        }
    }
    directories
}

fn totals(difference: &RevisionDiff) -> String {
    format!(
        "{} paths differ; {} new objects, {}; {} objects shared, {}",
        difference.changes.len(),
        difference.new.objects,
        ByteSize(difference.new.bytes),
        difference.shared.objects,
        ByteSize(difference.shared.bytes),
    )
}

fn line(change: &PathChange) -> String {
    let (path, bytes) = (&change.path, ByteSize(change.bytes));
    let whole = match change.entries {
        1 => String::new(),
        entries => format!("  ({entries} entries, {bytes})"),
    };
    match &change.kind {
        ChangeKind::Added => format!("added    {path}{whole}\n"),
        ChangeKind::Removed => format!("removed  {path}{whole}\n"),
        ChangeKind::Changed(attributes) => {
            let attributes: Vec<String> = attributes.iter().map(ToString::to_string).collect();
            format!("changed  {path}  ({})\n", attributes.join(", "))
        }
    }
}

fn to_json(difference: &RevisionDiff) -> Value {
    let change = |change: &PathChange| {
        let (kind, attributes) = match &change.kind {
            ChangeKind::Added => ("added", json!([])),
            ChangeKind::Removed => ("removed", json!([])),
            ChangeKind::Changed(attributes) => ("changed", json!(attributes)),
        };
        json!({
            "path": change.path,
            "change": kind,
            "attributes": attributes,
            "entries": change.entries,
            "bytes": change.bytes,
        })
    };
    json!({
        "changes": difference.changes.iter().map(change).collect::<Vec<_>>(),
        "new": difference.new,
        "shared": difference.shared,
    })
}
