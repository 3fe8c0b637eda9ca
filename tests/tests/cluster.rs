//! Agents that watch a real API server: what `kubectl` is told is enforced, and what goes wrong on the way is told.
#![allow(clippy::float_cmp, reason = "metrics are whole numbers")]

#[path = "cluster/enforcement.rs"]
mod enforcement;
#[path = "cluster/kinds.rs"]
mod kinds;
#[path = "cluster/outage.rs"]
mod outage;
#[path = "cluster/plugins.rs"]
mod plugins;
#[path = "cluster/rights.rs"]
mod rights;
#[path = "cluster/town.rs"]
mod town;
