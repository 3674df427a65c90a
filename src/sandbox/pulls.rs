//! Pulls that are under way, shared: who wants what is being pulled already joins that pull. Each can leave it; the last one
//! who leaves ends it.
//!
//! A pull has a thread of its own, `pull-N`, which makes the one request at the engine. Those who wait are its audience: they
//! are told how far it is, and between two words they look after the room on the engine's disk.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};

use super::disk::{RESERVE_BYTES, free_bytes};
use crate::docker::Stop;

/// Between two looks at the free room.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Words that wait for one of the audience. Progress beyond is dropped: the next is as good. The end waits.
const MAX_WORDS: usize = 4;
/// A pull holds one HTTP exchange.
const STACK_BYTES: usize = 512 << 10;

/// How a pull ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PullEnd {
    /// The engine has it; the digest where it has told that.
    Done(Option<String>),
    /// No other try would help: the task's fault.
    Refused(String),
    /// It may be otherwise later: the node's fault.
    Failed(String),
    /// The node's fault, and no other try would help: the engine's disk, or the owner's credentials.
    Broken(String),
}

/// What the audience hears.
enum Word {
    Progress(String),
    End(PullEnd),
}

/// See the module.
#[derive(Clone, Default)]
pub struct Pulls {
    under_way: Arc<Mutex<HashMap<String, Arc<Pull>>>>,
}

/// One pull.
struct Pull {
    name: String,
    stop: Stop,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    audience: HashMap<u64, Sender<Word>>,
    /// Where the engine keeps images, where that is on this machine.
    folder: Option<PathBuf>,
    last_look: Option<Instant>,
    /// Why it was ended from here.
    no_room: Option<String>,
}

/// For the thread of a pull.
pub struct Stage(Arc<Pull>);

/// One of the audience. It must be left or heard to its end.
pub struct Seat {
    pulls: Pulls,
    pull: Arc<Pull>,
    number: u64,
    words: Receiver<Word>,
}

/// Takes one of the audience away; the last one ends the pull.
pub struct Leave {
    pulls: Pulls,
    pull: Arc<Pull>,
    number: u64,
}

impl Pulls {
    /// Joins the pull of this name, or begins it with `job` on a thread of its own.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn join(&self, name: &str, job: impl FnOnce(&Stage) -> PullEnd + Send + 'static) -> io::Result<(Seat, Leave)> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let (sender, words) = bounded(MAX_WORDS);
        let mut under_way = lock(&self.under_way);
        let seat = |pull: &Arc<Pull>| {
            let seat = Seat { pulls: self.clone(), pull: Arc::clone(pull), number, words };
            (seat, Leave { pulls: self.clone(), pull: Arc::clone(pull), number })
        };
        if let Some(pull) = under_way.get(name) {
            lock(&pull.state).audience.insert(number, sender);
            return Ok(seat(pull));
        }
        let pull = Arc::new(Pull { name: name.to_owned(), stop: Stop::new(), state: Mutex::default() });
        lock(&pull.state).audience.insert(number, sender);
        let (pulls, stage) = (self.clone(), Stage(Arc::clone(&pull)));
        thread::Builder::new().name(format!("pull-{number}")).stack_size(STACK_BYTES).spawn(move || {
            let mut ending = Ending { pulls, pull: Arc::clone(&stage.0), end: None };
            ending.end = Some(job(&stage));
        })?;
        under_way.insert(name.to_owned(), Arc::clone(&pull));
        Ok(seat(&pull))
    }

    /// Nobody joins it any more; then all are told.
    fn end(&self, pull: &Arc<Pull>, end: &PullEnd) {
        self.forget(&mut lock(&self.under_way), pull);
        let audience = std::mem::take(&mut lock(&pull.state).audience);
        for sender in audience.values() {
            // Who left meanwhile hears nothing.
            let _ = sender.send(Word::End(end.clone()));
        }
    }

    fn forget(&self, under_way: &mut HashMap<String, Arc<Pull>>, pull: &Arc<Pull>) {
        if under_way.get(&pull.name).is_some_and(|found| Arc::ptr_eq(found, pull)) {
            under_way.remove(&pull.name);
        }
    }
}

/// Tells all of the end, whichever way the thread comes to it.
struct Ending {
    pulls: Pulls,
    pull: Arc<Pull>,
    end: Option<PullEnd>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        let end = self.end.take().unwrap_or_else(|| PullEnd::Failed("the thread of the pull broke off".to_owned()));
        self.pulls.end(&self.pull, &end);
    }
}

impl Stage {
    /// Ends the pull's request at the engine.
    pub fn stop(&self) -> &Stop {
        &self.0.stop
    }

    /// Says where the engine keeps its images, so that the room there is looked after. Whether there is enough now.
    pub fn watch(&self, folder: PathBuf) -> bool {
        lock(&self.0.state).folder = Some(folder);
        self.0.look(Instant::now());
        self.no_room().is_none()
    }

    /// Why the pull was ended for lack of room.
    pub fn no_room(&self) -> Option<String> {
        lock(&self.0.state).no_room.clone()
    }

    /// Tells all how far it is.
    pub fn tell(&self, words: &str) {
        for sender in lock(&self.0.state).audience.values() {
            match sender.try_send(Word::Progress(words.to_owned())) {
                Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
            }
        }
    }
}

