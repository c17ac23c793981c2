//! Names with digests, and names of registries that have no name but an IPv6 address.

mod digests;
mod ipv6;
