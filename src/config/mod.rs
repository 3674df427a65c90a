//! Flags, environment, file and defaults, merged into one immutable configuration.
