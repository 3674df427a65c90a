//! The small master that standalone mode runs in the worker's own process.
