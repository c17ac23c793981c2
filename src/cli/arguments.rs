//! Defines and parses the command line.

use std::borrow::Cow;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use bytesize::ByteSize;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, Args, ColorChoice, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use clap_complete::Shell;
use strata::directory::{DirectoryError, RepositoryDirectory};
use strata::engine::Resources;
use strata::image::{FullName, Platform};
use strata::layout::ChainSelection;
use strata::message::shortened;
use strata::metadata::Timestamp;
use strata::object::HashAlgorithm;
use strata::publish::PublishOptions;
use strata::registry::{DEFAULT_REQUEST_TIMEOUT, REQUEST_TIMEOUT_RANGE};
use strata::remote::{RemoteError, RemoteRepository};
use strata::repository::RevisionSelector;
use strata::source::{ImageArgument, PlatformSelection};
use strata::store::StoreError;
use strata::threads::available;
use strata::work::ConvertOptions;

use super::failure::UsageError;
use super::help::with_notes;
use super::interrupt::cancellation;
use super::progress::reporter;
use super::published::PublishedImage;
use super::target::Target;
use super::terminal;

/// The version, and whether this build includes the optional library ISA-L.
const VERSION: &str = if cfg!(feature = "isal") {
    concat!(env!("CARGO_PKG_VERSION"), " (with ISA-L)")
} else {
    env!("CARGO_PKG_VERSION")
};

/// Heading of the options that every command has.
const COMMON: &str = "Common options";

/// Publishes container images in the CernVM file system.
#[derive(Debug, Parser)]
#[command(version = VERSION, propagate_version = true, max_term_width = 100)]
#[command(disable_help_flag = true, disable_version_flag = true)]
pub struct Arguments {
    /// Directory of the repository, or its URL for commands that only read; URLs of several servers are separated by ';' [env:
    /// STRATA_REPO] [default: the current directory]
    #[arg(long, global = true, value_name = "DIR|URL", help_heading = COMMON)]
    pub repo: Option<PathBuf>,
    /// Master key that must have signed the whitelist of a repository that is read by its URL; may be repeated
    #[arg(long, global = true, value_name = "FILE", help_heading = COMMON)]
    pub public_key: Vec<PathBuf>,
    /// Print results as JSON
    #[arg(long, global = true, help_heading = COMMON)]
    pub json: bool,
    /// Print nothing but results and errors
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = COMMON)]
    pub quiet: bool,
    /// Print more log messages
    #[arg(short, long, global = true, help_heading = COMMON)]
    pub verbose: bool,
    /// Print help: -h prints a summary, --help also exit codes and examples
    #[arg(short, long, global = true, action = ArgAction::Help, help_heading = COMMON)]
    help: Option<bool>,
    /// Print the version
    #[arg(short = 'V', long, global = true, action = ArgAction::Version, help_heading = COMMON)]
    version: Option<bool>,
    /// The command to run
    #[command(subcommand)]
    pub command: Command,
}

/// All commands of the program.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a repository: directory, keys, a whitelist for 30 days, and an empty signed revision
    Init(Init),
    /// Convert images and publish them together, as one revision
    Convert(Convert),
    /// Update the repository to match a wishlist: convert new and changed images, and publish them together
    Sync(Sync),
    /// Print information about the repository or about one image
    Info(Info),
    /// List the images of the repository, or the trees that no image uses
    List(List),
    /// Check the repository: signatures, and every catalog, counter and object
    Check(Check),
    /// Prove that the published form of an image is correct, by reading the image from its source again
    Verify(Verify),
    /// Print what converting an image would change, or the differences between two revisions
    Diff(Diff),
    /// Mount the repository, or one directory of it, until it is unmounted or strata is interrupted
    Mount(Mount),
    /// Mount an image in the form in which it would be published, without publishing it
    Preview(Preview),
    /// Write an OCI bundle: with it, runtimes such as runc run an image directly from the repository
    Bundle(Bundle),
    /// Print the completions of commands and options for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write the manual pages: strata(1), and one for each command
    Man {
        /// Directory for the pages
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Unmount a file system whose process was killed
    #[command(hide = true)]
    GuardMount {
        /// The mount point
        mountpoint: PathBuf,
        /// The mount ID in the kernel
        id: u64,
    },
}

