//! `strata init`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;
use strata::directory::RepositoryDirectory;
use strata::manifest::RepositoryName;
use strata::metadata::Timestamp;
use strata::object::HashAlgorithm;
use strata::publish::{NewRepository, create_repository};
use strata::settings::Settings;

use super::arguments::{Arguments, Init, time_of_publication};
use super::failure::{UsageError, after};
use super::hint::how_to_mount;
use super::interrupt::cancellation;
use super::progress::reporter;
use super::{print, print_line};

/// Creates a repository.
pub fn run(arguments: &Arguments, init: &Init) -> anyhow::Result<ExitCode> {
    let name = RepositoryName::for_new_repository(&init.fqrn).map_err(|error| UsageError(error.to_string()))?;
    arguments.require_directory()?;
    let path = arguments.repo.clone().unwrap_or_else(|| PathBuf::from(name.as_str()));
    let mut settings = Settings::new(name);
    if let Some(storage) = &init.storage {
        settings.storage = storage_path(storage)?;
    }
    if let Some(keys) = &init.keys {
        settings.keys = std::path::absolute(keys)?;
    }
    super::interrupt::watch()?;
    let directory = create(&path, settings, init.hash)?;
    after([1], print_created(arguments, &directory))?;
    Ok(ExitCode::SUCCESS)
}

fn print_created(arguments: &Arguments, directory: &RepositoryDirectory) -> anyhow::Result<()> {
    if arguments.json {
        let json = json!({"repository": directory.name().as_str(), "directory": directory.path(), "revision": 1});
        return print_line(format_args!("{json}"));
    }
    print_line(format_args!("created {} in {}", directory.name(), directory.path().display()))?;
    if !arguments.quiet {
        print(format_args!("\n{}", how_to_mount(directory)))?;
    }
    Ok(())
}

/// Creates a repository in the directory `path`.
fn create(path: &Path, settings: Settings, algorithm: HashAlgorithm) -> anyhow::Result<RepositoryDirectory> {
    let new = NewRepository { settings, algorithm, now: time_of_publication()?, started: Timestamp::now() };
    Ok(create_repository(path, new, &reporter(), cancellation())?)
}

/// Returns the local directory that a storage URL names.
fn storage_path(url: &str) -> anyhow::Result<PathBuf> {
    let path = url.strip_prefix("file://").unwrap_or(url);
    if path.contains("://") {
        return Err(UsageError(format!("'{url}' is not a local directory; other storage is not supported yet")).into());
    }
    Ok(std::path::absolute(path)?)
}
