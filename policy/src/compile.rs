//! Facts and policies as the image that one node's kernel should hold, kept up to date change by change.
//!
//! Invariant: the image depends on the world alone, not on how it came about. Numbers are hashes of content, so a row never
//! changes its meaning: it is there or it is not. A step costs in proportion to what it touches.

mod claims;
mod classes;
mod identities;
mod matching;
mod pods;
mod preview;
mod rows;
mod seen;
mod subject;

use crate::delta::{Delta, set};
use crate::identity::{Prefixes, Reading, Reads};
use crate::image::{EndpointImage, Image, mapped, position};
use crate::model::{Direction, Family, Policy, Tiers, World};
use crate::plan::Shows;
use crate::provenance::{DictionaryEntry, Identity, IdentityKind, WorkloadName, workload_id};
use crate::store::Touched;
use claims::{Claims, Owner};
use classes::{Classes, Output, Pending};
use identities::Identities;
use ipnet::IpNet;
use pods::{Pod, Pods};
use preview::Asked;
pub use preview::Preview;
use reeve_abi::address::{
    Address, AddressValue, NetworkKey, NetworkValue, OWNER_CONTESTED, OWNER_HOST, OWNER_LOCAL_POD, OWNER_NODE,
    OWNER_REMOTE_POD,
};
use reeve_abi::ids::{IdentityId, PolicyNumber, Revision, WorkloadId};
use seen::Seen;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use subject::{Applied, Prepared};

/// What a step did besides the image.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stepped {
    /// What was in the image before.
    pub(crate) delta: Delta,
    /// What numbers that came into use stand for; some may have been told before.
    pub(crate) entries: Vec<DictionaryEntry>,
}

/// The compiler's state: the image, and what it takes to change it in small steps.
#[derive(Debug)]
pub(crate) struct Compiler {
    node: String,
    /// What the maps should hold. A step keeps revisions and gives new endpoints revision 0.
    pub(crate) image: Image,
    reads: Reads,
    /// Staged policies, which are read too.
    staged: Vec<Arc<Policy>>,
    prefixes: Prefixes,
    pods: Pods,
    claims: Claims,
    identities: Identities,
    prepared: Prepared,
    classes: Classes,
    preview: Preview,
    seen: Seen,
}

/// What applies to an endpoint in one direction and family; `None`: nothing selects it.
type HeldPolicy = Option<(PolicyNumber, Arc<Applied>)>;

fn number(held: &HeldPolicy) -> Option<PolicyNumber> {
    held.as_ref().map(|(number, _)| *number)
}

/// What is enforced, and what would be with every staged policy applied, if anything else; by what it depends on.
type KnownPolicies = HashMap<(IdentityId, Direction, Family), (HeldPolicy, Option<HeldPolicy>)>;

/// What a step has to look at again.
#[derive(Debug, Default)]
struct Unsettled {
    addresses: BTreeSet<IpAddr>,
    /// Pods by UID whose identity may be another one.
    pods: BTreeSet<String>,
    /// Pods by UID that may be endpoints.
    endpoints: BTreeSet<String>,
}

/// Two contents with one number would be a collision of 64 bits of SHA-256: then the agent stops rather than let one
/// stand for the other, and what the kernel has goes on being enforced.
fn same<K: std::fmt::Debug, V: PartialEq + ?Sized>(number: K, held: &V, content: &V) {
    assert!(held == content, "two contents have the number {number:?}");
}

impl Compiler {
    /// The compiler of an empty world.
    pub(crate) fn new(node: &str) -> Self {
        let mut identities = Identities::new();
        let mut classes = Classes::default();
        let mut image = Image::default();
        let (mut delta, mut entries) = (Delta::default(), Vec::new());
        let mut out = Output { image: &mut image, delta: &mut delta, entries: &mut entries };
        let changed = identities.take_changes();
        classes.settle(Pending::default(), &identities, changed, &mut out);
        Self {
            node: node.to_owned(),
            image,
            reads: Reads::default(),
            staged: Vec::new(),
            prefixes: Prefixes::default(),
            pods: Pods::new(node),
            claims: Claims::default(),
            identities,
            prepared: Prepared::default(),
            classes,
            preview: Preview::default(),
            seen: Seen::default(),
        }
    }

