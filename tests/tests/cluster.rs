//! Agents that watch a real API server: what `kubectl` is told is enforced, and what goes wrong on the way is told.
#![allow(clippy::float_cmp, reason = "metrics are whole numbers")]

#[path = "cluster/churn.rs"]
mod churn;
#[path = "cluster/cold.rs"]
mod cold;
#[path = "cluster/control.rs"]
mod control;
#[path = "cluster/crowd.rs"]
mod crowd;
#[path = "cluster/demo.rs"]
mod demo;
#[path = "cluster/drain.rs"]
mod drain;
#[path = "cluster/enforcement.rs"]
mod enforcement;
#[path = "cluster/families.rs"]
mod families;
#[path = "cluster/kinds.rs"]
mod kinds;
#[path = "cluster/lives.rs"]
mod lives;
#[path = "cluster/manifests.rs"]
mod manifests;
#[path = "cluster/nodeports.rs"]
mod nodeports;
#[path = "cluster/outage.rs"]
mod outage;
#[path = "cluster/partial.rs"]
mod partial;
#[path = "cluster/plugins.rs"]
mod plugins;
#[path = "cluster/proxies.rs"]
mod proxies;
#[path = "cluster/rights.rs"]
mod rights;
#[path = "cluster/status.rs"]
mod status;
#[path = "cluster/takeover.rs"]
mod takeover;
#[path = "cluster/town.rs"]
mod town;
#[path = "cluster/wiring.rs"]
mod wiring;
