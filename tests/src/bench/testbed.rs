//! A compiled cluster in the maps of programs that are loaded for it alone, and what its packets cost there.

use std::collections::{HashMap, HashSet};

use anyhow::Context;
use fastrand::Rng;
use reeve_abi::ids::WorkloadId;
use reeve_abi::stats;
use reeve_packet::env::Hook;
use reeve_policy::engine::Engine;
use reeve_policy::image::mapped;
use std::os::fd::{AsFd, OwnedFd};

use super::bytecode;
use super::cluster::{Cluster, ENDPOINTS, NODE, address};
use super::dealer::{Deal, Dealer, Segment};
use crate::kernel::Kernel;

/// Packets in a row to one pod where pods are drawn too: each change of the interface is a call of the kernel.
const BATCH: usize = 16;
/// Such rows in one round.
const ROWS: usize = 640;

/// See the module.
pub struct Testbed {
    /// The programs and their maps, as large as in production.
    pub kernel: Kernel,
    /// The compiler, with everything in it.
    pub engine: Engine,
    /// The cluster.
    pub cluster: Cluster,
    /// Interface of each workload of this node.
    pub devices: HashMap<WorkloadId, u32>,
    /// Interface index of the first pod; those of the others follow.
    first: u32,
    empty: OwnedFd,
    rng: Rng,
    /// Connections that were drawn before.
    drawn: HashSet<(u32, u16, u16)>,
}

impl Testbed {
    /// Compiles a cluster and loads it, into a network namespace of this thread's own.
    pub fn new(cluster: Cluster) -> anyhow::Result<Self> {
        Self::fill(Kernel::load_with(&[])?, cluster, 4_000)
    }

    /// The same beside another one, which it takes turns with.
    pub fn beside(&self, cluster: Cluster) -> anyhow::Result<Self> {
        Self::fill(self.kernel.load_beside(&[])?, cluster, self.first + 1_000)
    }

    fn fill(mut kernel: Kernel, cluster: Cluster, first: u32) -> anyhow::Result<Self> {
        let mut engine = Engine::new(NODE, 0);
        let update = engine.apply(cluster.changes());
        anyhow::ensure!(update.problems.is_empty(), "problems in the cluster: {:?}", update.problems.first());
        let mut devices = HashMap::new();
        for number in 0..ENDPOINTS {
            let own = mapped(address(number).into());
            let endpoints = &engine.image().endpoints;
            let found = endpoints.iter().find(|(_, endpoint)| endpoint.address_v4 == own);
            devices.insert(*found.with_context(|| format!("pod {number} has no endpoint"))?.0, first + number);
        }
        let listed: Vec<_> = devices.iter().map(|(workload, device)| (*workload, *device)).collect();
        kernel.apply_image(engine.image(), &listed)?;
        let (empty, rng) = (bytecode::empty()?, Rng::with_seed(u64::from(cluster.pods + cluster.policies)));
        Ok(Self { kernel, engine, cluster, devices, first, empty, rng, drawn: HashSet::new() })
    }

    /// Interface index of a pod of this node.
    pub fn device(&self, endpoint: u32) -> u32 {
        self.first + endpoint
    }

    /// Interface index by which packets of other nodes come.
    pub fn uplink(&self) -> u32 {
        self.first + ENDPOINTS
    }

    /// Packets to a pod, each the first of another connection that is let in.
    pub fn draw(&mut self, endpoint: u32, count: usize) -> Vec<Deal> {
        let mut deals = Vec::with_capacity(count);
        while deals.len() < count {
            let deal = self.cluster.draw(&mut self.rng, endpoint);
            if self.drawn.insert((deal.source.0.to_bits(), deal.source.1, deal.destination.1)) {
                deals.push(deal);
            }
        }
        deals
    }

    /// Mean cost in ns of one run of the program at a pod's interface, above an empty one, of as many packets as are
    /// dealt from the beginning; each must be counted under this one of `reeve_abi::stats`.
    pub fn cost(&mut self, dealer: &Dealer, endpoint: u32, packets: u32, counted: u32) -> anyhow::Result<f64> {
        let at = (self.device(endpoint), self.uplink());
        dealer.aim(self.empty.as_fd())?;
        dealer.rewind()?;
        let base = dealer.deal(at.0, at.1, packets)?;
        dealer.aim(self.kernel.program_fd(Hook::ToPod)?)?;
        dealer.rewind()?;
        let before = self.kernel.stat(counted)?;
        let cost = dealer.deal(at.0, at.1, packets)?;
        let counts = self.kernel.stat(counted)? - before;
        anyhow::ensure!(counts == u64::from(packets), "{counts} of {packets} packets took the way that is measured");
        self.kernel.take_events();
        Ok(cost - base)
    }

    /// Mean cost in ns of the first packet of a connection, above an empty program: policy, peer and pod are drawn.
    pub fn cost_of_drawn(&mut self) -> anyhow::Result<f64> {
        let mut deals = Vec::with_capacity(ROWS * BATCH);
        let mut devices = Vec::with_capacity(ROWS);
        for _ in 0..ROWS {
            let endpoint = self.cluster.draw_endpoint(&mut self.rng);
            deals.extend(self.draw(endpoint, BATCH));
            devices.push(self.device(endpoint));
        }
        let dealer = Dealer::new(&deals, Segment::Opening)?;
        let batch = u32::try_from(BATCH)?;
        let uplink = self.uplink();
        let pass = |dealer: &Dealer| -> anyhow::Result<f64> {
            let mut sum = 0.0;
            for device in &devices {
                sum += dealer.deal(*device, uplink, batch)?;
            }
            Ok(sum / f64::from(u32::try_from(ROWS)?))
        };
        dealer.aim(self.empty.as_fd())?;
        let base = pass(&dealer)?;
        dealer.aim(self.kernel.program_fd(Hook::ToPod)?)?;
        let before = self.kernel.stat(stats::ALLOWED_JUDGED)?;
        let cost = pass(&dealer)?;
        let judged = self.kernel.stat(stats::ALLOWED_JUDGED)? - before;
        anyhow::ensure!(judged == deals.len() as u64, "{judged} of {} connections were let in", deals.len());
        self.kernel.take_events();
        Ok(cost - base)
    }

    /// Mean time in ns of a run of the empty program over a frame.
    pub fn empty_run(&self, frame: &[u8], ifindex: u32, repeat: u32) -> anyhow::Result<f64> {
        bytecode::test_run(self.empty.as_fd(), frame, &crate::kernel::context(ifindex, 0, 0), repeat).map(|(ns, _)| ns)
    }

    /// Forgets all flows; the rows of `EDGES` stay.
    pub fn forget_flows(&mut self) -> anyhow::Result<()> {
        for (key, _) in self.kernel.flows().all()? {
            self.kernel.flows().remove(&key)?;
        }
        Ok(())
    }
}
