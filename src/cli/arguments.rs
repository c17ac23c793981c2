//! The command line.

use std::ffi::OsString;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use bytesize::ByteSize;
use clap::{Args, ColorChoice, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use strata::directory::{DirectoryError, RepositoryDirectory};
use strata::engine::Resources;
use strata::image::{FullName, Platform};
use strata::layer::Limits;
use strata::metadata::Timestamp;
use strata::publish::PublishOptions;
use strata::repository::Point;
use strata::source::{ImageArgument, Platforms};
use strata::work::ConvertOptions;

use super::failure::UsageError;
use super::published::PublishedImage;
use super::terminal;

/// The version, and which of the libraries that are optional this build has.
const LONG_VERSION: &str = if cfg!(feature = "isal") {
    concat!(env!("CARGO_PKG_VERSION"), " with ISA-L")
} else {
    concat!(env!("CARGO_PKG_VERSION"), " without ISA-L: the mode fast and reading gzip are slower")
};

/// Publishes container images in the CernVM file system.
#[derive(Debug, Parser)]
#[command(version, long_version = LONG_VERSION, propagate_version = true, max_term_width = 100)]
pub struct Arguments {
    /// Directory of the repository [env: STRATA_REPO] [default: the current directory]
    #[arg(long, global = true, value_name = "DIR")]
    pub repo: Option<PathBuf>,
    /// Print results as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// Print nothing but results and errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say more about what is done
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a repository: directory, keys, a whitelist for 30 days, and an empty signed revision
    Init(Init),
    /// Convert images and publish them together, as one revision
    Convert(Convert),
    /// Bring the repository in step with a wishlist: convert what is new or has changed, and publish it together
    Sync(Sync),
    /// Show what is known about the repository or about one image
    Info(Info),
    /// List the images of the repository, or the trees that no image uses
    List(List),
    /// Check the repository: signatures, and every catalog, counter and object
    Check(Check),
    /// Prove that what is published for an image is what the image says, read anew from its source
    Verify(Verify),
    /// Show what converting an image would change, or what differs between two revisions
    Diff(Diff),
    /// Mount the repository, or one directory of it, until it is unmounted or strata interrupted
    Mount(Mount),
    /// Mount an image as it would be published, and publish nothing
    Preview(Preview),
    /// Write a bundle with which OCI runtimes such as runc run an image of the repository
    Bundle(Bundle),
    /// Unmount when the process that mounted was killed
    #[command(hide = true)]
    GuardMount {
        /// Where it mounted
        mountpoint: PathBuf,
        /// The kernel's number for the mount
        id: u64,
    },
}

/// Creates a repository.
#[derive(Debug, Args)]
pub struct Init {
    /// Fully qualified name of the repository, such as unpacked.example.org
    pub fqrn: String,
    /// Directory that clients are served from [default: storage in the repository's directory]
    #[arg(long, value_name = "DIR")]
    pub storage: Option<String>,
    /// Directory of the keys [default: keys in the repository's directory]
    #[arg(long, value_name = "DIR")]
    pub keys: Option<PathBuf>,
    /// How objects are named
    #[arg(long, value_enum, default_value_t = Hash::Sha1)]
    pub hash: Hash,
}

/// How objects are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Hash {
    /// By their SHA-1 hash
    Sha1,
}

/// Converts images.
#[derive(Debug, Args)]
pub struct Convert {
    /// Images: docker://HOST/NAME:TAG (or http://…), oci:DIR[:REF], oci-archive:FILE[:REF], docker-archive:FILE[:REF]
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<ImageArgument>,
    /// Name to publish the image under, as host/name:tag or with the digest it has to have; only with one image
    #[arg(long, value_name = "REF")]
    pub name: Option<FullName>,
    /// Which image of an index to take, or "all", side by side [default: the one for this machine]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]|all")]
    pub platform: Option<Platforms>,
    /// Do not publish the single layers
    #[arg(long)]
    pub skip_layers: bool,
    /// Do not publish the root file system and the public link, nor show the images to podman
    #[arg(long)]
    pub skip_flat: bool,
    /// Do not show the images to podman
    #[arg(long)]
    pub skip_podman: bool,
    /// Which chains to publish
    #[arg(long, value_enum, default_value_t = Chains::Final)]
    pub chains: Chains,
    /// Create the repository if its directory is missing: its name is the last component of the directory's path
    #[arg(long, conflicts_with = "dry_run")]
    pub create: bool,
    /// Only say what there is to do
    #[arg(long)]
    pub dry_run: bool,
    /// Read everything anew, publish it again (but for layers, which never change), and repair what is damaged
    #[arg(long)]
    pub force: bool,
    /// Fail images that CVMFS cannot hold all of
    #[arg(long)]
    pub strict: bool,
    /// Print where the time went
    #[arg(long)]
    pub timings: bool,
    /// With what it works
    #[command(flatten)]
    pub effort: Effort,
}

