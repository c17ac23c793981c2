//! A file that notifies other programs: one JSON object per line, in the format of DUCC's notification file.
//!
//! All values are strings. The line for the start of an action and the line for its end have the same `id`. A program that
//! reads the file must not be able to stop a conversion: if the file cannot be written, a warning is reported once and nothing
//! fails.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use jiff::ZonedDateTime;

use crate::image::{Digest, ImageName, ImageReference};
use crate::observer::Reporter;

/// Day padded with a space, and time with milliseconds (Go's `_2 Jan 2006 - 15:04:05.000`).
const TIME_FORMAT: &str = "%e %b %Y - %H:%M:%S.%3f";

/// Fields of a line, written in the order of their names.
type Fields = BTreeMap<&'static str, String>;

/// A notification file, or no file; without a file, nothing is written.
#[derive(Debug)]
pub struct Notifications {
    output: Option<(File, PathBuf, Reporter)>,
    has_failed: AtomicBool,
}

/// An action that has started. The line of its end repeats the fields of the line of its start.
#[derive(Debug, Clone)]
#[must_use = "the end of the action must be written, too"]
pub struct StartedAction {
    fields: Fields,
    since: Instant,
}

impl Notifications {
    /// Opens the file for appending. A new file is writable by owner and group. The warning goes to `reporter`.
    ///
    /// The file is a regular file, a pipe that a process reads from, or a character device. Writing never waits for the reader of a pipe:
    /// if the pipe is full, the line is lost.
    pub fn open(path: &Path, reporter: &Reporter) -> io::Result<Self> {
        let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        // DUCC also appends, and creates the file with this mode.
        let opened = OpenOptions::new().append(true).create(true).mode(0o660).custom_flags(flags).open(path);
        let file = opened.map_err(|error| match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
            // fifo(7): opening a pipe without a reader for writing, without blocking, fails with `ENXIO`.
            Some(rustix::io::Errno::NXIO) => io::Error::other("no process reads from this pipe"),
            _ => error,
        })?;
        let kind = file.metadata()?.file_type();
        if !(kind.is_file() || kind.is_fifo() || kind.is_char_device()) {
            return Err(io::Error::other("it is neither a file nor a pipe nor a character device"));
        }
        Ok(Self { output: Some((file, path.to_owned(), reporter.clone())), has_failed: AtomicBool::new(false) })
    }

    /// Returns notifications that write nothing.
    pub fn none() -> Self {
        Self { output: None, has_failed: AtomicBool::new(false) }
    }

    /// Writes that this process starts.
    pub fn start_run(&self) -> StartedAction {
        self.start("start_ducc", [("pid", std::process::id().to_string())])
    }

    /// Writes that this process ends.
    pub fn end_run(&self, run: StartedAction) {
        self.end("end_ducc", run, []);
    }

    /// Writes that the conversion of a request starts. `request` is the image name or pattern as it was written.
    pub fn start_flat_conversion(&self, request: &str) -> StartedAction {
        self.start("start_flat_conversion", [("image_request", request.to_owned()), ("id", new_id())])
    }

    /// Writes that the conversion of a request ended, whether or not all its images succeeded: this line has no status.
    pub fn end_flat_conversion(&self, conversion: StartedAction) {
        self.end("end_flat_conversion", conversion, []);
    }

    /// Writes that the conversion of one image to a flat root file system starts.
    pub fn start_single_chain_conversion(&self, request: &str, image: &ImageName) -> StartedAction {
        let fields = [("image_request", request.to_owned()), ("image", simple_name(image)), ("id", new_id())];
        self.start("start_single_chain_conversion", fields)
    }

    /// Writes that the conversion of one image ended, with its error if it failed. The action is spelt `convertion`, as existing
    /// readers of the file expect.
    pub fn end_single_chain_conversion(&self, conversion: StartedAction, outcome: Result<(), &str>) {
        self.end("end_single_chain_convertion", conversion, status(outcome));
    }

    /// Writes that the public link of an image points to its root file system. Both paths are relative to the root of the
    /// repository. Must be called only after publication.
    pub fn publish_flat_image(&self, request: &str, public_path: &str, private_path: &str) {
        self.write_line(
            "publish_flat_image",
            Fields::from([
                ("image_request", request.to_owned()),
                ("public_path", public_path.to_owned()),
                ("private_path", private_path.to_owned()),
            ]),
        );
    }

    /// Writes that reading of a layer starts.
    pub fn start_layer_conversion(&self, image: &ImageName, layer: Digest) -> StartedAction {
        let fields = [("image", simple_name(image)), ("layer", layer.hex()), ("id", new_id())];
        self.start("start_layer_conversion", fields)
    }

    /// Writes that reading of a layer ended, with its error if it failed. `size` is the unpacked size in bytes.
    pub fn end_layer_conversion(&self, conversion: StartedAction, size: u64, outcome: Result<(), &str>) {
        let size = [("size_bytes", size.to_string())];
        self.end("end_layer_conversion", conversion, status(outcome).into_iter().chain(size));
    }

    /// Writes that a layer is published. Must be called only after publication.
    pub fn publish_layer(&self, image: &ImageName, layer: Digest) {
        self.write_line("publish_layer", Fields::from([("image", simple_name(image)), ("layer_digest", layer.hex())]));
    }

    fn start<const N: usize>(&self, action: &str, fields: [(&'static str, String); N]) -> StartedAction {
        let fields = Fields::from(fields);
        self.write_line(action, fields.clone());
        StartedAction { fields, since: Instant::now() }
    }

    fn end(&self, action: &str, started: StartedAction, more: impl IntoIterator<Item = (&'static str, String)>) {
        let StartedAction { mut fields, since } = started;
        fields.insert("time_elapsed_s", format!("{:.6}", since.elapsed().as_secs_f64()));
        fields.extend(more);
        self.write_line(action, fields);
    }

    fn write_line(&self, action: &str, fields: Fields) {
        let Some((file, path, reporter)) = &self.output else { return };
        let line = line(action, fields, &ZonedDateTime::now());
        if let Err(error) = write_at_once(file, line.as_bytes())
            && !self.has_failed.swap(true, Ordering::Relaxed)
        {
            reporter.warn(format_args!("cannot write notifications to '{}': {error}", path.display()));
        }
    }
}

/// Returns the name of an image as in the file: with its tag if it has one, never with a digest.
fn simple_name(image: &ImageName) -> String {
    match image.reference() {
        ImageReference::Tag(tag) => format!("{}/{}:{tag}", image.host(), image.repository()),
        ImageReference::Digest(_) => format!("{}/{}", image.host(), image.repository()),
    }
}

fn status(outcome: Result<(), &str>) -> Vec<(&'static str, String)> {
    match outcome {
        Ok(()) => vec![("status", "ok".to_owned())],
        Err(error) => vec![("status", "error".to_owned()), ("error", error.to_owned())],
    }
}

fn line(action: &str, mut fields: Fields, now: &ZonedDateTime) -> String {
    fields.insert("action", action.to_owned());
    fields.insert("time", now.strftime(TIME_FORMAT).to_string());
    serde_json::to_string(&fields).expect("a map of texts is always JSON") + "\n"
}

/// Writes a line with a single system call, so that lines of several processes never mix.
fn write_at_once(mut file: &File, line: &[u8]) -> io::Result<()> {
    match file.write(line)? {
        length if length == line.len() => Ok(()),
        length => Err(io::Error::other(format!("only {length} of {} bytes were written", line.len()))),
    }
}

/// Returns a random UUID (RFC 9562, version 4).
fn new_id() -> String {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the system provides random bytes");
    // The version (RFC 9562, section 4.2). The next line sets the variant (section 4.1).
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = crate::image::hex(&bytes);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use regex::Regex;

    use crate::observer::testing::Messages;

    const LAYER: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn lines_of(events: impl FnOnce(&Notifications)) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notifications");
        events(&Notifications::open(&path, &Reporter::silent()).unwrap());
        fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect()
    }

    /// Checks the format of the values that differ between runs, and replaces them in the line.
    fn steady(line: &str) -> String {
        let mut line = line.to_owned();
        for (name, form) in [
            ("time", r"[ 1-3]\d [A-Z][a-z]{2} \d{4} - \d\d:\d\d:\d\d\.\d{3}"),
            ("id", r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"),
            ("time_elapsed_s", r"\d+\.\d{6}"),
            ("pid", r"\d+"),
        ] {
            let field = Regex::new(&format!("\"{name}\":\"{form}\"")).unwrap();
            line = field.replace(&line, format!("\"{name}\":\"…\"")).into_owned();
        }
        line
    }

    #[test]
    fn lines_have_the_format_that_readers_expect() {
        let image: ImageName = "h.org/a/b:t".parse().unwrap();
        let request = "https://h.org/a/b:*";
        let layer = Digest::of(b"");
        let lines = lines_of(|notifications| {
            let run = notifications.start_run();
            let flat = notifications.start_flat_conversion(request);
            let chain = notifications.start_single_chain_conversion(request, &image);
            notifications.end_single_chain_conversion(chain, Ok(()));
            notifications.end_flat_conversion(flat);
            let read = notifications.start_layer_conversion(&image, layer);
            notifications.end_layer_conversion(read, 1024, Err("it is \"damaged\"\n"));
            notifications.publish_layer(&image, layer);
            notifications.publish_flat_image(request, "h.org/a/b:t", ".flat/e3/e3b0");
            notifications.end_run(run);
        });
        let steady: Vec<String> = lines.iter().map(|line| steady(line)).collect();
        let layer_fields = format!(r#""image":"h.org/a/b:t","layer":"{LAYER}""#);
        assert_eq!(
            steady,
            [
                r#"{"action":"start_ducc","pid":"…","time":"…"}"#,
                r#"{"action":"start_flat_conversion","id":"…","image_request":"https://h.org/a/b:*","time":"…"}"#,
                r#"{"action":"start_single_chain_conversion","id":"…","image":"h.org/a/b:t","image_request":"https://h.org/a/b:*","time":"…"}"#,
                r#"{"action":"end_single_chain_convertion","id":"…","image":"h.org/a/b:t","image_request":"https://h.org/a/b:*","status":"ok","time":"…","time_elapsed_s":"…"}"#,
                r#"{"action":"end_flat_conversion","id":"…","image_request":"https://h.org/a/b:*","time":"…","time_elapsed_s":"…"}"#,
                &format!(r#"{{"action":"start_layer_conversion","id":"…",{layer_fields},"time":"…"}}"#),
                &format!(
                    r#"{{"action":"end_layer_conversion","error":"it is \"damaged\"\n","id":"…",{layer_fields},"size_bytes":"1024","status":"error","time":"…","time_elapsed_s":"…"}}"#
                ),
                &format!(r#"{{"action":"publish_layer","image":"h.org/a/b:t","layer_digest":"{LAYER}","time":"…"}}"#),
                r#"{"action":"publish_flat_image","image_request":"https://h.org/a/b:*","private_path":".flat/e3/e3b0","public_path":"h.org/a/b:t","time":"…"}"#,
                r#"{"action":"end_ducc","pid":"…","time":"…","time_elapsed_s":"…"}"#,
            ]
        );
    }

    #[test]
    fn image_without_tag_is_named_without_its_digest() {
        let image: ImageName = format!("h.org/a@sha256:{LAYER}").parse().unwrap();
        let lines = lines_of(|notifications| notifications.publish_layer(&image, Digest::of(b"")));
        assert!(lines[0].contains(r#""image":"h.org/a","#), "{}", lines[0]);
    }

    #[test]
    fn start_and_end_share_a_unique_id() {
        let lines = lines_of(|notifications| {
            let (first, second) = (notifications.start_flat_conversion("a"), notifications.start_flat_conversion("a"));
            notifications.end_flat_conversion(second);
            notifications.end_flat_conversion(first);
        });
        let ids: Vec<String> = lines
            .iter()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_str().unwrap().to_owned())
            .collect();
        assert!(ids[0] == ids[3] && ids[1] == ids[2] && ids[0] != ids[1]);
    }

    #[test]
    fn time_is_local_and_its_day_is_padded_with_a_space() {
        let at = |text: &str| {
            let line = line("start_ducc", Fields::new(), &text.parse().unwrap());
            serde_json::from_str::<serde_json::Value>(&line).unwrap()["time"].as_str().unwrap().to_owned()
        };
        assert_eq!(at("2026-11-03T09:05:07.0419999+01:00[+01:00]"), " 3 Nov 2026 - 09:05:07.041");
        assert_eq!(at("2026-02-28T23:59:59+00:00[UTC]"), "28 Feb 2026 - 23:59:59.000");
    }

    #[test]
    fn file_is_appended_to_and_writable_by_its_group() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notifications");
        for _ in 0..2 {
            let notifications = Notifications::open(&path, &Reporter::silent()).unwrap();
            notifications.end_run(notifications.start_run());
        }
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 4);
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert!(mode & !0o660 == 0 && mode & 0o600 == 0o600, "{mode:o}");
    }

    #[test]
    fn pipe_without_a_reader_is_rejected_and_a_full_pipe_is_no_error() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let error = Notifications::open(&path, &Reporter::silent()).unwrap_err();
        assert_eq!(error.to_string(), "no process reads from this pipe");
        let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let _reader = OpenOptions::new().read(true).custom_flags(flags).open(&path).unwrap();
        let notifications = Notifications::open(&path, &Reporter::silent()).unwrap();
        while !notifications.has_failed.load(Ordering::Relaxed) {
            notifications.end_run(notifications.start_run());
        }
    }

    #[test]
    fn failure_to_write_the_file_is_no_error() {
        let messages = Messages::default();
        let notifications = Notifications::open(Path::new("/dev/full"), &messages.reporter()).unwrap();
        notifications.end_run(notifications.start_run());
        assert!(notifications.has_failed.load(Ordering::Relaxed));
        assert_eq!(messages.take().len(), 1, "the second failure is not reported");
        let none = Notifications::none();
        none.end_run(none.start_run());
        assert!(!none.has_failed.load(Ordering::Relaxed));
    }
}
