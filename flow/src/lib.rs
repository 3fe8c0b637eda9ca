//! What happened, for people and for the ledger.
//!
//! Invariant: no IO and no clock; bytes of the kernel, names and offsets come in as values, records go out.

pub mod aggregate;
pub mod decode;
pub mod filter;
pub mod names;
pub mod protocol;
pub mod record;
pub mod staged;
pub mod text;
pub mod time;
pub mod wire;

pub use text::decider_text;
