//! Pods that come and go on one node by way of real plugins, connections between them at any moment, and what the oracle
//! says of each for the state that was acknowledged then.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, mpsc};
use std::time::{Duration, Instant};

use fastrand::Rng;
use reeve_flow::record::{EventKind, FlowRecord};
use reeve_policy::model::Verdict;
use reeve_policy::oracle::{Explanation, explain};
use reeve_policy::store::{Change, ObjectKey, Store};
use reeve_tests::cluster::{Administrator, Chain, WiredPod, fact};
use reeve_tests::demo::attempt::{differs, ends};
use reeve_tests::lab::{PodSpec, Records, until};
use reeve_tests::traffic::{Answer, NoAnswer, PATIENCE, Server, connect_from};
use serde_json::{Value, json};

use crate::town::{GENEROUS, LONG, Town};

/// Between two connections of one prober: the machine has other work.
const PACE: Duration = Duration::from_millis(25);
/// One of so many connections may begin although an end of it is about to leave.
const LEAVING_TOO: u8 = 200;
/// Where every pod serves.
const PORT: u16 = 8080;

/// A pod that runs.
pub(crate) struct Member {
    pod: WiredPod,
    uid: String,
    server: Mutex<Option<Server>>,
    /// It will be ended in a moment.
    leaving: AtomicBool,
}

/// What is acknowledged. The policy `web-clients` has two forms, and there is a store for each; while it is changed either
/// may be in force.
struct State {
    members: Vec<Arc<Member>>,
    stores: [Store; 2],
    form: usize,
    changing: bool,
    /// How often something but members has changed.
    edition: u64,
}

impl State {
    fn holds(&self, member: &Member) -> bool {
        self.members.iter().any(|one| one.uid == member.uid)
    }
}

/// A connection that overlapped no change, to be found in the records.
struct Judged {
    tuple: (IpAddr, u16, IpAddr),
    told: Explanation,
    uids: [String; 2],
}

/// What came of all connections.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) allowed: u64,
    pub(crate) denied: u64,
    /// Those of which an end left.
    pub(crate) left: u64,
    /// Those for which the policy was changed.
    pub(crate) altered: u64,
    wrong: Vec<String>,
    judged: Vec<Judged>,
    addresses: HashSet<IpAddr>,
    /// Pods with an address that another one has had.
    pub(crate) reused: u64,
    pub(crate) slowest_add: Duration,
}

/// The node's pods.
pub(crate) struct Crowd<'a> {
    town: &'a Town,
    chain: Chain,
    state: RwLock<State>,
    /// Nobody has tried these yet.
    fresh: Mutex<VecDeque<Arc<Member>>>,
    outcome: Mutex<Outcome>,
    ports: AtomicU32,
    numbers: AtomicU32,
}

/// Pods of every kind: of each of two applications, in each of three roles.
const APPS: [&str; 2] = ["web", "open"];
const ROLES: [&str; 3] = ["client", "partner", "guest"];

/// What the policy `web-clients` says in one of its forms.
fn for_web(form: usize) -> Value {
    let peers = ["client", "partner"][..=form].iter();
    let peers: Vec<Value> = peers.map(|role| json!({ "podSelector": { "matchLabels": { "role": role } } })).collect();
    json!({
        "podSelector": { "matchLabels": { "app": "web" } }, "policyTypes": ["Ingress"], "ingress": [{ "from": peers }],
    })
}

impl<'a> Crowd<'a> {
    /// Nobody, and policies: `web` is for clients, in its second form for partners too, and guests may reach `web` only.
    pub(crate) fn new(town: &'a Town, chain: Chain) -> Self {
        let out = json!({
            "podSelector": { "matchLabels": { "role": "guest" } }, "policyTypes": ["Egress"],
            "egress": [{ "to": [{ "podSelector": { "matchLabels": { "app": "web" } } }] }],
        });
        town.enforce("guests-out", &out, &[town.own()]);
        let mut stores = [Store::new(town.node.name()), Store::new(town.node.name())];
        let namespace = town.cluster.get(&["namespace", &town.name]).expect("a namespace");
        let node = town.cluster.get(&["node", town.node.name()]).expect("a node");
        town.enforce("web-clients", &for_web(0), &[town.own()]);
        let policies = ["guests-out", "web-clients"].map(|policy| town.in_force(policy, &[town.own()]));
        for object in [namespace, node].into_iter().chain(policies) {
            for store in &mut stores {
                store.apply(Change::Apply(fact(object.clone())));
            }
        }
        let state = State { members: Vec::new(), stores, form: 0, changing: false, edition: 0 };
        Self {
            town,
            chain,
            state: RwLock::new(state),
            fresh: Mutex::default(),
            outcome: Mutex::default(),
            ports: AtomicU32::new(0),
            numbers: AtomicU32::new(0),
        }
    }

