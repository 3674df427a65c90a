//! Sans-I/O unary gRPC over h2: message prefix, status, metadata, deadlines, both ends.
