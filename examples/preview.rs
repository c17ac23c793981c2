//! Mounts an image as it would be published, lists its root directory, and unmounts it:
//! `cargo run --example preview -- oci:examples/hello /mnt`

use std::path::Path;
use std::sync::Arc;

use strata::{ImageArgument, Preview, PreviewOptions, Progress, Reporter};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [image, mountpoint] = arguments.as_slice() else { return Err("arguments: IMAGE MOUNTPOINT".into()) };
    let (image, mountpoint): (ImageArgument, _) = (image.parse()?, Path::new(mountpoint));
    let (preview, mount) = Preview::start(&image, None, mountpoint, PreviewOptions::default(), &Reporter::default())?;
    // The mount is empty until the layers are read.
    preview.read(&Arc::new(Progress::default()))?;
    for entry in std::fs::read_dir(mountpoint.join("flat"))? {
        println!("{}", entry?.file_name().display());
    }
    // Dropping the mount unmounts it.
    drop(mount);
    Ok(())
}
