//! Lanes that carry gRPC over real sockets, and the typed calls to a master.
