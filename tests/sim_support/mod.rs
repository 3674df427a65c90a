//! A node and everything around it in one simulated world, without threads, sockets or sleeping. The only code that is
//! not a model is the coordinator with what it uses of `node`.
//!
//! ```text
//! world     who moves next, how much time passes, which fault strikes; after the faults: that all comes right
//! driver    carries out the coordinator's effects, as `daemon::driver` does; start, crash and orderly end of a process
//! lanes     registration, heartbeat, poll and delivery, as `session` and `submit` do; calls and answers get lost
//! task      the thread of one attempt, as `sandbox::task` does, cut into steps between which the process may die
//! engine    containers; what is there survives the worker
//! store     what is durable, what is on its way, what a crash leaves of it
//! master    what it wants of the node, and what it has heard
//! ledger    what really happened, and the rules that must hold: it knows more than any of them and forgets nothing
//! dice      the seed
//! ```
//!
//! Left out on purpose: byte streams, pieces that a master refuses, quarantine, a changed configuration, and volumes (a
//! container stands for all that an attempt has at the engine).

mod dice;
mod driver;
mod engine;
mod lanes;
mod ledger;
mod master;
mod store;
mod task;
mod world;

pub use world::World;
