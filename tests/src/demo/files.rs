//! The demo's world where facts are files: one node, whose agent reads manifests.

use std::time::{Duration, Instant};

use anyhow::Context;
use reeve_policy::store::Store;
use serde_json::{Value, json};

use super::attempt;
use super::cast::{Cast, NAMESPACES, web_readers};
use super::story::{Print, World, reeve_program};
use crate::lab::{Agent, AgentOptions, Lab, Mode, Node, Records, until};

/// Fields are dropped in this order: the agent first, the lab last.
pub(super) struct Files {
    agent: Agent,
    cast: Cast,
    node: Node,
    _lab: Lab,
    print: Print,
}

/// Workloads labelled `PCI=true` talk to each other and to nobody else.
fn pci_isolation() -> Value {
    json!({
        "apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy", "metadata": { "name": "pci-isolation" },
        "spec": {
            "selector": "PCI == \"true\"", "types": ["Ingress", "Egress"],
            "ingress": [{ "action": "Allow", "source": { "selector": "PCI == \"true\"" } }],
            "egress": [{ "action": "Allow", "destination": { "selector": "PCI == \"true\"" } }]
        }
    })
}

impl Files {
    /// A node, its pods and policies, and an agent that enforces them.
    pub(super) fn new(mode: Mode, print: Print) -> anyhow::Result<Self> {
        let begun = Instant::now();
        let lab = Lab::new("demo")?;
        let node = lab.node("node-1", mode)?;
        for namespace in NAMESPACES {
            lab.manifests().namespace(namespace, &[])?;
        }
        let cast = Cast::new(|spec| node.pod(spec))?;
        lab.manifests().write("pci-isolation", &pci_isolation())?;
        lab.manifests().write("web-readers", &web_readers())?;
        let agent = node.start_agent(AgentOptions::default())?;
        agent.settled()?;
        print.say(&format!(
            "One node, five pods, two policies: pci-isolation (PCI=true talks to PCI=true only) and\n\
             shop/web-readers (only report-gen reads from web). Ready after {:.1} s.\n",
            begun.elapsed().as_secs_f64()
        ));
        Ok(Self { agent, cast, node, _lab: lab, print })
    }
}

impl World for Files {
    fn cast(&self) -> &Cast {
        &self.cast
    }

    fn records(&self) -> Vec<Records> {
        vec![self.agent.records()]
    }

    fn facts(&self) -> anyhow::Result<Store> {
        attempt::facts(&self.node.manifests_directory(), self.node.name())
    }

    /// The watcher has to notice by itself.
    fn give_pci(&self, given: bool) -> anyhow::Result<()> {
        let revision = |status: &Value| status["revision"].as_u64().context("the agent's status has no revision");
        let before = revision(&self.agent.status()?)?;
        let begun = Instant::now();
        let labels = [("app", "report-gen"), ("PCI", "true")];
        self.cast.report_gen.set_labels(if given { &labels } else { &labels[..1] })?;
        let took = until("the relabelled pod's revision", Duration::from_secs(5), || {
            Ok((revision(&self.agent.status()?)? > before).then(|| begun.elapsed()))
        })?;
        self.print.say(&format!("  {:.1} ms from the file's change to the kernel\n", took.as_secs_f64() * 1e3));
        Ok(())
    }

    /// The commands to look around with.
    fn commands(&self) -> String {
        let (reeve, socket) = (reeve_program(), self.node.run_directory().join("agent.sock"));
        let (reeve, socket, manifests) = (reeve.display(), socket.display(), self.node.manifests_directory());
        let manifests = manifests.display();
        format!(
            "  {reeve} status    --socket {socket}\n  \
             {reeve} endpoints --socket {socket}\n  \
             {reeve} flows     --socket {socket} --follow\n  \
             {reeve} explain shop/web payments/card-db:5432/TCP --socket {socket}\n  \
             {reeve} explain shop/web payments/card-db:5432/TCP --manifests {manifests} --node {}\n  \
             nsenter --net=/run/netns/{} ping -c1 {}   # web pings card-db: denied\n\n\
             Edit a manifest in {manifests} and watch the flows change.",
            self.node.name(),
            self.cast.web.netns().name(),
            self.cast.card_db.v4(),
        )
    }
}
