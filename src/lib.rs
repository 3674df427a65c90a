//! HiveMind Worker: one binary that turns a machine into a node of a HiveMind network.
//!
//! The README has the code map. Dependencies between modules point one way: `h2 < grpc < rpc`; `node` knows nobody;
//! `store`, `docker`, `fetch` and `host` don't know each other; only `daemon` knows all. `tests/layout.rs` checks it.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod cli;
pub mod config;
pub mod coordinator;
pub mod daemon;
pub mod docker;
pub mod fetch;
pub mod grpc;
pub mod h2;
pub mod host;
pub mod monitor;
pub mod node;
pub mod rpc;
pub mod sandbox;
pub mod session;
pub mod standalone;
pub mod store;
pub mod submit;
pub mod sys;
