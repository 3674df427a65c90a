//! Lines that the test can cut: to the engine's socket, and to a master.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};

/// What is moved at a time.
const BUFFER: usize = 64 << 10;

/// A socket that leads to the engine until it is cut.
pub struct EngineRelay {
    path: PathBuf,
    is_cut: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<UnixStream>>>,
    /// While it is true, answers to the start of a container wait.
    holds_starts: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl EngineRelay {
    /// Listens at `path` and leads to the engine's own socket.
    pub fn open(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let (is_cut, open) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let holds_starts = Arc::new((Mutex::new(false), Condvar::new()));
        let (flag, streams, holds) = (Arc::clone(&is_cut), Arc::clone(&open), Arc::clone(&holds_starts));
        let thread = thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                if flag.load(Ordering::Acquire) {
                    return;
                }
                let Ok(far) = UnixStream::connect("/var/run/docker.sock") else { continue };
                let mut streams = streams.lock().unwrap();
                let asks_start = Arc::new(AtomicBool::new(false));
                for (from, to, is_question) in [(&near, &far, true), (&far, &near, false)] {
                    streams.push(from.try_clone().unwrap());
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let (asks_start, holds) = (Arc::clone(&asks_start), Arc::clone(&holds));
                    thread::spawn(move || {
                        pipe(&from, &to, |bytes| match is_question {
                            true => asks_start.store(contains(bytes, b"/start HTTP/1.1"), Ordering::Release),
                            false if asks_start.load(Ordering::Acquire) => wait_while_held(&holds),
                            false => {}
                        });
                        let _ = to.shutdown(Shutdown::Write);
                    });
                }
            }
        });
        Self { path: path.to_owned(), is_cut, open, holds_starts, thread: Some(thread) }
    }

    /// Whether answers to the start of a container wait.
    pub fn hold_starts(&self, is_held: bool) {
        *self.holds_starts.0.lock().unwrap() = is_held;
        self.holds_starts.1.notify_all();
    }

    /// Ends all connections; the socket is gone.
    pub fn cut(mut self) {
        self.cut_now();
    }

    fn cut_now(&mut self) {
        self.is_cut.store(true, Ordering::Release);
        self.hold_starts(false);
        // Wakes the listener.
        let _ = UnixStream::connect(&self.path);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = fs::remove_file(&self.path);
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for EngineRelay {
    fn drop(&mut self) {
        self.cut_now();
    }
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

fn wait_while_held(holds: &(Mutex<bool>, Condvar)) {
    let mut is_held = holds.0.lock().unwrap();
    while *is_held {
        is_held = holds.1.wait(is_held).unwrap();
    }
}

/// Bytes that may still pass, and a bell for those who wait.
type Budget = Arc<(Mutex<u64>, Condvar)>;

/// A line to a master that carries only so much from the node.
pub struct MasterRelay {
    /// Where the node goes.
    pub address: SocketAddr,
    budget: Budget,
    /// While it is true, what the master says waits.
    holds_answers: Arc<(Mutex<bool>, Condvar)>,
}

impl MasterRelay {
    /// A line that stops after `bytes` of the node, all connections together, until it is widened.
    pub fn open(master: SocketAddr, bytes: u64) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let budget: Budget = Arc::new((Mutex::new(bytes), Condvar::new()));
        let shared = Arc::clone(&budget);
        let holds_answers = Arc::new((Mutex::new(false), Condvar::new()));
        let holds = Arc::clone(&holds_answers);
        // Ends with the test's process.
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect(master) else { continue };
                let (near_too, far_too) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                let budget = Arc::clone(&shared);
                thread::spawn(move || {
                    pipe(&near, &far, |bytes| spend(&budget, bytes.len()));
                    let _ = far.shutdown(Shutdown::Both);
                });
                let holds = Arc::clone(&holds);
                thread::spawn(move || {
                    pipe(&far_too, &near_too, |_| wait_while_held(&holds));
                    let _ = near_too.shutdown(Shutdown::Both);
                });
            }
        });
        Self { address, budget, holds_answers }
    }

    /// Whether what the master says waits.
    pub fn hold_answers(&self, is_held: bool) {
        *self.holds_answers.0.lock().unwrap() = is_held;
        self.holds_answers.1.notify_all();
    }

    /// Whether the line has stopped.
    pub fn is_spent(&self) -> bool {
        *self.budget.0.lock().unwrap() == 0
    }

    /// Lets everything pass.
    pub fn widen(&self) {
        *self.budget.0.lock().unwrap() = u64::MAX;
        self.budget.1.notify_all();
    }
}

fn spend(budget: &Budget, bytes: usize) {
    let mut left = budget.0.lock().unwrap();
    while *left == 0 {
        left = budget.1.wait(left).unwrap();
    }
    *left = left.saturating_sub(bytes as u64);
}

fn pipe(mut from: impl Read, mut to: impl Write, before: impl Fn(&[u8])) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(count) = from.read(&mut buffer) {
        if count == 0 {
            return;
        }
        before(&buffer[..count]);
        if to.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}
