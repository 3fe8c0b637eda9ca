//! Judges of one flow at one pod: whoever gives a verdict must give the same decision as all the others.
//!
//! Adding a judge means implementing [`Judge`] and adding it to the list that a test asks.

mod coverage;
mod kernel;

use std::net::IpAddr;
use std::sync::Arc;

use reeve_abi::decision;
use reeve_policy::engine::Engine;
use reeve_policy::image::mapped;
use reeve_policy::model::{Decision, Direction, Family, Workload};
use reeve_policy::oracle::{self, Owner, Query};
use reeve_policy::provenance::workload_id;

use crate::nat::Way;
use crate::worlds::{Flow, NODE};

pub use coverage::Coverage;
pub use kernel::{InKernel, first_packet};

/// A flow at the pod of this node that it leaves or reaches.
#[derive(Clone, Debug)]
pub struct Case {
    /// The flow.
    pub flow: Flow,
    /// How its packets come to its destination.
    pub way: Way,
    /// The pod whose policies are asked.
    pub subject: Arc<Workload>,
    /// As the pod sees it.
    pub direction: Direction,
}

impl Case {
    /// The cases of a flow: none, one, or one at each end.
    pub fn of(engine: &Engine, flow: Flow) -> Vec<Self> {
        Self::by(engine, flow, Way::Direct)
    }

    /// The same of a flow that comes to its destination by some way.
    pub fn by(engine: &Engine, flow: Flow, way: Way) -> Vec<Self> {
        let ends = [(flow.source, Direction::Egress), (flow.destination, Direction::Ingress)];
        ends.into_iter()
            .filter_map(|(own, direction)| match oracle::owner(engine.world(), own) {
                Owner::Workload(subject) if subject.node == NODE => Some(Self { flow, way, subject, direction }),
                _ => None,
            })
            .collect()
    }

    /// The subject's address.
    pub fn own(&self) -> IpAddr {
        if self.direction == Direction::Egress { self.flow.source } else { self.flow.destination }
    }

    /// The other side's address.
    pub fn peer(&self) -> IpAddr {
        if self.direction == Direction::Egress { self.flow.destination } else { self.flow.source }
    }

    /// The question to the oracle.
    pub fn query(&self) -> Query {
        Query {
            subject: Arc::clone(&self.subject),
            direction: self.direction,
            own: self.own(),
            peer: self.peer(),
            protocol: self.flow.protocol,
            port: self.flow.port,
        }
    }

    /// Whether a Service leads the flow back to whom it came from.
    fn is_to_itself(&self) -> bool {
        self.flow.source == self.flow.destination
    }

    /// The flow's family.
    pub fn family(&self) -> Family {
        if self.flow.source.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

/// Somebody who gives decisions.
pub trait Judge {
    /// Its name in failures.
    fn name(&self) -> &'static str;

    /// Takes in the world that the next cases are about; `engine` has applied all its changes.
    fn prepare(&mut self, engine: &Engine);

    /// Gives its decision; the text says why it has none.
    fn decide(&mut self, engine: &Engine, case: &Case) -> Result<Decision, String>;
}

/// The slow evaluator of the model.
#[derive(Debug, Default)]
pub struct Oracle;

impl Judge for Oracle {
    fn name(&self) -> &'static str {
        "oracle"
    }

    fn prepare(&mut self, _: &Engine) {}

    fn decide(&mut self, engine: &Engine, case: &Case) -> Result<Decision, String> {
        let (world, flow) = (engine.world(), &case.flow);
        let told = match case.way {
            _ if case.is_to_itself() => {
                oracle::explain_through_service(world, flow.source, flow.destination, flow.protocol, flow.port)
            }
            Way::OwnProcess => oracle::explain(world, flow.source, flow.destination, flow.protocol, flow.port),
            Way::Direct | Way::Translated { .. } => return Ok(oracle::judge(world, &case.query())),
        };
        let end = if case.direction == Direction::Ingress { told.ingress } else { told.egress };
        end.map(|(_, decision)| decision).ok_or_else(|| "this end is no pod".to_owned())
    }
}

/// What staged policies would decide about a case, or what oracle and compiler say of it if they say different things.
pub fn preview(engine: &Engine, case: &Case) -> Result<Option<Decision>, String> {
    if case.way == Way::OwnProcess {
        return Ok(None); // no policy is asked
    }
    let (flow, subject) = (&case.flow, workload_id(&case.subject.uid));
    let peer = mapped(case.peer());
    let known = engine.image().addresses.get(&peer).map(|value| value.identity);
    let identity = known.unwrap_or_else(|| engine.image().network_of(peer));
    let seen = engine.dictionary().get_identity(identity);
    let seen = seen.ok_or_else(|| format!("identity {identity} is not in the dictionary"))?;
    let (direction, family, preview) = (case.direction, case.family(), engine.preview());
    let (judged, compiled) = if case.is_to_itself() {
        let (source, backend) = (flow.source, flow.destination);
        let staged = oracle::explain_through_service(engine.world(), source, backend, flow.protocol, flow.port).staged;
        let judged = if direction == Direction::Ingress { staged.ingress } else { staged.egress };
        (judged, preview.decide_to_itself(subject, direction, family, &seen, flow.protocol, flow.port))
    } else {
        let judged = oracle::preview(engine.world(), &case.query());
        (judged, preview.decide(subject, direction, family, &seen, flow.protocol, flow.port))
    };
    if compiled == judged { Ok(judged) } else { Err(format!("preview: oracle {judged:?}, compiler {compiled:?}\n")) }
}

/// The look-up in the compiled image.
#[derive(Debug, Default)]
pub struct CompiledImage;

impl Judge for CompiledImage {
    fn name(&self) -> &'static str {
        "image"
    }

    fn prepare(&mut self, _: &Engine) {}

    fn decide(&mut self, engine: &Engine, case: &Case) -> Result<Decision, String> {
        let (subject, flow) = (workload_id(&case.subject.uid), &case.flow);
        let (direction, family, image) = (case.direction, case.family(), engine.image());
        let id = if case.way == Way::OwnProcess {
            Some(decision::OWN_NODE) // the kernel says who that is, no map
        } else if case.is_to_itself() {
            image.lookup_to_itself(subject, direction, family, flow.protocol, flow.port)
        } else {
            image.lookup(subject, direction, family, mapped(case.peer()), flow.protocol, flow.port)
        };
        let id = id.ok_or_else(|| format!("no endpoint for workload {}", case.subject.uid))?;
        engine
            .dictionary()
            .get_decision(id)
            .map(Arc::unwrap_or_clone)
            .ok_or_else(|| format!("decision {id} is not in the dictionary"))
    }
}
