//! CONNECT through an HTTP proxy: the request goes out, a head comes back, and the connection is the target's.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;

use super::poll::Interest;
use super::proxy::Proxy;
use super::target::Target;
use crate::sys::text::printable;

/// Of all heads that a proxy sends; each one that works fits in a few hundred bytes.
const MAX_HEAD: usize = 8 * 1024;
/// Fields of a head.
const MAX_FIELDS: usize = 64;
/// Characters of the proxy's own reason that are repeated.
const MAX_REASON: usize = 100;

/// A connection to a proxy that becomes one to the target.
pub(super) struct Tunnel {
    socket: TcpStream,
    /// The bytes of the request that wait; they hold the password.
    request: Vec<u8>,
    /// What has come of the present head.
    head: Vec<u8>,
    /// Bytes of the heads before it.
    skipped: usize,
    target: String,
    has_credentials: bool,
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tunnel({})", self.target)
    }
}

impl Tunnel {
    /// Begins with [`Tunnel::advance`].
    pub(super) fn new(socket: TcpStream, proxy: &Proxy, target: &Target) -> Tunnel {
        Tunnel {
            socket,
            request: proxy.connect_request(target),
            head: Vec::new(),
            skipped: 0,
            target: target.host_and_port(),
            has_credentials: proxy.has_credentials(),
        }
    }

