//! `strata list`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde_json::{Value, json};
use strata::directory::RepositoryDirectory;
use strata::inventory::{self, ListedImage};
use strata::message::{causes, on_one_line};
use strata::metadata::Timestamp;
use strata::repository::Repository;
use strata::revise::{UnusedTree, unused_trees};

use super::arguments::{Arguments, List};
use super::print_line;

/// Lists the images of the repository, or the trees that no image uses.
pub fn run(arguments: &Arguments, list: &List) -> anyhow::Result<ExitCode> {
    super::interrupt::watch_reader();
    let target = arguments.target()?;
    let repository = target.head()?;
    match list.unused {
        true => unused(arguments, target.directory(), &repository)?,
        false => images(arguments, &repository)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn images(arguments: &Arguments, repository: &Repository) -> anyhow::Result<()> {
    let images = inventory::list(repository)?;
    if arguments.json {
        let image = |image: &ListedImage| {
            let platform = image.place.platform.as_ref().map(ToString::to_string);
            json!({"name": image.place.name.to_string(), "platform": platform, "record": image.record})
        };
        return print_line(format_args!("{}", Value::Array(images.iter().map(image).collect())));
    }
    for image in images {
        match &image.record {
            Some(record) => print_line(format_args!("{}  {}", image.place, record.manifest))?,
            None => print_line(format_args!("{}  (published by another program)", image.place))?,
        }
    }
    Ok(())
}

fn unused(
    arguments: &Arguments,
    directory: Option<&RepositoryDirectory>,
    repository: &Repository,
) -> anyhow::Result<()> {
    let trees = unused_trees(repository)?;
    let seen = first_seen(directory, &trees);
    let since = |tree: &UnusedTree| match &tree.last_use {
        Some(last_use) => last_use.since,
        None => seen[&tree.path.to_string()],
    };
    let time = |tree: &UnusedTree| Timestamp { seconds: since(tree), nanoseconds: 0 }.to_string();
    let by = |tree: &UnusedTree| tree.last_use.as_ref().map(|last_use| last_use.by.clone());
    if arguments.json {
        let tree = |tree: &UnusedTree| json!({"path": tree.path.to_string(), "since": time(tree), "left-by": by(tree)});
        return print_line(format_args!("{}", Value::Array(trees.iter().map(tree).collect())));
    }
    for tree in &trees {
        let how = by(tree).map_or_else(
            || "first found unused at that time".to_owned(),
            |image| format!("left by {}", on_one_line(&image)),
        );
        print_line(format_args!("{}  since {}, {how}", tree.path, time(tree)))?;
    }
    Ok(())
}

/// Returns when the trees without a record in the repository were first found to be unused. For a tree that an earlier call
/// found, this time is in the state database; for all others it is the current time, which is recorded there.
fn first_seen(directory: Option<&RepositoryDirectory>, trees: &[UnusedTree]) -> BTreeMap<String, i64> {
    let unnoted = trees.iter().filter(|tree| tree.last_use.is_none()).map(|tree| tree.path.to_string());
    let (unnoted, now): (Vec<String>, i64) = (unnoted.collect(), Timestamp::now().seconds);
    // A repository that is read by its URL has no state here, in which an earlier time could be.
    let Some(directory) = directory else { return unnoted.into_iter().map(|tree| (tree, now)).collect() };
    // The state database must forget trees that are used again, but it is not created only for that.
    if unnoted.is_empty() && !directory.has_state() {
        return BTreeMap::new();
    }
    let remembered = match directory.state() {
        Ok(state) => state.unused_since(&unnoted, now).map_err(|error| causes(&error)),
        Err(error) => Err(causes(&error)),
    };
    remembered.unwrap_or_else(|error| {
        tracing::warn!("cannot record which trees were first found unused today: {error}");
        unnoted.into_iter().map(|tree| (tree, now)).collect()
    })
}
