//! The observer of the library: it receives all messages and the progress of operations.
//!
//! The library never prints or logs. [`RepositoryDirectory`](crate::directory::RepositoryDirectory) holds a [`Reporter`], and what is
//! opened through it holds a clone: the store, the state database, the registries, a mount. Functions use the reporter of such an
//! object. There is no reporter for the whole process, so that two repositories in one process may have different observers.

use std::fmt;
use std::sync::Arc;

use crate::progress::Progress;

/// Importance of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something failed that cannot be returned as an error, such as a request of the kernel to a mount.
    Error,
    /// The administrator should know this, although the operation continues.
    Warning,
    /// A step of the operation, or a delay.
    Info,
    /// A detail that helps to find the cause of a fault.
    Debug,
}

/// Receives messages and progress, from any thread.
///
/// An observer must neither block for long nor call the library: threads of the library that wait for it may hold locks.
pub trait Observer: Send + Sync {
    /// Receives one message. The text has one line, but may contain quoted text from images and registries.
    fn message(&self, level: Level, text: fmt::Arguments<'_>);

    /// An operation starts, such as staging an image. Its threads update `progress` until it ends; several operations one after
    /// the other may share it.
    fn start(&self, _operation: &str, _progress: &Arc<Progress>) {}

    /// The operation that started with this name and progress has ended.
    fn end(&self, _operation: &str, _progress: &Arc<Progress>) {}
}

/// A handle of an observer. Clones are cheap and share the observer.
#[derive(Clone)]
pub struct Reporter(Arc<dyn Observer>);

impl Reporter {
    /// Returns a handle of `observer`.
    pub fn new(observer: impl Observer + 'static) -> Self {
        Self(Arc::new(observer))
    }

    /// Returns a handle that drops all messages.
    pub fn silent() -> Self {
        Self::new(Silent)
    }

    /// Reports that an operation starts. It ends when the returned value is dropped.
    pub(crate) fn start(&self, operation: String, progress: &Arc<Progress>) -> ReportedOperation {
        self.0.start(&operation, progress);
        ReportedOperation { operation, progress: Arc::clone(progress), reporter: self.clone() }
    }

    /// Reports a failure that cannot be returned.
    pub fn error(&self, text: fmt::Arguments<'_>) {
        self.0.message(Level::Error, text);
    }

    /// Reports a fact that the administrator should know.
    pub fn warn(&self, text: fmt::Arguments<'_>) {
        self.0.message(Level::Warning, text);
    }

    /// Reports a step of the operation.
    pub fn info(&self, text: fmt::Arguments<'_>) {
        self.0.message(Level::Info, text);
    }

    /// Reports a detail.
    pub fn debug(&self, text: fmt::Arguments<'_>) {
        self.0.message(Level::Debug, text);
    }
}

impl Default for Reporter {
    fn default() -> Self {
        Self::silent()
    }
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reporter").finish_non_exhaustive()
    }
}

/// An operation in progress. Reports its end when it is dropped.
#[must_use = "the end of the operation is reported when this is dropped"]
pub(crate) struct ReportedOperation {
    operation: String,
    progress: Arc<Progress>,
    reporter: Reporter,
}

impl Drop for ReportedOperation {
    fn drop(&mut self) {
        self.reporter.0.end(&self.operation, &self.progress);
    }
}

/// Drops all messages.
struct Silent;

impl Observer for Silent {
    fn message(&self, _: Level, _: fmt::Arguments<'_>) {}
}

/// An observer that collects messages, for tests.
#[cfg(test)]
pub(crate) mod testing {
    use std::sync::Mutex;

    use super::*;

    /// The messages in the order of their arrival. Clones share them.
    #[derive(Debug, Clone, Default)]
    pub(crate) struct Messages(Arc<Mutex<Vec<(Level, String)>>>);

    impl Messages {
        /// Returns a reporter that adds to these messages.
        pub(crate) fn reporter(&self) -> Reporter {
            Reporter::new(self.clone())
        }

        /// Returns the messages that have arrived since the last call.
        pub(crate) fn take(&self) -> Vec<(Level, String)> {
            std::mem::take(&mut *self.0.lock().unwrap())
        }
    }

    impl Observer for Messages {
        fn message(&self, level: Level, text: fmt::Arguments<'_>) {
            self.0.lock().unwrap().push((level, text.to_string()));
        }
    }
}
