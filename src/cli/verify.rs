//! `strata verify`.

use std::process::ExitCode;
use std::sync::Arc;

use bytesize::ByteSize;
use serde_json::{Value, json};
use strata::layer::Limits;
use strata::progress::Progress;
use strata::verify::{Difference, VerifyOptions, VerifyReport, VerifyRequest, verify};

use super::arguments::{Arguments, Verify, threads};
use super::findings::{self, count};
use super::print_line;
use super::progress::Display;

/// Compares the published form of an image with the image.
pub fn run(arguments: &Arguments, command: &Verify) -> anyhow::Result<ExitCode> {
    super::interrupt::watch_reader();
    let target = arguments.target()?;
    let registries = target.registries()?;
    let repository = target.verified(&registries)?;
    let request = VerifyRequest {
        argument: command.image.clone(),
        name: command.name.clone(),
        platform: command.platform.clone(),
    };
    let options = VerifyOptions { threads: threads(command.threads)?, limits: Limits::default() };
    let progress = Arc::new(Progress::default());
    let display = Display::start(&progress, arguments.quiet);
    let report = verify(&repository, &request, &options, &progress);
    drop(display);
    let report = report?;
    if arguments.json {
        print_line(format_args!("{}", to_json(&report)))?;
    } else {
        findings::print(&report.differences, &summary(&report))?;
    }
    Ok(findings::exit_code(&report.differences))
}

fn summary(report: &VerifyReport) -> String {
    let findings = findings::number(&report.differences);
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

fn to_json(report: &VerifyReport) -> Value {
    let difference = |difference: &Difference| {
        json!({
            "path": difference.path.to_string(),
            "attribute": difference.attribute,
            "expected": difference.expected,
            "found": difference.found,
        })
    };
    json!({
        "name": report.name.to_string(),
        "manifest": report.manifest,
        "findings": report.differences.iter().map(difference).collect::<Vec<_>>(),
        "layers": report.layers,
        "trees": report.trees,
        "entries": report.entries,
        "bytes": report.bytes,
        "losses": report.losses,
    })
}
