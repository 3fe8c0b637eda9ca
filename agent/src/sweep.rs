//! Ends flows that have been idle for longer than their protocol allows, and drains `EDGES` in windows.

use crate::enforcer::Enforcer;
use crate::records::{Made, monotonic_ns};
use reeve_abi::address::Address;
use reeve_abi::config::Config;
use reeve_abi::conntrack::{FlowKey, FlowValue};
use reeve_abi::edge::{EdgeKey, EdgeValue};
use reeve_abi::event::{EVENT_CLOSED, Event, HOOK_FROM_POD, HOOK_TO_POD};
use reeve_abi::policy::VERDICT_ALLOW;
use reeve_flow::aggregate;
use reeve_packet::flow;
use std::collections::BTreeMap;
use tokio::sync::mpsc::UnboundedSender;

impl Enforcer {
    /// Lets the programs write into the other bank of `EDGES`; the one they leave can be drained once every program
    /// that still saw it as theirs has ended.
    pub fn flip_edges(&self) -> anyhow::Result<()> {
        let maps = &self.loaded.maps;
        let config = maps.config.get(&0)?.unwrap_or(Config::DEFAULT);
        maps.config.put(&0, &Config { edges_bank: config.edges_bank ^ 1, ..config })?;
        Ok(())
    }

    /// Takes out the bank that the programs have left.
    pub fn drain_edges(&self) -> anyhow::Result<BTreeMap<EdgeKey, EdgeValue>> {
        let maps = &self.loaded.maps;
        let bank = maps.config.get(&0)?.unwrap_or(Config::DEFAULT).edges_bank;
        let rows: Vec<_> = maps.edges.read()?.into_iter().filter(|(key, _)| key.kind >> 16 & 1 != bank).collect();
        let keys: Vec<EdgeKey> = rows.iter().map(|(key, _)| *key).collect();
        maps.edges.delete_many(&keys)?;
        Ok(aggregate::merged(rows))
    }

    /// Removes expired flows and sends an event for each that was allowed.
    pub fn sweep(&self, closed: &UnboundedSender<Made>) -> anyhow::Result<usize> {
        let maps = &self.loaded.maps;
        let config = maps.config.get(&0)?.unwrap_or(Config::DEFAULT);
        let now_ns = monotonic_ns();
        let mut ended = Vec::new();
        for (key, value) in maps.flows.read()? {
            let protocol = u8::try_from(key.protocol & 0xff).unwrap_or_default();
            if now_ns.saturating_sub(value.last_ns) <= flow::timeout_ns(&config, protocol, &value) {
                continue;
            }
            if value.verdict == VERDICT_ALLOW {
                // The recorder ends with the process: then nobody is there to be told.
                let _ = closed.send(Made::Closed(self.closing(&key, &value, protocol, now_ns)));
            }
            ended.push(key);
        }
        let count = ended.len();
        maps.flows.delete_many(&ended)?;
        Ok(count)
    }

    fn closing(&self, key: &FlowKey, value: &FlowValue, protocol: u8, now_ns: u64) -> Event {
        let endpoint = self.engine.image().endpoints.get(&key.workload).copied().unwrap_or_default();
        let local: Address = if key.remote.is_v4() { endpoint.address_v4 } else { endpoint.address_v6 };
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
            remote: key.remote,
            packets: value.packets,
            bytes: value.bytes,
            ports: if icmp { 0 } else { key.ports },
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
