//! A task's container: its create body, the threads that run it, collection and adoption.

pub mod body;
pub mod collect;
pub mod inputs;
pub mod naming;
