//! `strata diff`.

use std::process::ExitCode;

use bytesize::ByteSize;
use serde_json::{Value, json};
use strata::diff::{Change, Difference, Kind, diff};
use strata::repository::Repository;

use super::arguments::{Arguments, Diff};
use super::failure::FINDINGS;
use super::{print, print_line};

/// Shows what differs between two revisions.
pub fn run(arguments: &Arguments, command: &Diff) -> anyhow::Result<ExitCode> {
    let folder = arguments.folder()?;
    let head = Repository::open(&folder.store()?, folder.name())?;
    let (old, new) = (head.open_at(&command.from)?, head.open_at(&command.to)?);
    let (from, to) = (old.revision()?, new.revision()?);
    let difference = diff(&old, &new)?;
    if arguments.json {
        print_line(format_args!("{}", to_json(from, to, &difference)))?;
    } else {
        difference.changes.iter().try_for_each(|change| print(format_args!("{}", line(change))))?;
        let bytes = ByteSize;
        print_line(format_args!(
            "revision {from} to {to}: {} paths differ; {} new objects, {}; {} objects shared, {}",
            difference.changes.len(),
            difference.new.objects,
            bytes(difference.new.bytes),
            difference.shared.objects,
            bytes(difference.shared.bytes),
        ))?;
    }
    Ok(if difference.changes.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FINDINGS) })
}

fn line(change: &Change) -> String {
    let (path, bytes) = (&change.path, ByteSize(change.bytes));
    let whole = match change.entries {
        1 => String::new(),
        entries => format!("  ({entries} entries, {bytes})"),
    };
    match &change.kind {
        Kind::Added => format!("added    {path}{whole}\n"),
        Kind::Removed => format!("removed  {path}{whole}\n"),
        Kind::Changed(attributes) => {
            let attributes: Vec<String> = attributes.iter().map(ToString::to_string).collect();
            format!("changed  {path}  ({})\n", attributes.join(", "))
        }
    }
}

fn to_json(from: u64, to: u64, difference: &Difference) -> Value {
    let change = |change: &Change| {
        let (kind, attributes) = match &change.kind {
            Kind::Added => ("added", json!([])),
            Kind::Removed => ("removed", json!([])),
            Kind::Changed(attributes) => ("changed", json!(attributes)),
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
        "from": from,
        "to": to,
        "changes": difference.changes.iter().map(change).collect::<Vec<_>>(),
        "new": difference.new,
        "shared": difference.shared,
    })
}
