//! Calls that are counted, and faults that some of them meet, so that a test can tell what was done how often.

use std::collections::HashMap;
use std::net::TcpStream;
use std::sync::{Arc, Mutex, MutexGuard};

use h2::Reason;

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is answered with UNAVAILABLE, undone.
    Unavailable,
    /// Its stream is reset, before or after it is done.
    Reset { reason: Reason, is_done: bool },
    /// A head is sent, then its stream is reset.
    HalfAnswer,
    /// Its connection is closed, before or after it is done.
    Close { is_done: bool },
}

const KINDS: [Fault; 7] = [
    Fault::Unavailable,
    Fault::Reset { reason: Reason::REFUSED_STREAM, is_done: false },
    Fault::Reset { reason: Reason::INTERNAL_ERROR, is_done: false },
    Fault::Reset { reason: Reason::CANCEL, is_done: true },
    Fault::HalfAnswer,
    Fault::Close { is_done: false },
    Fault::Close { is_done: true },
];

#[derive(Debug, Default)]
struct State {
    random: u64,
    done: HashMap<u64, u8>,
}

/// Shared by all calls of a server.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    permille: u64,
    state: Arc<Mutex<State>>,
}

impl Faults {
    pub fn new(permille: u64, seed: u64) -> Faults {
        let state = State { random: seed, ..State::default() };
        Faults { permille, state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The fault that this call meets, if any.
    pub fn draw(&self) -> Option<Fault> {
        let mut state = self.state();
        let mut next = || {
            // splitmix64
            state.random = state.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = state.random;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        };
        let is_met = next() % 1000 < self.permille;
        is_met.then(|| KINDS[(next() % KINDS.len() as u64) as usize])
    }

    /// Notes that this key was done once more.
    pub fn count(&self, key: u64) {
        let mut state = self.state();
        let times = state.done.entry(key).or_insert(0);
        *times = times.saturating_add(1);
    }

    /// Nine bytes for each key that was done: the key, and how often.
    pub fn counted(&self) -> Vec<u8> {
        let state = self.state();
        let records = state.done.iter().flat_map(|(key, times)| [&key.to_be_bytes()[..], &[*times]].concat());
        records.collect()
    }
}

/// A connection's socket once more, to end it under a call.
#[derive(Debug, Clone)]
pub struct Socket(pub Arc<TcpStream>);

impl Socket {
    pub fn close(&self) {
        // It may have been closed by the other side: closed is what is wanted.
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }
}
