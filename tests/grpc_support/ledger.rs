//! Calls that are each made until they are answered, and the proof that none was lost and none doubled without cause.
//!
//! The server's method Once notes each key that it did. A key is the call's number and which attempt it is, so that what
//! was done can be held against what this end was told of each attempt.

use std::collections::{BTreeMap, BTreeSet};

use hivemind_worker::grpc::{CallError, CallId, Code, Processed, Request};
use hivemind_worker::rpc::lane::Lane;

use super::{call, next_answer, request};

/// Attempts of one call: its key has a byte for them.
const MAX_ATTEMPTS: u8 = 200;

/// What became of `n` calls.
pub struct Ledger {
    /// By number: which attempt was answered. All of it is in memory from the start, so that it does not look like growth.
    answered: Vec<Option<u8>>,
    /// Keys of failed attempts that the server may have done.
    maybe: BTreeSet<u64>,
    /// Failed attempts by what they were told.
    pub failures: BTreeMap<(u8, bool), u64>,
}

/// What the server did.
#[derive(Debug)]
pub struct Done {
    /// Attempts that were told nothing and yet done, each followed by another attempt.
    pub doubled: usize,
    /// Attempts that may have been done.
    pub maybe: usize,
}

impl Ledger {
    pub fn new(n: usize) -> Ledger {
        // Written, so that it is there.
        let mut answered = vec![Some(0); n];
        answered.fill(None);
        Ledger { answered, maybe: BTreeSet::new(), failures: BTreeMap::new() }
    }

    /// Makes each call until it is answered, so many at a time. After each answer `meanwhile` is told how many there are.
    pub fn run(&mut self, lane: &mut Lane, at_once: usize, mut meanwhile: impl FnMut(usize)) {
        let (mut open, mut next, mut count) = (BTreeMap::new(), 0, 0);
        while count < self.answered.len() {
            while open.len() < at_once && next < self.answered.len() {
                open.insert(start(lane, key(next, 0)), (next, 0));
                next += 1;
            }
            let (id, result) = next_answer(lane);
            let (number, attempt) = open.remove(&id).expect("an answer to a call that is not open");
            match result {
                Ok(answer) => {
                    assert_eq!(answer.body, key(number, attempt).to_be_bytes(), "the answer of another call");
                    assert_eq!(self.answered[number].replace(attempt), None, "answered twice");
                    count += 1;
                    meanwhile(count);
                }
                Err(error) => {
                    self.note(number, attempt, &error);
                    assert!(attempt < MAX_ATTEMPTS, "{number} fails again and again: {error:?}");
                    open.insert(start(lane, key(number, attempt + 1)), (number, attempt + 1));
                }
            }
        }
        assert!(open.is_empty());
    }

    /// A failure after which the call may be made again: it was not begun, or, since doing it twice does no harm, the
    /// server or what is between has failed.
    fn note(&mut self, number: usize, attempt: u8, error: &CallError) {
        let may_be_done = error.processed == Processed::Maybe;
        let code = error.status.code;
        assert!(matches!(code, Code::Unavailable | Code::Internal | Code::Cancelled), "{number}: {error:?}");
        assert!(may_be_done || code == Code::Unavailable, "{number}: {error:?}");
        *self.failures.entry((code.number(), may_be_done)).or_default() += 1;
        if may_be_done {
            self.maybe.insert(key(number, attempt));
        }
    }

    /// Asks the server what it did, and holds it against what is known here.
    pub fn check(&self, lane: &mut Lane) -> Done {
        let counted = Request { max_response: 64 << 20, ..request("Counted", "") };
        let body = call(lane, counted).unwrap().body;
        let (mut doubled, mut seen) = (0, 0);
        for record in body.chunks_exact(9) {
            let key = u64::from_be_bytes(record[..8].try_into().unwrap());
            let (number, attempt) = (usize::try_from(key >> 8).unwrap(), key as u8);
            assert_eq!(record[8], 1, "attempt {attempt} of {number} was done more than once");
            if self.answered[number] == Some(attempt) {
                seen += 1;
            } else {
                assert!(self.maybe.contains(&key), "attempt {attempt} of {number} was done, but is said not to be");
                doubled += 1;
            }
        }
        assert_eq!(seen, self.answered.len(), "calls were answered that were not done");
        Done { doubled, maybe: self.maybe.len() }
    }
}

fn key(number: usize, attempt: u8) -> u64 {
    u64::try_from(number).unwrap() << 8 | u64::from(attempt)
}

fn start(lane: &mut Lane, key: u64) -> CallId {
    lane.call(request("Once", key.to_be_bytes()))
}
