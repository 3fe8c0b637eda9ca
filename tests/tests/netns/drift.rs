//! Somebody else changes what the agent enforces by: it notices, puts it right, counts it and says so.

use crate::life::shop_with;
use aya::maps::{HashMap, Map, MapData};
use aya::programs::links::LinkOrder;
use aya::programs::tc::TcAttachOptions;
use aya::programs::{SchedClassifier, TcAttachType};
use reeve_abi::config::Config;
use reeve_abi::endpoint::EndpointValue;
use reeve_abi::policy::{PeerValue, VERDICT_ALLOW};
use reeve_tests::lab::{Pod, until};
use reeve_tests::stage::{Stage, WEB, get};
use reeve_tests::traffic::{NoAnswer, PATIENCE, connect};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Longest wait until the agent has looked.
const LOOK_PATIENCE: Duration = Duration::from_secs(10);
const ATTEST: [&str; 2] = ["--attest-interval", "1"];
/// So rarely that only the ordinary looks can find anything.
pub(crate) const RARELY: [&str; 2] = ["--attest-interval", "3600"];

pub(crate) fn pins(stage: &Stage) -> PathBuf {
    stage.node.bpffs().join("reeve/v1")
}

/// Changes every row of a pinned hash map whose key and value have these sizes.
fn tamper<const K: usize, const V: usize>(stage: &Stage, map: &str, change: impl Fn(&mut [u8; V]))
where
    [u8; K]: aya::Pod,
    [u8; V]: aya::Pod,
{
    let data = MapData::from_pin(pins(stage).join("maps").join(map)).expect("pinned");
    let mut rows: HashMap<_, [u8; K], [u8; V]> = HashMap::try_from(Map::HashMap(data)).expect("these sizes");
    let all: Vec<_> = rows.iter().collect::<Result<_, _>>().expect("read");
    assert!(!all.is_empty(), "there is something to change in {map}");
    for (key, mut value) in all {
        change(&mut value);
        rows.insert(key, value, 0).expect("written");
    }
}

fn drifted(stage: &mut Stage, what: &str) -> f64 {
    stage.agent().metric("reeve_drift_total", &[("what", what)]).expect("a metric")
}

#[track_caller]
pub(crate) fn check_noticed(stage: &mut Stage, what: &str, named: &str) {
    let noticed = until("the drift", LOOK_PATIENCE, || {
        Ok((drifted(stage, what) > 0.0 && !stage.problems(named).is_empty()).then_some(()))
    });
    noticed.unwrap_or_else(|error| panic!("{error:#}\n{}", stage.agent().log()));
}

#[track_caller]
fn check_enforced(stage: &mut Stage, web: &Pod, client: &Pod, guest: &Pod) {
    stage.denies(guest, web, WEB, "web-clients");
    stage.allows(client, web, WEB, "web-clients");
}

#[test]
fn changed_policy_row_is_put_right_and_what_it_let_in_is_cut() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop_with("d-peers", &["--attest-interval", "2"]);
    check_enforced(&mut stage, &web, &client, &guest);
    let open = |value: &mut [u8; 24]| {
        let row: &mut PeerValue = bytemuck::from_bytes_mut(value);
        row.verdict = VERDICT_ALLOW;
    };
    // The agent may look at the very moment between the change and the connection.
    let to = SocketAddr::new(web.v4(), 8080);
    let live = until("a way in", LOOK_PATIENCE, || {
        tamper::<16, 24>(&stage, "PEERS", open_aligned(open));
        Ok(connect(guest.netns(), to, PATIENCE).ok())
    });
    let mut live = live.expect("the change opens");
    check_noticed(&mut stage, "PEERS", "map PEERS");
    assert_eq!(live.exchange(PATIENCE), Err(NoAnswer::TimedOut), "judged again by what should hold");
    check_enforced(&mut stage, &web, &client, &guest);
    let forgotten =
        until("a look that finds nothing", LOOK_PATIENCE, || Ok(stage.problems("map PEERS").is_empty().then_some(())));
    forgotten.expect("the problem is over");
}

