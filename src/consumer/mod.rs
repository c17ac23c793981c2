//! The container runtimes that run images right from a repository: what each needs there, and how it is started.

pub mod apptainer;
pub mod bundle;
pub mod commands;
pub mod podman;
pub mod thin;
