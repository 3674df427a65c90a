//! A connection or a listener, whatever its family, with deadlines instead of time-outs: a peer that sends or takes one
//! byte now and then gets no more time than one that does nothing.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The kernel's smallest time-out; zero would mean none.
const SHORTEST: Duration = Duration::from_millis(1);

/// A connected stream.
pub enum Socket {
    /// From a browser or a script.
    Tcp(TcpStream),
    /// From the control socket, or to tiny_http.
    Unix(UnixStream),
}

impl Socket {
    /// Reads what is there, waiting until `deadline` for the first byte. 0 is the end.
    pub fn read_by(&self, deadline: Instant, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let left = time_left(deadline)?;
            let result = match self {
                Self::Tcp(stream) => stream.set_read_timeout(Some(left)).and_then(|()| (&*stream).read(buffer)),
                Self::Unix(stream) => stream.set_read_timeout(Some(left)).and_then(|()| (&*stream).read(buffer)),
            };
            match result {
                Err(error) if is_transient(&error) => {}
                other => return other,
            }
        }
    }

    /// Writes all of `bytes` before `deadline`.
    pub fn write_by(&self, deadline: Instant, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let left = time_left(deadline)?;
            let result = match self {
                Self::Tcp(stream) => stream.set_write_timeout(Some(left)).and_then(|()| (&*stream).write(bytes)),
                Self::Unix(stream) => stream.set_write_timeout(Some(left)).and_then(|()| (&*stream).write(bytes)),
            };
            match result {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => bytes = &bytes[written..],
                Err(error) if is_transient(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Ends one or both directions and so wakes whoever reads or writes. Failing means that it is over already.
    pub fn shutdown(&self, how: Shutdown) {
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(how),
            Self::Unix(stream) => stream.shutdown(how),
        };
    }

    /// Whether the peer has gone. What it sent meanwhile is thrown away, at most `buffer` a call.
    pub fn is_gone(&self, buffer: &mut [u8]) -> bool {
        let mut fds = [PollFd::new(self, PollFlags::IN)];
        match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Ok(0) | Err(_) => false,
            Ok(_) => !matches!(self.read_by(Instant::now() + SHORTEST, buffer), Ok(1..)),
        }
    }

    /// Lets the peer read what it was told before the connection ends: closing with unread bytes would reset it.
    /// `most` bytes are thrown away, until `deadline`.
    pub fn linger(&self, deadline: Instant, most: usize) {
        self.shutdown(Shutdown::Write);
        let mut buffer = [0; 8192];
        let mut seen = 0;
        while seen < most {
            match self.read_by(deadline, &mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(len) => seen += len,
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

/// The time until `deadline`, as the kernel takes it.
fn time_left(deadline: Instant) -> io::Result<Duration> {
    match deadline.checked_duration_since(Instant::now()) {
        Some(left) if !left.is_zero() => Ok(left.max(SHORTEST)),
        _ => Err(ErrorKind::TimedOut.into()),
    }
}

/// The kernel's time-out shows as `WouldBlock`; the deadline decides what it means.
fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock)
}

/// Where connections come from. Always non-blocking.
pub enum Listener {
    /// Beside it, whether it can be reached from beyond this machine.
    Tcp(TcpListener, SocketAddr),
    /// The control socket.
    Unix(UnixListener),
}

impl Listener {
    /// Binds `address`.
    pub fn tcp(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let local = listener.local_addr()?;
        Ok(Self::Tcp(listener, local))
    }

    /// Takes over a bound socket.
    pub fn unix(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self::Unix(listener))
    }

    /// The next connection, blocking, or `WouldBlock`.
    pub fn accept(&self) -> io::Result<Socket> {
        match self {
            Self::Tcp(listener, _) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(false)?;
                stream.set_nodelay(true)?;
                Ok(Socket::Tcp(stream))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(false)?;
                Ok(Socket::Unix(stream))
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener, _) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}
