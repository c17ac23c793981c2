//! Publishes container images in the CernVM file system (CVMFS), without CVMFS software and without privileges.
//!
//! ```text
//! source ──bytes──▶ layer ──entries──▶ tree ──trees──▶ layout ──subtrees──▶ catalog ──edits──▶ publish ──manifest──▶ store
//!                     │
//!                     └──content──▶ ingest: index, compress, hash ──▶ store (before anything refers to it)
//! ```
//!
//! Data flows one way. A [`source`] finds an image; [`layer`] turns its blobs into verified entries; [`tree`] applies them in
//! memory, layer by layer; [`layout`] decides what is published where; [`catalog`] writes trees as SQLite files; [`publish`] makes
//! them a revision; and a [`store`] holds all of it.
//!
//! Four modules connect these. An [`engine`] is one open repository, with everything that operations share. [`stage`] reads one image
//! and stores its trees, which no client can see yet. [`revise`] determines what changes in the head. [`work`] is the driver of
//! `convert` and `sync`: it finds out what has to be done, stages images side by side, and publishes them.
//!
//! Both layers and the tar files in which images arrive are read with [`tar_archive`], which knows neither.
//!
//! Everything that reads a published repository goes through [`repository`]: [`mount`], [`verify`], [`diff`], [`describe`] and the next
//! publication. Only [`check`] trusts nothing and reads the files of the store themselves. A [`remote`] repository is one that is read
//! by its URL. Each container runtime has a module in [`consumer`].
//!
//! Messages and the progress of operations go to the observer of the repository directory (see [`observer`]).
//!
//! A module knows only modules that come before it in this flow; `tests/it/architecture.rs` has the rules.
//!
//! # The interface
//!
//! The types and functions below are the interface for other programs. The directory `examples` has a program for each of its uses:
//! converting an image, previewing it, checking a repository, and reading a file from a repository. The modules are public for the
//! `strata` program only; they are hidden here and may change at any time.

mod allocator;
#[cfg(feature = "isal")]
mod avx;
mod cache;
#[doc(hidden)]
pub mod cancel;
#[doc(hidden)]
pub mod catalog;
#[doc(hidden)]
pub mod check;
#[doc(hidden)]
pub mod consumer;
#[doc(hidden)]
pub mod describe;
#[doc(hidden)]
pub mod diff;
#[doc(hidden)]
pub mod directory;
#[doc(hidden)]
pub mod engine;
mod file;
#[doc(hidden)]
pub mod http;
#[doc(hidden)]
pub mod image;
#[doc(hidden)]
pub mod ingest;
#[doc(hidden)]
pub mod inventory;
#[doc(hidden)]
pub mod layer;
#[doc(hidden)]
pub mod layout;
#[doc(hidden)]
pub mod manifest;
#[doc(hidden)]
pub mod message;
#[doc(hidden)]
pub mod metadata;
#[doc(hidden)]
pub mod mount;
#[doc(hidden)]
pub mod notification;
#[doc(hidden)]
pub mod object;
#[doc(hidden)]
pub mod observer;
#[doc(hidden)]
pub mod path;
#[doc(hidden)]
pub mod preview;
#[doc(hidden)]
pub mod progress;
#[doc(hidden)]
pub mod publish;
#[doc(hidden)]
pub mod registry;
#[doc(hidden)]
pub mod remote;
#[doc(hidden)]
pub mod repository;
#[doc(hidden)]
pub mod revise;
#[doc(hidden)]
pub mod settings;
mod shortage;
#[doc(hidden)]
pub mod source;
#[doc(hidden)]
pub mod span;
#[doc(hidden)]
pub mod stage;
#[doc(hidden)]
pub mod state;
#[doc(hidden)]
pub mod store;
#[doc(hidden)]
pub mod tar_archive;
#[doc(hidden)]
pub mod threads;
#[doc(hidden)]
pub mod tree;
#[doc(hidden)]
pub mod verify;
#[doc(hidden)]
pub mod wishlist;
#[doc(hidden)]
pub mod work;

pub use cancel::Cancellation;
pub use check::{CheckOptions, CheckReport, CheckedRepository, check};
pub use directory::RepositoryDirectory;
pub use engine::{Engine, Resources};
pub use mount::{Mount, MountOptions};
pub use observer::{Observer, Reporter};
pub use preview::{Preview, PreviewOptions};
pub use progress::Progress;
pub use publish::{NewRepository, create_repository};
pub use remote::RemoteRepository;
pub use repository::Repository;
pub use source::ImageArgument;
pub use stage::{ImageOptions, Request};
pub use work::{ConvertOptions, ConvertReport, convert};
