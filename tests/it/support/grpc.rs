//! A small gRPC client: unary calls over a Unix socket, with messages of a few fields.

use std::error::Error;
use std::path::{Path, PathBuf};

use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};

/// A message under construction, in the encoding of protocol buffers.
#[derive(Debug, Clone, Default)]
pub struct Message(Vec<u8>);

/// Wire types: fields that are numbers (varint), and those with a length.
const NUMBER: u64 = 0;
const BYTES: u64 = 2;

impl Message {
    /// Starts a message without fields.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a number.
    pub fn number(mut self, field: u64, value: u64) -> Self {
        self.varint(field << 3 | NUMBER);
        self.varint(value);
        self
    }

    /// Adds a text.
    pub fn text(self, field: u64, value: &str) -> Self {
        self.bytes(field, value.as_bytes())
    }

    /// Adds several texts.
    pub fn texts(self, field: u64, values: &[&str]) -> Self {
        values.iter().fold(self, |message, value| message.text(field, value))
    }

    /// Adds a message.
    pub fn message(self, field: u64, value: &Self) -> Self {
        self.bytes(field, &value.0)
    }

    fn bytes(mut self, field: u64, value: &[u8]) -> Self {
        self.varint(field << 3 | BYTES);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    fn varint(&mut self, mut value: u64) {
        while value > 0x7f {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// A received message: its fields, in order.
#[derive(Debug, Clone)]
pub struct Answer(Vec<(u64, Field)>);

#[derive(Debug, Clone)]
enum Field {
    Number(u64),
    Bytes(Vec<u8>),
}

impl Answer {
    /// Returns a text, which is empty if the field is missing.
    pub fn text(&self, field: u64) -> String {
        let bytes = self.0.iter().find_map(|(number, value)| match value {
            Field::Bytes(bytes) if *number == field => Some(bytes.clone()),
            _ => None,
        });
        String::from_utf8(bytes.unwrap_or_default()).expect("the answer is text")
    }

    /// Returns a number, which is 0 if the field is missing.
    pub fn number(&self, field: u64) -> u64 {
        let is_wanted = |(number, value): &(u64, Field)| match value {
            Field::Number(value) if *number == field => Some(*value),
            _ => None,
        };
        self.0.iter().find_map(is_wanted).unwrap_or(0)
    }

    fn parse(mut bytes: &[u8]) -> Option<Self> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes)?;
            let value = match key & 7 {
                NUMBER => Field::Number(varint(&mut bytes)?),
                BYTES => {
                    let length = usize::try_from(varint(&mut bytes)?).ok()?;
                    let (value, rest) = bytes.split_at_checked(length)?;
                    bytes = rest;
                    Field::Bytes(value.to_vec())
                }
                _ => return None,
            };
            fields.push((key >> 3, value));
        }
        Some(Self(fields))
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// A client of the server at a Unix socket.
pub struct GrpcClient {
    socket: PathBuf,
    runtime: Runtime,
}

impl GrpcClient {
    /// Creates a client. The server at `socket` may start later.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket, runtime: Builder::new_current_thread().enable_io().build().unwrap() }
    }

    /// Calls a method, such as `/runtime.v1.RuntimeService/Version`. An error is the message of the server.
    pub fn call(&self, method: &str, message: &Message) -> Result<Answer, String> {
        let answer = self.runtime.block_on(call(&self.socket, method, message));
        answer.map_err(|error| format!("{method}: {error}"))
    }
}

async fn call(socket: &Path, method: &str, message: &Message) -> Result<Answer, Box<dyn Error>> {
    let (client, connection) = h2::client::handshake(UnixStream::connect(socket).await?).await?;
    tokio::spawn(connection);
    let mut client = client.ready().await?;
    let request = http::Request::post(format!("http://localhost{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let (response, mut stream) = client.send_request(request, false)?;
    // Each message begins with a flag (0: not compressed) and its length.
    let head = [&[0], &u32::try_from(message.0.len())?.to_be_bytes()[..]].concat();
    stream.send_data([head, message.0.clone()].concat().into(), true)?;
    let (head, mut body) = response.await?.into_parts();
    let mut bytes = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        bytes.extend_from_slice(&chunk);
    }
    // A call that fails immediately has only headers, which then contain the trailers (gRPC over HTTP/2, "Trailers-Only").
    let trailers = body.trailers().await?.unwrap_or(head.headers);
    if trailers.get("grpc-status").is_none_or(|status| status != "0") {
        return Err(format!("{:?} {:?}", trailers.get("grpc-status"), trailers.get("grpc-message")).into());
    }
    let message = bytes.get(5..).ok_or("the answer has no message")?;
    Ok(Answer::parse(message).ok_or("the answer is no message")?)
}
