//! Services under running agents: what kube-proxy's rules rewrite is judged by who really sends and who really receives.

#[path = "services/clients.rs"]
mod clients;
#[path = "services/destinations.rs"]
mod destinations;
#[path = "services/receivers.rs"]
mod receivers;
#[path = "services/senders.rs"]
mod senders;
#[path = "services/town.rs"]
mod town;
