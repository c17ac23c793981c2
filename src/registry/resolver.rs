//! Looks up addresses of hosts, on machines with few threads, too.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::thread;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::oneshot;

/// Asks the system in a thread of its own for each name. The HTTP client's own resolver does so, too, but panics where no thread
/// can be started; this one then asks in the client's thread, whose other connections wait for it.
#[derive(Debug, Clone, Copy)]
pub(super) struct DnsResolver;

impl Resolve for DnsResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let name: Arc<str> = name.as_str().into();
        let (sender, receiver) = oneshot::channel();
        let asked = Arc::clone(&name);
        let ask = move || drop(sender.send(look_up(&asked)));
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
    // Port 0 stands for that of the URL.
    Ok((name, 0).to_socket_addrs()?.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_up_and_unknown_ones_refused() {
        let all: Vec<_> = look_up("localhost").unwrap();
        assert!(!all.is_empty() && all.iter().all(|address| address.ip().is_loopback() && address.port() == 0));
        assert!(look_up("no-such-host.invalid").is_err());
    }
}
