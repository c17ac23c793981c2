//! Prints a file from the newest revision of a repository:
//! `cargo run --example read_file -- demo.example.org registry.example.org/hello:1/etc/motd`

use std::io::Write as _;
use std::path::Path;

use strata::{Repository, RepositoryDirectory};

/// Maximum size of the file in bytes.
const LIMIT: u64 = 1 << 30;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, path] = arguments.as_slice() else { return Err("arguments: DIRECTORY PATH".into()) };
    let directory = RepositoryDirectory::open(Path::new(directory))?;
    // To read a repository that a web server has, use `RemoteRepository` instead.
    let repository = Repository::open(directory.store()?, directory.name())?;
    // The name of an image is a symbolic link to its root file system.
    let (path, _) = repository.follow(&path.parse()?)?;
    let content = repository.read(&path, LIMIT)?.ok_or("this is not a file")?;
    std::io::stdout().write_all(&content)?;
    Ok(())
}
