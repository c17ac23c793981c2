//! Publishes an image in a repository, which is created if it does not exist:
//! `cargo run --example convert -- demo.example.org oci:examples/hello registry.example.org/hello:1`

use std::path::Path;
use std::sync::Arc;

use strata::{
    Cancellation, ConvertOptions, Engine, ImageArgument, NewRepository, Progress, Reporter, RepositoryDirectory,
    Request, Resources, convert, create_repository,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, image, name] = arguments.as_slice() else { return Err("arguments: DIRECTORY IMAGE NAME".into()) };
    let path = Path::new(path);
    let directory = if path.exists() {
        RepositoryDirectory::open(path)?
    } else {
        // The repository has the name of its directory.
        let repository = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let new = NewRepository::new(repository.parse()?);
        create_repository(path, new, &Reporter::default(), &Cancellation::default())?
    };
    let engine = Engine::open(&directory, Resources::default())?;
    let image: ImageArgument = image.parse()?;
    let request = Request { name: Some(name.parse()?), ..Request::from(image) };
    let report = convert(&engine, &[request], &ConvertOptions::default(), &Arc::new(Progress::default()))?;
    for image in &report.images {
        // Each image has its own result: one that fails does not prevent the publication of the others.
        match &image.outcomes {
            Ok(platforms) => println!("{}: {} platform(s)", image.argument, platforms.len()),
            Err(error) => println!("{}: {error}", image.argument),
        }
    }
    match report.revision {
        Some(revision) => println!("published revision {}", revision.number),
        None => println!("nothing is new"),
    }
    Ok(())
}
