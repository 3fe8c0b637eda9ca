//! A node with one judged pod, a neighbour, a pod elsewhere and the world, for tests of the walk.

use super::{Ends, Host};
use crate::env::{Action, Hook};
use crate::mark;
use crate::recent;
use crate::uplink::{self, Next};
use crate::walk::{self, Scratch};
use reeve_abi::address::{
    Address, AddressValue, NetworkKey, NetworkValue, OWNER_HOST, OWNER_LOCAL_POD, OWNER_REMOTE_POD,
};
use reeve_abi::config::{Config, SECOND_NS};
use reeve_abi::endpoint::{ENDPOINT_MARKS, ENDPOINT_READY, EndpointValue};
use reeve_abi::event::Event;
use reeve_abi::ids::{ClassId, DecisionId, IDENTITY_HOST, IdentityId, PolicyNumber, Revision, TableId, WorkloadId};
use reeve_abi::mark::{KIND_PENDING, KIND_POD};
use reeve_abi::policy::{PEER_TABLE, PeerKey, PeerValue, PortKey, PortValue, VERDICT_ALLOW, VERDICT_DENY};
use std::net::IpAddr;

/// Interface of the pod whose walk is tested, of its neighbour, and of the way out.
pub(crate) const POD_DEVICE: u32 = 10;
pub(crate) const CLIENT_DEVICE: u32 = 11;
pub(crate) const UPLINK: u32 = 2;

/// Who there is: number of the workload, its identity is the number + 0x1_0000.
pub(crate) const POD: Who = Who { number: 100, v4: "10.0.0.2", v6: "fd00::2" };
pub(crate) const CLIENT: Who = Who { number: 101, v4: "10.0.0.3", v6: "fd00::3" };
pub(crate) const REMOTE: Who = Who { number: 102, v4: "10.0.1.4", v6: "fd00:1::4" };
pub(crate) const HOST: Who = Who { number: 0, v4: "172.18.0.1", v6: "fd00:18::1" };
pub(crate) const WORLD: Who = Who { number: 0, v4: "192.0.2.9", v6: "2001:db8::9" };

/// Somebody with an address of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Who {
    pub(crate) number: u64,
    v4: &'static str,
    v6: &'static str,
}

impl Who {
    /// Somebody without workload.
    pub(crate) const fn somebody(v4: &'static str, v6: &'static str) -> Self {
        Self { number: 0, v4, v6 }
    }
    pub(crate) fn workload(self) -> WorkloadId {
        WorkloadId(self.number)
    }
    pub(crate) fn identity(self) -> IdentityId {
        IdentityId(0x1_0000 + self.number)
    }
    /// Its class, if a policy tells it from others.
    pub(crate) fn class(self) -> ClassId {
        ClassId(0x2_0000 + self.number)
    }
    pub(crate) fn ip(self, v6: bool) -> IpAddr {
        if v6 { self.v6 } else { self.v4 }.parse().expect("written here")
    }
    pub(crate) fn address(self, v6: bool) -> Address {
        addresses(self.ip(v6))
    }
    /// From here to there.
    pub(crate) fn to(self, other: Self, v6: bool) -> Ends {
        Ends(self.ip(v6), other.ip(v6))
    }
}

/// Two ports (or a protocol and a port) in one word.
pub(crate) fn ports(high: u16, low: u16) -> u32 {
    u32::from(high) << 16 | u32::from(low)
}

/// The mapped form.
pub(crate) fn addresses(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(v4) => Address::v4(v4.octets()),
        IpAddr::V6(v6) => Address(v6.octets()),
    }
}

/// The node and the working memory of its programs.
pub(crate) struct World {
    pub(crate) host: Host,
    scratch: Scratch,
    /// Frames that crossed the pod's interface as packets of flows.
    pub(crate) sent: u64,
}

impl World {
    /// Everybody is known; the pod is ready and no policy selects it.
    pub(crate) fn new() -> Self {
        let mut world = Self { host: Host::new(), scratch: Scratch::default(), sent: 0 };
        world.own(CLIENT, OWNER_LOCAL_POD, CLIENT_DEVICE);
        world.own(POD, OWNER_LOCAL_POD, POD_DEVICE);
        world.own(REMOTE, OWNER_REMOTE_POD, 0);
        for v6 in [false, true] {
            let value = AddressValue { identity: IDENTITY_HOST, owner: OWNER_HOST, ..AddressValue::default() };
            world.host.addresses.insert(HOST.address(v6), value);
        }
        for who in [CLIENT, REMOTE] {
            world.host.classes.insert(who.identity(), who.class());
        }
        let endpoint = EndpointValue {
            head_ifindex: POD_DEVICE,
            tail_ifindex: POD_DEVICE,
            flags: ENDPOINT_READY,
            head_revision: Revision(1),
            tail_revision: Revision(1),
            workload: POD.workload(),
            identity: POD.identity(),
            address_v4: POD.address(false),
            address_v6: POD.address(true),
            ..EndpointValue::default()
        };
        world.host.endpoints.insert(POD_DEVICE, endpoint);
        world
    }

