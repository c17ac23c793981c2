//! The one server of these tests: a loop that accepts TCP connections, and HTTP on top of it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use super::http::{Reply, Request};

/// A server on a free port of this machine. It accepts connections until the value is dropped.
pub struct Server {
    address: SocketAddr,
    is_over: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts an HTTP server that sends what `answer` returns. Each connection serves one request.
    pub fn http(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::tcp(move |mut stream| {
            // A client may close the connection at any time. There is no other server to forward to, hence port 0.
            let Ok(Some(request)) = Request::read(&stream, 0) else { return };
            answer(&request).write(&mut stream, request.method == "HEAD").ok();
        })
    }

    /// Starts a server that calls `serve` with each connection, in a thread of its own.
    pub fn tcp(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        Self::bind(Ipv4Addr::LOCALHOST.into(), serve).expect("127.0.0.1 has a free port")
    }

    /// Does the same at another address of this machine. An error means that the machine does not have the address.
    pub fn bind(address: IpAddr, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> io::Result<Self> {
        let listener = TcpListener::bind((address, 0))?;
        let address = listener.local_addr()?;
        let is_over = Arc::new(AtomicBool::new(false));
        let (ends, serve) = (Arc::clone(&is_over), Arc::new(serve));
        let listener = thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if ends.load(Ordering::Acquire) {
                    return;
                }
                let serve = Arc::clone(&serve);
                thread::spawn(move || serve(stream));
            }
        });
        Ok(Self { address, is_over, listener: Some(listener) })
    }

    /// Returns the host and port, with brackets around an IPv6 address.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Returns the port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
        // The listener may be waiting for its next client: this is one.
        drop(TcpStream::connect(self.address));
        let ended = self.listener.take().map(JoinHandle::join);
        assert!(thread::panicking() || ended.is_none_or(|ended| ended.is_ok()));
    }
}
