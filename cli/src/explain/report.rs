//! The oracle's answer, as text and as JSON.

use super::resolve::Flow;
use crate::output::{Answer, painted};
use reeve_flow::record::{Icmp, Owner as OwnerName, Protocol};
use reeve_flow::text::{self, Colour};
use reeve_policy::model::{Decision, Labels, PolicyRef, Verdict, Workload, World};
use reeve_policy::oracle::{self, Explanation, Owner};
use serde::Serialize;
use std::net::IpAddr;
use std::sync::Arc;

/// What is asked and what is answered.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report<'a> {
    verdict: Verdict,
    protocol: Protocol,
    #[serde(skip_serializing_if = "Option::is_none")]
    icmp: Option<Icmp>,
    source: End,
    destination: End,
    /// What the policies of the source say; none where the source is no pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    egress: Option<&'a Decision>,
    /// What the policies of the destination say; none where the destination is no pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    ingress: Option<&'a Decision>,
    /// What staged policies would change; none where they change nothing.
    #[serde(skip_serializing_if = "Staged::is_empty")]
    staged: Staged<'a>,
}

/// What would be decided at each end if every staged policy were applied.
#[derive(Serialize)]
struct Staged<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    egress: Option<&'a Decision>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ingress: Option<&'a Decision>,
}

impl Staged<'_> {
    fn is_empty(&self) -> bool {
        self.egress.is_none() && self.ingress.is_none()
    }
}

/// What the policies of one end say.
#[derive(Clone, Copy)]
struct Said<'a> {
    direction: &'static str,
    enforced: Option<&'a Decision>,
    staged: Option<&'a Decision>,
}

/// One end; the keys are those of a flow record's sides.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct End {
    owner: OwnerName,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<String>,
    /// All labels of the pod.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    labels: Labels,
    ip: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
}

impl<'a> Report<'a> {
    pub(super) fn new(world: &World, flow: Flow, explanation: &'a Explanation) -> Self {
        let [kind, code] = flow.port.to_be_bytes();
        Self {
            verdict: explanation.verdict,
            protocol: flow.protocol,
            icmp: flow.protocol.is_icmp().then_some(Icmp { kind, code }),
            source: End::new(world, flow.source, None),
            destination: End::new(world, flow.destination, flow.protocol.has_ports().then_some(flow.port)),
            egress: explanation.egress.as_ref().map(|(_, decision)| decision),
            ingress: explanation.ingress.as_ref().map(|(_, decision)| decision),
            staged: Staged { egress: explanation.staged.egress.as_ref(), ingress: explanation.staged.ingress.as_ref() },
        }
    }

    /// As lines for people.
    pub(super) fn text(&self, colour: Colour) -> Vec<String> {
        let verdict = match self.verdict {
            Verdict::Allow => painted(colour, Answer::Yes, "ALLOW"),
            Verdict::Deny => painted(colour, Answer::No, "DENY"),
        };
        let mut lines =
            vec![format!("{verdict}  {} -> {}{}", self.source.name(), self.destination.name(), self.service())];
        let egress = Said { direction: "egress", enforced: self.egress, staged: self.staged.egress };
        let ingress = Said { direction: "ingress", enforced: self.ingress, staged: self.staged.ingress };
        self.source.describe("from", egress, colour, &mut lines);
        self.destination.describe("to", ingress, colour, &mut lines);
        lines
    }

    fn service(&self) -> String {
        match (self.destination.port, self.icmp) {
            (Some(port), _) => format!(":{port}/{}", self.protocol),
            (None, Some(icmp)) => format!(":{}.{}/{}", icmp.kind, icmp.code, self.protocol),
            (None, None) => format!("/{}", self.protocol),
        }
    }
}

impl End {
    fn new(world: &World, ip: IpAddr, port: Option<u16>) -> Self {
        let mut end = Self {
            owner: OwnerName::World,
            namespace: None,
            pod: None,
            uid: None,
            labels: Labels::new(),
            ip,
            port,
            node: None,
        };
        match oracle::owner(world, ip) {
            Owner::Workload(pod) => end.fill(&pod),
            Owner::Contested => end.owner = OwnerName::Contested,
            Owner::ThisNode => {
                end.owner = OwnerName::Host;
                end.node = Some(world.node.clone());
            }
            Owner::Node(name) => {
                end.owner = OwnerName::Node;
                end.node = Some(name);
            }
            Owner::None => {}
        }
        end
    }

    fn fill(&mut self, pod: &Arc<Workload>) {
        self.owner = OwnerName::Pod;
        self.namespace = Some(pod.namespace.clone());
        self.pod = Some(pod.name.clone());
        self.uid = Some(pod.uid.clone());
        self.labels.clone_from(&pod.labels);
        self.node = (!pod.node.is_empty()).then(|| pod.node.clone());
    }

    fn name(&self) -> String {
        match (&self.namespace, &self.pod) {
            (Some(namespace), Some(pod)) => text::plain(&format!("{namespace}/{pod}")),
            _ if self.ip.is_ipv6() => format!("[{}]", self.ip),
            _ => self.ip.to_string(),
        }
    }

    /// Who is there, and what the policies that select it say.
    fn describe(&self, preposition: &str, said: Said<'_>, colour: Colour, lines: &mut Vec<String>) {
        lines.push(String::new());
        let node = self.node.as_deref().map(text::plain);
        let who = match (self.owner, node) {
            (OwnerName::Pod, Some(node)) => format!("{}, a pod on {node}", self.ip),
            (OwnerName::Pod, None) => format!("{}, a pod without a node", self.ip),
            (OwnerName::Host | OwnerName::Node, Some(node)) => format!("an address of node {node}"),
            (OwnerName::Contested, _) => "an address that several claim, so it is nobody's".to_owned(),
            _ => "no pod and no node that is known".to_owned(),
        };
        lines.push(format!("{preposition} {} ({who})", self.name()));
        let mut say = |name: &str, value: &str| lines.push(format!("  {name:<11} {value}"));
        if self.owner == OwnerName::Pod {
            let labels: Vec<String> = self.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            say("labels", &if labels.is_empty() { "none".to_owned() } else { text::plain(&labels.join(", ")) });
        }
        let Some(decision) = said.enforced else {
            say(said.direction, "no policy is asked: only pods have policies");
            return;
        };
        for (name, decision) in [(said.direction, Some(decision)), ("staged", said.staged)] {
            let Some(decision) = decision else { continue };
            let verdict = match decision.verdict {
                Verdict::Allow => painted(colour, Answer::Yes, "allow"),
                Verdict::Deny => painted(colour, Answer::No, "deny"),
            };
            say(name, &verdict);
            say("decided by", &text::decider_text(decision));
            for (index, step) in decision.path.iter().enumerate() {
                say(if index == 0 { "path" } else { "" }, &text::step_text(step));
            }
            for (name, policies) in [("isolating", &decision.isolating), ("also", &decision.also)] {
                if !policies.is_empty() {
                    say(name, &names(policies));
                }
            }
        }
    }
}

fn names(policies: &[Arc<PolicyRef>]) -> String {
    policies.iter().map(|policy| text::policy_text(policy)).collect::<Vec<_>>().join(", ")
}