/// With what images are converted.
#[derive(Debug, Args)]
pub struct Effort {
    /// How many threads work [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    /// How much content may be in flight
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = memory)]
    pub memory: ByteSize,
    /// How long to wait for another publisher
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
    pub wait: Duration,
    /// Publish although the clock says that the last revision is more than a year old. What is published with a wrong clock has its
    /// time for good
    #[arg(long)]
    pub accept_clock: bool,
}

impl Effort {
    /// Returns how images are converted and published with it.
    pub fn options(&self) -> anyhow::Result<ConvertOptions> {
        let options = default_options()?;
        let publish = PublishOptions { wait: self.wait, accept_clock: self.accept_clock, ..options.publish };
        Ok(ConvertOptions { only_store: false, publish, ..options })
    }

    /// Returns what may be used of the machine.
    pub fn resources(&self) -> Result<Resources, UsageError> {
        Ok(Resources { threads: threads(self.threads)?, memory: self.memory.as_u64() })
    }
}

/// Brings the repository in step with a wishlist.
#[derive(Debug, Args)]
pub struct Sync {
    /// Wishlist, of version 2 or in the form of DUCC's recipes
    #[arg(value_name = "WISHLIST.yaml")]
    pub wishlist: PathBuf,
    /// Do it again and again
    #[arg(long)]
    pub watch: bool,
    /// How long to wait between two rounds
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration, requires = "watch")]
    pub every: Duration,
    /// Remove what the wishlist held once and holds no longer. Nothing is removed if the wishlist became empty, or lost more
    /// than a quarter and more than four of its images
    #[arg(long)]
    pub prune: bool,
    /// Remove all that the wishlist held once and holds no longer, however much that is
    #[arg(long)]
    pub prune_all: bool,
    /// Only say what there is to do, and what --prune would remove
    #[arg(long, conflicts_with_all = ["watch", "thin_images"])]
    pub dry_run: bool,
    /// Do nothing at all while a line of the wishlist is wrong
    #[arg(long)]
    pub strict: bool,
    /// Push the thin images of a recipe of version 1, for Docker with the graph driver for CVMFS
    #[arg(long)]
    pub thin_images: bool,
    /// Tell other programs what happens, in a file in the form of DUCC's, one line of JSON each
    #[arg(short, long, value_name = "FILE")]
    pub notification_file: Option<PathBuf>,
    /// With what it works
    #[command(flatten)]
    pub effort: Effort,
}

/// Which chains to publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Chains {
    /// The one of all layers
    Final,
    /// One for each layer
    All,
    /// None
    None,
}

/// Shows the repository or an image.
#[derive(Debug, Args)]
pub struct Info {
    /// Image, as host/name:tag
    pub image: Option<PublishedImage>,
}

/// Lists images or unused trees.
#[derive(Debug, Args)]
pub struct List {
    /// List the trees (layers, chains, root file systems) that no name leads to, and since when. This reads every name
    #[arg(long)]
    pub unused: bool,
}

/// Checks the repository.
#[derive(Debug, Args)]
pub struct Check {
    /// Check only this path, or the image host/name:tag, and what lies below it
    pub path: Option<String>,
    /// Do not read the content of objects
    #[arg(long)]
    pub quick: bool,
    /// How many threads work [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
}