    /// Gives somebody's addresses to them.
    pub(crate) fn own(&mut self, who: Who, owner: u32, device: u32) {
        for v6 in [false, true] {
            let value = AddressValue {
                identity: who.identity(),
                workload: who.workload(),
                owner,
                device,
                ..AddressValue::default()
            };
            self.host.addresses.insert(who.address(v6), value);
        }
    }

    /// A prefix that some policy names.
    pub(crate) fn network(&mut self, prefix: &str, identity: IdentityId) {
        let (address, bits) = prefix.split_once('/').expect("a prefix has a length");
        let (ip, bits): (IpAddr, u32) = (address.parse().expect("written here"), bits.parse().expect("written here"));
        let prefix_bits = if ip.is_ipv4() { 96 + bits } else { bits };
        self.host.networks.insert(NetworkKey { prefix_bits, address: addresses(ip) }, NetworkValue { identity });
    }

    pub(crate) fn endpoint(&mut self) -> &mut EndpointValue {
        self.host.endpoints.get_mut(&POD_DEVICE).expect("made in `new`")
    }

    /// Puts the pod under policies (ingress, egress; 0: none) and raises its revision, in one write.
    pub(crate) fn select(&mut self, ingress: u64, egress: u64) {
        let endpoint = self.endpoint();
        endpoint.policies = [ingress, ingress, egress, egress].map(PolicyNumber);
        endpoint.head_revision.0 += 1;
        endpoint.tail_revision = endpoint.head_revision;
    }

    /// A row of a policy; class 0 is its default row. `decided` has the verdict.
    pub(crate) fn row(&mut self, policy: u64, class: ClassId, decision: DecisionId) {
        let value = PeerValue { decision, verdict: verdict(decision), ..PeerValue::default() };
        self.host.peers.insert(PeerKey { policy: PolicyNumber(policy), class }, value);
    }

    /// A row of a policy with a port table.
    pub(crate) fn row_with_table(&mut self, policy: u64, class: ClassId, decision: DecisionId, table: u64, flags: u32) {
        self.row(policy, class, decision);
        let row = self.host.peers.get_mut(&PeerKey { policy: PolicyNumber(policy), class }).expect("just put");
        row.table = TableId(table);
        row.flags = PEER_TABLE | flags;
    }

    pub(crate) fn port(&mut self, table: u64, protocol: u8, port: u32, decision: DecisionId) {
        let key = PortKey { table: TableId(table), protocol: protocol.into(), port };
        self.host.ports.insert(key, PortValue { decision, verdict: verdict(decision), reserved: 0 });
    }

    pub(crate) fn after_s(&mut self, seconds: u64) -> &mut Self {
        self.host.now_ns += seconds * SECOND_NS;
        self
    }

    /// What the pod sends, as far as it goes without address translation.
    pub(crate) fn pod_sends(&mut self, frame: &[u8]) -> Action {
        match self.pod_emits(frame) {
            Action::Continue if self.kind() == KIND_PENDING => {
                let owner = self.host.addresses.get(&self.scratch.packet.destination).map(|value| value.owner);
                if owner == Some(OWNER_HOST) {
                    self.host_gets(frame, POD_DEVICE)
                } else {
                    self.leaves(frame, POD_DEVICE)
                }
            }
            action => action,
        }
    }

    /// What the pod sends, at its own interface only; the mark that it gets stays in `host`.
    pub(crate) fn pod_emits(&mut self, frame: &[u8]) -> Action {
        self.emits(POD_DEVICE, frame)
    }

    /// The same of the pod at another interface.
    pub(crate) fn emits(&mut self, device: u32, frame: &[u8]) -> Action {
        self.host.mark.set(0);
        self.sent += u64::from(self.host.segments);
        self.at(frame, device, device);
        walk::run(&self.host, Hook::FromPod, &mut self.scratch)
    }

