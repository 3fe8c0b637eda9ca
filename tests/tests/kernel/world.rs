//! A node with one judged pod, its neighbour, a pod elsewhere and the world, in the kernel's maps.

use reeve_abi::address::{Address, AddressValue, OWNER_HOST, OWNER_LOCAL_POD, OWNER_REMOTE_POD};
use reeve_abi::endpoint::{ENDPOINT_READY, EndpointValue};
use reeve_abi::ids::{ClassId, DecisionId, IDENTITY_HOST, IdentityId, PolicyNumber, Revision, TableId, WorkloadId};
use reeve_abi::policy::{ClassValue, PEER_TABLE, PeerKey, PeerValue, VERDICT_ALLOW, VERDICT_DENY};
use reeve_packet::env::Hook;
use reeve_policy::image::mapped;
use reeve_tests::frames::Ends;
use reeve_tests::kernel::{Action, Kernel, Outcome, Program};
use std::net::IpAddr;

pub(crate) const UPLINK: u32 = 2;
pub(crate) const POD_DEVICE: u32 = 10;
pub(crate) const CLIENT_DEVICE: u32 = 11;

/// Numbers of the pod's policies.
pub(crate) const INGRESS: u64 = 0x5_0001;
pub(crate) const EGRESS: u64 = 0x5_0002;

pub(crate) const DENY_IN: DecisionId = DecisionId(0x6_0001);
pub(crate) const DENY_OUT: DecisionId = DecisionId(0x6_0002);
pub(crate) const ALLOW_IN: DecisionId = DecisionId(0x6_0011);
pub(crate) const ALLOW_OUT: DecisionId = DecisionId(0x6_0012);

pub(crate) const POD: Who = Who { number: 100, v4: "10.0.0.2", v6: "fd00::2" };
pub(crate) const CLIENT: Who = Who { number: 101, v4: "10.0.0.3", v6: "fd00::3" };
pub(crate) const REMOTE: Who = Who { number: 102, v4: "10.0.1.4", v6: "fd00:1::4" };
pub(crate) const HOST: Who = Who { number: 0, v4: "172.18.0.1", v6: "fd00:18::1" };
/// A Service: nobody's address.
pub(crate) const SERVICE: Who = Who { number: 0, v4: "10.96.0.10", v6: "fd00:96::a" };
pub(crate) const WORLD: Who = Who { number: 0, v4: "192.0.2.9", v6: "2001:db8::9" };

/// Two ports in one word.
pub(crate) fn ports(local: u16, remote: u16) -> u32 {
    u32::from(local) << 16 | u32::from(remote)
}

/// Somebody with an address of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Who {
    number: u64,
    v4: &'static str,
    v6: &'static str,
}

impl Who {
    pub(crate) fn workload(self) -> WorkloadId {
        WorkloadId(self.number)
    }
    pub(crate) fn identity(self) -> IdentityId {
        IdentityId(0x1_0000 + self.number)
    }
    pub(crate) fn class(self) -> ClassId {
        ClassId(0x2_0000 + self.number)
    }
    pub(crate) fn ip(self, v6: bool) -> IpAddr {
        if v6 { self.v6 } else { self.v4 }.parse().unwrap()
    }
    pub(crate) fn address(self, v6: bool) -> Address {
        mapped(self.ip(v6))
    }
    pub(crate) fn to(self, other: Self, v6: bool) -> Ends {
        Ends { source_mac: [2; 6], destination_mac: [4; 6], source: self.ip(v6), destination: other.ip(v6) }
    }
}

pub(crate) struct World {
    pub(crate) kernel: Kernel,
    pub(crate) endpoint: EndpointValue,
}

impl World {
    /// Only the client may come in, and the pod may reach nobody.
    pub(crate) fn closed() -> anyhow::Result<Self> {
        let endpoint = EndpointValue {
            flags: ENDPOINT_READY,
            workload: POD.workload(),
            identity: POD.identity(),
            address_v4: POD.address(false),
            address_v6: POD.address(true),
            ..EndpointValue::default()
        };
        let mut world = Self { kernel: Kernel::load()?, endpoint };
        world.own(POD, OWNER_LOCAL_POD, POD_DEVICE)?;
        world.own(CLIENT, OWNER_LOCAL_POD, CLIENT_DEVICE)?;
        world.own(REMOTE, OWNER_REMOTE_POD, 0)?;
        for v6 in [false, true] {
            let value = AddressValue { identity: IDENTITY_HOST, owner: OWNER_HOST, ..AddressValue::default() };
            world.kernel.addresses().put(&HOST.address(v6), &value)?;
        }
        for who in [CLIENT, REMOTE] {
            world.kernel.classes().put(&who.identity(), &ClassValue { class: who.class() })?;
        }
        world.row(INGRESS, 0, DENY_IN);
        world.row(INGRESS, CLIENT.class().0, ALLOW_IN);
        world.row(EGRESS, 0, DENY_OUT);
        world.select(INGRESS, EGRESS)?;
        Ok(world)
    }

    pub(crate) fn own(&mut self, who: Who, owner: u32, device: u32) -> anyhow::Result<()> {
        for v6 in [false, true] {
            let value = AddressValue {
                identity: who.identity(),
                workload: who.workload(),
                owner,
                device,
                ..AddressValue::default()
            };
            self.kernel.addresses().put(&who.address(v6), &value)?;
        }
        Ok(())
    }

    /// Puts the pod under policies (0: none) and raises its revision.
    pub(crate) fn select(&mut self, ingress: u64, egress: u64) -> anyhow::Result<()> {
        self.endpoint.policies = [ingress, ingress, egress, egress].map(PolicyNumber);
        self.endpoint.head_revision = Revision(self.endpoint.head_revision.0 + 1);
        self.kernel.set_endpoint(POD_DEVICE, self.endpoint)
    }

