//! The one blocking point of a thread with sockets: poll(2).

use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};

/// The kernel's timer for poll(2) stands still while the machine sleeps, ours does not. After a sleep a timer is at most
/// this late.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// Descriptors that are waited for without an allocation: a lane has one or two sockets and a wake.
const FEW: usize = 4;

/// What to wait for on one descriptor.
#[derive(Clone, Copy)]
pub(super) struct Interest<'a> {
    pub(super) fd: BorrowedFd<'a>,
    pub(super) read: bool,
    pub(super) write: bool,
}

impl<'a> Interest<'a> {
    /// To read only.
    pub(super) fn read(fd: BorrowedFd<'a>) -> Interest<'a> {
        Interest { fd, read: true, write: false }
    }

    fn poll_fd(&self) -> PollFd<'a> {
        let read = if self.read { PollFlags::IN } else { PollFlags::empty() };
        let write = if self.write { PollFlags::OUT } else { PollFlags::empty() };
        PollFd::from_borrowed_fd(self.fd, read | write)
    }
}

/// Which of the descriptors are ready, by their place. Those beyond the 128th are never found to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ready(u128);

impl Ready {
    pub(super) fn has(self, place: usize) -> bool {
        place < 128 && self.0 >> place & 1 == 1
    }
}

/// Waits for any of these, or for the time to pass. Tells which of them are ready: an error counts, since the next
/// read or write will say what it is. An interrupted wait is a short one.
pub(super) fn wait(interests: &[Interest<'_>], timeout: Duration) -> Ready {
    let Some(first) = interests.first() else { return Ready(0) };
    match interests.len() {
        ..=FEW => {
            let mut fds: [PollFd<'_>; FEW] = std::array::from_fn(|i| interests.get(i).unwrap_or(first).poll_fd());
            wait_for(fds.get_mut(..interests.len()).unwrap_or_default(), timeout)
        }
        _ => wait_for(&mut interests.iter().map(Interest::poll_fd).collect::<Vec<_>>(), timeout),
    }
}

fn wait_for(fds: &mut [PollFd<'_>], timeout: Duration) -> Ready {
    let timeout = timeout.min(MAX_WAIT);
    // Ten seconds fit into any timespec.
    let timeout = Timespec::try_from(timeout).unwrap_or_default();
    if rustix::event::poll(fds, Some(&timeout)).is_err() {
        return Ready(0);
    }
    let bit = |(place, fd): (usize, &PollFd<'_>)| u128::from(!fd.revents().is_empty()) << place;
    Ready(fds.iter().take(128).enumerate().map(bit).sum())
}
