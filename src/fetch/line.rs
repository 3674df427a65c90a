//! A connection, plain or TLS. All waiting on it has a deadline that the caller sets before.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::{FetchError, Stop};
use crate::node::url::Url;

/// Of the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);
/// The shortest time-out that is handed to the kernel; zero would mean "for ever".
const MIN_TIMEOUT: Duration = Duration::from_millis(1);

/// The socket with its deadline.
#[derive(Debug)]
struct Wire {
    stream: TcpStream,
    until: Instant,
}

impl Wire {
    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now()).max(MIN_TIMEOUT)
    }
}

/// The kernel's word for a time-out is that the call would block.
fn named(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { error }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()))?;
        self.stream.read(buffer).map_err(named)
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()))?;
        self.stream.write(bytes).map_err(named)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Line(Kind);

#[derive(Debug)]
enum Kind {
    Plain(Wire),
    Tls(Box<StreamOwned<ClientConnection, Wire>>),
}

impl Line {
    /// Plain HTTP.
    pub(super) fn plain(stream: TcpStream) -> Self {
        Self(Kind::Plain(Wire { stream, until: Instant::now() }))
    }

    /// With the handshake done: the certificate is the host's, whatever address was connected to.
    pub(super) fn tls(
        stream: TcpStream,
        config: Arc<ClientConfig>,
        url: &Url,
        stop: &Stop,
    ) -> Result<Self, FetchError> {
        let name = ServerName::try_from(url.host().to_owned()).map_err(|_| {
            FetchError::Refused(format!("{url}: {} is no name that a certificate can have", url.host()))
        })?;
        let failed = |error: &dyn std::fmt::Display| FetchError::Passing(format!("{url}: TLS failed: {error}"));
        let mut session = ClientConnection::new(config, name).map_err(|error| failed(&error))?;
        let mut wire = Wire { stream, until: Instant::now() + HANDSHAKE_TIMEOUT };
        while session.is_handshaking() {
            if let Err(error) = session.complete_io(&mut wire) {
                return Err(if stop.is_stopped() { FetchError::Stopped } else { failed(&error) });
            }
        }
        Ok(Self(Kind::Tls(Box::new(StreamOwned::new(session, wire)))))
    }

    fn set_patience(&mut self, patience: Duration) {
        let until = Instant::now() + patience;
        match &mut self.0 {
            Kind::Plain(wire) => wire.until = until,
            Kind::Tls(stream) => stream.sock.until = until,
        }
    }

    /// Reads what is there, waiting at most `patience`. Zero means that the other side closed, and said so under TLS.
    pub(super) fn read(&mut self, buffer: &mut [u8], patience: Duration) -> io::Result<usize> {
        self.set_patience(patience);
        loop {
            let read = match &mut self.0 {
                Kind::Plain(wire) => wire.read(buffer),
                Kind::Tls(stream) => stream.read(buffer),
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }

    /// Writes everything within `patience`.
    pub(super) fn write_all(&mut self, bytes: &[u8], patience: Duration) -> io::Result<()> {
        self.set_patience(patience);
        match &mut self.0 {
            Kind::Plain(wire) => wire.write_all(bytes),
            Kind::Tls(stream) => stream.write_all(bytes).and_then(|()| stream.flush()),
        }
    }
}
