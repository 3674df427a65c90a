//! A connected socket. Reading and writing never wait, but for [`Socket::wait`], in which a thread that has nothing else
//! to wait for spares itself poll(2): one system call less for each answer.

use std::io::{self, IoSlice, Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, send, sendmsg, sockopt};

/// Read at once: what a socket of the usual size brings in a few segments.
pub(super) const CHUNK: usize = 16 * 1024;
/// The longest wait in one call. The kernel's timer stands still while the machine sleeps, ours does not.
const MAX_WAIT_MS: u64 = 8_192;
/// Of each write.
const SEND: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);
/// So much of a time is left to poll(2), which is exact: a socket's timeout is rounded up to the kernel's tick, 10 ms at
/// the most, and may come one tick later.
const SLACK_MS: u64 = 20;

/// See the module.
#[derive(Debug)]
pub(super) struct Socket {
    stream: TcpStream,
    /// Where [`Socket::wait`] reads to: made when that is first used.
    ahead: Box<[u8]>,
    /// What it has brought, as far as that was not taken.
    filled: Range<usize>,
    /// Why [`Socket::wait`] could not read.
    failure: Option<io::Error>,
    /// The last read took all that there was.
    is_drained: bool,
    /// As the kernel was told.
    wait_ms: u64,
}

impl Socket {
    /// Takes a socket in any mode.
    pub(super) fn new(stream: TcpStream) -> io::Result<Socket> {
        // Each call says for itself that it must not wait.
        stream.set_nonblocking(false)?;
        let (ahead, filled, failure) = (Box::default(), 0..0, None);
        Ok(Socket { stream, ahead, filled, failure, is_drained: false, wait_ms: 0 })
    }

    /// Waits until there is something to read or `timeout` has nearly passed; false when the time is too short for that.
    /// What comes is kept for the next [`Read::read`].
    pub(super) fn wait(&mut self, timeout: Duration) -> bool {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).min(MAX_WAIT_MS + SLACK_MS);
        // A power of two: the kernel is told seldom, and the rest is waited for in smaller steps.
        let Some(power) = timeout_ms.saturating_sub(SLACK_MS).checked_ilog2() else { return false };
        let wait_ms = 1 << power;
        if self.wait_ms != wait_ms {
            let timeout = Some(Duration::from_millis(wait_ms));
            if sockopt::set_socket_timeout(&self.stream, sockopt::Timeout::Recv, timeout).is_err() {
                return false;
            }
            self.wait_ms = wait_ms;
        }
        if self.ahead.is_empty() {
            self.ahead = vec![0; CHUNK].into();
        }
        let received = recv(&self.stream, &mut *self.ahead, RecvFlags::empty());
        self.filled = 0..received.map_or(0, |(count, _)| count);
        self.is_drained = false;
        if let Err(error) = received
            && !matches!(error, Errno::AGAIN | Errno::INTR)
        {
            self.failure = Some(error.into());
        }
        true
    }
}

impl Read for Socket {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if let Some(error) = self.failure.take() {
            return Err(error);
        }
        // The poller tells when there is more.
        if std::mem::take(&mut self.is_drained) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let ahead = self.ahead.get(self.filled.clone()).unwrap_or_default();
        if ahead.is_empty() {
            let (count, _) = recv(&self.stream, &mut *out, RecvFlags::DONTWAIT)?;
            self.is_drained = count > 0 && count < out.len();
            return Ok(count);
        }
        let count = ahead.len().min(out.len());
        let (from, to) = (ahead.get(..count).unwrap_or_default(), out.get_mut(..count).unwrap_or_default());
        to.copy_from_slice(from);
        self.filled.start += count;
        // A full buffer may not have been all.
        self.is_drained = self.filled.is_empty() && self.filled.end < CHUNK;
        Ok(count)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(&self.stream, bytes, SEND)?)
    }

    /// TLS has its records in pieces.
    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(sendmsg(&self.stream, pieces, &mut SendAncillaryBuffer::default(), SEND)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Socket, TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (Socket::new(listener.accept().unwrap().0).unwrap(), far)
    }

    fn would_block(result: io::Result<usize>) -> bool {
        result.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    #[test]
    fn reading_never_waits_and_waiting_reads_ahead() {
        let (mut socket, mut far) = pair();
        let mut out = [0; 4];
        assert!(would_block(socket.read(&mut out)));
        far.write_all(b"abcdef").unwrap();
        assert!(socket.wait(Duration::from_secs(5)));
        assert_eq!((socket.read(&mut out).unwrap(), &out), (4, b"abcd"));
        assert_eq!(socket.read(&mut out).unwrap(), 2);
        assert!(would_block(socket.read(&mut out)));
    }

    #[test]
    fn pieces_are_written_together_and_a_full_socket_does_not_wait() {
        let (mut socket, mut far) = pair();
        let pieces = [b"ab".as_slice(), b"", b"cd"].map(IoSlice::new);
        assert_eq!(socket.write_vectored(&pieces).unwrap(), 4);
        let mut out = [0; 4];
        far.read_exact(&mut out).unwrap();
        assert_eq!(&out, b"abcd");
        let large = vec![1; 1 << 20];
        // Nobody reads, so the kernel takes no more at some point.
        while !would_block(socket.write_vectored(&[IoSlice::new(&large)])) {}
        assert!(would_block(socket.write(&large)));
    }

    #[test]
    fn waiting_ends_with_its_time_and_with_the_peer() {
        let (mut socket, far) = pair();
        assert!(!socket.wait(Duration::from_millis(20)), "too short for this way");
        assert!(socket.wait(Duration::from_millis(23)));
        assert!(would_block(socket.read(&mut [0; 4])));
        drop(far);
        assert!(socket.wait(Duration::from_secs(5)));
        assert_eq!(socket.read(&mut [0; 4]).unwrap(), 0);
    }
}
