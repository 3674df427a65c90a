//! A cell whose latest value wins: what one thread wants others to see, without a queue that could fill.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A shared value with a version. Cloning gives another handle to the same cell.
pub struct Watch<T>(Arc<Shared<T>>);

struct Shared<T> {
    state: Mutex<(u64, Arc<T>)>,
    changed: Condvar,
}

impl<T> Clone for Watch<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Watch<T> {
    /// A cell that holds `value` at version 0.
    pub fn new(value: T) -> Self {
        Self(Arc::new(Shared { state: Mutex::new((0, Arc::new(value))), changed: Condvar::new() }))
    }

    /// Replaces the value and wakes who waits.
    pub fn set(&self, value: T) {
        let value = Arc::new(value);
        let mut state = self.lock();
        state.0 += 1;
        state.1 = value;
        drop(state);
        self.0.changed.notify_all();
    }

    /// The value of now.
    pub fn latest(&self) -> Arc<T> {
        Arc::clone(&self.lock().1)
    }

    /// The value of now and its version.
    pub fn latest_with_version(&self) -> (u64, Arc<T>) {
        let state = self.lock();
        (state.0, Arc::clone(&state.1))
    }

    /// Waits until the version is another than `seen`, at most `timeout`; then the version and value of that moment.
    pub fn wait_newer(&self, seen: u64, timeout: Duration) -> (u64, Arc<T>) {
        let state = self.lock();
        let waited = self.0.changed.wait_timeout_while(state, timeout, |state| state.0 == seen);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        (state.0, Arc::clone(&state.1))
    }

    /// A panic elsewhere ends the process in the shipped profile, and the value is replaced whole: poison means nothing here.
    fn lock(&self) -> MutexGuard<'_, (u64, Arc<T>)> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
