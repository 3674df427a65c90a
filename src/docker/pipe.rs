//! The byte pipe to the engine: a Unix stream socket.
//!
//! The seam for a Windows named pipe: another file with the same four functions (there overlapped I/O and an event).

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// How often a connect that waits for room in the engine's backlog looks at its stop handle.
const CONNECT_SLICE: Duration = Duration::from_millis(200);

/// The shortest time-out that is handed to the kernel; zero would mean "for ever".
const MIN_TIMEOUT: Duration = Duration::from_millis(1);

/// A connected pipe. Reading, writing and `shutdown` work from different threads at once.
#[derive(Debug)]
pub(super) struct Pipe {
    stream: UnixStream,
    /// Whether the kernel was told to give a read up. One thread reads.
    has_read_timeout: AtomicBool,
}

impl Pipe {
    /// Connects within `patience`, unless `must_stop` says so before.
    ///
    /// An engine that hangs fills its backlog, and a plain connect would then block for ever; the send time-out bounds it.
    pub(super) fn connect(path: &Path, patience: Duration, must_stop: &dyn Fn() -> bool) -> io::Result<Pipe> {
        let address = SocketAddrUnix::new(path)?;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        let deadline = Instant::now() + patience;
        loop {
            if must_stop() {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            set_socket_timeout(&socket, Timeout::Send, Some(left.min(CONNECT_SLICE).max(MIN_TIMEOUT)))?;
            match connect(&socket, &address) {
                Ok(()) => break,
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) if !left.is_zero() => {}
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Err(io::ErrorKind::TimedOut.into()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Pipe { stream: UnixStream::from(socket), has_read_timeout: AtomicBool::new(false) })
    }

    /// Reads what is there, waiting at most `patience` (`None`: until stopped). Zero means that the other side closed.
    pub(super) fn read(&self, buffer: &mut [u8], patience: Option<Duration>) -> io::Result<usize> {
        let deadline = patience.map(|patience| Instant::now() + patience);
        loop {
            self.set_read_timeout(left(deadline))?;
            match (&self.stream).read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
                result => return result,
            }
        }
    }

    /// A call of the kernel's costs as much as a short read: a reader without a deadline, such as of a task's output, needs none.
    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        if timeout.is_none() && !self.has_read_timeout.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.stream.set_read_timeout(timeout)?;
        self.has_read_timeout.store(timeout.is_some(), Ordering::Relaxed);
        Ok(())
    }

    /// Writes everything, waiting at most `patience` in all (`None`: until stopped).
    pub(super) fn write_all(&self, mut bytes: &[u8], patience: Option<Duration>) -> io::Result<()> {
        let deadline = patience.map(|patience| Instant::now() + patience);
        while !bytes.is_empty() {
            self.stream.set_write_timeout(left(deadline))?;
            match (&self.stream).write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Ends both directions; whoever is blocked in `read` or `write_all` wakes up.
    pub(super) fn shutdown(&self) {
        // The only failure is a socket that is shut already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

fn left(deadline: Option<Instant>) -> Option<Duration> {
    deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()).max(MIN_TIMEOUT))
}
