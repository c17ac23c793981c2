//! The measured figures, as a table and as a plot.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use plotters::prelude::*;

/// Figures in the order in which they were measured.
#[derive(Default)]
pub struct Table {
    rows: Vec<Row>,
}

struct Row {
    what: String,
    reference: String,
    ours: String,
    theirs: String,
    ratio: f64,
    promise: Promise,
}

/// The promised limit of a ratio.
#[derive(Clone, Copy)]
pub enum Promise {
    AtMost(f64),
    AtLeast(f64),
}

impl Promise {
    fn is_kept(self, ratio: f64) -> bool {
        match self {
            Self::AtMost(most) => ratio <= most,
            Self::AtLeast(least) => ratio >= least,
        }
    }
}

impl Table {
    /// Adds a time, and its ratio to another time.
    pub fn time(&mut self, what: &str, ours: Duration, reference: &str, theirs: Duration, promise: Promise) {
        let seconds = |time: Duration| format!("{:.2} s", time.as_secs_f64());
        let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
        self.add(what, &seconds(ours), reference, &seconds(theirs), ratio, promise);
    }

    /// Adds a time, and the speed-up compared with another time.
    pub fn speed(&mut self, what: &str, ours: Duration, reference: &str, theirs: Duration, promise: Promise) {
        let seconds = |time: Duration| format!("{:.2} s", time.as_secs_f64());
        let ratio = theirs.as_secs_f64() / ours.as_secs_f64();
        self.add(what, &seconds(ours), reference, &seconds(theirs), ratio, promise);
    }

    /// Adds a number of bytes, and its ratio to another number of bytes.
    pub fn bytes(&mut self, what: &str, ours: u64, reference: &str, theirs: u64, promise: Promise) {
        let mebibytes = |bytes: u64| format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20));
        self.add(what, &mebibytes(ours), reference, &mebibytes(theirs), ours as f64 / theirs as f64, promise);
    }

    fn add(&mut self, what: &str, ours: &str, reference: &str, theirs: &str, ratio: f64, promise: Promise) {
        eprintln!("{what}: {ours}; {reference}: {theirs}; {ratio:.2}");
        let [what, reference, ours, theirs] = [what, reference, ours, theirs].map(str::to_owned);
        self.rows.push(Row { what, reference, ours, theirs, ratio, promise });
    }

    /// Returns the table in Markdown.
    pub fn to_text(&self) -> String {
        let mut text =
            "| what | result | compared with | its result | ratio | promised |\n|---|--:|---|--:|--:|--:|\n".to_owned();
        for Row { what, reference, ours, theirs, ratio, promise } in &self.rows {
            let mark = if promise.is_kept(*ratio) { "" } else { " (missed)" };
            let promise = match promise {
                Promise::AtMost(most) => format!("≤ {most}"),
                Promise::AtLeast(least) => format!("≥ {least}"),
            };
            writeln!(text, "| {what} | {ours} | {reference} | {theirs} | {ratio:.2} | {promise}{mark} |")
                .expect("strings take everything");
        }
        text
    }

    /// Returns whether every ratio is within its promised limit.
    pub fn is_good(&self) -> bool {
        self.rows.iter().all(|row| row.promise.is_kept(row.ratio))
    }
}

/// Draws the speed of several programs in GB of an image per minute.
pub fn plot(path: &Path, title: &str, speeds: &[(String, f64)]) {
    let height = 60 + 34 * u32::try_from(speeds.len()).expect("there are few programs");
    let area = SVGBackend::new(path, (760, height)).into_drawing_area();
    area.fill(&WHITE).expect("a file can be drawn to");
    let text = |size: u32| ("sans-serif", size).into_font();
    let write = |text: &str, style: TextStyle<'_>, x: i32, y: i32| {
        area.draw_text(text, &style, (x, y)).expect("a file can be drawn to");
    };
    write(title, text(17).into(), 12, 12);
    let most = speeds.iter().map(|(_, speed)| *speed).fold(0.0, f64::max);
    for (row, (name, speed)) in (0..).zip(speeds) {
        let top = 48 + 34 * row;
        let length = (speed / most * 430.0).round() as i32;
        let color = if name.starts_with("strata") { RGBColor(38, 110, 175) } else { RGBColor(170, 170, 170) };
        let bar = Rectangle::new([(250, top), (250 + length, top + 22)], color.filled());
        area.draw(&bar).expect("a file can be drawn to");
        write(name, text(14).into(), 12, top + 4);
        write(&format!("{speed:.1}"), text(14).into(), 256 + length, top + 4);
    }
    area.present().expect("a file can be written");
}