impl Pull {
    /// Ends the pull when it has taken the engine's disk down to the reserve. What it has half pulled is the engine's.
    fn look(&self, now: Instant) {
        let folder = {
            let mut state = lock(&self.state);
            if state.last_look.is_some_and(|last| now.duration_since(last) < LOOK_EVERY) {
                return;
            }
            state.last_look = Some(now);
            state.folder.clone()
        };
        let Some(folder) = folder else { return };
        let Some(free) = free_bytes(&folder).filter(|free| *free < RESERVE_BYTES) else { return };
        let words = format!(
            "the engine's disk, at {}, has only {} MiB left, and {} MiB must stay free",
            folder.display(),
            free >> 20,
            RESERVE_BYTES >> 20
        );
        lock(&self.state).no_room.get_or_insert(words);
        self.stop.stop();
    }
}

impl Seat {
    /// Hears the pull to its end, or until [`Leave::leave`]. `tell` gets each word on how far it is.
    pub fn hear(self, tell: &dyn Fn(String)) -> Option<PullEnd> {
        loop {
            match self.words.recv_timeout(LOOK_EVERY) {
                Ok(Word::Progress(words)) => tell(words),
                Ok(Word::End(end)) => return Some(end),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
            self.pull.look(Instant::now());
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        leave(&self.pulls, &self.pull, self.number);
    }
}

impl Leave {
    /// Makes [`Seat::hear`] come back.
    pub fn leave(&self) {
        leave(&self.pulls, &self.pull, self.number);
    }
}

fn leave(pulls: &Pulls, pull: &Arc<Pull>, number: u64) {
    let is_last = {
        // Both, so that nobody joins a pull that is being ended.
        let mut under_way = lock(&pulls.under_way);
        let mut state = lock(&pull.state);
        let was_there = state.audience.remove(&number).is_some();
        let is_last = was_there && state.audience.is_empty();
        if is_last {
            pulls.forget(&mut under_way, pull);
        }
        is_last
    };
    if is_last {
        pull.stop.stop();
    }
}

/// What is behind these locks is whole between two statements, so poison means nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pull that goes on until the test says how it ends, or until it is stopped.
    fn scripted(ends: Receiver<PullEnd>, stopped: Sender<()>) -> impl FnOnce(&Stage) -> PullEnd + Send + 'static {
        move |stage| {
            stage.tell("begins");
            loop {
                if stage.stop().is_stopped() {
                    stopped.send(()).unwrap();
                    return PullEnd::Failed("stopped".to_owned());
                }
                if let Ok(end) = ends.recv_timeout(Duration::from_millis(1)) {
                    return end;
                }
            }
        }
    }

    fn unwanted(_: &Stage) -> PullEnd {
        panic!("a second request for what is being pulled");
    }

    fn heard(seat: Seat) -> thread::JoinHandle<Option<PullEnd>> {
        thread::spawn(move || seat.hear(&|_| ()))
    }

    #[test]
    fn those_who_want_the_same_share_one_pull_and_its_end() {
        let (pulls, (end, ends), (stopped, _)) = (Pulls::default(), bounded(1), bounded(1));
        let (one, _) = pulls.join("a", scripted(ends, stopped)).unwrap();
        let (two, _) = pulls.join("a", unwanted).unwrap();
        let (one, two) = (heard(one), heard(two));
        end.send(PullEnd::Done(Some("sha256:1".to_owned()))).unwrap();
        for one in [one, two] {
            assert_eq!(one.join().unwrap(), Some(PullEnd::Done(Some("sha256:1".to_owned()))));
        }
        assert!(lock(&pulls.under_way).is_empty());
        let (again, _) = pulls.join("a", |_| PullEnd::Done(None)).unwrap();
        assert_eq!(again.hear(&|_| ()), Some(PullEnd::Done(None)), "what has ended is not joined");
    }

    #[test]
    fn one_can_leave_and_the_last_one_ends_it() {
        let (pulls, (end, ends), (stopped, has_stopped)) = (Pulls::default(), bounded(1), bounded(1));
        let (one, leave_one) = pulls.join("a", scripted(ends, stopped)).unwrap();
        let (two, leave_two) = pulls.join("a", unwanted).unwrap();
        let (one, two) = (heard(one), heard(two));
        leave_one.leave();
        assert_eq!(one.join().unwrap(), None);
        leave_one.leave();
        assert!(has_stopped.is_empty(), "somebody still waits");
        leave_two.leave();
        has_stopped.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(two.join().unwrap(), None);
        let (other, _) = pulls.join("a", |_| PullEnd::Done(None)).unwrap();
        assert_eq!(other.hear(&|_| ()), Some(PullEnd::Done(None)), "what was ended is not joined");
        drop(end);
    }

    #[test]
    fn a_pull_whose_thread_breaks_off_leaves_nobody_waiting() {
        let pulls = Pulls::default();
        let (seat, _) = pulls.join("a", |_| panic!("on purpose")).unwrap();
        assert!(matches!(seat.hear(&|_| ()), Some(PullEnd::Failed(_))));
        let (seat, _) = pulls.join("a", |_| PullEnd::Done(None)).unwrap();
        assert_eq!(seat.hear(&|_| ()), Some(PullEnd::Done(None)));
    }
}
