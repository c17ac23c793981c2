//! Tracing spans that measure where a run spends its time. Each kind of work is a [`tracing`] span of target [`TARGET`] and level
//! TRACE.
//!
//! Spans nest: the time of a kind of work is the time in its spans, excluding the spans inside them. Without a subscriber, a span costs
//! almost nothing.

/// Target of the spans.
pub const TARGET: &str = "strata::span";

/// Field with the number of bytes that were processed within a span.
pub const BYTES: &str = "bytes";

/// Enters a span until the returned value is dropped. The second argument, if present, is the value of [`BYTES`].
macro_rules! span {
    ($name:literal) => {
        tracing::trace_span!(target: $crate::span::TARGET, $name, bytes = tracing::field::Empty).entered()
    };
    ($name:literal, $bytes:expr) => {
        tracing::trace_span!(target: $crate::span::TARGET, $name, bytes = $bytes as u64).entered()
    };
}

pub(crate) use span;