/// Arguments of `strata init`.
#[derive(Debug, Args)]
pub struct Init {
    /// Fully qualified name of the repository, such as unpacked.example.org
    pub fqrn: String,
    /// Directory that web servers deliver to clients [default: storage in the repository's directory]
    #[arg(long, value_name = "DIR")]
    pub storage: Option<String>,
    /// Directory of the keys [default: keys in the repository's directory]
    #[arg(long, value_name = "DIR")]
    pub keys: Option<PathBuf>,
    /// Hash algorithm for object names
    #[arg(long, value_parser = hash_algorithm(), default_value_t)]
    pub hash: HashAlgorithm,
}

/// Returns the parser of `--hash`.
fn hash_algorithm() -> impl TypedValueParser<Value = HashAlgorithm> {
    let names = PossibleValuesParser::new([
        PossibleValue::new("sha1").help("SHA-1"),
        PossibleValue::new("rmd160").help("RIPEMD-160"),
        PossibleValue::new("shake128").help("SHAKE-128 with 160 bits of output"),
    ]);
    names.map(|name| name.parse().expect("these are the names of all algorithms"))
}

/// Arguments of `strata convert`.
#[derive(Debug, Args)]
pub struct Convert {
    /// Images: docker://HOST/NAME:TAG (or http://…), oci:DIR[:REF], oci-archive:FILE[:REF], docker-archive:FILE[:REF]
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<ImageArgument>,
    /// Name under which the image is published: host/name:tag, which may be followed by @ and the expected digest, or
    /// host/name@sha256:… Allowed only with one image
    #[arg(long, value_name = "REF")]
    pub name: Option<FullName>,
    /// Platform to select from an index, or "all" for all platforms side by side [default: this machine's platform]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]|all")]
    pub platform: Option<PlatformSelection>,
    /// Do not publish the individual layers
    #[arg(long)]
    pub skip_layers: bool,
    /// Do not publish the root file system, the public link, and the entry in the podman store
    #[arg(long)]
    pub skip_flat: bool,
    /// Do not add the images to the podman store
    #[arg(long)]
    pub skip_podman: bool,
    /// Chains to publish: the file systems after the first layers of the image
    #[arg(long, default_value = "final", value_parser = chains())]
    pub chains: ChainSelection,
    /// Create the repository if its directory is missing. The last component of --repo becomes the name of the repository
    #[arg(long, conflicts_with = "dry_run")]
    pub create: bool,
    /// Only print what would be converted
    #[arg(long)]
    pub dry_run: bool,
    /// Read everything again, publish it again (except layers, which never change), and repair damaged objects
    #[arg(long)]
    pub force: bool,
    /// Treat an image as failed if CVMFS cannot represent all of it
    #[arg(long)]
    pub strict: bool,
    /// Print the time and memory that each stage needed
    #[arg(long)]
    pub timings: bool,
    /// Resources and limits of the conversion
    #[command(flatten)]
    pub effort: Effort,
}

/// Resources and limits of a conversion.
#[derive(Debug, Args)]
pub struct Effort {
    /// Number of threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    /// Maximum size of the content in memory during processing
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = memory)]
    pub memory: ByteSize,
    /// Maximum time to wait for another publisher
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
    pub wait: Duration,
    /// Publish even if the clock is more than a year ahead of the last revision. If the clock is wrong, its time remains in
    /// the published files, and later revisions cannot correct it
    #[arg(long)]
    pub accept_clock: bool,
}

impl Effort {
    /// Returns the options for converting and publishing images.
    pub fn options(&self) -> anyhow::Result<ConvertOptions> {
        let options = default_options()?;
        let publish = PublishOptions { wait: self.wait, accept_clock: self.accept_clock, ..options.publish };
        Ok(ConvertOptions { only_store: false, publish, ..options })
    }

    /// Returns the limits on threads and memory.
    pub fn resources(&self) -> Result<Resources, UsageError> {
        Ok(Resources { threads: threads(self.threads)?, memory: self.memory.as_u64() })
    }
}

/// Arguments of `strata sync`.
#[derive(Debug, Args)]
pub struct Sync {
    /// Wishlist file, in version 2 or in the format of DUCC's recipes
    #[arg(value_name = "WISHLIST.yaml")]
    pub wishlist: PathBuf,
    /// Repeat until interrupted
    #[arg(long)]
    pub watch: bool,
    /// Pause between two rounds
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration, requires = "watch")]
    pub every: Duration,
    /// Remove images that are no longer in the wishlist. As a protection against mistakes, nothing is removed if the
    /// wishlist became empty, or if it lost more than four images and these are more than a quarter of all
    #[arg(long)]
    pub prune: bool,
    /// Like --prune, but without this protection
    #[arg(long)]
    pub prune_all: bool,
    /// Only print what would be converted, and what --prune would remove
    #[arg(long, conflicts_with_all = ["watch", "thin_images"])]
    pub dry_run: bool,
    /// Do nothing if the wishlist contains an error
    #[arg(long)]
    pub strict: bool,
    /// Push the thin images of a recipe of version 1, for Docker's graph driver plugin for CVMFS
    #[arg(long)]
    pub thin_images: bool,
    /// Append events to this file for other programs, in DUCC's format with one line of JSON per event
    #[arg(short, long, value_name = "FILE")]
    pub notification_file: Option<PathBuf>,
    /// Resources and limits of the conversion
    #[command(flatten)]
    pub effort: Effort,
}