    /// What reaches the pod through a device, 0: made on this node. It has no mark.
    pub(crate) fn pod_gets(&mut self, frame: &[u8], by: u32) -> Action {
        self.host.mark.set(0);
        self.reaches(POD_DEVICE, frame, by)
    }

    /// What reaches the pod at an interface, with the mark that it has.
    pub(crate) fn reaches(&mut self, device: u32, frame: &[u8], by: u32) -> Action {
        self.sent += u64::from(self.host.segments);
        self.at(frame, device, by);
        walk::run(&self.host, Hook::ToPod, &mut self.scratch)
    }

    /// What a neighbour's device sent, and translation has made a reply for the pod.
    pub(crate) fn replies_through(&mut self, by: u32, frame: &[u8]) -> Action {
        self.host.mark.set(mark::with(&Config::DEFAULT, 0, KIND_POD, 0));
        self.reaches(POD_DEVICE, frame, by)
    }

    /// What leaves the node, with the mark that it has.
    pub(crate) fn leaves(&mut self, frame: &[u8], by: u32) -> Action {
        self.at(frame, UPLINK, by);
        uplink::leaving(&self.host, &mut self.scratch, Next::Others)
    }

    /// The same, where this very program may stand behind itself.
    pub(crate) fn leaves_first(&mut self, frame: &[u8], by: u32) -> Action {
        self.at(frame, UPLINK, by);
        uplink::leaving(&self.host, &mut self.scratch, Next::Ourselves)
    }

    /// What enters the node, with the mark that it has.
    pub(crate) fn enters(&mut self, frame: &[u8]) -> Action {
        self.at(frame, UPLINK, UPLINK);
        uplink::entering(&self.host, &mut self.scratch)
    }

    /// What a process of the node receives, with the mark that it has.
    pub(crate) fn host_gets(&mut self, frame: &[u8], by: u32) -> Action {
        self.at(&frame[14..], UPLINK, by);
        uplink::received(&self.host, &mut self.scratch)
    }

    /// What CPUs have counted for themselves is added up, as the agent has it done now and then.
    pub(crate) fn settles(&mut self) {
        let mark = self.host.mark.get();
        for (number, _) in self.host.recent.all() {
            self.host.mark.set(number);
            recent::settle(&self.host, &mut self.scratch);
            assert_eq!(self.host.mark.get(), number + 1, "the next run sees to the next row");
        }
        self.host.mark.set(mark);
    }

    fn at(&mut self, frame: &[u8], ifindex: u32, by: u32) {
        self.host.generation += 1; // as the agent would, had a test just written an endpoint
        self.host.frame = frame.to_vec();
        self.host.ifindex = ifindex;
        self.host.ingress_ifindex = by;
    }

    /// Kind of the packet's mark.
    pub(crate) fn kind(&self) -> u32 {
        mark::read(&self.host.config, self.host.mark.get()).0
    }

    /// The neighbour as a second endpoint, under no policy; whatever comes from either carries a mark.
    pub(crate) fn second(&mut self) {
        let endpoint = EndpointValue {
            head_ifindex: CLIENT_DEVICE,
            tail_ifindex: CLIENT_DEVICE,
            flags: ENDPOINT_READY | ENDPOINT_MARKS,
            workload: CLIENT.workload(),
            identity: CLIENT.identity(),
            address_v4: CLIENT.address(false),
            address_v6: CLIENT.address(true),
            ..EndpointValue::default()
        };
        self.host.endpoints.insert(CLIENT_DEVICE, endpoint);
        self.endpoint().flags |= ENDPOINT_MARKS;
    }

    /// Takes what was told so far.
    pub(crate) fn events(&self) -> Vec<Event> {
        self.host.events.take()
    }

    /// The only event that was told since the last look.
    #[track_caller]
    pub(crate) fn event(&self) -> Event {
        let events = self.events();
        assert_eq!(events.len(), 1, "one event: {events:#?}");
        events[0]
    }
}

fn verdict(decision: DecisionId) -> u32 {
    if decision.0 & 1 == 1 { VERDICT_ALLOW } else { VERDICT_DENY }
}

/// A decision of a policy: an allow (`true`) or a deny, told apart by `number`.
pub(crate) fn decided(allows: bool, number: u64) -> DecisionId {
    DecisionId(reeve_abi::ids::FIRST_HASHED + number * 2 + u64::from(allows))
}

/// Kinds and decisions of events.
pub(crate) fn event_kinds(events: &[Event]) -> Vec<(u8, DecisionId)> {
    events.iter().map(|event| (event.kind, event.decision)).collect()
}
