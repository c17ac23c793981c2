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
//! A module knows only modules that come before it in this flow; `tests/it/architecture.rs` has the rules. Everything that the `strata`
//! program uses is public, so that other programs can do what it does; the interface is not stable yet.

mod allocator;
#[cfg(feature = "isal")]
mod avx;
mod cache;
pub mod cancel;
pub mod catalog;
pub mod check;
pub mod consumer;
pub mod describe;
pub mod diff;
pub mod directory;
pub mod engine;
mod file;
pub mod http;
pub mod image;
pub mod ingest;
pub mod inventory;
pub mod layer;
pub mod layout;
pub mod manifest;
pub mod message;
pub mod metadata;
pub mod mount;
pub mod notification;
pub mod object;
pub mod observer;
pub mod path;
pub mod preview;
pub mod progress;
pub mod publish;
pub mod registry;
pub mod remote;
pub mod repository;
pub mod revise;
pub mod settings;
mod shortage;
pub mod source;
pub mod span;
pub mod stage;
pub mod state;
pub mod store;
pub mod tar_archive;
pub mod threads;
pub mod tree;
pub mod verify;
pub mod wishlist;
pub mod work;