    /// Gives the policy its other form; only one does that at a time.
    pub(crate) fn alter(&self, administrator: &Administrator) -> anyhow::Result<()> {
        let form = 1 - self.state.read().expect("nobody panics while it changes").form;
        let spec = for_web(form);
        // As it will be, but for its generation, which is known afterwards.
        let object = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "name": "web-clients", "namespace": self.town.name }, "spec": spec,
        });
        let put = |object: Value, changing: bool| {
            let mut state = self.state.write().expect("nobody panics while it changes");
            state.stores[form].apply(Change::Apply(fact(object)));
            (state.changing, state.edition) = (changing, state.edition + 1);
            if !changing {
                state.form = form;
            }
        };
        put(object, true);
        let object = administrator.patch_policy(&self.town.name, "web-clients", &json!({ "spec": spec }))?;
        Town::active(&object, &[self.town.own()]);
        put(object, false);
        Ok(())
    }

    /// Makes a pod, of another kind than the one before; it is enforced when this returns.
    pub(crate) fn make(&self, administrator: &Administrator) -> anyhow::Result<Arc<Member>> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed) as usize;
        let spec = PodSpec::new(&self.town.name, &format!("pod-{number}"))
            .label("app", APPS[number % APPS.len()])
            .label("role", ROLES[number / APPS.len() % ROLES.len()]);
        let mut object = spec.object(self.town.node.name());
        let uid = administrator.create_pod(&self.town.name, &object)?;
        object["metadata"]["uid"] = json!(uid);
        let begun = Instant::now();
        let pod = WiredPod::attach(&self.town.node, &self.chain, &object)?;
        let taken = begun.elapsed();
        object["status"] = pod.status();
        let server = Server::tcp(pod.netns(), Ipv6Addr::UNSPECIFIED.into(), PORT)?;
        let member = Arc::new(Member { pod, uid, server: Mutex::new(Some(server)), leaving: AtomicBool::new(false) });
        {
            let mut state = self.state.write().expect("nobody panics while it changes");
            for store in &mut state.stores {
                store.apply(Change::Apply(fact(object.clone())));
            }
            state.members.push(Arc::clone(&member));
        }
        let mut outcome = self.outcome();
        outcome.reused += u64::from(!outcome.addresses.insert(member.pod.address(false)));
        outcome.slowest_add = outcome.slowest_add.max(taken);
        drop(outcome);
        self.fresh.lock().unwrap_or_else(PoisonError::into_inner).push_back(Arc::clone(&member));
        administrator.show_pods(&self.town.name, &[(&member.pod.sandbox().name, object["status"].clone())])?;
        Ok(member)
    }

    /// Ends a pod, as whoever wants it gone and its kubelet do.
    pub(crate) fn end(&self, administrator: &Administrator, member: &Member) -> anyhow::Result<()> {
        let (namespace, name) = (&self.town.name, &member.pod.sandbox().name);
        {
            let mut state = self.state.write().expect("nobody panics while it changes");
            state.members.retain(|one| one.uid != member.uid);
            let key = ObjectKey {
                group: String::new(),
                kind: "Pod".to_owned(),
                namespace: Some(namespace.clone()),
                name: name.clone(),
            };
            for store in &mut state.stores {
                store.apply(Change::Delete(key.clone()));
            }
        }
        administrator.mark_pod(namespace, name)?;
        drop(member.server.lock().unwrap_or_else(PoisonError::into_inner).take());
        member.pod.detach()?;
        administrator.delete_pod(namespace, name)?;
        member.pod.netns().remove()
    }

    /// Tries connections until it is told to stop: those of newcomers first.
    pub(crate) fn probe(&self, stopped: &AtomicBool) {
        let mut rng = Rng::new();
        let (_never, pause) = mpsc::channel::<()>();
        while !stopped.load(Ordering::Relaxed) {
            // Nobody ever sends: this is a pause.
            let _ = pause.recv_timeout(PACE);
            let fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let leaving_too = rng.u8(..LEAVING_TOO) == 0;
            let mut any = || {
                let state = self.state.read().expect("nobody panics while it changes");
                let may = |member: &&Arc<Member>| leaving_too || !member.leaving.load(Ordering::Relaxed);
                let members: Vec<&Arc<Member>> = state.members.iter().filter(may).collect();
                (!members.is_empty()).then(|| Arc::clone(members[rng.usize(..members.len())]))
            };
            let pairs = match fresh {
                Some(member) => vec![(Some(Arc::clone(&member)), any()), (any(), Some(member))],
                None => vec![(any(), any())],
            };
            for pair in pairs {
                if let (Some(from), Some(to)) = pair
                    && from.uid != to.uid
                {
                    self.try_one(&from, &to, rng.bool());
                }
            }
        }
    }

    fn try_one(&self, from: &Member, to: &Member, v6: bool) {
        let (source, destination) = (from.pod.address(v6), to.pod.address(v6));
        let Some((before, edition)) = self.told(from, to, source, destination) else { return };
        let port = u16::try_from(20_000 + self.ports.fetch_add(1, Ordering::Relaxed) % 40_000).expect("a port");
        let allowed = before.iter().all(|told| told.verdict == Verdict::Allow);
        // Where either answer is right, the longer wait makes sure of it.
        let surely_denied = before.iter().all(|told| told.verdict == Verdict::Deny);
        let patience = if surely_denied { PATIENCE } else { GENEROUS };
        let local = Some(SocketAddr::new(source, port));
        let got: Answer = connect_from(from.pod.netns(), local, SocketAddr::new(destination, PORT), patience)
            .and_then(|mut connection| connection.exchange(patience));
        let after = self.told(from, to, source, destination);
        let mut outcome = self.outcome();
        if got.is_ok() {
            outcome.allowed += 1;
        } else {
            outcome.denied += 1;
        }
        let name = |member: &Member| format!("{} ({})", member.pod.sandbox().name, member.uid);
        let what = || format!("{} at {source}:{port} to {} at {destination}: {got:?}", name(from), name(to));
        let verdicts = before.iter().chain(after.iter().flat_map(|(told, _)| told)).map(|told| told.verdict);
        let one_answer = verdicts.clone().all(|verdict| verdict == Verdict::Allow)
            || !verdicts.clone().any(|verdict| verdict == Verdict::Allow);
        match after {
            Some((told, now)) if one_answer => {
                let right = if allowed { got == Ok(()) } else { got == Err(NoAnswer::TimedOut) };
                if !right {
                    outcome.wrong.push(format!("{}, though the oracle says {told:?}", what()));
                } else if now == edition && told.len() == 1 {
                    let uids = [from.uid.clone(), to.uid.clone()];
                    let told = told.into_iter().next().expect("it is one");
                    outcome.judged.push(Judged { tuple: (source, port, destination), told, uids });
                }
            }
            Some(_) => outcome.altered += 1,
            None => {
                outcome.left += 1;
                // A sender that leaves is not let in at the last moment.
                if surely_denied && got.is_ok() && self.is_there(to) {
                    outcome.wrong.push(format!("{}, though the oracle said {before:?}", what()));
                }
            }
        }
    }

    /// What the oracle says now, for each state that may be in force; `None` where one of the ends is not there.
    fn told(&self, from: &Member, to: &Member, source: IpAddr, destination: IpAddr) -> Option<(Vec<Explanation>, u64)> {
        let state = self.state.read().expect("nobody panics while it changes");
        if !state.holds(from) || !state.holds(to) {
            return None;
        }
        let forms = if state.changing { vec![0, 1] } else { vec![state.form] };
        let told = forms.into_iter().map(|form| explain(state.stores[form].world(), source, destination, 6, PORT));
        Some((told.collect(), state.edition))
    }

    fn is_there(&self, member: &Member) -> bool {
        self.state.read().expect("nobody panics while it changes").holds(member)
    }

    fn outcome(&self) -> MutexGuard<'_, Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These are about to leave: hardly any connection begins with them any more, and those that have begun end.
    pub(crate) fn bid_farewell(members: &[Arc<Member>]) {
        for member in members {
            member.leaving.store(true, Ordering::Relaxed);
        }
    }

    /// What came of it all, once nobody probes any more; no verdict was wrong, and the records tell the same of each
    /// connection.
    #[track_caller]
    pub(crate) fn account(self, records: &mut Records) -> Outcome {
        let outcome = self.outcome.into_inner().unwrap_or_else(PoisonError::into_inner);
        let wrong = &outcome.wrong;
        assert!(wrong.is_empty(), "{} wrong verdicts:\n{}", wrong.len(), wrong.join("\n"));
        let mut found: HashMap<(IpAddr, u16, IpAddr), Vec<FlowRecord>> = HashMap::new();
        let mut missing: Vec<&Judged> = outcome.judged.iter().collect();
        let all = until("the records of all connections", LONG, || {
            for line in records.rest()? {
                let record: FlowRecord = serde_json::from_value(line)?;
                if let (Some(source), Some(port), Some(destination)) =
                    (record.source.ip, record.source.port, record.destination.ip)
                    && matches!(record.event, EventKind::Opened | EventKind::Denied)
                {
                    found.entry((source, port, destination)).or_default().push(record);
                }
            }
            missing.retain(|judged| {
                let records = found.get(&judged.tuple).map_or(&[][..], Vec::as_slice);
                let is_told = |direction| records.iter().any(|record| record.direction == direction);
                !ends(&judged.told).iter().all(|(direction, _)| is_told(*direction))
            });
            Ok(missing.is_empty().then_some(()))
        });
        let first = missing.first().map(|judged| (&judged.tuple, &judged.told));
        all.unwrap_or_else(|error| panic!("{error:#}: {} have none, such as {first:?}", missing.len()));
        for judged in &outcome.judged {
            let wanted = ends(&judged.told);
            for record in &found[&judged.tuple] {
                let decision = wanted.iter().find(|(direction, _)| *direction == record.direction);
                let differs = differs(record, decision.map(|(_, decision)| *decision));
                assert_eq!(differs, None, "{record:?}");
                let uids = [&record.source.uid, &record.destination.uid].map(|uid| uid.clone().unwrap_or_default());
                assert_eq!(uids, judged.uids, "{record:?}");
            }
        }
        outcome
    }
}

impl Outcome {
    /// Connections that the records were compared for.
    pub(crate) fn compared(&self) -> usize {
        self.judged.len()
    }
}
