//! Bytes over a non-blocking socket, plain or through TLS that is fed by hand. Reading never waits for writing.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustls::Connection;

use super::socket::{CHUNK, Socket};
use super::tls;

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

/// Where what is read comes first. One serves all connections of a thread.
#[derive(Debug)]
pub(super) struct Buffer(Box<[u8]>);

impl Default for Buffer {
    fn default() -> Buffer {
        Buffer(vec![0; CHUNK].into())
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

/// A connected socket, of either end.
#[derive(Debug)]
pub(super) enum Transport {
    Plain(Socket),
    Tls(Box<Tls>),
}

/// TLS of either end over its socket.
#[derive(Debug)]
pub(super) struct Tls {
    socket: Socket,
    session: Connection,
    /// The other end's name in messages.
    peer: String,
    /// Something has come since the handshake.
    has_heard: bool,
}

impl Transport {
    /// TLS that begins with its handshake.
    pub(super) fn tls(socket: Socket, session: Connection, peer: String) -> Transport {
        Transport::Tls(Box::new(Tls { socket, session, peer, has_heard: false }))
    }

    /// Reads what is there, up to a bound.
    pub(super) fn read(&mut self, buffer: &mut Buffer, sink: &mut dyn FnMut(&[u8])) -> Result<Reading, String> {
        match self {
            Transport::Plain(socket) => read_plain(socket, buffer, sink),
            Transport::Tls(tls) => tls.read(buffer, sink),
        }
    }

    /// Writes what the socket takes; true if nothing is left.
    pub(super) fn write(&mut self, out: &mut Outgoing) -> Result<bool, String> {
        match self {
            Transport::Plain(socket) => write_plain(socket, out).map_err(|error| lost(&error)),
            Transport::Tls(tls) => tls.write(out).map_err(|error| tls.last_words(&error)),
        }
    }

    /// See [`Socket::wait`].
    pub(super) fn wait(&mut self, timeout: Duration) -> bool {
        match self {
            Transport::Plain(socket) => socket.wait(timeout),
            Transport::Tls(tls) => tls.socket.wait(timeout),
        }
    }

    /// TLS is agreed on, or not needed.
    pub(super) fn is_established(&self) -> bool {
        match self {
            Transport::Plain(_) => true,
            Transport::Tls(tls) => !tls.session.is_handshaking(),
        }
    }

    /// Says goodbye, as far as the socket takes it.
    pub(super) fn close(&mut self, out: &mut Outgoing) {
        let _ = self.write(out);
        if let Transport::Tls(tls) = self {
            tls.session.send_close_notify();
            while tls.session.wants_write() && tls.session.write_tls(&mut tls.socket).is_ok_and(|n| n > 0) {}
        }
    }
}

impl AsFd for Transport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Transport::Plain(socket) => socket.as_fd(),
            Transport::Tls(tls) => tls.socket.as_fd(),
        }
    }
}

impl Tls {
    fn read(&mut self, buffer: &mut Buffer, sink: &mut dyn FnMut(&[u8])) -> Result<Reading, String> {
        let Tls { socket, session, peer, has_heard } = self;
        let Buffer(chunk) = buffer;
        for _ in 0..MAX_CHUNKS {
            let ended = match session.read_tls(socket) {
                Ok(n) => n == 0,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.cut(&lost(&error))),
            };
            let was_handshaking = session.is_handshaking();
            if let Err(error) = session.process_new_packets() {
                // The peer is told why, as far as the socket takes it.
                let _ = session.write_tls(socket);
                return Err(tls::explain(&error, peer));
            }
            if was_handshaking && !session.is_handshaking() && session.alpn_protocol() != Some(tls::ALPN) {
                return Err(tls::no_http2(peer));
            }
            if ended && session.is_handshaking() {
                return Err(format!("{peer} closed the connection during the TLS handshake"));
            }
            loop {
                match session.reader().read(chunk) {
                    Ok(0) => return Ok(Reading::Ended),
                    Ok(n) => {
                        *has_heard = true;
                        sink(chunk.get(..n).unwrap_or_default());
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // TCP has ended, TLS has not.
                    Err(_) => return Err(self.cut("connection was cut")),
                }
            }
        }
        Ok(Reading::Open)
    }

    fn write(&mut self, out: &mut Outgoing) -> io::Result<bool> {
        loop {
            // During the handshake nothing is handed over: what rustls holds could not be told from what was sent.
            if !self.session.is_handshaking() && !out.is_empty() {
                let n = self.session.writer().write(out.rest())?;
                out.advance(n);
            }
            if !self.session.wants_write() {
                return Ok(out.is_empty() || self.session.is_handshaking());
            }
            match self.session.write_tls(&mut self.socket) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => out.taken += n as u64,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Why writing has failed: the alert that the peer has left, if there is one.
    fn last_words(&mut self, error: &io::Error) -> String {
        match self.read(&mut Buffer::default(), &mut |_| {}) {
            Err(reason) => reason,
            Ok(_) => self.cut(&lost(error)),
        }
    }

    /// `what` with its likely reason. In TLS 1.3 a client has finished its handshake before the server sees its
    /// certificate, and some servers refuse that one without an alert.
    fn cut(&self, what: &str) -> String {
        match (&self.session, self.has_heard, self.session.is_handshaking()) {
            (Connection::Client(_), false, false) => format!(
                "{what} by {} right after the TLS handshake; it may require a client certificate, or refuse ours",
                self.peer
            ),
            _ => what.to_owned(),
        }
    }
}

fn lost(error: &io::Error) -> String {
    format!("connection lost: {error}")
}

fn read_plain(socket: &mut Socket, Buffer(chunk): &mut Buffer, sink: &mut dyn FnMut(&[u8])) -> Result<Reading, String> {
    for _ in 0..MAX_CHUNKS {
        match socket.read(chunk) {
            Ok(0) => return Ok(Reading::Ended),
            Ok(n) => sink(chunk.get(..n).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(lost(&error)),
        }
    }
    Ok(Reading::Open)
}

fn write_plain(socket: &mut Socket, out: &mut Outgoing) -> io::Result<bool> {
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
