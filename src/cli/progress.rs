//! Displays progress on a terminal, and prints log lines above it.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use strata::message::{on_one_line, shortened};
use strata::observer::{Level, Observer, Reporter};
use strata::progress::Progress;

use super::terminal::can_be_redrawn;

/// The progress bars that are displayed now.
static DISPLAYED_BARS: Mutex<Option<MultiProgress>> = Mutex::new(None);

fn displayed_bars() -> MutexGuard<'static, Option<MultiProgress>> {
    DISPLAYED_BARS.lock().expect("no thread panics while it draws")
}

/// Displays the progress of one or several tasks until it is dropped. Displays nothing if standard error is not a terminal
/// that can be redrawn.
pub struct Display {
    board: Option<Arc<Board>>,
    thread: Option<JoinHandle<()>>,
}

struct Board {
    bars: MultiProgress,
    /// The summary, below the lines of all tasks. Its message is empty until a summary is set.
    summary: ProgressBar,
    /// The running tasks by name.
    lines: Mutex<HashMap<String, (ProgressBar, Arc<Progress>)>>,
    done: AtomicBool,
}

impl Display {
    /// Starts the display of one task.
    pub fn start(progress: &Arc<Progress>, quiet: bool) -> Self {
        let display = Self::start_empty(quiet);
        display.add("", progress);
        display
    }

    /// Starts a display without tasks.
    pub fn start_empty(quiet: bool) -> Self {
        if quiet || !can_be_redrawn() {
            return Self { board: None, thread: None };
        }
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let summary = ProgressBar::no_length().with_style(style("{msg}"));
        let board = Arc::new(Board { bars, summary, lines: Mutex::default(), done: AtomicBool::new(false) });
        *displayed_bars() = Some(board.bars.clone());
        let drawn = Arc::clone(&board);
        let draw = move || {
            while !drawn.done.load(Ordering::Relaxed) {
                super::interrupt::wait_if_ending();
                drawn.draw();
                thread::park_timeout(Duration::from_millis(100));
            }
            drawn.bars.clear().ok();
            *displayed_bars() = None;
        };
        match thread::Builder::new().spawn(draw) {
            Ok(thread) => Self { board: Some(board), thread: Some(thread) },
            // Without a thread, the work continues without a display.
            Err(_) => {
                *displayed_bars() = None;
                Self { board: None, thread: None }
            }
        }
    }

    /// Adds a task.
    pub fn add(&self, name: &str, progress: &Arc<Progress>) {
        let Some(board) = &self.board else { return };
        let bar = ProgressBar::no_length()
            .with_style(style("{spinner} {prefix}{msg}  {bytes} of {total_bytes}, {bytes_per_sec}, {elapsed}"));
        let bar = board.bars.insert(0, bar);
        bar.set_prefix(if name.is_empty() { String::new() } else { format!("{name}: ") });
        board.lines().insert(name.to_owned(), (bar, Arc::clone(progress)));
    }

    /// Removes a task.
    pub fn remove(&self, name: &str) {
        let Some(board) = &self.board else { return };
        if let Some((bar, _)) = board.lines().remove(name) {
            board.bars.remove(&bar);
        }
    }

    /// Sets the line below all tasks.
    pub fn summarise(&self, text: String) {
        let Some(board) = &self.board else { return };
        if board.summary.message().is_empty() {
            board.bars.add(board.summary.clone());
        }
        board.summary.set_message(text);
    }
}

impl Board {
    fn lines(&self) -> MutexGuard<'_, HashMap<String, (ProgressBar, Arc<Progress>)>> {
        self.lines.lock().expect("no thread panics while it draws")
    }

    fn draw(&self) {
        for (bar, progress) in self.lines().values() {
            let (read, expected) = progress.bytes();
            bar.set_length(expected);
            bar.set_position(read);
            bar.set_message(progress.activity());
            bar.tick();
        }
        self.summary.tick();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is valid")
}

impl Drop for Display {
    fn drop(&mut self) {
        if let Some(board) = &self.board {
            board.done.store(true, Ordering::Relaxed);
        }
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic in the drawing thread must not end the program.
            let _ = thread.join();
        }
    }
}

/// Logs the messages of the library.
struct MessageLog;

impl Observer for MessageLog {
    fn message(&self, level: Level, text: fmt::Arguments<'_>) {
        match level {
            Level::Error => tracing::error!("{text}"),
            Level::Warning => tracing::warn!("{text}"),
            Level::Info => tracing::info!("{text}"),
            Level::Debug => tracing::debug!("{text}"),
        }
    }
}

/// Returns the reporter that logs the messages of the library.
pub fn reporter() -> Reporter {
    Reporter::new(MessageLog)
}

/// Writes log lines to standard error, above the progress bars.
pub struct LogWriter;

impl LogWriter {
    /// Returns a writer.
    pub fn new() -> Self {
        Self
    }
}

impl Write for LogWriter {
    /// Writes one line: removes the middle of a very long line, and escapes all control characters except ESC.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        super::interrupt::wait_if_ending();
        let text = String::from_utf8_lossy(line);
        // The character ESC (0x1b) is kept, because the colours of the log need it.
        let parts: Vec<String> = shortened(text.trim_end_matches('\n')).split('\x1b').map(on_one_line).collect();
        let escaped = parts.join("\x1b") + "\n";
        let bars = displayed_bars().clone();
        match bars {
            Some(bars) => bars.suspend(|| io::stderr().write_all(escaped.as_bytes()))?,
            None => io::stderr().write_all(escaped.as_bytes())?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