/// Verifies an image.
#[derive(Debug, Args)]
pub struct Verify {
    /// Image: docker://HOST/NAME:TAG (or http://…), oci:DIR[:REF], oci-archive:FILE[:REF], docker-archive:FILE[:REF]
    #[arg(value_name = "IMAGE")]
    pub image: ImageArgument,
    /// Name that the image is published under, as host/name:tag
    #[arg(long, value_name = "REF")]
    pub name: Option<FullName>,
    /// Which image of an index to take [default: the one for this machine]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Option<Platform>,
    /// How many threads work [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
}

/// Compares revisions, or an image with what is published.
#[derive(Debug, Args)]
pub struct Diff {
    /// Image, or the older revision: its number, its tag, or "head"
    #[arg(value_name = "IMAGE|REV")]
    pub what: String,
    /// The newer revision
    #[arg(value_name = "REV")]
    pub to: Option<Point>,
    /// Name that the image would be published under, as host/name:tag
    #[arg(long, value_name = "REF", conflicts_with = "to")]
    pub name: Option<FullName>,
    /// Which image of an index to take [default: the one for this machine]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", conflicts_with = "to")]
    pub platform: Option<Platform>,
}

/// Mounts the repository.
#[derive(Debug, Args)]
pub struct Mount {
    /// Directory to mount on
    pub mountpoint: PathBuf,
    /// Revision to mount, by its tag [default: the head, and each new one]
    #[arg(long, value_name = "TAG", conflicts_with = "revision")]
    pub tag: Option<String>,
    /// Revision to mount, by its number
    #[arg(long, value_name = "N")]
    pub revision: Option<u64>,
    /// Directory of the repository to mount, such as an image's name [default: the root]
    #[arg(long, value_name = "PATH", default_value = "", hide_default_value = true)]
    pub path: OsString,
    /// Let other users in, as far as permissions allow
    #[arg(long)]
    pub allow_other: bool,
    /// Where objects above 16 MiB are unpacked while they are read [default: the directory of temporary files]
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
}

/// Previews an image.
#[derive(Debug, Args)]
pub struct Preview {
    /// Image: docker://HOST/NAME:TAG (or http://…), oci:DIR[:REF], oci-archive:FILE[:REF], docker-archive:FILE[:REF]
    #[arg(value_name = "IMAGE")]
    pub image: ImageArgument,
    /// Directory to mount on
    pub mountpoint: PathBuf,
    /// Which image of an index to take [default: the one for this machine]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Option<Platform>,
    /// Store the image in the repository, too, so that converting it only publishes
    #[arg(long)]
    pub keep: bool,
    /// Run a shell command once the image is there, with STRATA_PREVIEW as the mount point, and end with its exit code
    #[arg(long, value_name = "CMD")]
    pub command: Option<OsString>,
    /// Let other users in, as far as permissions allow
    #[arg(long)]
    pub allow_other: bool,
    /// Where the content is kept while it is mounted [default: the directory of temporary files]
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
}

/// Writes a bundle for OCI runtimes.
#[derive(Debug, Args)]
pub struct Bundle {
    /// Image of the repository, as host/name:tag
    #[arg(value_name = "IMAGE")]
    pub image: PublishedImage,
    /// Directory of the bundle: it is made, or empty
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Where the repository is mounted [default: /cvmfs/ and its name]
    #[arg(long, value_name = "DIR")]
    pub mountpoint: Option<PathBuf>,
    /// Which platform to take, where the name stands for several [default: the one for this machine]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Option<Platform>,
    /// Run as whoever calls this, without root, and with the network of the host
    #[arg(long)]
    pub rootless: bool,
    /// Use the network of the host, and its names
    #[arg(long)]
    pub host_network: bool,
    /// Give the program a terminal
    #[arg(long)]
    pub terminal: bool,
    /// What the container is called [default: the first digits of the image's config]
    #[arg(long, value_name = "NAME", value_parser = hostname)]
    pub hostname: Option<String>,
    /// Who runs the program, by name or number [default: whom the image names]
    #[arg(long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Arguments for the image's entry point, or the program if it has none, in place of the image's own
    #[arg(last = true, value_name = "ARGUMENT")]
    pub arguments: Vec<String>,
}