/// Returns the parser of `--chains`.
fn chains() -> impl TypedValueParser<Value = ChainSelection> {
    let names = PossibleValuesParser::new([
        PossibleValue::new("final").help("Only the final chain, of all layers"),
        PossibleValue::new("all").help("One chain for each layer"),
        PossibleValue::new("none").help("No chain"),
    ]);
    names.map(|name| ChainSelection::from_name(&name).expect("these are the names of all selections"))
}

/// Arguments of `strata info`.
#[derive(Debug, Args)]
pub struct Info {
    /// Image in the repository, as host/name:tag
    pub image: Option<PublishedImage>,
}

/// Arguments of `strata list`.
#[derive(Debug, Args)]
pub struct List {
    /// List the trees (layers, chains, root file systems) that no image uses, and the time since when. This reads the names
    /// of all images
    #[arg(long)]
    pub unused: bool,
}

/// Arguments of `strata check`.
#[derive(Debug, Args)]
pub struct Check {
    /// Check only this path, or the image host/name:tag, and everything below it
    pub path: Option<String>,
    /// Do not read the content of objects
    #[arg(long)]
    pub quick: bool,
    /// Number of threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
}

/// Arguments of `strata verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// Image: docker://HOST/NAME:TAG (or http://…), oci:DIR[:REF], oci-archive:FILE[:REF], docker-archive:FILE[:REF]
    #[arg(value_name = "IMAGE")]
    pub image: ImageArgument,
    /// Name under which the image is published, as host/name:tag
    #[arg(long, value_name = "REF")]
    pub name: Option<FullName>,
    /// Platform to select from an index [default: this machine's platform]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Option<Platform>,
    /// Number of threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
}

/// Arguments of `strata diff`.
#[derive(Debug, Args)]
pub struct Diff {
    /// Image, or the older revision: a number, a tag, or "head"
    #[arg(value_name = "IMAGE|REV")]
    pub what: String,
    /// The newer revision: a number, a tag, or "head"
    #[arg(value_name = "REV")]
    pub to: Option<RevisionSelector>,
    /// Name under which the image would be published, as host/name:tag
    #[arg(long, value_name = "REF", conflicts_with = "to")]
    pub name: Option<FullName>,
    /// Platform to select from an index [default: this machine's platform]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", conflicts_with = "to")]
    pub platform: Option<Platform>,
}

/// Arguments of `strata mount`.
#[derive(Debug, Args)]
pub struct Mount {
    /// Directory on which the repository is mounted
    pub mountpoint: PathBuf,
    /// Revision to mount, by its tag [default: the newest revision; later ones replace it automatically]
    #[arg(long, value_name = "TAG", conflicts_with = "revision")]
    pub tag: Option<String>,
    /// Revision to mount, by its number
    #[arg(long, value_name = "N")]
    pub revision: Option<u64>,
    /// Directory of the repository to mount, such as the name of an image [default: the root]
    #[arg(long, value_name = "PATH", default_value = "", hide_default_value = true)]
    pub path: OsString,
    /// Allow access by other users, as far as file permissions allow it
    #[arg(long)]
    pub allow_other: bool,
    /// Directory for temporary files with decompressed objects above 16 MiB [default: the system's temporary directory] and, with a
    /// URL, for objects, which are kept for the next mount [default: strata in the user's cache directory]
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// Maximum size of the objects of a repository that is read by its URL, in the cache directory
    #[arg(long, value_name = "SIZE", default_value = "4GB")]
    pub cache_size: ByteSize,
    /// Maximum time for reading a file of a repository by its URL, with all attempts; for a file above 4 MiB, maximum time without
    /// a byte. An attempt fails after a fifth of it without a byte
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = timeout)]
    pub timeout: Duration,
}

