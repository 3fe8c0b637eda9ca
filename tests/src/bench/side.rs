//! Sides of a comparison: nodes that are wired alike and differ in who enforces policy there, if anybody does.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use anyhow::Context;

use super::bytecode::{self, Hook};
use super::policies::{GROUP, NAMESPACE, Policies, TCP_PORT, UDP_PORT};
use super::rules::{self, Rival};
use crate::lab::{
    Agent, AgentOptions, Backend, Families, Flavour, Lab, Mode, Node, Pod, PodSpec, ServiceSpec, Services, Transport,
};
use crate::traffic::{self, NoAnswer, PATIENCE, Server};

/// Services that are translated on every side where there are any.
const SERVICES: u16 = 20;

/// Who enforces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforcer {
    /// Nobody.
    Nobody,
    /// Nobody again: what it differs by is noise.
    NobodyAgain,
    /// Nobody, but there is a program at both hooks of each pod, which does nothing: below that no program gets.
    Empty,
    /// The agent with its programs.
    Reeve,
    /// Rules.
    Rules(Rival),
}

impl Enforcer {
    fn node(self) -> &'static str {
        match self {
            Self::Nobody => "plain",
            Self::NobodyAgain => "again",
            Self::Empty => "empty",
            Self::Reeve => "reeve",
            Self::Rules(Rival::Nftables) => "nftables",
            Self::Rules(Rival::Iptables) => "iptables",
        }
    }
}

/// Whether the nodes track connections and translate Services, as most do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracking {
    /// No.
    None,
    /// All of them do.
    WithServices,
}

/// A node with two pods that are measured and one that must not reach them.
pub struct Side {
    /// Who enforces there.
    pub enforcer: Enforcer,
    /// Ended before its node goes.
    agent: Option<Agent>,
    /// Of programs that do nothing.
    links: Vec<OwnedFd>,
    /// Sends.
    pub client: Pod,
    /// Receives.
    pub server: Pod,
    guest: Pod,
    /// The node of all three.
    pub node: Node,
}

/// The sides of a comparison and their lab, which goes last.
pub struct Sides {
    /// In the order that was asked for.
    pub all: Vec<Side>,
    services: Option<Services>,
    lab: Lab,
}

impl Sides {
    /// Makes them; each has shown that it lets the measured traffic pass and, if it enforces, that it stops other.
    pub fn new(name: &str, enforcers: &[Enforcer], policies: Policies, tracking: Tracking) -> anyhow::Result<Self> {
        let lab = Lab::new(name)?;
        lab.manifests().namespace(NAMESPACE, &[])?;
        let mut all = Vec::new();
        for enforcer in enforcers {
            all.push(Side::new(&lab, *enforcer, policies)?);
        }
        let mut sides = Self { all, services: None, lab };
        if tracking == Tracking::WithServices {
            sides.translate()?;
        }
        for side in &mut sides.all {
            side.enforce(policies)?;
            side.prove().with_context(|| format!("the side {}", side.enforcer.node()))?;
        }
        Ok(sides)
    }

    fn translate(&mut self) -> anyhow::Result<()> {
        let nodes: Vec<&Node> = self.all.iter().map(|side| &side.node).collect();
        let services = Services::new(&self.lab, Flavour::Nftables, &nodes)?;
        for number in 0..SERVICES {
            let spec = ServiceSpec::new(NAMESPACE, &format!("service-{number}"));
            let spec = spec.port(Transport::Tcp, 80, TCP_PORT).port(Transport::Udp, 53, UDP_PORT);
            let backends: Vec<Backend> = self.all.iter().map(|side| Backend::pod(&side.server)).collect();
            services.add(spec, &backends)?;
        }
        self.services = Some(services);
        Ok(())
    }
}

impl Side {
    fn new(lab: &Lab, enforcer: Enforcer, policies: Policies) -> anyhow::Result<Self> {
        let node = lab.node(enforcer.node(), Mode::Routed)?;
        let pod = |name: &str, group: Option<&str>| {
            let spec = PodSpec::new(NAMESPACE, &format!("{}-{name}", enforcer.node())).families(Families::V4);
            node.pod(match group {
                Some(group) => spec.label(GROUP, group),
                None => spec,
            })
        };
        let admitted = policies.admitted();
        let (client, server) = (pod("client", Some(&admitted))?, pod("server", Some(&admitted))?);
        let guest = pod("guest", None)?;
        Ok(Self { enforcer, agent: None, links: Vec::new(), client, server, guest, node })
    }

    fn enforce(&mut self, policies: Policies) -> anyhow::Result<()> {
        match self.enforcer {
            Enforcer::Nobody | Enforcer::NobodyAgain => Ok(()),
            Enforcer::Empty => {
                let devices = [self.client.host_index()?, self.server.host_index()?];
                self.links = self.node.netns().run(|| attach_empty(&devices))??;
                Ok(())
            }
            Enforcer::Reeve => {
                policies.write(&self.node)?;
                let agent = self.node.start_agent(AgentOptions::default())?;
                agent.settled()?;
                self.agent = Some(agent);
                Ok(())
            }
            Enforcer::Rules(rival) => {
                let measured = [v4(&self.client)?, v4(&self.server)?];
                let pods = [measured[0], measured[1], v4(&self.guest)?];
                rules::load(rival, &self.node, policies, &pods, &measured)
            }
        }
    }

    /// Fails unless the measured traffic passes, and that of the guest and at another port exactly if nobody enforces.
    pub fn prove(&self) -> anyhow::Result<()> {
        let own = self.server.v4();
        let _udp = Server::udp(self.server.netns(), own, UDP_PORT)?;
        let _tcp = Server::tcp(self.server.netns(), own, TCP_PORT)?;
        let _other = Server::tcp(self.server.netns(), own, TCP_PORT + 1)?;
        let enforces = matches!(self.enforcer, Enforcer::Reeve | Enforcer::Rules(_));
        for (who, from, port, passes) in [
            ("the client", &self.client, TCP_PORT, true),
            ("the client at another port", &self.client, TCP_PORT + 1, !enforces),
            ("the guest", &self.guest, TCP_PORT, !enforces),
        ] {
            let answer = traffic::connect(from.netns(), SocketAddr::new(own, port), PATIENCE)
                .and_then(|mut connection| connection.exchange(PATIENCE));
            anyhow::ensure!(answer == wanted(passes), "TCP of {who}: {answer:?}");
        }
        for (who, from, passes) in [("the client", &self.client, true), ("the guest", &self.guest, !enforces)] {
            let answer = traffic::udp_exchange(from.netns(), SocketAddr::new(own, UDP_PORT), PATIENCE);
            anyhow::ensure!(answer == wanted(passes), "UDP of {who}: {answer:?}");
        }
        Ok(())
    }
}

/// Puts a program that does nothing at both hooks of each device.
fn attach_empty(devices: &[u32]) -> anyhow::Result<Vec<OwnedFd>> {
    let program = bytecode::empty()?;
    let at = devices.iter().flat_map(|device| [(device, Hook::Ingress), (device, Hook::Egress)]);
    at.map(|(device, hook)| bytecode::attach(program.as_fd(), *device, hook)).collect()
}

fn wanted(passes: bool) -> traffic::Answer {
    if passes { Ok(()) } else { Err(NoAnswer::TimedOut) }
}

fn v4(pod: &Pod) -> anyhow::Result<Ipv4Addr> {
    match pod.v4() {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(address) => anyhow::bail!("{address} is no IPv4 address"),
    }
}
