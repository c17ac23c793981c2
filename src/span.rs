//! What a run spends its time on: each stage of the work is a [`tracing`] span of target [`TARGET`] and level TRACE.
//!
//! Spans nest, so that the time of a stage is that of its spans less that of the spans within them. Where nobody asks for
//! them they cost next to nothing.

/// The target of the spans.
pub const TARGET: &str = "strata::span";

/// The field that says how many bytes a span has worked on.
pub const BYTES: &str = "bytes";

/// Enters a stage, until the value is dropped.
macro_rules! span {
    ($name:literal) => {
        tracing::trace_span!(target: $crate::span::TARGET, $name, bytes = tracing::field::Empty).entered()
    };
    ($name:literal, $bytes:expr) => {
        tracing::trace_span!(target: $crate::span::TARGET, $name, bytes = $bytes as u64).entered()
    };
}

pub(crate) use span;
