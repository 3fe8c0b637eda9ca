//! The demo: real connections between pods, each compared with its records and with the oracle.
//!
//! Every row comes from a record and from what the socket saw; where the two or the oracle disagree, the row says so
//! and the demo fails.

pub mod attempt;
pub mod cast;
mod cluster;
mod files;
pub mod story;
pub mod table;
