//! The demo's world where facts are objects of an API server: two nodes, whose agents watch it, and `kubectl`.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use reeve_policy::store::Store;
use serde_json::{Value, json};

use super::cast::{Cast, NAMESPACES, web_readers};
use super::story::{Print, World, reeve_program};
use crate::cluster::{Cluster, definition};
use crate::lab::{Agent, AgentOptions, Facts, Mode, Node, Records, until};

/// Longest wait for agents to enforce what `kubectl` was told.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where the agents' account is.
const SYSTEM: &str = "reeve-system";

/// Fields are dropped in this order: the agents first, the control plane and its lab last.
pub(super) struct Kubernetes {
    agents: Vec<Agent>,
    cast: Cast,
    nodes: [Node; 2],
    cluster: Cluster,
    print: Print,
}

/// Workloads labelled `PCI=true` talk to each other and to nobody else.
fn pci_isolation() -> Value {
    let pci = json!({ "namespaceSelector": {}, "podSelector": { "matchLabels": { "PCI": "true" } } });
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": { "name": "pci-isolation" },
        "spec": {
            "tier": "Admin", "priority": 10, "subject": { "pods": pci },
            "ingress": [
                { "name": "from-pci", "action": "Accept", "from": [{ "pods": pci }] },
                { "name": "from-others", "action": "Deny", "from": [{ "namespaces": {} }] },
            ],
            "egress": [
                { "name": "to-pci", "action": "Accept", "to": [{ "pods": pci }] },
                { "name": "to-others", "action": "Deny", "to": [{ "namespaces": {} }] },
                { "name": "to-outside", "action": "Deny", "to": [{ "networks": ["0.0.0.0/0", "::/0"] }] },
            ],
        }
    })
}

impl Kubernetes {
    /// A control plane, two nodes with agents, pods on both, and policies that `kubectl` applies.
    pub(super) fn new(mode: Mode, print: Print) -> anyhow::Result<Self> {
        let begun = Instant::now();
        print.say("Starting etcd, kube-apiserver and kube-controller-manager, and two nodes with an agent each.");
        let cluster = Cluster::start("demo")?;
        let nodes = [cluster.node("node-1", mode)?, cluster.node("node-2", mode)?];
        for namespace in NAMESPACES.iter().filter(|name| **name != "kube-system").chain([&SYSTEM]) {
            cluster.namespace(namespace, &json!({}))?;
        }
        cluster.grant(SYSTEM, "reeve-agent")?;
        let kind = definition(
            "policy.networking.k8s.io",
            "v1alpha2",
            "ClusterNetworkPolicy",
            "clusternetworkpolicies",
            "Cluster",
        );
        cluster.apply(&[kind])?;
        let served = "customresourcedefinition/clusternetworkpolicies.policy.networking.k8s.io";
        cluster.kubectl(&["wait", "--for=condition=Established", served, "--timeout=60s"])?;
        // Whoever sends and whoever is sent to are on different nodes in most of the story.
        let cast = Cast::new(|spec| {
            let node = if matches!(&*spec.name, "card-db" | "web") { &nodes[1] } else { &nodes[0] };
            cluster.pod(node, spec)
        })?;
        let facts = Facts::Kubeconfig(cluster.kubeconfig(SYSTEM, "reeve-agent")?);
        let start = |node: &Node| node.start_agent(AgentOptions { facts: facts.clone(), ..AgentOptions::default() });
        let agents = nodes.iter().map(start).collect::<anyhow::Result<_>>()?;
        print.say(&format!("Ready after {:.1} s. The cluster:\n", begun.elapsed().as_secs_f64()));
        let demo = Self { agents, cast, nodes, cluster, print };
        demo.kubectl(&["get", "nodes"])?;
        demo.kubectl(&["get", "pods", "-A", "-o", "wide", "--show-labels"])?;
        print.say(
            "Two policies: pci-isolation (PCI=true talks to PCI=true only) and shop/web-readers (only report-gen reads\n\
             from web).\n",
        );
        demo.apply(&pci_isolation())?;
        demo.apply(&web_readers())?;
        let begun = Instant::now();
        demo.enforced(&["pci-isolation", "web-readers"])?;
        print.say(&format!(
            "  Both agents enforce both policies {:.1} ms after kubectl returned.\n",
            begun.elapsed().as_secs_f64() * 1e3
        ));
        Ok(demo)
    }

