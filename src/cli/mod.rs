//! The subcommands' own code.
