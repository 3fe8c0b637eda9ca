//! What many live flows make of the cost of one: packets of flows in random order, beside the bare look-up.

use bytemuck::bytes_of;
use fastrand::Rng;
use reeve_abi::stats;

use super::Sheet;
use super::cluster::Cluster;
use super::dealer::{Deal, Dealer, Finder, Segment};
use super::measure::{Measure, Target};
use super::testbed::Testbed;

/// Packets in one round, at least.
const PACKETS: u32 = 100_000;
/// Flows of the small case.
const FEW: u32 = 100;
/// Flows of the large case.
const MANY: u32 = 100_000;
/// How many of the live flows of the large case have packets.
const ACTIVE: [u32; 3] = [1_000, 10_000, MANY];

const RATIO: &str = "flows/established-100000-to-100";
const FLOOR: &str = "flows/look-up-100000-to-100";

fn established(flows: u32) -> String {
    format!("flows/established-{flows}")
}

fn look_up(flows: u32) -> String {
    format!("flows/look-up-{flows}")
}

/// What this area measures.
pub fn measures() -> Vec<Measure> {
    let mut all = vec![
        Measure::new(RATIO, "ratio", "the cost with 100,000 live flows and 1,000 policies by that with 100 and 1")
            .target(Target::AtMost(1.5)),
        Measure::new(FLOOR, "ratio", "the same of nothing but the look-up of the flow"),
    ];
    for flows in [FEW].into_iter().chain(ACTIVE) {
        all.push(Measure::new(established(flows), "ns", "a packet of so many live flows, in random order"));
        all.push(Measure::new(look_up(flows), "ns", "nothing but the look-up of the flow, in the same order"));
    }
    all
}

/// See [`measures`].
pub fn run(sheet: &mut Sheet<'_>) -> anyhow::Result<()> {
    let mut rng = Rng::with_seed(1);
    let mut few = Testbed::new(Cluster { pods: 1_000, policies: 1, peers: 250 })?;
    let mut many = few.beside(Cluster { pods: 10_000, policies: 1_000, peers: 250 })?;
    let small = Case::open(&mut few, &mut rng, FEW, &[FEW])?;
    let large = Case::open(&mut many, &mut rng, MANY, &ACTIVE)?;
    let mut costs = vec![Vec::new(); ACTIVE.len() + 1];
    let mut floors = costs.clone();
    for _ in 0..sheet.rounds() {
        let (cost, floor) = small.cost(&mut few, 0)?;
        costs[0].push(cost);
        floors[0].push(floor);
        for nth in 0..ACTIVE.len() {
            let (cost, floor) = large.cost(&mut many, nth)?;
            costs[nth + 1].push(cost);
            floors[nth + 1].push(floor);
        }
    }
    let ratios = |all: &[Vec<f64>]| all[ACTIVE.len()].iter().zip(&all[0]).map(|(many, few)| many / few).collect();
    sheet.put(RATIO, ratios(&costs));
    sheet.put(FLOOR, ratios(&floors));
    for ((flows, cost), floor) in [FEW].into_iter().chain(ACTIVE).zip(costs).zip(floors) {
        sheet.put(&established(flows), cost);
        sheet.put(&look_up(flows), floor);
    }
    Ok(())
}

/// Live flows of one pod; packets of some of them.
struct Case {
    /// How many flows, who deals their packets, and who only looks them up.
    active: Vec<(u32, Dealer, Finder)>,
}

impl Case {
    fn open(bed: &mut Testbed, rng: &mut Rng, flows: u32, active: &[u32]) -> anyhow::Result<Self> {
        let mut deals = bed.draw(0, usize::try_from(flows)?);
        bed.cost(&Dealer::new(&deals, Segment::Opening)?, 0, flows, stats::ALLOWED_JUDGED)?;
        rng.shuffle(&mut deals);
        let rows = bed.kernel.flows().all()?;
        anyhow::ensure!(rows.len() == deals.len(), "{} of {flows} flows are live", rows.len());
        let mut keys: Vec<_> = rows.into_iter().map(|(key, _)| key).collect();
        rng.shuffle(&mut keys);
        let some = |count: &u32| -> anyhow::Result<_> {
            let length = usize::try_from(*count)?;
            let dealt: &[Deal] = &deals[..length];
            let bytes: Vec<u8> = keys[..length].iter().flat_map(|key| bytes_of(key).to_vec()).collect();
            Ok((*count, Dealer::new(dealt, Segment::Open)?, Finder::new(bed.kernel.flows_fd(), &bytes)?))
        };
        Ok(Self { active: active.iter().map(some).collect::<anyhow::Result<_>>()? })
    }

    /// The cost of a packet and of a look-up.
    fn cost(&self, bed: &mut Testbed, nth: usize) -> anyhow::Result<(f64, f64)> {
        let (_, dealer, finder) = &self.active[nth];
        // Once before: counters of a flow are flushed once a second, which is not what is measured.
        bed.cost(dealer, 0, PACKETS, stats::ALLOWED_ESTABLISHED)?;
        let cost = bed.cost(dealer, 0, PACKETS, stats::ALLOWED_ESTABLISHED)?;
        finder.cost(PACKETS)?;
        Ok((cost, finder.cost(PACKETS)?))
    }
}