    pub(crate) fn row(&mut self, policy: u64, class: u64, decision: DecisionId) {
        let verdict = if matches!(decision, ALLOW_IN | ALLOW_OUT) { VERDICT_ALLOW } else { VERDICT_DENY };
        let key = PeerKey { policy: PolicyNumber(policy), class: ClassId(class) };
        self.kernel.peers().put(&key, &PeerValue { decision, verdict, ..PeerValue::default() }).unwrap();
    }

    /// Gives a row a port table.
    pub(crate) fn table(&mut self, policy: u64, class: u64, table: u64, flags: u32) {
        let key = PeerKey { policy: PolicyNumber(policy), class: ClassId(class) };
        let row = self.kernel.peers().get(&key).unwrap().unwrap();
        let row = PeerValue { table: TableId(table), flags: PEER_TABLE | flags, ..row };
        self.kernel.peers().put(&key, &row).unwrap();
    }

    pub(crate) fn allow_out(&mut self, who: Who) {
        self.row(EGRESS, who.class().0, ALLOW_OUT);
    }

    /// What reaches the pod by the way its source is at home.
    pub(crate) fn pod_gets(&mut self, frame: &[u8]) -> Outcome {
        let packet = etherparse::SlicedPacket::from_ethernet(frame).ok().and_then(|packet| packet.net);
        let source: Option<IpAddr> = match packet {
            Some(etherparse::NetSlice::Ipv4(ip)) => Some(ip.header().source_addr().into()),
            Some(etherparse::NetSlice::Ipv6(ip)) => Some(ip.header().source_addr().into()),
            _ => None,
        };
        let at_home = |who: Who| source == Some(who.ip(false)) || source == Some(who.ip(true));
        let by = if at_home(CLIENT) {
            CLIENT_DEVICE
        } else if at_home(HOST) {
            0
        } else {
            UPLINK
        };
        self.kernel.run(Hook::ToPod, frame, POD_DEVICE, by).unwrap()
    }

    #[track_caller]
    pub(crate) fn check_to_pod(&mut self, frame: &[u8], action: Action, told: Option<(u8, DecisionId)>) {
        let outcome = self.pod_gets(frame);
        check(&outcome, action, told);
    }

    #[track_caller]
    pub(crate) fn check_to_pod_by(&mut self, by: u32, frame: &[u8], action: Action, told: Option<(u8, DecisionId)>) {
        let outcome = self.kernel.run(Hook::ToPod, frame, POD_DEVICE, by).unwrap();
        check(&outcome, action, told);
    }

    /// What the pod sends, through its own interface and out of the node.
    #[track_caller]
    pub(crate) fn check_out(&mut self, frame: &[u8], action: Action, told: Option<(u8, DecisionId)>) {
        let sent = self.kernel.run(Hook::FromPod, frame, POD_DEVICE, POD_DEVICE).unwrap();
        assert_eq!((sent.action, sent.events), (Action::Continue, vec![]));
        let outcome = self.kernel.run_marked(Program::Uplink, frame, UPLINK, POD_DEVICE, sent.mark).unwrap();
        check(&outcome, action, told);
    }

    #[track_caller]
    pub(crate) fn check_from_pod(&mut self, frame: &[u8], action: Action, told: Option<(u8, DecisionId)>) {
        let outcome = self.kernel.run(Hook::FromPod, frame, POD_DEVICE, POD_DEVICE).unwrap();
        check(&outcome, action, told);
    }
}

/// What became of the frame, and kind and decision of the only event.
#[track_caller]
pub(crate) fn check(outcome: &Outcome, action: Action, told: Option<(u8, DecisionId)>) {
    let got: Vec<_> = outcome.events.iter().map(|event| (event.kind, event.decision)).collect();
    assert_eq!((outcome.action, got), (action, Vec::from_iter(told)), "{:#?}", outcome.events);
}

pub(crate) fn echo_reply(ends: Ends, identifier: u16) -> Vec<u8> {
    let mut frame = ends.echo_request(identifier, 1);
    let (at, kind) = if ends.source.is_ipv4() { (34, 0) } else { (54, 129) };
    frame[at] = kind;
    frame
}

/// An ICMP error about a frame, which it quotes from the IP header on.
pub(crate) fn unreachable(ends: Ends, quoted: &[u8]) -> Vec<u8> {
    let (protocol, header) = if ends.source.is_ipv4() { (1, [3, 3]) } else { (58, [1, 4]) };
    ends.other(protocol, &[&header[..], &[0; 6], &quoted[14..]].concat())
}

/// First and later fragment of a datagram.
pub(crate) fn fragments(ends: Ends, from: u16, to: u16) -> [Vec<u8>; 2] {
    let whole = ends.udp(from, to, b"sixteen bytes :)");
    [(0_u16, true), (1, false)].map(|(offset, more)| {
        if ends.source.is_ipv4() {
            let mut frame = ends.other(17, if more { &whole[34..42] } else { &whole[42..] });
            frame[18..20].copy_from_slice(&[0, 9]);
            frame[20..22].copy_from_slice(&(offset | u16::from(more) << 13).to_be_bytes());
            frame
        } else {
            let mut extension = vec![17, 0];
            extension.extend((offset << 3 | u16::from(more)).to_be_bytes());
            extension.extend([0, 0, 0, 9]);
            let part = if more { &whole[54..62] } else { &whole[62..] };
            // 253 is for experiments: the builder would look for the fragment header itself.
            let mut frame = ends.other(253, &[&extension, part].concat());
            frame[20] = 44;
            frame
        }
    })
}
