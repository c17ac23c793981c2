//! Progress on a terminal, and log lines that do not tear it apart.

use std::io::{self, IsTerminal as _, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use strata::message::on_one_line;
use strata::progress::Progress;

/// The bar that is shown now, if one is.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

fn shown() -> std::sync::MutexGuard<'static, Option<ProgressBar>> {
    SHOWN.lock().expect("no thread panics while it draws")
}

/// Shows progress until it is dropped; nothing where standard error is no terminal.
pub struct Display {
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Display {
    /// Starts to show what `progress` says.
    pub fn start(progress: &Arc<Progress>, quiet: bool) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        if quiet || !io::stderr().is_terminal() {
            return Self { done, thread: None };
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let style = "{spinner} {msg}  {bytes} of {total_bytes}, {bytes_per_sec}, {elapsed}";
        bar.set_style(ProgressStyle::with_template(style).expect("the template is right"));
        *shown() = Some(bar.clone());
        let (progress, stop) = (Arc::clone(progress), Arc::clone(&done));
        let thread = thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let (read, expected) = progress.bytes();
                bar.set_length(expected);
                bar.set_position(read);
                bar.set_message(progress.stage());
                bar.tick();
                thread::park_timeout(Duration::from_millis(100));
            }
            bar.finish_and_clear();
            *shown() = None;
        });
        Self { done, thread: Some(thread) }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A thread that fails to draw takes nothing with it.
            let _ = thread.join();
        }
    }
}

/// Writes log lines to standard error, above the bar if there is one.
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
        let text = String::from_utf8_lossy(line);
        let parts: Vec<String> = text.trim_end_matches('\n').split('\x1b').map(on_one_line).collect();
        let tamed = parts.join("\x1b") + "\n";
        let bar = shown().clone();
        match bar {
            Some(bar) => bar.suspend(|| io::stderr().write_all(tamed.as_bytes()))?,
            None => io::stderr().write_all(tamed.as_bytes())?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