/// The bytes of a map need not be aligned as a row must be.
fn open_aligned<const V: usize>(change: impl Fn(&mut [u8; V])) -> impl Fn(&mut [u8; V]) {
    #[repr(align(16))]
    struct Aligned<const V: usize>([u8; V]);
    move |value| {
        let mut aligned = Aligned(*value);
        change(&mut aligned.0);
        *value = aligned.0;
    }
}

#[test]
fn endpoint_that_was_opened_or_removed_is_enforced_again() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop_with("d-endpoints", &ATTEST);
    check_enforced(&mut stage, &web, &client, &guest);
    let open = |value: &mut [u8; 112]| {
        let row: &mut EndpointValue = bytemuck::from_bytes_mut(value);
        row.policies = Default::default();
    };
    tamper::<4, 112>(&stage, "ENDPOINTS", open_aligned(open));
    check_noticed(&mut stage, "ENDPOINTS", "map ENDPOINTS");
    check_enforced(&mut stage, &web, &client, &guest);
    let before = drifted(&mut stage, "ENDPOINTS");
    let data = MapData::from_pin(pins(&stage).join("maps/ENDPOINTS")).expect("pinned");
    let mut rows: HashMap<_, u32, [u8; 112]> = HashMap::try_from(Map::HashMap(data)).expect("these sizes");
    for key in rows.keys().collect::<Result<Vec<_>, _>>().expect("read") {
        rows.remove(&key).expect("removed");
    }
    let noticed = until("the drift", LOOK_PATIENCE, || Ok((drifted(&mut stage, "ENDPOINTS") > before).then_some(())));
    noticed.expect("rows that are missing are noticed");
    check_enforced(&mut stage, &web, &client, &guest);
}

#[test]
fn settings_that_were_changed_are_put_back() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop_with("d-config", &ATTEST);
    let data = MapData::from_pin(pins(&stage).join("maps/CONFIG")).expect("pinned");
    let mut settings: aya::maps::Array<_, [u8; size_of::<Config>()]> =
        aya::maps::Array::try_from(Map::Array(data)).expect("this size");
    let mut changed = Config::default();
    bytemuck::bytes_of_mut(&mut changed).copy_from_slice(&settings.get(&0, 0).expect("read"));
    changed.mixed_generations = 1;
    settings.set(0, bytemuck::cast::<Config, [u8; size_of::<Config>()]>(changed), 0).expect("written");
    check_noticed(&mut stage, "CONFIG", "map CONFIG");
    let mut now = Config::default();
    bytemuck::bytes_of_mut(&mut now).copy_from_slice(&settings.get(&0, 0).expect("read"));
    assert_eq!(now.mixed_generations, 0);
    check_enforced(&mut stage, &web, &client, &guest);
}

#[test]
fn looks_at_what_is_as_it_should_be_find_nothing() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop_with("d-nothing", &ATTEST);
    check_enforced(&mut stage, &web, &client, &guest);
    guest.remove().expect("removed");
    let next = stage.pod("next", &[("role", "client")]);
    stage.settled();
    stage.allows(&next, &web, WEB, "web-clients");
    client.set_labels(&[]).expect("relabelled");
    stage.settled();
    stage.denies(&client, &web, WEB, "web-clients");
    let looks = |stage: &mut Stage| stage.agent().metric("reeve_attestations_total", &[]).expect("a metric");
    let before = looks(&mut stage);
    let looked = until("two looks", LOOK_PATIENCE, || Ok((looks(&mut stage) >= before + 2.0).then_some(())));
    looked.expect("it looks");
    let found = stage.agent().metric("reeve_drift_total", &[]).expect("a metric");
    assert!(found < 0.5, "{found}\n{}", stage.agent().log());
}

fn link(stage: &mut Stage, pod: &Pod, side: &str) -> PathBuf {
    let ifindex = stage.endpoint(pod).expect("an endpoint")["ifindex"].to_string();
    pins(stage).join("links").join(format!("{ifindex}-{side}"))
}

