//! Packet parsing, flow state and the decision walk; the same code runs in the kernel and on the host.
