//! A task's container: its create body, the threads that run it, collection and adoption.
