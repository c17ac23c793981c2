//! As much HTTP/1.1 as tests need that are a client, a server, or between the two. A message is in memory as a whole.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::thread;
use std::time::Duration;

/// How a reply reaches the client, if not as it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// All of it.
    Whole,
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// After so many bytes of the body nothing comes any more, and the connection stays.
    Stall(usize),
    /// All of it, head and body, comes byte by byte, with a pause after each.
    Drip(Duration),
    /// The head comes at once, and the body byte by byte.
    DripBody(Duration),
}

/// What a client asks, or asked.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// The path, with the query.
    pub path: String,
    headers: Headers,
    body: Vec<u8>,
    /// Where [`Request::forward`] asks.
    port: u16,
}

/// What a server answers.
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
    /// Makes a request to a port of this machine.
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

    /// Asks for something else instead.
    pub fn at(mut self, path: impl Into<String>) -> Self {
        self.path = path.into();
        self
    }

    /// Sets the body.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Asks the real server, and returns what it says.
    pub fn forward(&self) -> Reply {
        let ask = || -> io::Result<Reply> {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
            let mut headers = self.headers.clone();
            if headers.get("host").is_none() {
                headers.set("host", format!("127.0.0.1:{}", self.port));
            }
            headers.set("content-length", self.body.len());
            // To this version, servers answer without chunks and close the connection.
            headers.remove("connection");
            let mut head = format!("{} {} HTTP/1.0\r\n", self.method, self.path);
            headers.write(&mut head);
            stream.write_all(&[head.as_bytes(), &self.body].concat())?;
            Reply::read(stream, self.method == "HEAD")
        };
        ask().unwrap_or_else(|error| panic!("{} {} at port {}: {error}", self.method, self.path, self.port))
    }

    /// Reads what a client asks on a fresh connection; nothing if it asks nothing.
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
    /// Answers with a status and nothing else.
    pub fn status(status: u16) -> Self {
        let (headers, body) = Default::default();
        Self { status, headers, body, delivery: Delivery::Whole, has_length: true }
    }

    /// Answers with a JSON document.
    pub fn json(status: u16, json: &serde_json::Value) -> Self {
        Self { body: json.to_string().into_bytes(), ..Self::status(status) }.with("content-type", "application/json")
    }

    /// Sends the client to another place.
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

    /// Sets the body, and leaves the length that is promised as it is.
    pub fn body(mut self, change: impl FnOnce(&mut Vec<u8>)) -> Self {
        change(&mut self.body);
        self
    }

    /// Sets how it reaches the client.
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

    /// Sends the reply, and returns how many bytes of the body. Ends the connection.
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
            // Two small packets would wait for one another.
            _ => ([head.as_bytes(), body].concat(), None),
        };
        stream.write_all(&at_once)?;
        for (byte, pause) in
            drops.into_iter().flat_map(|(bytes, pause)| bytes.into_iter().map(move |byte| (byte, pause)))
        {
            // This ends when the client has had enough.
            thread::sleep(pause);
            stream.write_all(&[byte])?;
        }
        if matches!(self.delivery, Delivery::Stall(_)) {
            let client = stream.try_clone()?;
            // Nothing more is asked: this ends when the client has had enough.
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