/// The least memory that `--memory` may grant: one buffer for content, and room for what waits beside it.
const LEAST_MEMORY: ByteSize = ByteSize::mib(1);

/// Takes a size that content can be handled in. A number without a unit is bytes, which is hardly ever meant.
fn memory(text: &str) -> Result<ByteSize, String> {
    match text.parse::<ByteSize>()? {
        size if size < LEAST_MEMORY => Err(format!(
            "it is {} bytes, less than the least size of {LEAST_MEMORY}: is a unit missing, as in 256MiB?",
            size.as_u64()
        )),
        size => Ok(size),
    }
}

/// Takes what Linux and all programs take for the name of a machine.
fn hostname(text: &str) -> Result<String, &'static str> {
    let is_right = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    match (1..=64).contains(&text.len()) && text.bytes().all(is_right) && !text.starts_with(['-', '.']) {
        true => Ok(text.to_owned()),
        false => Err("it is not up to 64 letters, digits, '-' and '.'"),
    }
}

impl Arguments {
    /// Reads the command line, and the environment where the command line says nothing.
    pub fn read() -> Self {
        let mut arguments = Self::from_arg_matches(&command().get_matches()).unwrap_or_else(|error| error.exit());
        // An empty variable is an unset one: scripts write `STRATA_REPO= strata …`. clap would refuse it.
        let from_environment = || std::env::var_os("STRATA_REPO").filter(|path| !path.is_empty());
        arguments.repo = arguments.repo.or_else(|| from_environment().map(PathBuf::from));
        arguments
    }

    /// Returns the directory of the repository.
    pub fn directory_path(&self) -> &Path {
        self.repo.as_deref().unwrap_or(Path::new("."))
    }

    /// Opens the directory of the repository.
    pub fn directory(&self) -> Result<RepositoryDirectory, DirectoryError> {
        RepositoryDirectory::open(self.directory_path())
    }
}

/// Returns the command line's grammar.
///
/// Left to itself, clap colours its messages on a dumb terminal where `CI` is set.
fn command() -> clap::Command {
    let colours = if terminal::colours_are_allowed() { ColorChoice::Auto } else { ColorChoice::Never };
    Arguments::command().color(colours)
}

/// More threads than any machine has use for, and few enough for every machine to start.
const MOST_THREADS: u16 = 1024;

/// Returns how many threads work: what was asked for, else one for each core.
pub fn threads(asked: Option<u16>) -> Result<usize, UsageError> {
    let cores = || std::thread::available_parallelism().map_or(1, NonZero::get);
    match asked {
        Some(threads) if threads > MOST_THREADS => Err(UsageError(format!("--threads is at most {MOST_THREADS}"))),
        asked => Ok(asked.map_or_else(cores, usize::from)),
    }
}

/// Returns how images are converted, and only stored, by commands that have no options for it.
pub fn default_options() -> anyhow::Result<ConvertOptions> {
    let publish = PublishOptions { now: time_of_publication()?, ..PublishOptions::default() };
    Ok(ConvertOptions { dry_run: false, only_store: true, limits: Limits::default(), publish })
}

/// Returns what commands without options for it use of the machine.
pub fn default_resources() -> Result<Resources, UsageError> {
    Ok(Resources { threads: threads(None)?, memory: ByteSize::mib(256).as_u64() })
}

/// The year 10,000, in seconds since 1970.
const END_OF_TIME: i64 = 253_402_300_800;

/// Returns the time that everything strata itself makes is given: `SOURCE_DATE_EPOCH` if it is set.
pub fn time_of_publication() -> anyhow::Result<Timestamp> {
    let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH") else { return Ok(Timestamp::now()) };
    let seconds = text.to_str().and_then(|text| text.parse().ok()).filter(|seconds| (0..END_OF_TIME).contains(seconds));
    let seconds = seconds.with_context(|| format!("SOURCE_DATE_EPOCH is {text:?} instead of a number of seconds"))?;
    Ok(Timestamp { seconds, nanoseconds: 0 })
}

/// Returns the system's source of randomness.
pub fn randomness() -> impl rsa::rand_core::CryptoRng + Send {
    rsa::rand_core::UnwrapErr(getrandom::SysRng)
}
