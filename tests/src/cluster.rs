//! A control plane of real Kubernetes programs beside a lab's nodes: etcd, an API server and its controllers.
//!
//! They run in a namespace of their own on the lab's switch, so that every node reaches the API server by one address.
//! Scheduler and kubelets are played by the lab: it says where a pod runs, wires it, and tells the API server so. Or they
//! are real, too: then nodes are [`Machine`]s, whose pods are containers.
//!
//! Invariant: whoever asks the API server or is asked by it is a program of Kubernetes or an agent, never a stand-in.

mod audit;
mod client;
mod cni;
mod containers;
mod control;
mod definitions;
mod facts;
mod keys;
mod kubelet;
mod machine;
mod programs;
mod proxy;
mod relay;
mod requests;
mod rights;
mod runtime;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};

use crate::lab::{Lab, Netns, Network, until};
use keys::Keys;

pub use audit::Call;
pub use cni::{Chain, CniError, Sandbox, bridged, point_to_point, port_mapping};
pub use containers::Containers;
pub use definitions::definition;
pub use facts::fact;
pub use machine::{Machine, Plan};
pub use programs::Programs;
pub use proxy::{Proxy, ProxyMode};
pub use relay::Relay;
pub use requests::Administrator;
pub use rights::Rule;
pub use runtime::WiredPod;

/// Longest wait for the API server: a busy machine takes its time to start it.
const START_PATIENCE: Duration = Duration::from_mins(2);

/// Who plays kubelet and scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nodes {
    /// The lab.
    Played,
    /// Programs of Kubernetes, on every [`Machine`].
    Real,
}

/// A control plane and its lab; dropped, both are gone.
pub struct Cluster {
    programs: Programs,
    keys: Keys,
    /// Where the API server listens, on port 6443.
    address: IpAddr,
    directory: PathBuf,
    /// The control plane's namespace.
    netns: Netns,
    etcd: Mutex<Option<Child>>,
    manager: Mutex<Option<Child>>,
    scheduler: Mutex<Option<Child>>,
    api: Mutex<Option<Child>>,
    /// The lab: nodes are made by [`Cluster::node`].
    pub lab: Lab,
}

impl Cluster {
    /// A control plane that answers, and a lab without nodes, named after the test.
    pub fn start(name: &str) -> anyhow::Result<Self> {
        Self::start_for(name, Nodes::Played)
    }

    /// The same, for either kind of nodes.
    pub fn start_for(name: &str, nodes: Nodes) -> anyhow::Result<Self> {
        let programs = Programs::find(nodes)?;
        let lab = Lab::joined(name, Network::Flat)?;
        let (netns, address) = lab.machine("control")?;
        let directory = lab.directory().join("control");
        let keys = Keys::make(&directory.join("keys"), address)?;
        let etcd = control::etcd(&lab, &netns, &programs, &directory)?;
        let api = control::api_server(&lab, &netns, &programs, &directory, &keys, address)?;
        let (etcd, api) = (Mutex::new(Some(etcd)), Mutex::new(Some(api)));
        let (manager, scheduler) = (Mutex::default(), Mutex::default());
        let cluster = Self { programs, keys, address, directory, netns, etcd, manager, scheduler, api, lab };
        cluster.wait_ready()?;
        // It ends where it finds no rights, and a new API server has none before it is ready.
        let manager = control::controller_manager(
            &cluster.lab,
            &cluster.netns,
            &cluster.programs,
            &cluster.directory,
            &cluster.keys,
            nodes,
        )?;
        *cluster.manager.lock().expect("nobody else has it yet") = Some(manager);
        if nodes == Nodes::Real {
            let Self { lab, netns, programs, directory, keys, .. } = &cluster;
            let scheduler = control::scheduler(lab, netns, programs, directory, keys)?;
            *cluster.scheduler.lock().expect("nobody else has it yet") = Some(scheduler);
        }
        Ok(cluster)
    }

    /// The address that nodes reach the API server by, on port 6443.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The programs it is made of.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Where its logs are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The network namespace that the control plane is in.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig_of_administrator(&self) -> PathBuf {
        self.keys.path("admin.kubeconfig")
    }

    /// Ends the API server without giving it a chance to say goodbye.
    pub fn kill_api_server(&self) -> anyhow::Result<()> {
        end(&self.api)
    }

    /// Holds the API server still, so that it says nothing and closes nothing, or lets it go on.
    pub fn hold_api_server(&self, still: bool) -> anyhow::Result<()> {
        let api = self.api.lock().expect("no thread panics while it holds a process");
        let process = api.as_ref().and_then(|process| Pid::from_raw(i32::try_from(process.id()).ok()?));
        let signal = if still { Signal::STOP } else { Signal::CONT };
        kill_process(process.context("the API server does not run")?, signal).context("cannot signal the API server")
    }

    /// Starts the API server again, with what etcd has, and waits until it is ready.
    pub fn start_api_server(&self) -> anyhow::Result<()> {
        self.spawn_api_server()?;
        self.wait_ready()
    }

    /// Starts the API server again and waits for nothing.
    pub fn spawn_api_server(&self) -> anyhow::Result<()> {
        let new =
            control::api_server(&self.lab, &self.netns, &self.programs, &self.directory, &self.keys, self.address)?;
        *self.api.lock().expect("no thread panics while it holds a process") = Some(new);
        Ok(())
    }

    /// Whether the API server's process lives.
    pub fn is_running(&self) -> anyhow::Result<bool> {
        match &mut *self.api.lock().expect("no thread panics while it holds a process") {
            Some(process) => Ok(process.try_wait()?.is_none()),
            None => Ok(false),
        }
    }

    /// Waits until the API server says that it is ready.
    pub fn wait_ready(&self) -> anyhow::Result<()> {
        let ready = until("the API server to be ready", START_PATIENCE, || {
            if !self.is_running()? {
                anyhow::bail!("the API server ended");
            }
            Ok(self.kubectl(&["get", "--raw", "/readyz"]).ok().filter(|answer| answer.trim() == "ok").map(drop))
        });
        ready.with_context(|| self.log_end("kube-apiserver"))
    }

    fn log_end(&self, program: &str) -> String {
        let log = std::fs::read_to_string(self.directory.join(program).with_extension("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        format!("{program}'s log ends:\n{}", lines[lines.len().saturating_sub(20)..].join("\n"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in [&self.api, &self.manager, &self.scheduler, &self.etcd] {
            if let Err(error) = end(process) {
                eprintln!("a program of the control plane may go on: {error:#}");
            }
        }
    }
}

fn end(process: &Mutex<Option<Child>>) -> anyhow::Result<()> {
    let taken = process.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    if let Some(mut process) = taken {
        process.kill().context("cannot kill it")?;
        process.wait().context("cannot wait for it")?;
    }
    Ok(())
}
