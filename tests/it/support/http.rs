//! The parts of HTTP/1.1 that tests need as a client, a server or a proxy. Messages are held in memory.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::thread;
use std::time::Duration;

/// How a reply is sent to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Completely and without delay.
    Whole,
    /// The connection is closed after this number of bytes of the body.
    Cut(usize),
    /// After this number of bytes of the body nothing more is sent, but the connection stays open.
    Stall(usize),
    /// Head and body are sent byte by byte, with this pause before each byte.
    Drip(Duration),
    /// The head is sent at once, and the body byte by byte, with this pause before each byte.
    DripBody(Duration),
}

/// A request, either to be sent or received.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// The path with the query.
    pub path: String,
    headers: Headers,
    body: Vec<u8>,
    /// Port of this machine to which [`Request::forward`] sends the request.
    port: u16,
}

/// A response of a server.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    headers: Headers,
    pub body: Vec<u8>,
    delivery: Delivery,
    has_length: bool,
}

/// The headers of a message, with names in lower case.
#[derive(Debug, Clone, Default)]
struct Headers(Vec<(String, String)>);

impl Headers {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn set(&mut self, name: &str, value: impl ToString) {
        self.remove(name);
        self.0.push((name.to_owned(), value.to_string()));
    }

    fn remove(&mut self, name: &str) {
        self.0.retain(|(known, _)| known != name);
    }

    fn write(&self, head: &mut String) {
        self.0.iter().for_each(|(name, value)| *head += &format!("{name}: {value}\r\n"));
        *head += "\r\n";
    }
}

impl Request {
    /// Creates a request to a port of this machine.
    pub fn new(port: u16, method: &str, path: &str) -> Self {
        let (headers, body) = Default::default();
        Self { method: method.to_owned(), path: path.to_owned(), headers, body, port }
    }

    /// Returns the value of a header; names are in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)
    }

    /// Sets a header.
    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.set(name, value);
        self
    }

    /// Removes a header.
    pub fn without(mut self, name: &str) -> Self {
        self.headers.remove(name);
        self
    }

    /// Replaces the path.
    pub fn at(mut self, path: impl Into<String>) -> Self {
        self.path = path.into();
        self
    }

    /// Sets the body.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Sends the request to the server behind the proxy, and returns its response.
    pub fn forward(&self) -> Reply {
        let ask = || -> io::Result<Reply> {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
            let mut headers = self.headers.clone();
            if headers.get("host").is_none() {
                headers.set("host", format!("127.0.0.1:{}", self.port));
            }
            headers.set("content-length", self.body.len());
            // To HTTP/1.0, servers respond without chunked encoding and close the connection.
            headers.remove("connection");
            let mut head = format!("{} {} HTTP/1.0\r\n", self.method, self.path);
            headers.write(&mut head);
            stream.write_all(&[head.as_bytes(), &self.body].concat())?;
            Reply::read(stream, self.method == "HEAD")
        };
        ask().unwrap_or_else(|error| panic!("{} {} at port {}: {error}", self.method, self.path, self.port))
    }

    /// Reads a request from a new connection. Returns `None` if the client sends no request.
    pub(super) fn read(stream: &TcpStream, port: u16) -> io::Result<Option<Self>> {
        let mut reader = BufReader::new(stream);
        let (first, headers) = read_head(&mut reader)?;
        let mut words = first.split(' ');
        let (Some(method), Some(path)) = (words.next(), words.next()) else { return Ok(None) };
        let length = headers.get("content-length").map_or(0, |length| length.parse().expect("lengths are numbers"));
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        Ok(Some(Self { method: method.to_owned(), path: path.to_owned(), headers, body, port }))
    }
}

impl Reply {
    /// Creates a response with a status and an empty body.
    pub fn status(status: u16) -> Self {
        let (headers, body) = Default::default();
        Self { status, headers, body, delivery: Delivery::Whole, has_length: true }
    }

    /// Creates a response with a JSON document.
    pub fn json(status: u16, json: &serde_json::Value) -> Self {
        Self { body: json.to_string().into_bytes(), ..Self::status(status) }.with("content-type", "application/json")
    }

    /// Creates a redirect to another URL.
    pub fn redirect(location: impl ToString) -> Self {
        Self::status(307).with("location", location)
    }

    /// Returns the value of a header; names are in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)
    }

    /// Sets a header.
    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.set(name, value);
        self
    }

    /// Removes a header, such as the length.
    pub fn without(mut self, name: &str) -> Self {
        self.headers.remove(name);
        self.has_length &= name != "content-length";
        self
    }

    /// Changes the body, and keeps the header `content-length` if it is set.
    pub fn body(mut self, change: impl FnOnce(&mut Vec<u8>)) -> Self {
        change(&mut self.body);
        self
    }

    /// Sets how the reply is sent to the client.
    pub fn delivery(mut self, delivery: Delivery) -> Self {
        self.delivery = delivery;
        self
    }

    fn read(mut stream: TcpStream, is_head: bool) -> io::Result<Self> {
        let mut reader = BufReader::new(&mut stream);
        let (first, headers) = read_head(&mut reader)?;
        let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
        let mut reply = Self { headers, ..Self::status(status.ok_or(io::ErrorKind::InvalidData)?) };
        if !is_head {
            reader.read_to_end(&mut reply.body)?;
        }
        Ok(reply)
    }

    /// Sends the reply, and returns the number of bytes of the body that were sent. The reply announces the end of the connection.
    pub(super) fn write(mut self, stream: &mut TcpStream, is_head: bool) -> io::Result<usize> {
        if self.has_length && self.headers.get("content-length").is_none() {
            self.headers.set("content-length", self.body.len());
        }
        self.headers.set("connection", "close");
        let mut head = format!("HTTP/1.1 {} Test\r\n", self.status);
        self.headers.write(&mut head);
        let most = match self.delivery {
            Delivery::Cut(most) | Delivery::Stall(most) => most,
            Delivery::Whole | Delivery::Drip(_) | Delivery::DripBody(_) => usize::MAX,
        };
        let body = if is_head { &[] } else { &self.body[..most.min(self.body.len())] };
        let (at_once, drops) = match self.delivery {
            Delivery::Drip(pause) => (Vec::new(), Some(([head.as_bytes(), body].concat(), pause))),
            Delivery::DripBody(pause) => (head.into_bytes(), Some((body.to_vec(), pause))),
            // One write: the delayed acknowledgement of a small first packet would delay the second one (Nagle's algorithm).
            _ => ([head.as_bytes(), body].concat(), None),
        };
        stream.write_all(&at_once)?;
        for (byte, pause) in
            drops.into_iter().flat_map(|(bytes, pause)| bytes.into_iter().map(move |byte| (byte, pause)))
        {
            // The loop ends with an error when the client closes the connection.
            thread::sleep(pause);
            stream.write_all(&[byte])?;
        }
        if matches!(self.delivery, Delivery::Stall(_)) {
            let client = stream.try_clone()?;
            // Keeps the connection open until the client closes it.
            thread::spawn(move || io::copy(&mut &client, &mut io::sink()));
        }
        Ok(body.len())
    }
}

fn read_head(reader: &mut impl io::BufRead) -> io::Result<(String, Headers)> {
    let mut lines = reader.lines();
    let mut line = || lines.next().unwrap_or_else(|| Ok(String::new()));
    let (first, mut headers) = (line()?, Headers::default());
    loop {
        match line()?.split_once(':') {
            Some((name, value)) => headers.0.push((name.to_ascii_lowercase(), value.trim().to_owned())),
            None => return Ok((first, headers)),
        }
    }
}
