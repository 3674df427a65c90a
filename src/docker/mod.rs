//! Client of the Docker Engine API over the engine's local socket.