    /// The compiler of a world, with what there is to tell about it.
    pub(crate) fn of(world: &World) -> (Self, Vec<DictionaryEntry>) {
        let mut compiler = Self::new(&world.node);
        let workloads = world.workloads.values();
        let workloads = workloads.map(|after| Touched::Workload { before: None, after: Some(Arc::clone(after)) });
        let nodes = world.nodes.values().map(|after| Touched::Node { before: None, after: Some(Arc::clone(after)) });
        let policies = world.tiers.iter().flat_map(|(_, policies)| policies);
        let policies = policies.map(|after| Touched::Policy { before: None, after: Some(Arc::clone(after)) });
        let local = Touched::LocalAddresses { before: BTreeSet::new(), after: world.local_addresses.clone() };
        let touched: Vec<Touched> = workloads.chain(nodes).chain(policies).chain([local, Touched::Staged]).collect();
        let stepped = compiler.step(world, &touched);
        (compiler, stepped.entries)
    }

    /// What all addresses together are seen as.
    pub(crate) fn seen(&self) -> &Seen {
        &self.seen
    }

    /// What staged policies would decide for its endpoints.
    pub(crate) fn preview(&self) -> &Preview {
        &self.preview
    }

    /// How many addresses and prefixes show each identity.
    pub(crate) fn shows(&self) -> &Shows {
        &self.identities.shows
    }

    /// Brings the image in line with the world as it is now; `touched` is what has changed in it since, in order.
    pub(crate) fn step(&mut self, world: &World, touched: &[Touched]) -> Stepped {
        let mut out = Stepped::default();
        let mut unsettled = Unsettled::default();
        self.read(world, touched, &mut unsettled, &mut out.delta);
        for touch in touched {
            self.take(world, touch, &mut unsettled, &mut out.entries);
        }
        for uid in std::mem::take(&mut unsettled.pods) {
            if self.pods.identify(&uid, &self.reads, world) {
                let pod = self.pods.get(&uid).expect("it was identified");
                unsettled.addresses.extend(pod.workload.addresses.iter().copied());
                unsettled.endpoints.insert(uid);
            }
        }
        for address in std::mem::take(&mut unsettled.addresses) {
            self.settle_address(address, &mut unsettled, &mut out.delta);
        }
        self.affected(touched, &mut unsettled);
        let mut pending = Pending::default();
        self.settle_endpoints(world, &unsettled.endpoints, &mut pending, &mut out.delta);
        let changed = self.identities.take_changes();
        out.entries.extend(changed.iter().filter_map(|id| self.identities.entry(*id)));
        let mut output = Output { image: &mut self.image, delta: &mut out.delta, entries: &mut out.entries };
        self.classes.settle(pending, &self.identities, changed, &mut output);
        out.delta.settle(&self.image);
        out
    }

    /// Learns what policies read now.
    fn read(&mut self, world: &World, touched: &[Touched], unsettled: &mut Unsettled, delta: &mut Delta) {
        let befores = touched.iter().filter_map(|touch| policies(touch).0);
        let afters = touched.iter().filter_map(|touch| policies(touch).1);
        for policy in befores.clone().chain(afters.clone()) {
            self.prepared.forget(policy);
        }
        let staged: Vec<Arc<Policy>> = if touched.iter().any(|touch| matches!(touch, Touched::Staged)) {
            self.prepared.clear();
            staged(world)
        } else {
            self.staged.clone()
        };
        let befores = befores.chain(self.staged.iter().map(Arc::as_ref));
        let flipped = self.reads.replace(befores, afters.chain(staged.iter().map(Arc::as_ref)));
        self.staged = staged;
        if flipped == Reading::default() {
            return;
        }
        unsettled.pods.extend(self.pods.showing(&flipped).cloned());
        if flipped.networks.is_empty() {
            return;
        }
        for net in &flipped.networks {
            self.prefixes.flip(*net);
            unsettled.addresses.extend(self.claims.between(net.network(), net.broadcast()));
        }
        self.settle_networks(&flipped.networks, delta);
    }

