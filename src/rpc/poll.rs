//! The one blocking point of a thread with sockets: poll(2).

use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};

/// The kernel's timer for poll(2) stands still while the machine sleeps, ours does not. After a sleep a timer is at most
/// this late.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// What to wait for on one descriptor.
pub(super) struct Interest<'a> {
    pub(super) fd: BorrowedFd<'a>,
    pub(super) read: bool,
    pub(super) write: bool,
}

/// Waits for any of these, or for the time to pass. Returns which of them are ready: an error counts, since the next
/// read or write will say what it is. An interrupted wait is a short one.
pub(super) fn wait(interests: &[Interest<'_>], timeout: Duration) -> Vec<bool> {
    let flags = |i: &Interest<'_>| {
        let read = if i.read { PollFlags::IN } else { PollFlags::empty() };
        let write = if i.write { PollFlags::OUT } else { PollFlags::empty() };
        read | write
    };
    let mut fds: Vec<PollFd<'_>> = interests.iter().map(|i| PollFd::from_borrowed_fd(i.fd, flags(i))).collect();
    let timeout = timeout.min(MAX_WAIT);
    // Ten seconds fit into any timespec.
    let timeout = Timespec::try_from(timeout).unwrap_or_default();
    match rustix::event::poll(&mut fds, Some(&timeout)) {
        Ok(_) => fds.iter().map(|fd| !fd.revents().is_empty()).collect(),
        Err(_) => vec![false; fds.len()],
    }
}
