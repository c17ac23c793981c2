//! Publishes container images in the CernVM file system (CVMFS), without CVMFS software and without privileges.
//!
//! ```text
//! source ──bytes──▶ layer ──entries──▶ tree ──trees──▶ layout ──subtrees──▶ catalog ──edits──▶ publish ──manifest──▶ store
//!                     │
//!                     └──content──▶ ingest: index, compress, hash ──▶ store (before anything refers to it)
//! ```
//!
//! Data flows one way. [`source`] finds an image, [`layer`] turns its blobs into verified entries, [`tree`] lays them
//! over one another in memory, [`layout`] says what is published where, [`catalog`] writes trees as SQLite files,
//! [`publish`] makes them a revision, and [`store`] is where it all lies. [`convert`] joins them. Whatever reads a
//! published repository goes through [`repository`], but for [`check`], which believes nothing and looks at the files
//! themselves. [`mount`] shows it to the kernel, [`preview`] what is not published yet, [`diff`] tells two of its revisions
//! apart, [`verify`] proves an image right, and [`bundle`] has runtimes run it. [`podman`] knows the store that podman reads.
//!
//! Everything is public that the `strata` program uses, so that other programs can do what it does; the interface is not
//! stable yet.

mod allocator;
#[cfg(feature = "isal")]
mod avx;
mod cache;
pub mod catalog;
pub mod check;
pub mod consumer;
pub mod describe;
pub mod diff;
pub mod directory;
pub mod engine;
mod file;
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
pub mod path;
pub mod preview;
pub mod progress;
pub mod publish;
pub mod registry;
pub mod repository;
pub mod revise;
pub mod settings;
pub mod source;
pub mod span;
pub mod stage;
pub mod state;
pub mod store;
pub mod threads;
pub mod tree;
pub mod verify;
pub mod wishlist;
pub mod work;
