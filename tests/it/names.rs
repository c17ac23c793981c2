//! Names with digests, and registries that have an IPv6 address instead of a host name.

mod digests;
mod ipv6;
