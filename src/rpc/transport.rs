//! Bytes over a non-blocking socket, plain or through TLS that is fed by hand. Reading never waits for writing.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

use rustls::Connection;

use super::tls;

/// Read at once.
const CHUNK: usize = 16 * 1024;
/// Chunks that are read before other work has its turn.
const MAX_CHUNKS: usize = 16;

/// Bytes that wait for the socket: what one `poll_transmit` yielded.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    pub(super) bytes: Vec<u8>,
    sent: usize,
    /// Bytes that the socket has taken since the beginning, those of TLS included: whether the peer reads.
    pub(super) taken: u64,
}

impl Outgoing {
    pub(super) fn is_empty(&self) -> bool {
        self.sent == self.bytes.len()
    }

    fn rest(&self) -> &[u8] {
        self.bytes.get(self.sent..).unwrap_or_default()
    }

    fn advance(&mut self, n: usize) {
        self.sent += n;
        if self.is_empty() {
            self.bytes.clear();
            self.sent = 0;
        }
    }
}

/// How reading ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// More may come.
    Open,
    /// The peer has ended in an orderly way.
    Ended,
}

/// A connected socket, of either end. `peer` names the other one in messages.
#[derive(Debug)]
pub(super) enum Transport {
    Plain(TcpStream),
    Tls { socket: TcpStream, session: Box<Connection>, peer: String },
}

impl Transport {
    /// Reads what is there, up to a bound.
    pub(super) fn read(&mut self, sink: &mut dyn FnMut(&[u8])) -> Result<Reading, String> {
        match self {
            Transport::Plain(socket) => read_plain(socket, sink),
            Transport::Tls { socket, session, peer } => read_tls(socket, session, peer, sink),
        }
    }

    /// Writes what the socket takes; true if nothing is left.
    pub(super) fn write(&mut self, out: &mut Outgoing) -> Result<bool, String> {
        let written = match self {
            Transport::Plain(socket) => write_plain(socket, out),
            Transport::Tls { socket, session, .. } => write_tls(socket, session, out),
        };
        written.map_err(|error| format!("connection lost: {error}"))
    }

    /// TLS is agreed on, or not needed.
    pub(super) fn is_established(&self) -> bool {
        match self {
            Transport::Plain(_) => true,
            Transport::Tls { session, .. } => !session.is_handshaking(),
        }
    }

    /// Says goodbye, as far as the socket takes it.
    pub(super) fn close(&mut self, out: &mut Outgoing) {
        let _ = self.write(out);
        if let Transport::Tls { socket, session, .. } = self {
            session.send_close_notify();
            while session.wants_write() && session.write_tls(socket).is_ok_and(|n| n > 0) {}
        }
    }
}

impl AsFd for Transport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Transport::Plain(socket) | Transport::Tls { socket, .. } => socket.as_fd(),
        }
    }
}

fn read_plain(socket: &mut TcpStream, sink: &mut dyn FnMut(&[u8])) -> Result<Reading, String> {
    let mut chunk = [0; CHUNK];
    for _ in 0..MAX_CHUNKS {
        match socket.read(&mut chunk) {
            Ok(0) => return Ok(Reading::Ended),
            Ok(n) => sink(chunk.get(..n).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(format!("connection lost: {error}")),
        }
    }
    Ok(Reading::Open)
}

fn read_tls(
    socket: &mut TcpStream,
    session: &mut Connection,
    peer: &str,
    sink: &mut dyn FnMut(&[u8]),
) -> Result<Reading, String> {
    let mut chunk = [0; CHUNK];
    for _ in 0..MAX_CHUNKS {
        let ended = match session.read_tls(socket) {
            Ok(n) => n == 0,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(format!("connection lost: {error}")),
        };
        let was_handshaking = session.is_handshaking();
        if let Err(error) = session.process_new_packets() {
            // The peer is told why, as far as the socket takes it.
            let _ = session.write_tls(socket);
            return Err(tls::explain(&error, peer));
        }
        if was_handshaking && !session.is_handshaking() && session.alpn_protocol() != Some(b"h2") {
            return Err(tls::no_http2(peer));
        }
        if ended && session.is_handshaking() {
            return Err(format!("{peer} closed the connection during the TLS handshake"));
        }
        loop {
            match session.reader().read(&mut chunk) {
                Ok(0) => return Ok(Reading::Ended),
                Ok(n) => sink(chunk.get(..n).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(format!("connection was cut: {error}")),
            }
        }
    }
    Ok(Reading::Open)
}

fn write_plain(socket: &mut TcpStream, out: &mut Outgoing) -> io::Result<bool> {
    while !out.is_empty() {
        match socket.write(out.rest()) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                out.taken += n as u64;
                out.advance(n);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

fn write_tls(socket: &mut TcpStream, session: &mut Connection, out: &mut Outgoing) -> io::Result<bool> {
    loop {
        // During the handshake nothing is handed over: what rustls holds could not be told from what was sent.
        if !session.is_handshaking() && !out.is_empty() {
            let n = session.writer().write(out.rest())?;
            out.advance(n);
        }
        if !session.wants_write() {
            return Ok(out.is_empty() || session.is_handshaking());
        }
        match session.write_tls(socket) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => out.taken += n as u64,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
