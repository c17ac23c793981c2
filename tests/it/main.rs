//! The integration tests: one binary, a file for each promise.

mod bad_input;
mod catalogs;
mod chains;
mod check;
mod compression;
mod convert;
mod determinism;
mod diff;
mod independent;
mod kills;
mod layer_rules;
mod local_server;
mod mount;
mod odd_input;
mod platforms;
mod preview;
mod publish;
mod registry;
mod strict;
mod strict_selftest;
mod support;
mod support_selftest;
mod sync;
mod timings;
mod verification;
mod verify;