    /// Runs `kubectl`, and shows what was run and what it says.
    fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<()> {
        self.print.say(&format!("  $ kubectl {}", arguments.join(" ")));
        let said = self.cluster.kubectl(arguments)?;
        let lines: Vec<String> = said.lines().map(|line| format!("  {}\n", line.trim_end())).collect();
        self.print.say(&lines.concat());
        Ok(())
    }

    /// Applies an object out of a file, as people do.
    fn apply(&self, object: &Value) -> anyhow::Result<()> {
        let name = object["metadata"]["name"].as_str().context("an object has a name")?;
        let path = self.cluster.directory().join(format!("{name}.yaml"));
        std::fs::write(&path, serde_norway::to_string(object)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        self.kubectl(&["apply", "-f", path.to_str().context("the lab's path is no text")?])
    }

    /// Waits until every agent enforces these policies.
    fn enforced(&self, names: &[&str]) -> anyhow::Result<()> {
        until("the policies to be enforced", PATIENCE, || {
            for agent in &self.agents {
                let told = agent.request("GET", "/policies")?.json()?;
                let active = |name: &&str| {
                    let named = |policy: &&Value| policy["name"] == **name && policy["activeAt"].is_string();
                    told.as_array().is_some_and(|all| all.iter().any(|policy| named(&policy)))
                };
                if !names.iter().all(active) {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
    }

    fn revisions(&self) -> anyhow::Result<Vec<u64>> {
        let revision = |agent: &Agent| agent.status()?["revision"].as_u64().context("an agent tells no revision");
        self.agents.iter().map(revision).collect()
    }
}

impl World for Kubernetes {
    fn cast(&self) -> &Cast {
        &self.cast
    }

    fn records(&self) -> Vec<Records> {
        self.agents.iter().map(Agent::records).collect()
    }

    /// What the API server has, as the oracle reads it.
    fn facts(&self) -> anyhow::Result<Store> {
        self.cluster.facts_with(&self.nodes[0], &["clusternetworkpolicies.policy.networking.k8s.io"])
    }

    fn give_pci(&self, given: bool) -> anyhow::Result<()> {
        let before = self.revisions()?;
        let begun = Instant::now();
        let label = if given { "PCI=true" } else { "PCI-" };
        self.kubectl(&["label", "pod", "report-gen", "-n", "reports", label])?;
        let told = begun.elapsed();
        until("the relabelled pod's revision", PATIENCE, || {
            let behind = self.revisions()?.into_iter().zip(&before).any(|(now, before)| now <= *before);
            Ok((!behind).then_some(()))
        })?;
        self.print.say(&format!(
            "  Both kernels enforce it {:.0} ms after the command began, of which kubectl took {:.0} ms.\n",
            begun.elapsed().as_secs_f64() * 1e3,
            told.as_secs_f64() * 1e3
        ));
        Ok(())
    }

    fn commands(&self) -> String {
        let (reeve, socket) = (reeve_program(), self.nodes[1].run_directory().join("agent.sock"));
        let (reeve, socket) = (reeve.display(), socket.display());
        format!(
            "  alias k='nsenter --net={} {} --kubeconfig {}'\n  \
             k get pods -A --show-labels\n  \
             k get clusternetworkpolicies,networkpolicies -A\n  \
             k label pod web -n shop PCI=true   # and watch the flows change\n  \
             {reeve} flows --socket {socket} --follow\n  \
             {reeve} explain shop/web payments/card-db:5432/TCP --socket {socket}\n  \
             nsenter --net=/run/netns/{} ping -c1 {}   # web pings card-db: denied\n\n\
             The lab wires the pods and tells their status; there is no kubelet: what you create gets no network.",
            Path::new("/run/netns").join(self.cluster.netns().name()).display(),
            self.cluster.programs().path("kubectl").display(),
            self.cluster.kubeconfig_of_administrator().display(),
            self.cast.web.netns().name(),
            self.cast.card_db.v4(),
        )
    }
}
