//! Ends flows that have been idle for longer than their protocol allows.

use crate::enforcer::Enforcer;
use crate::records::{Made, monotonic_ns};
use reeve_abi::address::Address;
use reeve_abi::config::Config;
use reeve_abi::conntrack::{BudgetValue, FlowKey, FlowValue};
use reeve_abi::edge::{EdgeKey, EdgeValue};
use reeve_abi::event::{EVENT_CLOSED, Event, HOOK_FROM_POD, HOOK_TO_POD};
use reeve_abi::ids::WorkloadId;
use reeve_abi::policy::{VERDICT_ALLOW, VERDICT_DENY};
use reeve_abi::stats;
use reeve_packet::flow;
use reeve_policy::model::{Level, Problem};
use reeve_policy::provenance::workload_id;
use std::collections::BTreeMap;
use tokio::sync::mpsc::UnboundedSender;

impl Enforcer {
    /// Removes expired flows and sends an event for each that was allowed; counts what is left by endpoint.
    pub fn sweep(&mut self, closed: &UnboundedSender<Made>) -> anyhow::Result<usize> {
        // Flows have to end all the same: what is left in a row then goes to its edge, by whoever adds it up later.
        let settled = self.loaded.settle();
        let maps = &self.loaded.maps;
        let config = maps.config.get(&0)?.unwrap_or(Config::DEFAULT);
        let now_ns = monotonic_ns();
        let mut ended = Vec::new();
        let mut live: BTreeMap<WorkloadId, u64> = BTreeMap::new();
        for (key, value) in maps.flows.read()? {
            let protocol = u8::try_from(key.protocol & 0xff).unwrap_or_default();
            if now_ns.saturating_sub(value.last_ns) <= flow::timeout_ns(&config, protocol, &value) {
                *live.entry(key.workload).or_default() += 1;
                continue;
            }
            if value.verdict == VERDICT_ALLOW {
                // The recorder ends with the process: then nobody is there to be told.
                let _ = closed.send(Made::Closed(self.closing(&key, &value, protocol, now_ns)));
            }
            // What the programs had not flushed yet is told as a window of its own, so that sums stay exact.
            if let Some((edge, rest)) = unflushed(&key, &value, protocol) {
                let _ = closed.send(Made::Rest(edge, rest));
            }
            ended.push(key);
        }
        let count = ended.len();
        maps.flows.delete_many(&ended)?;
        self.budget(&live)?;
        settled?;
        Ok(count)
    }

    /// Sweeps at once if flows are being denied because a share of the table is used up: some of it may have ended.
    pub fn sweep_if_crowded(&mut self, closed: &UnboundedSender<Made>) -> anyhow::Result<()> {
        let denied = self.loaded.maps.stats.sum(stats::FLOW_BUDGET)?;
        if denied != self.crowded_out {
            self.crowded_out = denied;
            self.sweep(closed)?;
        }
        Ok(())
    }

    /// Gives each endpoint its share of the flow table, and says who has used it up.
    fn budget(&mut self, live: &BTreeMap<WorkloadId, u64>) -> anyhow::Result<()> {
        let maps = &self.loaded.maps;
        let limit = share(maps.flows.capacity());
        let mut crowded = Vec::new();
        for (workload, before) in maps.budgets.read()? {
            let workload = WorkloadId(workload);
            if !self.interfaces.contains_key(&workload) {
                maps.budgets.delete(&workload.0)?;
            } else if before.used >= before.limit {
                crowded.push(workload);
            }
        }
        for workload in self.interfaces.keys() {
            let used = live.get(workload).copied().unwrap_or_default();
            maps.budgets.put(&workload.0, &BudgetValue { used, limit })?;
        }
        self.crowded = crowded.into_iter().map(|workload| self.crowded_problem(workload, limit)).collect();
        Ok(())
    }

    fn crowded_problem(&self, workload: WorkloadId, limit: u64) -> Problem {
        let pod = self.engine.world().workloads.values().find(|pod| workload_id(&pod.uid) == workload);
        Problem {
            level: Level::Warning,
            object: pod.map_or_else(|| workload.to_string(), |pod| format!("Pod/{}/{}", pod.namespace, pod.name)),
            field: "map FLOWS".to_owned(),
            value: limit.to_string(),
            what: "the pod has used up its share of the flow table".to_owned(),
            effect: "flows that it opens, or that are opened to it, are denied (flowTableFull) until some have ended"
                .to_owned(),
        }
    }

