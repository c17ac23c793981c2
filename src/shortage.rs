//! Recognises errors that come from a shortage of threads, memory or file descriptors of this machine.

use std::error::Error;
use std::io;

use rustix::io::Errno;

/// Returns whether the error means that this process, its user or the machine lacks a resource.
///
/// `EAGAIN` is the error of `clone` at the process limit (`ulimit -u`). Errors of non-blocking I/O are not passed to this
/// function.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN | Errno::NOBUFS)
    )
}

/// Returns whether the system refused to start a thread or a process.
pub(crate) fn is_refused_thread(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(|cause| Errno::from_io_error(cause) == Some(Errno::AGAIN))
}

/// Returns whether a shortage is among the causes of an error.
pub(crate) fn is_from_shortage(error: &(dyn Error + 'static)) -> bool {
    shortage_of(error).is_some()
}

/// Returns the first shortage among the causes of an error.
pub(crate) fn shortage_of<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e io::Error> {
    causes(error).find(|&cause| is_shortage(cause))
}

/// Returns the I/O errors among an error and its causes.
fn causes<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e io::Error> {
    std::iter::successors(Some(error), |&error| cause(error)).filter_map(|error| error.downcast_ref::<io::Error>())
}

/// Returns the cause of an error. For an I/O error that wraps another error, `source` would skip the wrapped error.
pub(crate) fn cause<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e (dyn Error + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(wrapped) => Some(wrapped),
        None => error.source(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] io::Error);

    #[test]
    fn shortage_is_found_however_it_is_wrapped() {
        for (errno, is_short) in [
            (Errno::MFILE, true),
            (Errno::NFILE, true),
            (Errno::NOMEM, true),
            (Errno::AGAIN, true),
            (Errno::NOENT, false),
            (Errno::ACCESS, false),
            (Errno::IO, false),
        ] {
            let error = || io::Error::from(errno);
            assert_eq!(is_shortage(&error()), is_short, "{errno}");
            assert_eq!(is_from_shortage(&Outer(io::Error::other(Outer(error())))), is_short, "{errno}");
            assert_eq!(is_refused_thread(&Outer(error())), errno == Errno::AGAIN, "{errno}");
        }
        assert!(!is_from_shortage(&io::Error::other("text")));
    }
}
