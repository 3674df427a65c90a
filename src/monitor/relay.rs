//! The gate's way to tiny_http and back: a head of our own, a body of known length, and an answer that gets the fields
//! which every answer of the monitor has.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::admit::Door;
use super::gate::Common;
use super::head::{Head, Refusal};
use super::socket::Socket;

/// Tells tiny_http's side how the request came in; a client's own field of this name is dropped with all others.
pub const DOOR_FIELD: &str = "X-HiveMind-Door";
/// [`DOOR_FIELD`] for the control socket.
pub const DOOR_CONTROL: &str = "control";

/// Fields of every answer. One request a connection keeps the gate simple; on loopback it costs little.
pub const COMMON_FIELDS: &str = "Connection: close\r\n\
    Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
    img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n\
    X-Content-Type-Options: nosniff\r\n\
    Referrer-Policy: no-referrer\r\n\
    Cross-Origin-Resource-Policy: same-origin\r\n\
    Cross-Origin-Opener-Policy: same-origin\r\n";

/// Longest status line of tiny_http.
const MAX_STATUS_LINE: usize = 256;
/// File descriptors that must be free: ours, and two of tiny_http, which panics where it can't duplicate its socket.
const FREE_FDS: usize = 8;

/// A whole answer for `refusal`.
pub fn refusal(refusal: &Refusal, is_head: bool) -> Vec<u8> {
    let body = serde_json::json!({ "error": refusal.message }).to_string();
    let more = match refusal.status {
        405 => "Allow: GET, HEAD, POST\r\n",
        503 => "Retry-After: 1\r\n",
        _ => "",
    };
    let mut answer = format!(
        "HTTP/1.1 {} {}\r\n{COMMON_FIELDS}{more}Content-Type: application/json\r\nCache-Control: no-store\r\n\
         Content-Length: {}\r\n\r\n",
        refusal.status,
        reason(refusal.status),
        body.len(),
    );
    if !is_head {
        answer.push_str(&body);
    }
    answer.into_bytes()
}

fn reason(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        411 => "Length Required",
        413 => "Content Too Large",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        431 => "Request Header Fields Too Large",
        _ => "Service Unavailable",
    }
}

/// Has tiny_http answer `head`, whose body begins with `rest`.
///
/// # Errors
/// Only as long as the client was told nothing.
pub fn forward(client: &Socket, head: &Head, rest: &[u8], door: Door, common: &Common) -> Result<(), Refusal> {
    let busy = Refusal::new(503, "the monitor can't answer now");
    let server = connect(client, common).map_err(|error| {
        log::warn!("the gate can't reach the monitor's server: {error}");
        busy.clone()
    })?;
    let door = match door {
        Door::Control => DOOR_CONTROL,
        Door::Tcp { .. } => "tcp",
    };
    let text = format!(
        "{} {} HTTP/1.{}\r\nHost: monitor\r\nConnection: close\r\n{DOOR_FIELD}: {door}\r\nContent-Length: {}\r\n\r\n",
        head.method.as_str(),
        head.target,
        u8::from(!head.is_http10),
        head.content_length,
    );
    let deadline = Instant::now() + common.limits.write;
    server.write_by(deadline, text.as_bytes()).map_err(|_| busy.clone())?;
    if head.content_length > 0 {
        send_body(client, &server, head, rest, common)?;
    }
    match copy_answer(client, &server, common) {
        Ok(true) => Ok(()),
        Ok(false) => Err(busy),
        Err(error) => {
            log::debug!("an answer of the monitor was not taken whole: {error}");
            client.shutdown(Shutdown::Both);
            Ok(())
        }
    }
}

/// Connects to the private socket, if tiny_http will have the descriptors for it.
fn connect(client: &Socket, common: &Common) -> io::Result<Socket> {
    let spare = (0..FREE_FDS).map(|_| client.as_fd().try_clone_to_owned()).collect::<io::Result<Vec<_>>>()?;
    drop(spare);
    UnixStream::connect(&common.private).map(Socket::Unix)
}

/// Passes the body on. A client that ends early or stalls ends the request for tiny_http too.
fn send_body(client: &Socket, server: &Socket, head: &Head, rest: &[u8], common: &Common) -> Result<(), Refusal> {
    let limits = &common.limits;
    let end = Instant::now() + limits.body;
    if head.expects_continue && rest.is_empty() {
        let leave = client.write_by(Instant::now() + limits.write, b"HTTP/1.1 100 Continue\r\n\r\n");
        leave.map_err(|_| Refusal::new(400, "the body did not come"))?;
    }
    let mut left = head.content_length;
    let mut piece = [0; 16 * 1024];
    let mut ready = &rest[..rest.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
    loop {
        // An answer may come before the whole body was taken; it says why.
        if server.write_by(Instant::now() + limits.answer, ready).is_err() {
            return Ok(());
        }
        left -= ready.len() as u64;
        if left == 0 {
            return Ok(());
        }
        let most = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let deadline = end.min(Instant::now() + limits.body_pause);
        match client.read_by(deadline, &mut piece[..most]) {
            Ok(len @ 1..) => ready = &piece[..len],
            Ok(_) => return Err(Refusal::new(400, "the body ended early")),
            Err(_) => return Err(Refusal::new(408, "the body took too long")),
        }
    }
}

/// Passes the answer on; whether there was one.
fn copy_answer(client: &Socket, server: &Socket, common: &Common) -> io::Result<bool> {
    let limits = &common.limits;
    let mut piece = vec![0; 32 * 1024];
    let mut start = Vec::new();
    let mut is_started = false;
    loop {
        let len = match server.read_by(Instant::now() + limits.answer, &mut piece) {
            Ok(0) => return Ok(is_started),
            Ok(len) => len,
            Err(error) if is_started => return Err(error),
            Err(_) => return Ok(false),
        };
        let deadline = Instant::now() + limits.write;
        if is_started {
            client.write_by(deadline, &piece[..len])?;
            continue;
        }
        start.extend_from_slice(&piece[..len]);
        if let Some(end) = start.windows(2).position(|pair| pair == b"\r\n") {
            let (line, rest) = start.split_at(end + 2);
            is_started = true;
            client.write_by(deadline, &[line, COMMON_FIELDS.as_bytes(), rest].concat())?;
        } else if start.len() > MAX_STATUS_LINE {
            return Ok(false);
        }
    }
}
