//! Judges of one flow at one pod: whoever gives a verdict must give the same decision as all the others.
//!
//! Adding a judge means implementing [`Judge`] and adding it to the list that a test asks.

mod kernel;

use std::net::IpAddr;
use std::sync::Arc;

use reeve_policy::engine::Engine;
use reeve_policy::image::mapped;
use reeve_policy::model::{Decision, Direction, Family, Workload};
use reeve_policy::oracle::{self, Owner, Query};
use reeve_policy::provenance::workload_id;

use crate::nat::Way;
use crate::worlds::{Flow, NODE};

pub use kernel::InKernel;

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
        let query = Query {
            subject: Arc::clone(&case.subject),
            direction: case.direction,
            own: case.own(),
            peer: case.peer(),
            protocol: case.flow.protocol,
            port: case.flow.port,
        };
        Ok(oracle::judge(engine.world(), &query))
    }
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
        let subject = workload_id(&case.subject.uid);
        let id = engine
            .image()
            .lookup(subject, case.direction, case.family(), mapped(case.peer()), case.flow.protocol, case.flow.port)
            .ok_or_else(|| format!("no endpoint for workload {}", case.subject.uid))?;
        engine.dictionary().get_decision(id).ok_or_else(|| format!("decision {id} is not in the dictionary"))
    }
}
