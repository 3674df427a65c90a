//! Task database, spool and manifests: what must survive a crash.
