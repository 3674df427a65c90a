//! The small master that standalone mode runs in the worker's own process, and that tests run beside a worker.
//!
//! [`core`] decides: calls and the time go in, answers come out; it knows no sockets. What it promises is in a
//! [`folder`] first, so that `kill -9` at any time loses nothing. [`gate`] knows the nodes, [`book`] the attempts.
//! Left out on purpose: placing an attempt anew on another node, trust below "high", and users.

pub mod attempt;
pub mod book;
pub mod convert;
pub mod core;
pub mod fail;
pub mod folder;
pub mod found;
pub mod gate;
pub mod pieces;
pub mod polls;
pub mod record;
