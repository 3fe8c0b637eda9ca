//! A node with pods, their servers and an agent, where each connection is judged three times: by the socket, by the
//! records and by the oracle.

mod cluster;
pub mod counts;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use reeve_policy::model::Verdict;
use serde_json::{Value, json};

use crate::demo::attempt::{self, Attempt};
use crate::lab::{Agent, AgentOptions, Lab, Manifests, Mode, Node, Pod, PodSpec, Records};
use crate::traffic::{self, PATIENCE, Server};

pub use crate::demo::attempt::Probe;
pub use cluster::Cluster;

/// The port of every pod's TCP server.
pub const WEB: Probe = Probe::Tcp(8080);
/// The port of every pod's UDP server.
pub const NAMES: Probe = Probe::Udp(53);
/// Longest wait for a record of something that has happened.
pub const RECORD_PATIENCE: Duration = Duration::from_secs(5);

/// The node and who plays on it. Fields are dropped in this order: the agent first, the lab last.
pub struct Stage {
    /// Started by [`Stage::start`].
    agent: Option<Agent>,
    /// Where its records have been read to.
    records: Option<Records>,
    servers: Vec<Server>,
    /// The node.
    pub node: Node,
    /// Its lab.
    pub lab: Lab,
}

impl Stage {
    /// A node with the namespace `shop` and nothing in it.
    pub fn new(name: &str, mode: Mode) -> Self {
        let lab = Lab::new(name).expect("a lab");
        let node = lab.node("node-1", mode).expect("a node");
        lab.manifests().namespace("shop", &[]).expect("a namespace");
        Self { agent: None, records: None, servers: Vec::new(), node, lab }
    }

    /// A pod of `shop` that serves [`WEB`] and [`NAMES`] on each of its addresses.
    pub fn pod(&mut self, name: &str, labels: &[(&str, &str)]) -> Pod {
        serving_pod(&self.node, name, labels, &mut self.servers)
    }

    /// Lets only pods with these labels reach pods with those, by any protocol.
    pub fn allow_from(&self, name: &str, to: (&str, &str), from: (&str, &str)) {
        self.policy(name, &ingress_from(to, from));
    }

    /// Writes a NetworkPolicy of `shop`.
    pub fn policy(&self, name: &str, spec: &Value) {
        write_policy(self.lab.manifests(), name, spec);
    }

    /// Starts the agent and waits until the kernel has everything.
    pub fn start(&mut self) {
        self.start_with(AgentOptions::default());
    }

    /// Starts the agent in another way and waits until it has everything.
    #[track_caller]
    pub fn start_with(&mut self, options: AgentOptions) {
        let agent = self.node.start_agent(options).expect("an agent");
        self.records = Some(agent.records());
        self.agent = Some(agent);
        self.settled();
    }

    /// The agent.
    pub fn agent(&mut self) -> &mut Agent {
        self.agent.as_mut().expect("the agent was started")
    }

    /// Its records.
    pub fn records(&mut self) -> &mut Records {
        self.records.as_mut().expect("the agent was started")
    }

    /// Waits until the kernel has every manifest; the revision that it then has.
    #[track_caller]
    pub fn settled(&mut self) -> u64 {
        self.agent().settled().expect("the agent has read its manifests")
    }

    /// Tries a connection; fails unless socket, records and oracle agree and the verdict is this one.
    #[track_caller]
    pub fn check(&mut self, from: &Pod, to: &Pod, probe: Probe, v6: bool, verdict: Verdict, said: &str) -> Attempt {
        let store = attempt::facts(&self.node.manifests_directory(), "node-1").expect("the facts");
        let done = attempt::attempt(&store, self.records(), from, to, probe, v6).expect("an attempt");
        let told: Vec<String> = done.disagreements().collect();
        let log = self.agent().log();
        assert!(told.is_empty(), "{}\nagent:\n{log}", told.join("\n"));
        let last = done.rows.last().unwrap_or_else(|| panic!("{}: no record", done.what));
        assert_eq!(last.record.decision.verdict(), verdict, "{}", done.what);
        let line = last.line["decision"].to_string();
        assert!(line.contains(said), "{}: {said} is not in {line}", done.what);
        done
    }

    /// The connection is allowed, at the receiver by this policy or default.
    #[track_caller]
    pub fn allows(&mut self, from: &Pod, to: &Pod, probe: Probe, said: &str) -> Attempt {
        self.check(from, to, probe, false, Verdict::Allow, said)
    }

    /// The connection is denied, and this policy or default named.
    #[track_caller]
    pub fn denies(&mut self, from: &Pod, to: &Pod, probe: Probe, said: &str) -> Attempt {
        self.check(from, to, probe, false, Verdict::Deny, said)
    }

    /// What the agent says of a pod.
    pub fn endpoint(&mut self, pod: &Pod) -> anyhow::Result<Value> {
        let all = self.agent().request("GET", "/endpoints")?.json()?;
        let found = all.as_array().and_then(|all| all.iter().find(|row| row["uid"] == pod.uid()));
        found.cloned().with_context(|| format!("{} is no endpoint in {all}", pod.full_name()))
    }

    /// The problems whose text names this.
    pub fn problems(&mut self, text: &str) -> Vec<Value> {
        let all = self.agent().request("GET", "/problems").and_then(|answer| answer.json()).expect("the problems");
        all.as_array().expect("a list").iter().filter(|problem| problem.to_string().contains(text)).cloned().collect()
    }
}

/// A pod of `shop` that serves [`WEB`] and [`NAMES`] on each of its addresses.
fn serving_pod(node: &Node, name: &str, labels: &[(&str, &str)], servers: &mut Vec<Server>) -> Pod {
    let spec = labels.iter().fold(PodSpec::new("shop", name), |spec, (key, value)| spec.label(key, value));
    let pod = node.pod(spec).expect("a pod");
    for address in pod.addresses() {
        servers.push(Server::tcp(pod.netns(), *address, 8080).expect("a TCP server"));
        servers.push(Server::udp(pod.netns(), *address, 53).expect("a UDP server"));
    }
    pod
}

/// Only pods with these labels reach pods with those, by any protocol.
fn ingress_from(to: (&str, &str), from: (&str, &str)) -> Value {
    json!({
        "podSelector": { "matchLabels": { to.0: to.1 } },
        "ingress": [{ "from": [{ "podSelector": { "matchLabels": { from.0: from.1 } } }] }]
    })
}

/// Writes a NetworkPolicy of `shop`.
fn write_policy(manifests: &Manifests, name: &str, spec: &Value) {
    let object = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": name, "namespace": "shop" }, "spec": spec
    });
    manifests.write(name, &object).expect("a policy");
}

/// `web`, which lets `role=client` in, such a client, and a pod that nothing allows; the agent has them all.
pub fn shop(name: &str, mode: Mode) -> (Stage, Pod, Pod, Pod) {
    let mut stage = Stage::new(name, mode);
    let web = stage.pod("web", &[("app", "web")]);
    let client = stage.pod("client", &[("role", "client")]);
    let guest = stage.pod("guest", &[]);
    stage.allow_from("web-clients", ("app", "web"), ("role", "client"));
    stage.start();
    (stage, web, client, guest)
}

/// What a connection gets, by its socket alone: where there is no agent, or the facts are in no state for the oracle.
pub fn get(from: &Pod, to: &Pod) -> traffic::Answer {
    traffic::tcp_exchange(from.netns(), SocketAddr::new(to.v4(), 8080), PATIENCE)
}
