//! Each endpoint's share of the flow table: a flood of one pod's flows evicts nobody else's.

use crate::env::Env;
use reeve_abi::ids::WorkloadId;
use reeve_abi::stats;

/// Takes room for one more flow; false if the endpoint has used up its share. What has ended is given back by the agent,
/// which counts anew every few seconds.
#[inline(always)]
pub fn take<E: Env>(env: &E, workload: WorkloadId) -> bool {
    let Some(budget) = env.budget(workload) else { return true };
    let budget = budget.as_ptr();
    // SAFETY: valid for the run of the program (`Env`); `used` is added to atomically.
    unsafe {
        if (*budget).used >= (*budget).limit {
            env.count(stats::FLOW_BUDGET);
            return false;
        }
        env.add(&raw mut (*budget).used, 1);
    }
    true
}
