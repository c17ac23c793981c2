//! The exit codes, and the errors that determine the exit code.

use std::process::ExitCode;

use strata::directory::DirectoryError;
use strata::message::causes;
use strata::publish::AfterPublication;
use strata::store::{RepositoryInUse, StoreError};

use super::complain;

/// Nothing was published because of an error.
pub const FAILED: u8 = 1;
/// The command line is invalid, or there is no repository at the path.
pub const USAGE: u8 = 2;
/// At least one image failed. All other images are published, by this run or an earlier one.
pub const PARTLY: u8 = 3;
/// `check`, `verify` or `diff` found something.
pub const FINDINGS: u8 = 4;
/// Another publisher has locked the repository.
pub const HELD: u8 = 5;
/// A revision is published, but a later step failed.
pub const LATE: u8 = 6;

/// An invalid command line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// Returns the exit code for an error that ended a command.
///
/// The whole chain of causes is searched. Each of the searched errors is either the last cause, or wrapped as a `source`; an
/// error that is wrapped with `transparent` would not appear in the chain.
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    let is_usage = error.chain().any(|cause| {
        cause.is::<UsageError>()
            || matches!(cause.downcast_ref::<DirectoryError>(), Some(DirectoryError::NoDirectory(_)))
    });
    let is_held = error.chain().any(|cause| cause.is::<RepositoryInUse>());
    let is_late = error.chain().any(|cause| cause.is::<AfterPublication>());
    // The code for "another publisher held the repository" is documented without exception. Therefore it takes precedence over
    // the code for a failed later step.
    ExitCode::from(match (is_usage, is_held, is_late) {
        (true, ..) => USAGE,
        (_, true, _) => HELD,
        (_, _, true) => LATE,
        _ => FAILED,
    })
}

/// If revisions were published before an error, wraps the error so that it names these revisions.
pub fn after<T>(revisions: impl IntoIterator<Item = u64>, result: anyhow::Result<T>) -> anyhow::Result<T> {
    let mut revisions = revisions.into_iter().peekable();
    result.map_err(|error| match revisions.peek() {
        Some(_) => AfterPublication::new(revisions, error).into(),
        None => error,
    })
}

/// Prints the errors that occurred after a revision was published.
pub fn complain_late(late: &[StoreError]) {
    for error in late {
        complain(format_args!("the revision is published, but a later step failed: {}", causes(error)));
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use strata::publish::{CommitError, EditError, PublishError};
    use strata::work::{ConvertError, SyncError};

    use super::*;

    fn held() -> StoreError {
        StoreError::InUse(RepositoryInUse { place: "storage".to_owned(), waited: Duration::ZERO })
    }

    #[track_caller]
    fn assert_code(error: impl Into<anyhow::Error>, code: u8) {
        let error = error.into();
        assert_eq!(exit_code(&error), ExitCode::from(code), "{error:?}");
        assert_eq!(exit_code(&error.context("while something else was done")), ExitCode::from(code));
    }

    #[test]
    fn error_about_another_publisher_is_found_in_any_chain_of_causes() {
        let publish = || PublishError::from(held());
        let convert = || ConvertError::from(publish());
        assert_code(held(), HELD);
        assert_code(publish(), HELD);
        assert_code(convert(), HELD);
        assert_code(ConvertError::from(held()), HELD);
        assert_code(SyncError::from(convert()), HELD);
        assert_code(DirectoryError::from(held()), HELD);
        let commit = || CommitError::Prepare(EditError::from(held()));
        assert_code(commit(), HELD);
        assert_code(ConvertError::from(commit()), HELD);
    }

    #[test]
    fn error_after_a_publication_has_its_own_code_unless_another_publisher_caused_it() {
        let lost = || ConvertError::Publish(PublishError::NoWhitelist);
        assert_code(lost(), FAILED);
        assert_code(AfterPublication::new([2], lost()), LATE);
        assert_code(SyncError::from(AfterPublication::new([2], lost())), LATE);
        assert_code(SyncError::from(AfterPublication::new([2], SyncError::from(ConvertError::from(held())))), HELD);
        let full = || Err::<(), _>(anyhow::anyhow!("disk full"));
        assert_code(after([2, 3], full()).unwrap_err(), LATE);
        assert_code(after([], full()).unwrap_err(), FAILED);
        let text = causes(after([2, 3], full()).unwrap_err().as_ref());
        assert_eq!(text, "revisions 2, 3 are published, but a later step failed: disk full");
    }

    #[test]
    fn directory_without_a_repository_is_wrong_usage() {
        assert_code(DirectoryError::NoDirectory(PathBuf::from("typo.example.org")), USAGE);
        assert_code(UsageError("no".to_owned()), USAGE);
    }
}
