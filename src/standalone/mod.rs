//! The small master that standalone mode runs in the worker's own process, and that tests run beside a worker.
//!
//! [`core`] decides: calls and the time go in, answers come out; it knows no sockets. What it promises is in a
//! [`folder`] first, so that `kill -9` at any time loses nothing. [`gate`] knows the nodes, [`book`] the attempts.
//! Left out on purpose: placing an attempt anew on another node, trust below "high", and users.

pub mod archive;
pub mod attempt;
pub mod book;
pub mod convert;
pub mod core;
pub mod date;
pub mod desk;
mod earlier;
pub mod fail;
pub mod folder;
pub mod found;
pub mod gate;
pub mod master;
pub mod parts;
pub mod pieces;
pub mod polls;
pub mod record;
pub mod why;

pub use desk::Desk;
pub use master::{Master, MasterConfig};

#[cfg(test)]
mod testkit;
#[cfg(test)]
mod tests_crash;
#[cfg(test)]
mod tests_hostile;
#[cfg(test)]
mod tests_node;
#[cfg(test)]
mod tests_queue;
#[cfg(test)]
mod tests_record;