    /// Takes in one fact.
    fn take(&mut self, world: &World, touch: &Touched, unsettled: &mut Unsettled, entries: &mut Vec<DictionaryEntry>) {
        match touch {
            Touched::Workload { before, after } => {
                let Some(either) = after.as_ref().or(before.as_ref()) else { return };
                self.pods.replace(&either.uid, after.as_ref(), &self.reads, world);
                unsettled.addresses.extend(self.claims.replace_pod(before.as_deref(), after.as_deref()));
                unsettled.pods.insert(either.uid.clone());
                unsettled.endpoints.insert(either.uid.clone());
                entries.extend(after.iter().filter(|workload| claims::claims(workload)).map(|workload| {
                    let name = Arc::new(WorkloadName {
                        uid: workload.uid.clone(),
                        namespace: workload.namespace.clone(),
                        name: workload.name.clone(),
                        node: workload.node.clone(),
                    });
                    DictionaryEntry::Workload { id: workload_id(&workload.uid), workload: name }
                }));
            }
            Touched::Namespace { name, .. } => unsettled.pods.extend(self.pods.in_namespace(name).cloned()),
            Touched::ServiceAccount { namespace, name, .. } => {
                unsettled.pods.extend(self.pods.of_account(namespace, name).cloned());
            }
            Touched::Node { before, after } => {
                unsettled.addresses.extend(self.claims.replace_node(before.as_deref(), after.as_deref()));
            }
            Touched::LocalAddresses { after, .. } => unsettled.addresses.extend(self.claims.replace_local(after)),
            // Policies are taken in apart. Those that name sets and services have them as addresses, and are touched with
            // them.
            Touched::Policy { .. }
            | Touched::Tiers
            | Touched::NetworkSet { .. }
            | Touched::Service { .. }
            | Touched::EndpointSlice { .. }
            | Touched::Staged => {}
        }
    }

    /// Settles who owns an address, and as what it is seen.
    fn settle_address(&mut self, address: IpAddr, unsettled: &mut Unsettled, delta: &mut Delta) {
        let owner = self.claims.owner(address, &self.pods, &self.node);
        let bare = |kind| Some(Arc::new(Identity::bare(kind, self.prefixes_of(address))));
        let (identity, workload, kind) = match &owner {
            Owner::Nobody => (None, WorkloadId(0), 0),
            Owner::Contested => {
                let identity = Identity::bare(IdentityKind::Contested, BTreeSet::new());
                (Some(Arc::new(identity)), WorkloadId(0), OWNER_CONTESTED)
            }
            Owner::Host => (bare(IdentityKind::Host), WorkloadId(0), OWNER_HOST),
            Owner::Node => (bare(IdentityKind::Node), WorkloadId(0), OWNER_NODE),
            Owner::Pod(uid) => {
                let pod = self.pods.get(uid).expect("claimants are known");
                let kind = if self.pods.is_local(pod) { OWNER_LOCAL_POD } else { OWNER_REMOTE_POD };
                (Some(self.shown(pod, address)), workload_id(uid), kind)
            }
        };
        let key = mapped(address);
        let before = self.image.addresses.get(&key).copied();
        let identity = identity.map(|identity| self.identities.show(&identity));
        let after =
            identity.map(|identity| AddressValue { identity, workload, owner: kind, ..AddressValue::default() });
        if let Some(before) = before {
            self.identities.hide(before.identity);
        }
        set(&mut self.image.addresses, &mut delta.addresses, key, after);
        self.seen.change(before.as_ref(), after.as_ref());
        if before == after {
            return;
        }
        unsettled.endpoints.extend(self.claims.claimants(address).cloned());
    }

    fn prefixes_of(&self, address: IpAddr) -> BTreeSet<IpNet> {
        self.prefixes.containing(address, if address.is_ipv4() { 32 } else { 128 })
    }

