//! A server whose responses a test chooses.
//!
//! It cannot be the server of `tests/it/support`: unit tests are part of the library, and integration tests a crate of their own.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::json;

/// A request that a server received.
#[derive(Debug, Clone)]
pub(crate) struct ReceivedRequest {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

impl ReceivedRequest {
    pub(crate) fn authorization(&self) -> Option<&str> {
        self.headers.get("authorization").map(String::as_str)
    }
}

/// A response to send.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    drip: Option<Drip>,
}

/// The part of a response from which on it is slow.
///
/// A slow response is sent byte by byte, until the client closes the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drip {
    Head,
    Body,
    /// After half of the body, nothing is sent any more.
    Silence,
}

/// Pause after each byte of a slow response.
const DRIP_PAUSE: Duration = Duration::from_millis(20);

impl Reply {
    pub(crate) fn of(status: u16, body: impl AsRef<[u8]>) -> Self {
        Self { status, headers: Vec::new(), body: body.as_ref().to_vec(), drip: None }
    }

    pub(crate) fn dripping(mut self, from: Drip) -> Self {
        self.drip = Some(from);
        self
    }

    pub(crate) fn json(body: serde_json::Value) -> Self {
        Self::of(200, body.to_string()).with("content-type", "application/json")
    }

    pub(crate) fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub(crate) fn error(status: u16, code: &str) -> Self {
        Self::of(status, json!({"errors": [{"code": code, "message": "so it is"}]}).to_string())
    }
}

type Answering = dyn Fn(&ReceivedRequest) -> Reply + Send + Sync;

/// A server on this machine. It runs until the process ends; each connection serves one request.
pub(crate) struct Server {
    pub(crate) address: String,
    asked: Arc<Mutex<Vec<ReceivedRequest>>>,
}

impl Server {
    pub(crate) fn start(answering: impl Fn(&ReceivedRequest) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (asked, answering): (Arc<Mutex<Vec<ReceivedRequest>>>, Arc<Answering>) =
            (Arc::default(), Arc::new(answering));
        let noted = Arc::clone(&asked);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (noted, answering) = (Arc::clone(&noted), Arc::clone(&answering));
                thread::spawn(move || serve(stream.unwrap(), &noted, &*answering));
            }
        });
        Self { address, asked }
    }

    pub(crate) fn requests(&self) -> Vec<ReceivedRequest> {
        self.asked.lock().unwrap().clone()
    }

    /// Returns the method and target of each request.
    pub(crate) fn targets(&self) -> Vec<String> {
        self.requests().into_iter().map(|asked| format!("{} {}", asked.method, asked.target)).collect()
    }
}

fn serve(stream: TcpStream, noted: &Mutex<Vec<ReceivedRequest>>, answering: &Answering) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let asked = ReceivedRequest { method, target, headers, body: String::from_utf8(body).unwrap() };
    noted.lock().unwrap().push(asked.clone());
    let reply = answering(&asked);
    let mut text = format!("HTTP/1.1 {} x\r\nconnection: close\r\n", reply.status);
    if !reply.headers.iter().any(|(name, _)| name == "content-length") {
        text.push_str(&format!("content-length: {}\r\n", reply.body.len()));
    }
    reply.headers.iter().for_each(|(name, value)| text.push_str(&format!("{name}: {value}\r\n")));
    let mut stream = reader.into_inner();
    let head = format!("{text}\r\n").into_bytes();
    let body = if asked.method == "HEAD" { Vec::new() } else { reply.body };
    match reply.drip {
        None => stream.write_all(&[head, body].concat()).ok(),
        Some(Drip::Body) => {
            stream.write_all(&head).ok()?;
            drip(&mut stream, &body)
        }
        Some(Drip::Head) => drip(&mut stream, &[head, body].concat()),
        Some(Drip::Silence) => {
            stream.write_all(&[head, body[..body.len() / 2].to_vec()].concat()).ok()?;
            // The connection stays open until the client closes it.
            stream.read(&mut [0]).ok().map(drop)
        }
    }
}

fn drip(stream: &mut TcpStream, bytes: &[u8]) -> Option<()> {
    for byte in bytes {
        thread::sleep(DRIP_PAUSE);
        stream.write_all(&[*byte]).ok()?;
    }
    Some(())
}