#[test]
fn link_that_was_detached_is_attached_again() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop_with("d-link", &RARELY);
    let pin = link(&mut stage, &web, "to");
    let mut detach = Command::new("bpftool");
    detach.args(["link", "detach", "pinned"]).arg(pin).stdin(Stdio::null()).stdout(Stdio::null());
    assert!(detach.status().expect("bpftool runs").success());
    check_noticed(&mut stage, "attached", "had been taken off");
    check_enforced(&mut stage, &web, &client, &guest);
    stage.agent().kill9().expect("killed");
    assert_eq!(get(&guest, &web), Err(NoAnswer::TimedOut), "the new link is pinned");
}

#[test]
fn pin_that_was_removed_is_made_again_before_it_is_needed() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop_with("d-pin", &RARELY);
    let pin = link(&mut stage, &web, "to");
    std::fs::remove_file(&pin).expect("removed");
    check_noticed(&mut stage, "pin", "pin had been removed");
    assert!(pin.exists());
    stage.agent().kill9().expect("killed");
    assert_eq!((get(&guest, &web), get(&client, &web)), (Err(NoAnswer::TimedOut), Ok(())), "the link outlives it");
}

/// Puts a program before all others at a device of the node, and returns it with its number. It lets everything go on,
/// as it has no endpoints of its own, and is there until it is dropped.
pub(crate) fn put_first(stage: &Stage, device: &str, at: TcAttachType) -> (aya::Ebpf, u32) {
    let object = std::fs::read(std::env::var_os("REEVE_BPF_OBJECT").expect("set")).expect("read");
    let attach = || -> anyhow::Result<(aya::Ebpf, u32)> {
        let mut foreign = aya::EbpfLoader::new().map_max_entries("FLOWS", 64).load(&object)?;
        let program: &mut SchedClassifier = foreign.program_mut("reeve_to_pod").expect("there").try_into()?;
        program.load()?;
        program.attach_with_options(device, at, TcAttachOptions::TcxOrder(LinkOrder::first()))?;
        let id = program.info()?.id();
        Ok((foreign, id))
    };
    stage.node.netns().run(attach).expect("entered").expect("attached")
}

#[test]
fn program_that_puts_itself_first_is_second_again() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop_with("d-order", &RARELY);
    let device = web.host_side().to_owned();
    let (_foreign, id) = put_first(&stage, &device, TcAttachType::Egress);
    check_noticed(&mut stage, "order", "had been put before ours");
    let chain = || SchedClassifier::query_tcx(&device, TcAttachType::Egress);
    let (_, chain) = stage.node.netns().run(chain).expect("entered").expect("asked");
    let chain: Vec<u32> = chain.iter().map(aya::programs::ProgramInfo::id).collect();
    assert_eq!((chain.len(), chain[1]), (2, id), "both stand, ours first, and nobody holds everything back");
    check_enforced(&mut stage, &web, &client, &guest);
    stage.agent().kill9().expect("killed");
    assert_eq!((get(&guest, &web), get(&client, &web)), (Err(NoAnswer::TimedOut), Ok(())), "the new link is pinned");
}

#[test]
fn programs_of_a_device_that_is_no_pods_are_put_back() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop_with("d-uplink", &ATTEST);
    let of_side = |side: &str| -> PathBuf {
        let mut links =
            pins(&stage).join("links").read_dir().expect("a directory").map(|link| link.expect("read").path());
        links.find(|path| path.to_string_lossy().ends_with(side)).expect("a device that is no pod's")
    };
    // The cgroup's pin ends like that of a device.
    let out = of_side("-out");
    let into = PathBuf::from(out.to_string_lossy().replace("-out", "-in"));
    let mut detach = Command::new("bpftool");
    detach.args(["link", "detach", "pinned"]).arg(&out).stdin(Stdio::null()).stdout(Stdio::null());
    assert!(detach.status().expect("bpftool runs").success());
    check_noticed(&mut stage, "attached", "had been taken off");
    std::fs::remove_file(&into).expect("removed");
    check_noticed(&mut stage, "pin", "pin had been removed");
    assert!(out.exists() && into.exists());
    check_enforced(&mut stage, &web, &client, &guest);
}