    /// As what a pod is seen that has this address: the pods' own identity, unless the address lies in a prefix that counts.
    fn shown(&self, pod: &Pod, address: IpAddr) -> Arc<Identity> {
        let networks = self.prefixes_of(address);
        if networks.is_empty() {
            return Arc::clone(&pod.bare);
        }
        Arc::new(Identity { networks, ..Identity::clone(&pod.bare) })
    }

    /// Settles which prefixes are stored, and as what addresses in them are seen; only those within the ones that have
    /// come or gone are seen otherwise than before.
    fn settle_networks(&mut self, flipped: &BTreeSet<IpNet>, delta: &mut Delta) {
        let within = flipped.iter().flat_map(|net| self.prefixes.within(*net));
        let affected: BTreeSet<IpNet> = within.chain(flipped).copied().collect();
        let mut wanted: BTreeMap<NetworkKey, Option<Identity>> = BTreeMap::new();
        for net in affected {
            let Some(key) = network_key(net) else { continue };
            let inside =
                || Identity::bare(IdentityKind::Network, self.prefixes.containing(net.addr(), net.prefix_len()));
            wanted.insert(key, self.prefixes.has(&net).then(inside));
        }
        let all_v4 = IpNet::from(ipnet::Ipv4Net::default());
        if !self.prefixes.has(&all_v4) {
            // Else an IPv6 prefix around the mapped space would be taken to mean IPv4 addresses.
            let mapped = IpAddr::V6(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped());
            let covered = !self.prefixes.containing(mapped, 95).is_empty();
            wanted.insert(V4_SPACE, covered.then(|| Identity::bare(IdentityKind::World, BTreeSet::new())));
        }
        for (key, identity) in wanted {
            let after = identity.map(|identity| NetworkValue { identity: self.identities.show(&Arc::new(identity)) });
            if let Some(before) = self.image.networks.get(&key) {
                self.identities.hide(before.identity);
            }
            set(&mut self.image.networks, &mut delta.networks, key, after);
        }
    }

    /// Adds the endpoints that changed policies select, or did.
    fn affected(&self, touched: &[Touched], unsettled: &mut Unsettled) {
        let tiers = touched.iter().any(|touch| matches!(touch, Touched::Tiers | Touched::Staged));
        let changed: Vec<&Policy> =
            touched.iter().flat_map(|touch| <[_; 2]>::from(policies(touch))).flatten().collect();
        if !tiers && changed.is_empty() {
            return;
        }
        // Pods that are seen otherwise than before are looked at again anyway.
        let selected = |uid: &&String| {
            let pod = self.pods.get(uid).expect("local pods are known");
            tiers || changed.iter().any(|policy| pod.bare.is_selected(&policy.subject))
        };
        unsettled.endpoints.extend(self.pods.local().filter(selected).cloned());
    }

    fn settle_endpoints(&mut self, world: &World, uids: &BTreeSet<String>, pending: &mut Pending, delta: &mut Delta) {
        // Pods that policies see alike share the work.
        let mut known = KnownPolicies::new();
        for uid in uids {
            let id = workload_id(uid);
            let before = self.image.endpoints.get(&id).copied();
            let after = self.endpoint(world, uid, &mut known);
            if after.is_none() {
                self.preview.forget(id);
            }
            if let Some((endpoint, shown, _)) = &after {
                same(id, &endpoint.identity, &self.identities.hold(shown));
            }
            for (number, applied) in after.iter().flat_map(|(_, _, held)| held).flatten() {
                self.classes.hold(*number, applied, pending);
            }
            if let Some(before) = before {
                self.identities.release(before.identity);
                for number in before.policies.iter().filter(|number| number.0 != 0) {
                    self.classes.release(*number, pending);
                }
            }
            let revision = before.map_or(Revision(0), |before| before.revision);
            let after = after.map(|(endpoint, ..)| EndpointImage { revision, ..endpoint });
            set(&mut self.image.endpoints, &mut delta.endpoints, id, after);
        }
    }