    fn closing(&self, key: &FlowKey, value: &FlowValue, protocol: u8, now_ns: u64) -> Event {
        let endpoint = self.engine.image().endpoints.get(&key.workload).copied().unwrap_or_default();
        let local: Address = if key.remote.is_v4() { endpoint.address_v4 } else { endpoint.address_v6 };
        let rewritten = value.real != Address::default();
        let service_port = u16::try_from(value.rewritten_ports & 0xffff).unwrap_or_default();
        let icmp = matches!(protocol, 1 | 58);
        Event {
            time_ns: now_ns,
            first_ns: value.first_ns,
            last_ns: value.last_ns,
            revision: value.revision,
            workload: key.workload,
            identity: value.own_identity,
            peer_workload: value.peer_workload,
            peer_identity: value.peer_identity,
            decision: value.decision,
            local,
            remote: if rewritten { value.real } else { key.remote },
            service: value.service,
            service_port,
            packets: value.packets,
            bytes: value.bytes,
            ports: match (icmp, rewritten) {
                (true, _) => 0,
                (false, true) => key.ports & !0xffff | value.rewritten_ports >> 16,
                (false, false) => key.ports,
            },
            port: value.port,
            ifindex: self.interfaces.get(&key.workload).map_or(0, |device| device.ifindex),
            protocol,
            kind: EVENT_CLOSED,
            direction: u8::try_from(value.direction).unwrap_or_default(),
            verdict: u8::try_from(value.verdict).unwrap_or_default(),
            hook: if value.direction == 1 { HOOK_FROM_POD } else { HOOK_TO_POD },
            ..Event::default()
        }
    }
}

/// How many of the table's entries one endpoint may have: a flood of one pod's flows leaves room for the others.
pub(crate) fn share(capacity: u32) -> u64 {
    u64::from(capacity / 4).max(1)
}

/// Counts of a flow that `EDGES` does not have, as a row of it; none if it has them all.
pub(crate) fn unflushed_of(key: &FlowKey, value: &FlowValue) -> Option<(EdgeKey, EdgeValue)> {
    unflushed(key, value, u8::try_from(key.protocol & 0xff).unwrap_or_default())
}

/// The same, for a protocol that has been read already.
fn unflushed(key: &FlowKey, value: &FlowValue, protocol: u8) -> Option<(EdgeKey, EdgeValue)> {
    let rest =
        |all: [u64; 2], flushed: [u64; 2]| [all[0].saturating_sub(flushed[0]), all[1].saturating_sub(flushed[1])];
    let packets = rest(value.packets, value.flushed_packets);
    let bytes = rest(value.bytes, value.flushed_bytes);
    // An entry whose end was told has no verdict any more, and nothing left to tell.
    if packets == [0; 2] && bytes == [0; 2] || !matches!(value.verdict, VERDICT_ALLOW | VERDICT_DENY) {
        return None;
    }
    let edge = EdgeKey {
        subject: key.workload,
        identity: value.own_identity,
        peer: value.peer_workload,
        peer_identity: value.peer_identity,
        decision: value.decision,
        revision: value.revision,
        service: u32::from(protocol) << 16 | value.port & 0xffff,
        kind: value.direction & 1 | (value.verdict & 0xff) << 8,
    };
    let counts = EdgeValue { connections: 0, packets, bytes, first_ns: value.flushed_ns, last_ns: value.last_ns };
    Some((edge, counts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_flushed_is_told_once() {
        let key = FlowKey::default();
        let value = FlowValue {
            verdict: VERDICT_ALLOW,
            packets: [10, 4],
            bytes: [1_000, 400],
            flushed_packets: [7, 4],
            flushed_bytes: [700, 400],
            port: 443,
            direction: 1,
            ..FlowValue::default()
        };
        let (edge, counts) = unflushed(&key, &value, 6).expect("three packets are left");
        assert_eq!((edge.service, edge.kind), ((6 << 16) + 443, 1 + (VERDICT_ALLOW << 8)));
        assert_eq!((counts.connections, counts.packets, counts.bytes), (0, [3, 0], [300, 0]));
        let flushed = FlowValue { flushed_packets: value.packets, flushed_bytes: value.bytes, ..value };
        assert_eq!(unflushed(&key, &flushed, 6), None);
        let told = FlowValue { verdict: 0, ..value };
        assert_eq!(unflushed(&key, &told, 6), None);
    }
}
