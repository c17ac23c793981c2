//! Resolves host names, even if no thread can be started.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::thread;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::oneshot;

/// Resolves each name in a new thread. If no thread can be started, resolves the name in the thread of the HTTP client, which
/// blocks the other connections of that client meanwhile. The default resolver of the client would panic instead.
#[derive(Debug, Clone, Copy)]
pub(super) struct DnsResolver;

impl Resolve for DnsResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let name: Arc<str> = name.as_str().into();
        let (sender, receiver) = oneshot::channel();
        let query = Arc::clone(&name);
        let ask = move || drop(sender.send(look_up(&query)));
        let spawned = thread::Builder::new().name("resolver".to_owned()).spawn(ask);
        Box::pin(async move {
            let found = match spawned {
                Ok(_) => receiver.await?,
                Err(_) => look_up(&name),
            };
            let addresses: Addrs = Box::new(found?.into_iter());
            Ok(addresses)
        })
    }
}

fn look_up(name: &str) -> std::io::Result<Vec<SocketAddr>> {
    // The client replaces port 0 by the port of the URL.
    Ok((name, 0).to_socket_addrs()?.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_name_is_resolved_and_an_unknown_one_is_an_error() {
        let all: Vec<_> = look_up("localhost").unwrap();
        assert!(!all.is_empty() && all.iter().all(|address| address.ip().is_loopback() && address.port() == 0));
        assert!(look_up("no-such-host.invalid").is_err());
    }
}
