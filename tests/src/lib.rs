//! The lab: nodes and pods as network namespaces, traffic between them, raw packets, and the agent as a process.
//!
//! Nothing here knows how the agent works inside: it is started as a program and watched through its socket, its
//! records and its metrics, as an operator would.

pub mod bench;
pub mod cluster;
pub mod demo;
pub mod frames;
pub mod judge;
pub mod kernel;
pub mod lab;
pub mod nat;
pub mod require;
pub mod sequence;
pub mod stage;
pub mod traffic;
pub mod worlds;
