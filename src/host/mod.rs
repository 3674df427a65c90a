//! What the machine is and does: capacity and use of CPU, memory, disk and network.