/// Arguments of `strata preview`.
#[derive(Debug, Args)]
pub struct Preview {
    /// Image: docker://HOST/NAME:TAG (or http://…), oci:DIR[:REF], oci-archive:FILE[:REF], docker-archive:FILE[:REF]
    #[arg(value_name = "IMAGE")]
    pub image: ImageArgument,
    /// Directory on which the preview is mounted
    pub mountpoint: PathBuf,
    /// Platform to select from an index [default: this machine's platform]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Option<Platform>,
    /// Also store the image in the repository, so that converting it later only publishes it
    #[arg(long)]
    pub keep: bool,
    /// Shell command to run when the image is completely read, with the mount point in the variable STRATA_PREVIEW. strata
    /// then ends with the exit code of the command
    #[arg(long, value_name = "CMD")]
    pub command: Option<OsString>,
    /// Allow access by other users, as far as file permissions allow it
    #[arg(long)]
    pub allow_other: bool,
    /// Directory for temporary files with the content of the image [default: the system's temporary directory]
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
}

/// Arguments of `strata bundle`.
#[derive(Debug, Args)]
pub struct Bundle {
    /// Image in the repository, as host/name:tag
    #[arg(value_name = "IMAGE")]
    pub image: PublishedImage,
    /// Directory of the bundle, which must be missing or empty
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Mount point of the repository [default: /cvmfs/ and the repository's name]
    #[arg(long, value_name = "DIR")]
    pub mountpoint: Option<PathBuf>,
    /// Platform to select if the image is published for several [default: this machine's platform]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Option<Platform>,
    /// Run as the calling user, without root, and with the network of the host
    #[arg(long)]
    pub rootless: bool,
    /// Use the network of the host, with its /etc/hosts and /etc/resolv.conf
    #[arg(long)]
    pub host_network: bool,
    /// Attach the program to a terminal
    #[arg(long)]
    pub terminal: bool,
    /// Host name in the container [default: the first digits of the config digest]
    #[arg(long, value_name = "NAME", value_parser = hostname)]
    pub hostname: Option<String>,
    /// User that runs the program, by name or number [default: the user in the image's config]
    #[arg(long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Arguments that replace the image's command. If the image has no entry point, the first one is the program
    #[arg(last = true, value_name = "ARGUMENT")]
    pub arguments: Vec<String>,
}

/// Minimum value of `--memory`: space for one content buffer, and for buffers that wait to be processed.
const MIN_MEMORY: ByteSize = ByteSize::mib(1);

/// Parses the value of `--memory`. A number without a unit means bytes, which is rarely intended.
fn memory(text: &str) -> Result<ByteSize, String> {
    match text.parse::<ByteSize>()? {
        size if size < MIN_MEMORY => Err(format!(
            "{} bytes are less than the minimum of {MIN_MEMORY}; if a unit is missing, add it, as in 256MiB",
            size.as_u64()
        )),
        size => Ok(size),
    }
}

/// Parses the value of `--timeout`, which has the range of the time limits in the settings.
fn timeout(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text).map_err(|error| error.to_string())? {
        time if REQUEST_TIMEOUT_RANGE.contains(&time) => Ok(time),
        _ => Err("it must be between 1s and 1h".to_owned()),
    }
}

/// Parses a host name that Linux and common programs accept.
fn hostname(text: &str) -> Result<String, &'static str> {
    let is_right = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    // 64 is `HOST_NAME_MAX` of Linux.
    match (1..=64).contains(&text.len()) && text.bytes().all(is_right) && !text.starts_with(['-', '.']) {
        true => Ok(text.to_owned()),
        false => Err("a host name has 1 to 64 letters, digits, '-' and '.', and begins with a letter or digit"),
    }
}

impl Arguments {
    /// Parses the command line. `STRATA_REPO` applies if the command line has no `--repo`.
    pub fn read() -> Self {
        let matches = command().try_get_matches().unwrap_or_else(|error| exit(&error));
        let mut arguments = Self::from_arg_matches(&matches).unwrap_or_else(|error| exit(&error));
        // An empty variable counts as unset, because scripts write `STRATA_REPO= strata …`. clap would reject it.
        let from_environment = || std::env::var_os("STRATA_REPO").filter(|path| !path.is_empty());
        arguments.repo = arguments.repo.or_else(|| from_environment().map(PathBuf::from));
        arguments
    }

    /// Returns the directory of the repository.
    pub fn directory_path(&self) -> &Path {
        self.repo.as_deref().unwrap_or(Path::new("."))
    }

