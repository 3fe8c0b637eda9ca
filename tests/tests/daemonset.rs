//! The chart in a whole cluster: nodes with kubelets and containers, where the agent is installed as a user does it.

#[path = "daemonset/city.rs"]
mod city;
#[path = "daemonset/enforcement.rs"]
mod enforcement;
#[path = "daemonset/installed.rs"]
mod installed;
#[path = "daemonset/life.rs"]
mod life;
#[path = "daemonset/uninstalled.rs"]
mod uninstalled;
