//! Facts in, desired kernel state out.
//!
//! Invariant: no IO, no clock, no kernel; the same facts give the same image, whatever the order they came in.

mod compile;
mod delta;
pub mod engine;
mod holders;
pub mod identity;
pub mod image;
pub mod limits;
mod lower;
pub mod manifest;
pub mod model;
pub mod oracle;
pub mod plan;
pub mod provenance;
pub mod selector;
mod shared;
pub mod store;

pub use compile::Preview;
