//! What cannot be honoured, and what has no room in the kernel.

use super::Enforcer;
use crate::cni::installer;
use crate::datapath::MapError;
use crate::datapath::reconcile::Known;
use reeve_abi::address::Address;
use reeve_abi::ids::WorkloadId;
use reeve_policy::model::{Level, Problem};
use reeve_policy::provenance::workload_id;
use std::time::Instant;

impl Enforcer {
    /// All problems: those of where facts come from, and those of objects.
    pub(crate) fn all_problems(&self) -> impl Iterator<Item = Problem> {
        let kept = self.source_problems.iter().chain(&self.problems).chain(&self.drift).chain(&self.crowded);
        let of_others = installer::problems(&self.complaints).into_iter().chain(self.untold.problems());
        let of_pods = self.unplaced_problems().into_iter().chain(self.unseen.problems(Instant::now()));
        kept.cloned().chain(of_pods).chain(of_others)
    }

    /// How many problems of a level there are.
    pub(crate) fn problem_count(&self, level: Level) -> usize {
        self.all_problems().filter(|problem| problem.level == level).count()
    }

    /// Whether every address has a place in the kernel.
    pub(crate) fn known(&self) -> Known {
        if self.room.waiting() == 0 { Known::All } else { Known::Some }
    }

    /// Whether this address has a place in the kernel.
    pub(crate) fn has_room(&self, address: &Address) -> bool {
        self.room.has(address)
    }

    /// What has no room in the kernel.
    pub(crate) fn unplaced_problems(&self) -> Vec<Problem> {
        let mut problems = self.homeless.values().cloned().collect::<Vec<_>>();
        if self.known() == Known::Some {
            problems.push(Problem {
                level: Level::Warning,
                object: format!("Node/{}", self.node),
                field: "map ADDRESSES".to_owned(),
                value: self.loaded.maps.addresses.capacity().to_string(),
                what: format!("{} addresses have no room", self.room.waiting()),
                effect: "workloads that a policy selects are denied every peer that is not known".to_owned(),
            });
        }
        let capacity = self.loaded.maps.services.capacity() as usize;
        if self.service_rows.len() > capacity {
            problems.push(Problem {
                level: Level::Warning,
                object: format!("Node/{}", self.node),
                field: "map SERVICES".to_owned(),
                value: capacity.to_string(),
                what: format!("{} ports of Services have no room", self.service_rows.len() - capacity),
                effect: "clients from outside that this node's address stands for are judged as masqueraded there"
                    .to_owned(),
            });
        }
        problems
    }

    pub(super) fn homeless_problem(&self, workload: WorkloadId, full: &MapError) -> Problem {
        let pod = self.engine.world().workloads.values().find(|pod| workload_id(&pod.uid) == workload);
        Problem {
            level: Level::Warning,
            object: pod.map_or_else(|| workload.to_string(), |pod| format!("Pod/{}/{}", pod.namespace, pod.name)),
            field: format!("map {}", full.map),
            value: full.capacity.to_string(),
            what: "there is no room for another endpoint".to_owned(),
            effect: "everything that the pod sends or receives is dropped".to_owned(),
        }
    }
}
