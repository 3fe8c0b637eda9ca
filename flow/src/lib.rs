//! What happened, for people and for the ledger.
//!
//! Invariant: no IO and no clock; bytes of the kernel, names and offsets come in as values, records go out.

pub mod protocol;
pub mod record;
pub mod time;