    /// Returns the URL of the repository, if it is named by a URL.
    pub fn url(&self) -> Option<&str> {
        self.repo.as_deref().and_then(Path::to_str).filter(|text| RemoteRepository::is_url(text))
    }

    /// Opens the directory of the repository, for a command that needs more than its storage.
    pub fn directory(&self) -> anyhow::Result<RepositoryDirectory> {
        self.require_directory()?;
        Ok(self.open_directory()?)
    }

    /// Opens the directory of the repository, whose path is not a URL.
    pub fn open_directory(&self) -> Result<RepositoryDirectory, DirectoryError> {
        let directory = RepositoryDirectory::open(self.directory_path())?;
        Ok(directory.with_reporter(&reporter()).with_cancellation(cancellation()))
    }

    /// Returns an error if the repository is named by a URL.
    pub fn require_directory(&self) -> Result<(), UsageError> {
        match self.url() {
            Some(_) => Err(UsageError("this command needs the directory of the repository, not its URL".to_owned())),
            None if !self.public_key.is_empty() => {
                Err(UsageError("--public-key requires --repo with the URL of a repository".to_owned()))
            }
            None => Ok(()),
        }
    }

    /// Opens the repository for a command that only reads it.
    pub fn target(&self) -> anyhow::Result<Target> {
        Ok(match self.url() {
            Some(url) => Target::Remote(self.remote(url)?),
            None => Target::Directory(self.directory()?),
        })
    }

    fn remote(&self, url: &str) -> anyhow::Result<RemoteRepository> {
        let timeout = match &self.command {
            Command::Mount(mount) => mount.timeout,
            _ => DEFAULT_REQUEST_TIMEOUT,
        };
        match RemoteRepository::new(url, &self.public_key, timeout, &reporter(), cancellation()) {
            Err(error @ (RemoteError::Url { .. } | RemoteError::NoKey)) => Err(UsageError(error.to_string()).into()),
            Err(RemoteError::Store(error @ StoreError::Url { .. })) => Err(UsageError(error.to_string()).into()),
            remote => Ok(remote?),
        }
    }
}

/// Prints an error of clap and ends the program. Long lines are shortened, because clap quotes arguments in full.
fn exit(error: &clap::Error) -> ! {
    let text = error.to_string();
    if error.use_stderr() && text.lines().any(|line| matches!(shortened(line), Cow::Owned(_))) {
        let lines: Vec<Cow<'_, str>> = text.lines().map(shortened).collect();
        writeln!(io::stderr(), "{}", lines.join("\n")).ok();
        std::process::exit(error.exit_code());
    }
    error.exit()
}

/// Returns the definition of the command line for clap.
///
/// By default, clap colours its messages on a dumb terminal if `CI` is set.
pub fn command() -> clap::Command {
    let colours = if terminal::colours_are_allowed() { ColorChoice::Auto } else { ColorChoice::Never };
    with_notes(Arguments::command().color(colours))
}

/// Maximum value of `--threads`. No machine can use more threads, and every machine can start this many.
const MAX_THREADS: u16 = 1024;

/// Returns the number of threads: the requested number, or one per core.
pub fn threads(asked: Option<u16>) -> Result<usize, UsageError> {
    match asked {
        Some(threads) if threads > MAX_THREADS => Err(UsageError(format!("--threads must be at most {MAX_THREADS}"))),
        asked => Ok(asked.map_or_else(available, usize::from)),
    }
}

/// Returns the options of a conversion, without publication, for commands without options of their own.
pub fn default_options() -> anyhow::Result<ConvertOptions> {
    let publish = PublishOptions { now: time_of_publication()?, ..PublishOptions::default() };
    Ok(ConvertOptions { only_store: true, publish, ..ConvertOptions::default() })
}

/// The year 10,000 in seconds since 1970, the first time that is not accepted.
const MAX_TIME: i64 = 253_402_300_800;

/// Returns the time for files and records that strata creates: `SOURCE_DATE_EPOCH` if it is set, otherwise the current time.
pub fn time_of_publication() -> anyhow::Result<Timestamp> {
    let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH") else { return Ok(Timestamp::now()) };
    // The specification of SOURCE_DATE_EPOCH (reproducible-builds.org) asks for an error if the value is malformed.
    let seconds = text.to_str().and_then(|text| text.parse().ok()).filter(|seconds| (0..MAX_TIME).contains(seconds));
    let seconds = seconds
        .with_context(|| format!("SOURCE_DATE_EPOCH must be a number of seconds since 1970, but is {text:?}"))?;
    Ok(Timestamp { seconds, nanoseconds: 0 })
}
