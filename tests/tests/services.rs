//! Services under running agents: what kube-proxy's rules rewrite is judged by who really sends and who really receives.

#[path = "services/receivers.rs"]
mod receivers;
#[path = "services/town.rs"]
mod town;
