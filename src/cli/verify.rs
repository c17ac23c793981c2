//! `strata verify`.

use std::process::ExitCode;
use std::sync::Arc;

use bytesize::ByteSize;
use serde_json::{Value, json};
use strata::layer::Limits;
use strata::progress::Progress;
use strata::verify::{Finding, Options, Report, Request, verify};

use super::arguments::{Arguments, Verify, threads};
use super::findings::{self, count};
use super::print_line;
use super::progress::Display;

/// Compares the published form of an image with the image.
pub fn run(arguments: &Arguments, command: &Verify) -> anyhow::Result<ExitCode> {
    let directory = arguments.directory()?;
    let request =
        Request { argument: command.image.clone(), name: command.name.clone(), platform: command.platform.clone() };
    let options = Options { threads: threads(command.threads)?, limits: Limits::default() };
    let progress = Arc::new(Progress::default());
    let display = Display::start(&progress, arguments.quiet);
    let report = verify(&directory, &request, &options, &progress);
    drop(display);
    let report = report?;
    if arguments.json {
        print_line(format_args!("{}", to_json(&report)))?;
    } else {
        findings::print(&report.findings, &summary(&report))?;
    }
    Ok(findings::exit_code(&report.findings))
}

fn summary(report: &Report) -> String {
    let findings = findings::number(&report.findings);
    let (layers, trees) = (count(report.layers as u64, "layer"), count(report.trees as u64, "published tree"));
    let mut text = format!(
        "{}  {}  {findings}: {layers} against {trees} with {} entries and {}",
        report.name,
        report.manifest,
        report.entries,
        ByteSize(report.bytes)
    );
    if report.losses > 0 {
        text.push_str(&format!("; losses: {}", report.losses));
    }
    text
}

fn to_json(report: &Report) -> Value {
    let finding = |finding: &Finding| {
        json!({
            "path": finding.path.to_string(),
            "attribute": finding.attribute,
            "expected": finding.expected,
            "found": finding.found,
        })
    };
    json!({
        "name": report.name.to_string(),
        "manifest": report.manifest,
        "findings": report.findings.iter().map(finding).collect::<Vec<_>>(),
        "layers": report.layers,
        "trees": report.trees,
        "entries": report.entries,
        "bytes": report.bytes,
        "losses": report.losses,
    })
}
