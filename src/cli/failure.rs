//! Exit codes.

use std::process::ExitCode;

use strata::convert::ConvertError;
use strata::folder::FolderError;
use strata::publish::PublishError;
use strata::store::StoreError;

/// Nothing was published because of an error.
pub const FAILED: u8 = 1;
/// The command makes no sense as it was given.
pub const USAGE: u8 = 2;
/// At least one image failed; every other is published or already was.
pub const PARTLY: u8 = 3;
/// Something was found that the command looks for.
pub const FINDINGS: u8 = 4;
/// Another publisher holds the repository.
pub const HELD: u8 = 5;

/// A command that makes no sense as it was given.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// Returns the exit code for an error that ended a command.
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    let is_usage = error.is::<UsageError>() || matches!(error.downcast_ref(), Some(FolderError::NoFolder(_)));
    let is_held =
        matches!(error.downcast_ref(), Some(ConvertError::Publish(PublishError::Store(StoreError::Held { .. }))));
    ExitCode::from(match (is_usage, is_held) {
        (true, _) => USAGE,
        (_, true) => HELD,
        _ => FAILED,
    })
}
