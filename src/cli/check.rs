//! `strata check`.

use std::process::ExitCode;
use std::sync::Arc;

use bytesize::ByteSize;
use serde_json::{Value, json};
use strata::check::{CheckOptions, CheckReport, check};
use strata::metadata::Timestamp;
use strata::progress::Progress;

use super::arguments::{Arguments, Check, threads};
use super::findings::{self, count};
use super::print_line;
use super::progress::Display;
use super::published::PublishedImage;

/// Checks the repository or a part of it.
pub fn run(arguments: &Arguments, command: &Check) -> anyhow::Result<ExitCode> {
    super::interrupt::watch_reader();
    let target = arguments.target()?;
    if let Some(image) = command.path.as_ref().and_then(|path| path.parse::<PublishedImage>().ok()) {
        image.compare_digest(&target)?;
    }
    let options = CheckOptions {
        path: command.path.clone(),
        quick: command.quick,
        threads: threads(command.threads)?,
        // The expiry of the whitelist is compared with the clock, not with `SOURCE_DATE_EPOCH`.
        now: Timestamp::now(),
    };
    let progress = Arc::new(Progress::default());
    let display = Display::start(&progress, arguments.quiet);
    let report = check(&target.checked()?, &options, &progress);
    drop(display);
    let report = report?;
    report.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    if arguments.json {
        print_line(format_args!("{}", to_json(&report)))?;
    } else {
        findings::print(&report.findings, &summary(&report))?;
    }
    Ok(findings::exit_code(&report.findings))
}

fn summary(report: &CheckReport) -> String {
    let findings = findings::number(&report.findings);
    let (catalogs, entries) = (count(report.catalogs, "catalog"), report.entries);
    let (objects, bytes) = (count(report.objects, "object"), ByteSize(report.bytes));
    let mut text = format!("{findings} in {catalogs} with {entries} entries and {objects} of {bytes}");
    if let Some(unreferenced) = report.unreferenced.filter(|unreferenced| unreferenced.objects > 0) {
        let (objects, bytes) = (count(unreferenced.objects, "object"), ByteSize(unreferenced.bytes));
        text.push_str(&format!("; unreferenced: {objects} of {bytes}"));
    }
    if report.leftovers > 0 {
        text.push_str(&format!("; {} of killed or running publishers", count(report.leftovers, "leftover")));
    }
    text
}

fn to_json(report: &CheckReport) -> Value {
    json!({
        "findings": report.findings,
        "warnings": report.warnings,
        "catalogs": report.catalogs,
        "entries": report.entries,
        "objects": report.objects,
        "bytes": report.bytes,
        "unreferenced": report.unreferenced.map(|unreferenced| json!({
            "objects": unreferenced.objects,
            "bytes": unreferenced.bytes,
        })),
        "leftovers": report.leftovers,
    })
}
