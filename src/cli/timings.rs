//! Measures the time of each stage of a run, for `--timings`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::fs;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use serde_json::{Value, json};
use strata::span::{BYTES, TARGET};
use tracing::Subscriber;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

/// The measured stages, by name.
#[derive(Debug, Clone, Default)]
pub struct Timings(Arc<Mutex<HashMap<&'static str, Stage>>>);

/// The work of one stage, summed over all threads.
#[derive(Debug, Clone, Copy, Default)]
struct Stage {
    busy: Duration,
    bytes: u64,
    count: u64,
}

/// A span that a thread has entered.
struct Entered {
    since: Instant,
    /// The time that the thread spent in inner spans, which does not count for this span.
    within: Duration,
}

thread_local! {
    static ENTERED: RefCell<Vec<Entered>> = const { RefCell::new(Vec::new()) };
}

/// Receives spans from `tracing` and sums up their times.
pub struct Recorder(Timings);

impl Timings {
    /// Returns the recorder that fills these timings. It must receive only spans of [`TARGET`].
    pub fn recorder(&self) -> Recorder {
        Recorder(self.clone())
    }

    fn add(&self, name: &'static str, add: impl FnOnce(&mut Stage)) {
        add(self.0.lock().expect("no thread panics while it adds up times").entry(name).or_default());
    }

    /// Returns the stages, the longest first, and the remaining time of all threads, which they spent waiting.
    fn stages(&self, wall: Duration, threads: usize) -> (Vec<(&'static str, Stage)>, Duration) {
        let stages = self.0.lock().expect("no thread panics while it adds up times");
        let mut stages: Vec<_> = stages.iter().map(|(name, stage)| (*name, *stage)).collect();
        stages.sort_by_key(|(name, stage)| (std::cmp::Reverse(stage.busy), *name));
        let busy: Duration = stages.iter().map(|(_, stage)| stage.busy).sum();
        (stages, (wall * u32::try_from(threads).unwrap_or(u32::MAX)).saturating_sub(busy))
    }

    /// Returns a table of the stages. `wall` is the elapsed time of the run, and `index_hits` its number of content index
    /// hits.
    pub fn to_text(&self, wall: Duration, threads: usize, index_hits: u64) -> String {
        let (stages, waiting) = self.stages(wall, threads);
        let all = wall.as_secs_f64() * threads as f64;
        let mut text =
            format!("{:<14}{:>10}{:>8}{:>12}{:>14}{:>12}\n", "stage", "time", "share", "bytes", "rate", "times");
        let mut line = |name: &str, busy: Duration, rest: &dyn fmt::Display| {
            let (seconds, share) = (busy.as_secs_f64(), 100.0 * busy.as_secs_f64() / all);
            writeln!(text, "{name:<14}{seconds:>8.2} s{share:>6.1} %{rest}").expect("writing to a string cannot fail");
        };
        for (name, Stage { busy, bytes, count }) in stages {
            let (size, rate) = match bytes {
                0 => (String::new(), String::new()),
                _ => (ByteSize(bytes).to_string(), format!("{:.0} MB/s", bytes as f64 / 1e6 / busy.as_secs_f64())),
            };
            line(name, busy, &format_args!("{size:>12}{rate:>14}{count:>12}"));
        }
        line("waiting", waiting, &"");
        let threads = if threads == 1 { "1 thread".to_owned() } else { format!("{threads} threads") };
        write!(text, "{:.2} s on {threads}", wall.as_secs_f64()).expect("writing to a string cannot fail");
        if let Some(peak) = peak_memory() {
            write!(text, ", at most {} of memory", ByteSize(peak)).expect("writing to a string cannot fail");
        }
        writeln!(text, "; {index_hits} index hits").expect("writing to a string cannot fail");
        text
    }

    /// Returns the same data as JSON, in seconds and bytes.
    pub fn to_json(&self, wall: Duration, threads: usize, index_hits: u64) -> Value {
        let (stages, waiting) = self.stages(wall, threads);
        let stage = |(name, stage): (&str, Stage)| {
            let Stage { busy, bytes, count } = stage;
            json!({"stage": name, "seconds": busy.as_secs_f64(), "bytes": bytes, "times": count})
        };
        json!({
            "seconds": wall.as_secs_f64(),
            "threads": threads,
            "index-hits": index_hits,
            "peak-memory": peak_memory(),
            "stages": stages.into_iter().map(stage).collect::<Vec<_>>(),
            "waiting-seconds": waiting.as_secs_f64(),
        })
    }
}

/// Returns the maximum memory that this process has used, in bytes, if the kernel reports it.
fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recorder {
    fn on_new_span(&self, attributes: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
        let mut bytes = Bytes::default();
        attributes.record(&mut bytes);
        self.0.add(attributes.metadata().name(), |stage| {
            stage.bytes += bytes.0;
            stage.count += 1;
        });
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let mut bytes = Bytes::default();
        values.record(&mut bytes);
        let Some(span) = context.span(id) else { return };
        self.0.add(span.name(), |stage| stage.bytes += bytes.0);
    }

    fn on_enter(&self, _: &Id, _: Context<'_, S>) {
        let entered = Entered { since: Instant::now(), within: Duration::ZERO };
        ENTERED.with_borrow_mut(|spans| spans.push(entered));
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let own = ENTERED.with_borrow_mut(|spans| {
            let Some(Entered { since, within }) = spans.pop() else { return Duration::ZERO };
            let whole = since.elapsed();
            if let Some(outer) = spans.last_mut() {
                outer.within += whole;
            }
            whole.saturating_sub(within)
        });
        self.0.add(span.name(), |stage| stage.busy += own);
    }
}

/// Reads the field with the number of bytes from a span.
#[derive(Default)]
struct Bytes(u64);

impl Visit for Bytes {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == BYTES {
            self.0 += value;
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}

/// Returns whether spans with this metadata are stages.
pub fn is_stage(metadata: &tracing::Metadata<'_>) -> bool {
    metadata.target() == TARGET
}
