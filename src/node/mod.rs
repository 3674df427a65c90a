//! The node's decisions and the words they are made of: pure, and knows no other module.

pub mod account;
pub mod action;
pub mod alerts;
pub mod allow;
pub mod guard;
pub mod id;
pub mod image;
pub mod leftover;
pub mod net;
pub mod offer;
pub mod order;
pub mod queue;
pub mod record;
pub mod resources;
pub mod reward;
pub mod roster;
pub mod runtime;
pub mod snapshot;
pub mod spec;
pub mod url;