    /// A local pod's endpoint, its identity and its policies.
    fn endpoint(
        &mut self,
        world: &World,
        uid: &str,
        known: &mut KnownPolicies,
    ) -> Option<(EndpointImage, Arc<Identity>, Vec<HeldPolicy>)> {
        let pod = self.pods.get(uid).filter(|pod| self.pods.is_local(pod))?;
        let claimed: BTreeSet<IpAddr> = pod.workload.addresses.iter().copied().collect();
        let owner = |address: &IpAddr| self.claims.owner(*address, &self.pods, &self.node);
        let claimed: Vec<(IpAddr, Owner)> = claimed.iter().map(|address| (*address, owner(address))).collect();
        let mut endpoint = EndpointImage { ready: true, ..EndpointImage::default() };
        let mut shown = None;
        let mut held = Vec::new();
        let mut asked: [Asked; 4] = Default::default();
        for family in [Family::V4, Family::V6] {
            let of_family = || claimed.iter().filter(|(address, _)| address.is_ipv4() == (family == Family::V4));
            let is_own = |owner: &Owner| matches!(owner, Owner::Pod(owner) if owner == uid);
            let address = of_family().find(|(_, owner)| is_own(owner)).map(|(address, _)| address);
            endpoint.contested[usize::from(family == Family::V6)] =
                address.is_none() && of_family().any(|(_, owner)| *owner == Owner::Contested);
            let identity = address.map_or_else(|| Arc::clone(&pod.bare), |address| self.shown(pod, *address));
            if let Some(address) = address {
                shown.get_or_insert_with(|| Arc::clone(&identity));
                match address {
                    IpAddr::V4(_) => endpoint.address_v4 = mapped(*address),
                    IpAddr::V6(_) => endpoint.address_v6 = mapped(*address),
                }
            }
            // Nothing of that family passes, whatever policies say.
            if endpoint.contested[usize::from(family == Family::V6)] {
                continue;
            }
            let id = identity.id();
            for direction in [Direction::Ingress, Direction::Egress] {
                let at = position(direction, family);
                let mut apply = |tiers: &Tiers| {
                    Applied::of(tiers, &identity, direction, family, &mut self.prepared)
                        .map(|applied| (applied.number(), Arc::new(applied)))
                };
                let (enforced, staged) = known.entry((id, direction, family)).or_insert_with(|| {
                    let enforced = apply(&world.tiers);
                    let staged = world.staged.as_ref().map(apply).filter(|staged| number(staged) != number(&enforced));
                    (enforced, staged)
                });
                endpoint.policies[at] = number(enforced).unwrap_or_default();
                held.push(enforced.clone());
                asked[at] = match staged {
                    None => Asked::Same,
                    Some(None) => Asked::Nobody,
                    Some(Some((_, applied))) => Asked::Policies(Arc::clone(applied)),
                };
            }
        }
        let shown = shown.unwrap_or_else(|| Arc::clone(&pod.bare));
        endpoint.identity = shown.id();
        self.preview.set(workload_id(uid), asked);
        Some((endpoint, shown, held))
    }
}

/// The staged policies of a world that stand in a tier.
fn staged(world: &World) -> Vec<Arc<Policy>> {
    let all = world.staged.iter().flatten().flat_map(|(_, policies)| policies);
    all.filter(|policy| policy.reference.kind.enforced() != policy.reference.kind).map(Arc::clone).collect()
}

/// The policies before and after a touch.
fn policies(touch: &Touched) -> (Option<&Policy>, Option<&Policy>) {
    match touch {
        Touched::Policy { before, after } => (before.as_deref(), after.as_deref()),
        _ => (None, None),
    }
}

/// IPv4 as a part of the mapped address space.
const V4_SPACE: NetworkKey = NetworkKey { prefix_bits: 96, address: Address::v4([0; 4]) };

/// Where a prefix is stored. An IPv6 prefix inside the mapped space would be read as IPv4; no packet carries such an
/// address.
fn network_key(net: IpNet) -> Option<NetworkKey> {
    let (length, address) = (u32::from(net.prefix_len()), mapped(net.addr()));
    match net {
        IpNet::V4(_) => Some(NetworkKey { prefix_bits: length + 96, address }),
        IpNet::V6(_) if length >= 96 && address.is_v4() => None,
        IpNet::V6(_) => Some(NetworkKey { prefix_bits: length, address }),
    }
}
