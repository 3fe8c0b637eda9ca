//! Ends flows that have been idle for longer than their protocol allows, and tells of them.

use crate::enforcer::Enforcer;
use crate::records::monotonic_ns;
use reeve_abi::address::Address;
use reeve_abi::config::Config;
use reeve_abi::conntrack::{FlowKey, FlowValue};
use reeve_abi::event::{EVENT_CLOSED, Event, HOOK_FROM_POD, HOOK_TO_POD};
use reeve_abi::policy::VERDICT_ALLOW;
use reeve_packet::flow;
use tokio::sync::mpsc::UnboundedSender;

impl Enforcer {
    /// Removes expired flows and sends an event for each that was allowed.
    pub fn sweep(&self, closed: &UnboundedSender<Event>) -> anyhow::Result<usize> {
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
                let _ = closed.send(self.closing(&key, &value, protocol, now_ns));
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
