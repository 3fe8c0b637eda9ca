//! Packet parsing, flow state and the decision walk; the same code runs in the kernel and on the host.
//!
//! Invariant: no `std`, no allocation, no recursion, bounded loops. All access to packets, maps and clocks goes through
//! [`env::Env`]. What a packet's bytes do not plainly say is denied, never guessed.
#![cfg_attr(not(test), no_std)]
#![allow(
    clippy::inline_always,
    reason = "a call costs a BPF stack frame, and the verifier bounds only what it sees inlined"
)]

pub mod budget;
mod decide;
pub mod env;
mod express;
pub mod flow;
mod fragment;
#[cfg(test)]
mod host;
pub mod judge;
pub mod mark;
pub mod neighbour;
pub mod parse;
pub mod pending;
pub mod recent;
mod refusal;
mod scratch;
pub mod tell;
pub mod uplink;
pub mod walk;
mod words;