    pub(super) fn interest(&self) -> Interest<'_> {
        Interest { fd: self.socket.as_fd(), read: true, write: !self.request.is_empty() }
    }

    /// Goes on as far as it can without waiting; true when the connection is the target's. Not a byte of that is taken.
    pub(super) fn advance(&mut self) -> Result<bool, String> {
        self.write().map_err(|error| format!("connection lost: {error}"))?;
        loop {
            let mut chunk = [0; MAX_HEAD];
            let came = match self.socket.peek(&mut chunk) {
                Ok(0) => return Err("it closed the connection before it answered".to_owned()),
                Ok(n) => chunk.get(..n).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(format!("connection lost: {error}")),
            };
            let before = self.head.len();
            self.head.extend_from_slice(came);
            let end = end_of_head(&self.head);
            self.head.truncate(end.unwrap_or(self.head.len()));
            self.consume(self.head.len() - before)?;
            if self.skipped + self.head.len() > MAX_HEAD {
                return Err(format!("its answer has a head of more than {} KiB", MAX_HEAD >> 10));
            }
            if end.is_some() {
                match self.read_head()? {
                    // An interim answer (RFC 9110 section 15.2): the real one follows.
                    100..=199 => self.skipped += std::mem::take(&mut self.head).len(),
                    _ => return Ok(true),
                }
            } else if !looks_like_http(&self.head) {
                return Err(no_proxy());
            }
        }
    }

    /// The connection to the target.
    pub(super) fn into_socket(self) -> TcpStream {
        self.socket
    }

    fn write(&mut self) -> io::Result<()> {
        while !self.request.is_empty() {
            match self.socket.write(&self.request) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => drop(self.request.drain(..n)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes bytes that were peeked at; they are there.
    fn consume(&mut self, n: usize) -> Result<(), String> {
        let mut taken = [0; MAX_HEAD];
        let taken = taken.get_mut(..n).unwrap_or_default();
        self.socket.read_exact(taken).map_err(|error| format!("connection lost: {error}"))
    }

    /// The status of a complete head, if it is good or an interim one.
    fn read_head(&self) -> Result<u16, String> {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut response = httparse::Response::new(&mut fields);
        let parsed = response.parse(&self.head);
        let (Ok(httparse::Status::Complete(_)), Some(status)) = (parsed, response.code) else {
            return Err(no_proxy());
        };
        let reason: String = printable(response.reason.unwrap_or_default()).chars().take(MAX_REASON).collect();
        match status {
            100..=299 => Ok(status),
            407 if self.has_credentials => Err("it refuses the user and password that are set".to_owned()),
            407 => Err("it wants a user and password: write http://user:password@host:port".to_owned()),
            _ => Err(format!("it does not connect to {}: {status} {reason}", self.target).trim_end().to_owned()),
        }
    }
}

fn no_proxy() -> String {
    "it does not answer like an HTTP proxy".to_owned()
}

/// Where the empty line is over (RFC 9112 section 2.1; a bare LF is taken as line end, section 2.2).
fn end_of_head(bytes: &[u8]) -> Option<usize> {
    let after = |end: &[u8]| bytes.windows(end.len()).position(|w| w == end).map(|at| at + end.len());
    [after(b"\r\n\r\n"), after(b"\n\n"), after(b"\n\r\n")].into_iter().flatten().min()
}

/// Whether it can become `HTTP/1.`; what cannot is not waited for.
fn looks_like_http(head: &[u8]) -> bool {
    head.iter().zip(b"HTTP/1.").all(|(byte, wanted)| byte == wanted)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::super::poll;
    use super::*;

    /// A tunnel and the proxy's end of it.
    fn pair(proxy: &str) -> (Tunnel, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        socket.set_nonblocking(true).unwrap();
        let target = Target::parse("https://master.example").unwrap();
        (Tunnel::new(socket, &Proxy::parse(proxy).unwrap(), &target), listener.accept().unwrap().0)
    }

    /// Sends these bytes and lets the tunnel see them all.
    fn hear(tunnel: &mut Tunnel, peer: &mut TcpStream, bytes: &[u8]) -> Result<bool, String> {
        peer.write_all(bytes).unwrap();
        poll::wait(&[Interest { write: false, ..tunnel.interest() }], std::time::Duration::from_secs(5));
        tunnel.advance()
    }

    #[test]
    fn what_follows_the_head_is_left_in_the_socket() {
        for head in [
            "HTTP/1.1 200 Connection established\r\n\r\n",
            "HTTP/1.0 200 OK\nVia: x\n\n",
            "HTTP/1.1 299 \r\na: b\r\n\r\n",
        ] {
            let (mut tunnel, mut peer) = pair("p");
            assert_eq!(hear(&mut tunnel, &mut peer, format!("{head}\r\n\r\nrest").as_bytes()), Ok(true), "{head}");
            let mut rest = [0; 8];
            tunnel.into_socket().read_exact(&mut rest).unwrap();
            assert_eq!(&rest, b"\r\n\r\nrest");
        }
    }

    #[test]
    fn head_may_come_byte_by_byte_and_after_interim_ones() {
        let (mut tunnel, mut peer) = pair("p");
        let head = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 \r\nx: y\r\n\r\nHTTP/1.1 200 OK\r\n\r\n";
        for (at, byte) in head.iter().enumerate() {
            assert_eq!(hear(&mut tunnel, &mut peer, &[*byte]), Ok(at + 1 == head.len()), "{at}");
        }
    }

    #[test]
    fn refusals_have_words() {
        for (proxy, answer, words) in [
            ("p", "HTTP/1.1 403 Forbidden\r\n\r\n", "it does not connect to master.example:443: 403 Forbidden"),
            ("p", "HTTP/1.1 502 Bad\x01 Gateway\r\n\r\n", "it does not answer like an HTTP proxy"),
            ("p", "HTTP/1.1 302 \r\nLocation: /\r\n\r\n", "it does not connect to master.example:443: 302"),
            ("p", "HTTP/1.1 407 X\r\n\r\n", "it wants a user and password: write http://user:password@host:port"),
            ("u:s@p", "HTTP/1.1 407 X\r\n\r\n", "it refuses the user and password that are set"),
            ("p", "SSH-2.0-OpenSSH\r\n", "it does not answer like an HTTP proxy"),
            ("p", "HTTP/2 200\r\n\r\n", "it does not answer like an HTTP proxy"),
            ("p", "HTTP/1.1 2000 OK\r\n\r\n", "it does not answer like an HTTP proxy"),
            ("p", "\0", "it does not answer like an HTTP proxy"),
        ] {
            let (mut tunnel, mut peer) = pair(proxy);
            assert_eq!(hear(&mut tunnel, &mut peer, answer.as_bytes()), Err(words.to_owned()), "{answer}");
        }
        let (mut tunnel, peer) = pair("p");
        drop(peer);
        assert!(tunnel.advance().is_err());
    }

    #[test]
    fn head_without_end_is_cut() {
        for (begin, more) in [
            ("HTTP/1.1 200 OK\r\n", "x: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n"),
            ("HTTP/1.1 200 OK\r\nx: ", "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz"),
            ("", "HTTP/1.1 100 Continue\r\nx: yyyyyyyyyyyyyyyyyyyy\r\n\r\n"),
        ] {
            let (mut tunnel, mut peer) = pair("p");
            let mut sent = begin.len();
            let mut heard = if begin.is_empty() { Ok(false) } else { hear(&mut tunnel, &mut peer, begin.as_bytes()) };
            while heard == Ok(false) {
                assert!(sent <= MAX_HEAD, "no end after {sent} bytes");
                sent += more.len();
                heard = hear(&mut tunnel, &mut peer, more.as_bytes());
            }
            assert_eq!(heard, Err("its answer has a head of more than 8 KiB".to_owned()), "{more}");
            assert!(sent > MAX_HEAD);
        }
    }
}
