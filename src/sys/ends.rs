//! Which of two processes ended first. The kernel keeps the order, so that nobody has to wait for it and nobody can come
//! too late: of descriptors of processes (pidfd_open(2)) that an epoll(7) holds, each is queued in the moment of its
//! process's end, and the queue is read whenever the answer is wanted.

use std::os::fd::OwnedFd;

use rustix::event::{Timespec, epoll};
use rustix::io;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// The first process, as the queue names it.
const FIRST: u64 = 1;
/// The second one.
const SECOND: u64 = 2;

/// A process that is this one also when its number is another's by now.
pub struct Process(OwnedFd);

impl Process {
    /// `None` where there is none by that number, and before Linux 5.3.
    pub fn open(id: i64) -> Option<Self> {
        let id = Pid::from_raw(i32::try_from(id).ok().filter(|id| *id > 0)?)?;
        pidfd_open(id, PidfdFlags::empty()).ok().map(Self)
    }
}

/// Two processes, and the order of their ends.
pub struct EndOrder {
    queue: OwnedFd,
    /// Of a descriptor that is closed, the queue knows no more.
    _processes: [Process; 2],
}

impl EndOrder {
    /// Of two that have both ended by now, the first counts as the one that ended first.
    ///
    /// # Errors
    /// The system has no descriptor to give.
    pub fn of(first: Process, second: Process) -> io::Result<Self> {
        let queue = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (process, name) in [(&first, FIRST), (&second, SECOND)] {
            epoll::add(&queue, &process.0, epoll::EventData::new_u64(name), epoll::EventFlags::IN)?;
        }
        Ok(Self { queue, _processes: [first, second] })
    }

    /// Whether one of the two has ended.
    pub fn has_end(&self) -> bool {
        self.earlier().is_some()
    }

    /// Whether the second one ended while the first one was alive. To be asked once, when it is over: an end in the very
    /// moment of a question may be queued before those that were told.
    pub fn is_second_earlier(&self) -> bool {
        self.earlier() == Some(SECOND)
    }

    fn earlier(&self) -> Option<u64> {
        let mut events = Vec::with_capacity(2);
        let no_time = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Two places for two processes: nothing of the queue is left unread, which would change its order.
        epoll::wait(&self.queue, rustix::buffer::spare_capacity(&mut events), Some(&no_time)).ok()?;
        events.first().map(|event: &epoll::Event| event.data.u64())
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    fn child() -> (Child, Process) {
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        let process = Process::open(child.id().into()).unwrap();
        (child, process)
    }

    fn end(mut child: Child) {
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn the_order_of_two_ends_is_told_after_both() {
        let [(a, first), (b, second)] = [child(), child()];
        let order = EndOrder::of(first, second).unwrap();
        assert!(!order.has_end() && !order.is_second_earlier());
        end(b);
        end(a);
        assert!(order.is_second_earlier());
        let [(a, first), (b, second)] = [child(), child()];
        let order = EndOrder::of(first, second).unwrap();
        end(a);
        end(b);
        assert!(order.has_end());
        assert!(!order.is_second_earlier());
    }

    #[test]
    fn one_that_is_still_there_is_the_later() {
        let [(a, first), (b, second)] = [child(), child()];
        let order = EndOrder::of(first, second).unwrap();
        end(b);
        assert!(order.is_second_earlier());
        end(a);
    }

    #[test]
    fn of_two_that_had_ended_before_the_first_counts() {
        let [(a, first), (b, second)] = [child(), child()];
        end(b);
        end(a);
        assert!(!EndOrder::of(first, second).unwrap().is_second_earlier());
    }

    #[test]
    fn numbers_that_are_none_are_no_process() {
        for id in [0, -1, i64::MAX, i64::from(i32::MAX)] {
            assert!(Process::open(id).is_none(), "{id}");
        }
    }
}
