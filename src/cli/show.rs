//! `strata info`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use bytesize::ByteSize;
use serde_json::{Value, json};
use strata::consumer::PublishedImage;
use strata::describe::{ImageDetails, describe};
use strata::layout::ImagePlace;
use strata::manifest::Whitelist;
use strata::message::{causes, on_one_line};
use strata::metadata::Timestamp;
use strata::repository::Repository;

use super::arguments::{Arguments, Info};
use super::hint::how_to_mount;
use super::target::Target;
use super::{print, print_line};

/// Prints information about the repository or about one image.
pub fn info(arguments: &Arguments, info: &Info) -> anyhow::Result<ExitCode> {
    super::interrupt::watch_reader();
    let target = arguments.target()?;
    let repository = target.head()?;
    match &info.image {
        None => {
            if let Some(warning) = target.whitelist_warning(Timestamp::now()) {
                tracing::warn!("{warning}");
            }
            repository_info(arguments, &target, &repository)?;
        }
        Some(image) => {
            for place in image.places(&repository)? {
                let details = describe(&repository, &place)?;
                let image = PublishedImage {
                    repository: &repository,
                    place: &place,
                    record: &details.record,
                    is_in_podman_store: details.podman == Some(Ok(())),
                };
                let commands = image.commands()?;
                image_info(arguments, &place, &details, &commands)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints information about the repository.
fn repository_info(arguments: &Arguments, target: &Target, repository: &Repository) -> anyhow::Result<()> {
    let (manifest, root) = (repository.manifest(), repository.root()?);
    let totals = root.total_counters();
    let published = Timestamp { seconds: manifest.published.unwrap_or(0), nanoseconds: 0 };
    // An invalid whitelist must not prevent the rest of the output.
    let list = target.whitelist();
    let compression = target.directory().map(|directory| directory.settings().compression);
    let expiry = |list: &Whitelist| Timestamp { seconds: list.expires(), nanoseconds: 0 }.to_string();
    if arguments.json {
        let value = json!({
            "repository": manifest.name.as_str(),
            "revision": manifest.revision,
            "published": published.to_string(),
            "root-catalog": manifest.root_catalog.to_string(),
            "entries": totals.entries(),
            "file-bytes": totals.file_size(),
            "catalogs": totals.nested() + 1,
            "compression": compression.map(|compression| compression.to_string()),
            "whitelist-expires": list.ok().flatten().as_ref().map(expiry),
        });
        print_line(format_args!("{value}"))?;
        return Ok(());
    }
    print_line(format_args!("repository    {}", manifest.name))?;
    print_line(format_args!("revision      {} of {published}", manifest.revision))?;
    print_line(format_args!("root catalog  {}", manifest.root_catalog))?;
    print_line(format_args!("entries       {} in {} catalogs", totals.entries(), totals.nested() + 1))?;
    print_line(format_args!(
        "files         {} (each hard link counted)",
        ByteSize(totals.file_size().cast_unsigned())
    ))?;
    if let Some(compression) = compression {
        print_line(format_args!("compression   {compression} ({})", compression.encoder_name()))?;
    }
    let whitelist = match list {
        Ok(Some(list)) => format!("expires at {}", expiry(&list)),
        Ok(None) => "missing: clients refuse the repository".to_owned(),
        Err(error) => on_one_line(&causes(error.as_ref())),
    };
    print_line(format_args!("whitelist     {whitelist}"))?;
    match target {
        Target::Directory(directory) => {
            print_line(format_args!("storage       {}", directory.storage_path().display()))?;
            print_line(format_args!("public key    {}", directory.public_key_path().display()))?;
            if !arguments.quiet {
                print(format_args!("\n{}", how_to_mount(directory)))?;
            }
        }
        Target::Remote(remote) => print_line(format_args!("servers       {}", remote.urls()))?,
    }
    Ok(())
}

fn image_info(
    arguments: &Arguments,
    place: &ImagePlace,
    details: &ImageDetails,
    commands: &[(&'static str, String)],
) -> anyhow::Result<()> {
    let record = &details.record;
    if arguments.json {
        return print_line(format_args!("{}", image_json(place, details, commands)));
    }
    let published = Timestamp { seconds: record.published, nanoseconds: 0 };
    print_line(format_args!("image      {place}"))?;
    print_line(format_args!("source     {}", on_one_line(&record.source)))?;
    print_line(format_args!("platform   {}", platform_text(details)))?;
    if let Some(digest) = record.digest {
        print_line(format_args!("digest     {digest}"))?;
    }
    print_line(format_args!("manifest   {}", record.manifest))?;
    print_line(format_args!("config     {}", record.config))?;
    print_line(format_args!("published  {published}, revision {}", record.revision))?;
    print_line(format_args!("flat       {}", if record.flat { "yes" } else { "no" }))?;
    for other in &details.same_flat {
        print_line(format_args!("           also {other}"))?;
    }
    print_line(format_args!("podman     {}", podman_text(details)))?;
    for (digest, (layer, users)) in record.layers.iter().zip(&details.layers) {
        let size = layer.as_ref().map_or_else(
            || "published by another program".to_owned(),
            |layer| format!("{} compressed, {} uncompressed", ByteSize(layer.blob_size), ByteSize(layer.unpacked_size)),
        );
        print_line(format_args!("layer      {digest}  {size}, other images with it: {users}"))?;
    }
    for (kind, losses) in details.losses.kinds() {
        print_line(format_args!("losses     {} x {kind}", losses.count))?;
    }
    for (runtime, command) in commands {
        print_line(format_args!("{runtime:<11}{command}"))?;
    }
    Ok(())
}

fn platform_text(details: &ImageDetails) -> String {
    match (&details.platform, &details.config_platform) {
        (Some(platform), Some(config)) if platform.is_contradicted_by(config) => {
            on_one_line(&format!("{platform} (according to its config: {config})"))
        }
        (Some(platform), _) => on_one_line(&platform.to_string()),
        (None, _) => "unknown".to_owned(),
    }
}

fn podman_text(details: &ImageDetails) -> String {
    match &details.podman {
        Some(Ok(())) => "yes".to_owned(),
        Some(Err(refusal)) => format!("no: {refusal}"),
        None => "no".to_owned(),
    }
}

fn image_json(place: &ImagePlace, details: &ImageDetails, commands: &[(&'static str, String)]) -> Value {
    let layers = details.record.layers.iter().zip(&details.layers).map(|(digest, (layer, users))| {
        json!({
            "digest": digest,
            "blob-size": layer.as_ref().map(|layer| layer.blob_size),
            "unpacked-size": layer.as_ref().map(|layer| layer.unpacked_size),
            "other-images": users,
        })
    });
    let same_flat: Vec<String> = details.same_flat.iter().map(ToString::to_string).collect();
    json!({
        "name": place.name.to_string(),
        "platform": details.platform.as_ref().map(ToString::to_string),
        "record": details.record,
        "layers": layers.collect::<Vec<_>>(),
        "same-flat": same_flat,
        "podman": details.podman == Some(Ok(())),
        "podman-refusal": details.podman.as_ref().and_then(|podman| podman.as_ref().err()).map(ToString::to_string),
        "losses": details.losses,
        "commands": commands.iter().map(|(runtime, command)| (*runtime, command)).collect::<BTreeMap<_, _>>(),
    })
}
