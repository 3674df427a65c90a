//! The owner's page and API, the gate before it and the control socket.
