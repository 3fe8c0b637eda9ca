//! Several nodes, each with its own agent: what passes between them is judged and recorded at both ends.

use std::net::{IpAddr, SocketAddr};

use reeve_policy::model::{Direction, Verdict};
use reeve_policy::store::Store;
use serde_json::{Value, json};

use super::{RECORD_PATIENCE, ingress_from, serving_pod, write_policy};
use crate::demo::attempt::{self, Attempt, Probe};
use crate::lab::{Agent, AgentOptions, Lab, Mode, Network, Node, Pod, Records};
use crate::traffic::Server;

/// The nodes `node-1`, `node-2` and so on, and who plays on them. Dropped in this order: agents first, the lab last.
pub struct Cluster {
    /// One for each node, once started.
    agents: Vec<Agent>,
    /// Where the records of each node have been read to.
    records: Vec<Records>,
    servers: Vec<Server>,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// Their lab.
    pub lab: Lab,
}

impl Cluster {
    /// Nodes with pods wired in these ways, the namespace `shop` and nothing in it.
    pub fn new(name: &str, network: Network, modes: &[Mode]) -> Self {
        let lab = Lab::joined(name, network).expect("a lab");
        let nodes = modes
            .iter()
            .enumerate()
            .map(|(index, mode)| lab.node(&format!("node-{}", index + 1), *mode).expect("a node"))
            .collect();
        lab.manifests().namespace("shop", &[]).expect("a namespace");
        Self { agents: Vec::new(), records: Vec::new(), servers: Vec::new(), nodes, lab }
    }

    /// A pod of `shop` on a node, counted from 0, that serves the stage's two ports on each of its addresses.
    pub fn pod(&mut self, node: usize, name: &str, labels: &[(&str, &str)]) -> Pod {
        serving_pod(&self.nodes[node], name, labels, &mut self.servers)
    }

    /// Processes of a node that serve the same ports on each of its addresses.
    pub fn serve_on_node(&mut self, node: usize) {
        let node = &self.nodes[node];
        for address in [node.v4(), node.v6()] {
            self.servers.push(Server::tcp(node.netns(), address, 8080).expect("a TCP server"));
            self.servers.push(Server::udp(node.netns(), address, 53).expect("a UDP server"));
        }
    }

    /// Lets only pods with these labels reach pods with those, by any protocol.
    pub fn allow_from(&self, name: &str, to: (&str, &str), from: (&str, &str)) {
        self.policy(name, &ingress_from(to, from));
    }

    /// Writes a NetworkPolicy of `shop`.
    pub fn policy(&self, name: &str, spec: &Value) {
        write_policy(self.lab.manifests(), name, spec);
    }

    /// Starts every node's agent and waits until each kernel has everything.
    #[track_caller]
    pub fn start(&mut self) {
        self.start_with(&AgentOptions::default());
    }

    /// Starts every node's agent in another way.
    #[track_caller]
    pub fn start_with(&mut self, options: &AgentOptions) {
        for node in &self.nodes {
            let agent = node.start_agent(options.clone()).expect("an agent");
            self.records.push(agent.records());
            self.agents.push(agent);
        }
        self.settled();
    }

    /// The agent of a node, counted from 0.
    pub fn agent(&mut self, node: usize) -> &mut Agent {
        &mut self.agents[node]
    }

    /// Waits until every kernel has every manifest.
    #[track_caller]
    pub fn settled(&mut self) {
        for agent in &self.agents {
            agent.settled().expect("the agent has read its manifests");
        }
    }

    /// Forgets the records that were written so far.
    pub fn skip_records(&mut self) {
        for records in &mut self.records {
            records.rest().expect("records");
        }
    }

    /// The next record of a node's agent that is wanted.
    #[track_caller]
    pub fn record(&mut self, node: usize, wanted: impl Fn(&Value) -> bool) -> Value {
        self.records[node].wait_for(RECORD_PATIENCE, wanted).expect("a record")
    }

    /// The next record of a node's agent of a flow between these addresses.
    #[track_caller]
    pub fn record_between(&mut self, node: usize, source: IpAddr, destination: IpAddr) -> Value {
        let (source, destination) = (source.to_string(), destination.to_string());
        self.record(node, |line| {
            line["source"]["ip"] == source.as_str() && line["destination"]["ip"] == destination.as_str()
        })
    }

    /// Tries a connection; fails unless socket, the records of both ends and the oracle agree, each end was judged on
    /// its own node, and the verdict is this one.
    #[track_caller]
    pub fn check(&mut self, from: &Pod, to: &Pod, probe: Probe, v6: bool, verdict: Verdict, said: &str) -> Attempt {
        let store = self.facts();
        let done = attempt::attempt_between(&store, &mut self.records, from, to, probe, v6).expect("an attempt");
        self.agreed(from, to, done, verdict, said)
    }

    /// As [`Cluster::check`], asking for an address that leads to `to`, which the sender's record names too.
    #[track_caller]
    pub fn check_at(
        &mut self,
        from: &Pod,
        asked: SocketAddr,
        to: &Pod,
        probe: Probe,
        verdict: Verdict,
        said: &str,
    ) -> Attempt {
        let store = self.facts();
        let done = attempt::attempt_at(&store, &mut self.records, from, asked, to, probe, asked.is_ipv6());
        let done = self.agreed(from, to, done.expect("an attempt"), verdict, said);
        let sent = &done.rows[0].line;
        assert_eq!(sent["direction"], "egress", "{sent}");
        let service = json!({ "address": asked.ip(), "port": asked.port() });
        assert_eq!(sent["service"], service, "{}: {sent}", done.what);
        done
    }

    fn facts(&self) -> Store {
        attempt::facts(&self.nodes[0].manifests_directory(), self.nodes[0].name()).expect("the facts")
    }

    #[track_caller]
    fn agreed(&self, from: &Pod, to: &Pod, done: Attempt, verdict: Verdict, said: &str) -> Attempt {
        let told: Vec<String> = done.disagreements().collect();
        let logs: Vec<String> = self.agents.iter().map(Agent::log).collect();
        assert!(told.is_empty(), "{}\nagents:\n{}", told.join("\n"), logs.join("\n---\n"));
        for row in &done.rows {
            let end = if row.record.direction == Direction::Egress { from } else { to };
            assert_eq!(row.record.node, end.node().name(), "{}: {}", done.what, row.line);
            for (side, pod) in [("source", from), ("destination", to)] {
                assert_eq!(row.line[side]["uid"], pod.uid(), "{}: {}", done.what, row.line);
            }
        }
        let last = done.rows.last().unwrap_or_else(|| panic!("{}: no record", done.what));
        assert_eq!(last.record.decision.verdict(), verdict, "{}", done.what);
        let line = last.line["decision"].to_string();
        assert!(line.contains(said), "{}: {said} is not in {line}", done.what);
        done
    }
}
