//! Publishes container images in the CernVM file system (CVMFS), without CVMFS software and without privileges.

pub mod catalog;
pub mod folder;
pub mod image;
pub mod index;
pub mod ingest;
pub mod layer;
pub mod layout;
pub mod manifest;
pub mod metadata;
pub mod object;
pub mod publish;
pub mod repository;
pub mod settings;
pub mod source;
pub mod store;
pub mod tree;
pub mod verify;
