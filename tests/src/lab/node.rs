//! A node: the namespace that pods hang on, with directories of its own for one agent.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, bail};
use rustix::mount::{MountFlags, mount};
use serde_json::{Value, json};

use super::addressing::Addressing;
use super::pod::{Families, Pod, PodSpec};
use super::{Agent, AgentOptions, Lab, Manifests, Netns};

/// How pods are wired to their node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A route per pod and a gateway that exists only in the pod's neighbour table, as Calico does it.
    Routed,
    /// The host sides are ports of the bridge `cni0`, which owns the gateway's address, as flannel does it.
    Bridged,
}

/// A handle to a node.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    mode: Mode,
    netns: Netns,
    addressing: Addressing,
    directory: PathBuf,
    cgroup: PathBuf,
    manifests: Manifests,
    /// Numbers for pods; addresses below are the gateway's and those given by hand.
    next_pod: AtomicU8,
    lab: Lab,
}

impl Node {
    pub(super) fn create(lab: &Lab, name: &str, mode: Mode) -> anyhow::Result<Self> {
        let directory = lab.directory().join(name);
        let manifests_directory = directory.join("manifests");
        for path in [&manifests_directory, &directory.join("run"), &directory.join("state"), &directory.join("bpffs")] {
            fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        mount("bpffs", directory.join("bpffs"), "bpf", MountFlags::empty(), None).context("cannot mount a bpffs")?;
        let cgroup = lab.register().cgroup(name)?;
        let netns = Netns::create(lab.register(), name, Some(&cgroup))?;
        netns.sysctls(&[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")])?;
        let addressing = lab.connect(&netns, true)?;
        if mode == Mode::Bridged {
            // As Kubernetes asks for: else an answer between two ports would go around the translation of addresses.
            netns.sysctls(&[
                ("net/bridge/bridge-nf-call-iptables", "1"),
                ("net/bridge/bridge-nf-call-ip6tables", "1"),
            ])?;
            netns.ip(&[
                "link add cni0 type bridge mcast_snooping 0".to_owned(),
                format!("addr add {}/24 dev cni0", addressing.pod_v4(1)),
                format!("addr add {}/64 dev cni0 nodad", addressing.pod_v6(1)),
                "link set cni0 up".to_owned(),
            ])?;
        }
        lab.manifests().mirror_into(&manifests_directory)?;
        lab.manifests().write(&format!("node-{name}"), &object(lab, name, &addressing))?;
        let inner = Inner {
            name: name.to_owned(),
            mode,
            netns,
            addressing,
            directory,
            cgroup,
            manifests: Manifests::of(&manifests_directory),
            next_pod: AtomicU8::new(10),
            lab: lab.clone(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// As in `spec.nodeName`.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// How its pods are wired.
    pub fn mode(&self) -> Mode {
        self.inner.mode
    }

    /// The node's own namespace: what runs in it is a process of the node.
    pub fn netns(&self) -> &Netns {
        &self.inner.netns
    }

    /// The address of its `eth0`.
    pub fn v4(&self) -> IpAddr {
        self.inner.addressing.node_v4.into()
    }

    /// The address of its `eth0`.
    pub fn v6(&self) -> IpAddr {
        self.inner.addressing.node_v6.into()
    }

    /// The lab it belongs to.
    pub fn lab(&self) -> &Lab {
        &self.inner.lab
    }

    /// Manifests that only this node's agent reads; `lab().manifests()` reaches all.
    pub fn manifests(&self) -> &Manifests {
        &self.inner.manifests
    }

    /// What the agent's `--manifests` names.
    pub fn manifests_directory(&self) -> PathBuf {
        self.inner.directory.join("manifests")
    }

    /// A bpffs of its own.
    pub fn bpffs(&self) -> PathBuf {
        self.inner.directory.join("bpffs")
    }

    /// Where the agent's sockets are.
    pub fn run_directory(&self) -> PathBuf {
        self.inner.directory.join("run")
    }

    /// Where the agent keeps what outlives it.
    pub fn state_directory(&self) -> PathBuf {
        self.inner.directory.join("state")
    }

    /// The file that the agent writes records to.
    pub fn records_file(&self) -> PathBuf {
        self.inner.directory.join("records.jsonl")
    }

    /// The cgroup that stands for the root of the node's.
    pub fn cgroup(&self) -> &Path {
        &self.inner.cgroup
    }

    /// A pod, wired and with its manifest written.
    pub fn pod(&self, spec: PodSpec) -> anyhow::Result<Pod> {
        let number = self.inner.next_pod.fetch_add(1, Ordering::Relaxed);
        if number == u8::MAX {
            bail!("node {} is full", self.inner.name);
        }
        Pod::create(self, spec, number)
    }

    /// The namespace of a pod that nothing is wired to yet.
    pub fn sandbox(&self, name: &str) -> anyhow::Result<Netns> {
        let name = format!("{}-sandbox-{name}", self.inner.name);
        Netns::create(self.inner.lab.register(), &name, Some(&self.inner.cgroup))
    }

    /// The agent as a process of this node, ready.
    pub fn start_agent(&self, options: AgentOptions) -> anyhow::Result<Agent> {
        let mut agent = self.spawn_agent(options)?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// The agent as a process of this node, which may never be ready.
    pub fn spawn_agent(&self, options: AgentOptions) -> anyhow::Result<Agent> {
        Agent::spawn(self, options)
    }

    /// What Kubernetes knows of it, as in its manifest.
    pub fn object(&self) -> Value {
        object(&self.inner.lab, &self.inner.name, &self.inner.addressing)
    }

    /// A program as a process of this node: in its namespace and its cgroup, and ended with the lab at the latest.
    pub fn spawn(&self, command: &mut Command) -> anyhow::Result<Child> {
        self.inner.lab.spawn(&self.inner.netns, command)
    }

    /// A cgroup for it in each of the machine's hierarchies, for containers: [`Node::cgroup`] holds threads only.
    pub(crate) fn cgroup_trees(&self) -> anyhow::Result<Vec<PathBuf>> {
        self.inner.lab.register().cgroup_trees(&self.inner.name)
    }

    /// Its own directory, in that of the lab.
    pub(crate) fn directory(&self) -> &Path {
        &self.inner.directory
    }

    pub(super) fn addressing(&self) -> &Addressing {
        &self.inner.addressing
    }

    /// Families of addresses that a pod number has.
    pub(super) fn pod_addresses(&self, number: u8, families: Families) -> Vec<IpAddr> {
        let v4 = IpAddr::from(self.inner.addressing.pod_v4(number));
        let v6 = IpAddr::from(self.inner.addressing.pod_v6(number));
        match families {
            Families::Dual => vec![v4, v6],
            Families::V4 => vec![v4],
            Families::V6 => vec![v6],
        }
    }
}

fn object(lab: &Lab, name: &str, addressing: &Addressing) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": { "kubernetes.io/hostname": name },
            "annotations": lab.network().annotations(addressing),
        },
        "spec": { "podCIDRs": addressing.pod_networks() },
        "status": { "addresses": [
            { "type": "InternalIP", "address": addressing.node_v4 },
            { "type": "InternalIP", "address": addressing.node_v6 },
            { "type": "Hostname", "address": name },
        ] },
    })
}
