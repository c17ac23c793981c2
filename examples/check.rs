//! Checks a repository, without reading the content of its objects: `cargo run --example check -- demo.example.org`

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use strata::{CheckOptions, CheckedRepository, Progress, RepositoryDirectory, check};

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).map(PathBuf::from).ok_or("argument: DIRECTORY")?;
    let directory = RepositoryDirectory::open(&path)?;
    let options = CheckOptions { quick: true, ..CheckOptions::default() };
    let report = check(&CheckedRepository::of_directory(&directory)?, &options, &Arc::new(Progress::default()))?;
    report.findings.iter().for_each(|finding| println!("{finding}"));
    println!("{} catalogs, {} entries", report.catalogs, report.entries);
    Ok(if report.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
