//! Progress on a terminal, and log lines that do not tear it apart.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use strata::message::{on_one_line, shortened};
use strata::progress::Progress;

use super::terminal::can_be_redrawn;

/// The bars that are shown now, if any are.
static SHOWN: Mutex<Option<MultiProgress>> = Mutex::new(None);

fn shown() -> MutexGuard<'static, Option<MultiProgress>> {
    SHOWN.lock().expect("no thread panics while it draws")
}

/// Shows how far one or several pieces of work are, until it is dropped; nothing where standard error is not a
/// terminal that can be redrawn.
pub struct Display {
    board: Option<Arc<Board>>,
    thread: Option<JoinHandle<()>>,
}

struct Board {
    bars: MultiProgress,
    /// What the line below all others says; empty for none.
    summary: ProgressBar,
    /// Work under way, by what it is called.
    lines: Mutex<HashMap<String, (ProgressBar, Arc<Progress>)>>,
    done: AtomicBool,
}

impl Display {
    /// Starts to show what `progress` says.
    pub fn start(progress: &Arc<Progress>, quiet: bool) -> Self {
        let display = Self::start_empty(quiet);
        display.add("", progress);
        display
    }

    /// Starts to show nothing yet.
    pub fn start_empty(quiet: bool) -> Self {
        if quiet || !can_be_redrawn() {
            return Self { board: None, thread: None };
        }
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let summary = ProgressBar::no_length().with_style(style("{msg}"));
        let board = Arc::new(Board { bars, summary, lines: Mutex::default(), done: AtomicBool::new(false) });
        *shown() = Some(board.bars.clone());
        let drawn = Arc::clone(&board);
        let draw = move || {
            while !drawn.done.load(Ordering::Relaxed) {
                super::interrupt::wait_if_ending();
                drawn.draw();
                thread::park_timeout(Duration::from_millis(100));
            }
            drawn.bars.clear().ok();
            *shown() = None;
        };
        match thread::Builder::new().spawn(draw) {
            Ok(thread) => Self { board: Some(board), thread: Some(thread) },
            // Without a thread the work goes on, and its progress is not displayed.
            Err(_) => {
                *shown() = None;
                Self { board: None, thread: None }
            }
        }
    }

    /// Shows a piece of work, too.
    pub fn add(&self, name: &str, progress: &Arc<Progress>) {
        let Some(board) = &self.board else { return };
        let bar = ProgressBar::no_length()
            .with_style(style("{spinner} {prefix}{msg}  {bytes} of {total_bytes}, {bytes_per_sec}, {elapsed}"));
        let bar = board.bars.insert(0, bar);
        bar.set_prefix(if name.is_empty() { String::new() } else { format!("{name}: ") });
        board.lines().insert(name.to_owned(), (bar, Arc::clone(progress)));
    }

    /// Shows a piece of work no longer.
    pub fn remove(&self, name: &str) {
        let Some(board) = &self.board else { return };
        if let Some((bar, _)) = board.lines().remove(name) {
            board.bars.remove(&bar);
        }
    }

    /// Shows a line below all work.
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
    ProgressStyle::with_template(template).expect("the template is right")
}

impl Drop for Display {
    fn drop(&mut self) {
        if let Some(board) = &self.board {
            board.done.store(true, Ordering::Relaxed);
        }
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A thread that fails to draw takes nothing with it.
            let _ = thread.join();
        }
    }
}

/// Writes log lines to standard error, above the bars if there are any.
pub struct LogWriter;

impl LogWriter {
    /// Returns a writer.
    pub fn new() -> Self {
        Self
    }
}

impl Write for LogWriter {
    /// Writes one line. Its own colours were escaped in what it quotes, so that only line breaks are left to be tamed.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        super::interrupt::wait_if_ending();
        let text = String::from_utf8_lossy(line);
        let parts: Vec<String> = shortened(text.trim_end_matches('\n')).split('\x1b').map(on_one_line).collect();
        let tamed = parts.join("\x1b") + "\n";
        let bars = shown().clone();
        match bars {
            Some(bars) => bars.suspend(|| io::stderr().write_all(tamed.as_bytes()))?,
            None => io::stderr().write_all(tamed.as_bytes())?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
