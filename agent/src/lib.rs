//! The per-node agent: watches facts, asks `reeve-policy` what they mean, and makes the kernel enforce it.
//!
//! Invariant: the agent decides nothing; verdicts come from the image that `reeve-policy` compiles. Here live the
//! awaits, syscalls and clocks that the pure crates do without.

mod admin;
mod answers;
pub mod cni;
pub mod config;
pub mod continuity;
pub mod datapath;
pub mod dictionary;
mod drift;
pub mod enforcer;
pub mod metrics;
pub mod records;
pub mod run;
pub mod seed;
mod standing;
mod status;
mod sweep;
pub mod uninstall;
mod unseen;
pub mod upgrade;
pub mod watch;
pub mod windows;
