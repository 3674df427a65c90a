//! The little HTTP that the scripted engine speaks: one request a connection.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::os::unix::net::UnixStream;

use serde_json::Value;

/// A request.
pub struct Request {
    pub method: String,
    /// Decoded parts of the path, without the API's version.
    pub path: Vec<String>,
    pub query: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Request {
    /// A parameter of the query.
    pub fn parameter(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }

    /// The labels of the parameter `filters`.
    pub fn labels(&self) -> Vec<String> {
        let filters: Value = serde_json::from_str(self.parameter("filters")).unwrap_or_default();
        let labels = filters["label"].as_array().cloned().unwrap_or_default();
        labels.iter().filter_map(|label| label.as_str().map(str::to_owned)).collect()
    }
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        match (first, tail) {
            (b'%', [high, low, tail @ ..]) => {
                let digits = [*high, *low];
                bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
                rest = tail;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn line(reader: &mut impl BufRead) -> Option<String> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    line.strip_suffix("\r\n").map(str::to_owned)
}

fn exactly(reader: &mut impl BufRead, len: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; len];
    reader.read_exact(&mut bytes).ok()?;
    Some(bytes)
}

/// Reads a whole request; `None` where it breaks off.
pub fn read(reader: &mut impl BufRead) -> Option<Request> {
    let first = line(reader)?;
    let mut words = first.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let header = line(reader)?;
        if header.is_empty() {
            break;
        }
        let (name, value) = header.split_once(':')?;
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let mut body = Vec::new();
    if headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked") {
        loop {
            let len = usize::from_str_radix(&line(reader)?, 16).ok()?;
            body.extend(exactly(reader, len)?);
            line(reader)?;
            if len == 0 {
                break;
            }
        }
    } else if let Some(len) = headers.get("content-length") {
        body = exactly(reader, len.parse().ok()?)?;
    }
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let mut path: Vec<String> = path.split('/').skip(1).map(decode).collect();
    if path.first().is_some_and(|part| part.starts_with("v1.")) {
        path.remove(0);
    }
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let query = pairs.map(|(name, value)| (name.to_owned(), decode(value))).collect();
    Some(Request { method, path, query, body })
}

/// Answers. A caller that is gone does not hear it.
pub fn answer(mut stream: &UnixStream, status: u16, body: &Value) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let head = format!(
        "HTTP/1.1 {status} Status\r\nApi-Version: 1.41\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(format!("{head}{body}").as_bytes());
}

/// Begins an answer of unknown length; whether the caller is there.
pub fn begin(mut stream: &UnixStream, content_type: &str) -> bool {
    let head =
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/{content_type}\r\nTransfer-Encoding: chunked\r\n\r\n");
    stream.write_all(head.as_bytes()).is_ok()
}

/// Begins the raw stream of attach, which ends with its connection.
pub fn begin_raw(mut stream: &UnixStream) -> bool {
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n").is_ok()
}

/// A piece of an answer of unknown length; the empty one ends it.
pub fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

/// Sends a piece.
pub fn send(mut stream: &UnixStream, bytes: &[u8]) {
    let _ = stream.write_all(&chunk(bytes));
}

/// A frame of output.
pub fn frame(stream: u8, bytes: &[u8]) -> Vec<u8> {
    [&[stream, 0, 0, 0], &u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}
