//! How costs grow with a cluster: one of its sizes at a time.

use super::Sheet;
use super::cluster::Cluster;
use super::engine::relabels;
use super::measure::Measure;
use super::rounds::median;
use super::testbed::Testbed;

/// Labels that change in one round.
const RELABELS: u32 = 50;

/// What grows.
const SERIES: [(&str, [Cluster; 3]); 3] = [
    (
        "pods",
        [
            Cluster { pods: 1_000, policies: 100, peers: 250 },
            Cluster { pods: 10_000, policies: 100, peers: 250 },
            Cluster { pods: 100_000, policies: 100, peers: 250 },
        ],
    ),
    (
        "policies",
        [
            Cluster { pods: 10_000, policies: 10, peers: 250 },
            Cluster { pods: 10_000, policies: 100, peers: 250 },
            Cluster { pods: 10_000, policies: 1_000, peers: 250 },
        ],
    ),
    (
        "peers",
        [
            Cluster { pods: 10_000, policies: 100, peers: 50 },
            Cluster { pods: 10_000, policies: 100, peers: 500 },
            Cluster { pods: 10_000, policies: 100, peers: 5_000 },
        ],
    ),
];

fn size(what: &str, cluster: &Cluster) -> u32 {
    match what {
        "pods" => cluster.pods,
        "policies" => cluster.policies,
        _ => cluster.peers,
    }
}

fn name(cost: &str, what: &str, cluster: &Cluster) -> String {
    format!("growth/{cost}-{what}-{}", size(what, cluster))
}

/// What this area measures.
pub fn measures() -> Vec<Measure> {
    let mut all = Vec::new();
    for (what, clusters) in &SERIES {
        for cluster in clusters {
            let Cluster { pods, policies, peers } = cluster;
            let world = format!("{pods} pods, {policies} policies of {peers} peers each");
            let how = format!("the first packet of a connection, everything drawn; {world}");
            all.push(Measure::new(name("new-flow", what, cluster), "ns", how));
            let how = format!("a label changes: engine and maps; {world}");
            all.push(Measure::new(name("relabel", what, cluster), "ms", how));
        }
    }
    all
}

/// See [`measures`].
pub fn run(sheet: &mut Sheet<'_>) -> anyhow::Result<()> {
    for (what, clusters) in &SERIES {
        let wanted = |cost: &str| clusters.iter().any(|cluster| sheet.wants(&name(cost, what, cluster)));
        let (flows, labels) = (wanted("new-flow"), wanted("relabel"));
        if !flows && !labels {
            continue;
        }
        let mut beds: Vec<Testbed> = Vec::new();
        for cluster in clusters {
            beds.push(match beds.last() {
                None => Testbed::new(*cluster)?,
                Some(bed) => bed.beside(*cluster)?,
            });
        }
        let mut costs = vec![(Vec::new(), Vec::new()); beds.len()];
        for round in 0..=sheet.rounds() {
            for (bed, (new, relabelled)) in beds.iter_mut().zip(&mut costs) {
                if flows {
                    new.push(bed.cost_of_drawn()?);
                }
                if labels {
                    relabelled.push(median(&mut relabels(bed, u32::try_from(round)?, RELABELS)?));
                }
            }
        }
        for (cluster, (mut new, mut relabelled)) in clusters.iter().zip(costs) {
            // The first round warms.
            if flows {
                sheet.put(&name("new-flow", what, cluster), new.split_off(1));
            }
            if labels {
                sheet.put(&name("relabel", what, cluster), relabelled.split_off(1));
            }
        }
    }
    Ok(())
}
