//! The lab keeps its own promises, without any agent: packets arrive, and nothing is left behind.

#[path = "lab/services.rs"]
mod services;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use reeve_tests::frames::{Ends, Tap, is_to_port};
use reeve_tests::lab::{Families, Lab, Mode, Network, Node, Pod, PodSpec};
use reeve_tests::require::{Capability, skip_unless};
use reeve_tests::traffic::{NoAnswer, PATIENCE, Server, UdpClient, connect, connect_from, ping, udp_exchange};

const NEEDS: [Capability; 3] = [Capability::Root, Capability::Netns, Capability::Cgroup];

/// Long enough for a first packet that has to resolve addresses on the way, on a machine with other work.
const GENEROUS: Duration = Duration::from_secs(3);

/// Short, because what is unplugged on purpose need not be given a chance.
const SHORT: Duration = Duration::from_millis(150);

fn pod(node: &Node, name: &str) -> Pod {
    node.pod(PodSpec::new("default", name)).unwrap()
}

/// Every protocol gets through from `client` to `server`, which has the address `to`.
#[track_caller]
fn check_reaches(client: &reeve_tests::lab::Netns, server: &reeve_tests::lab::Netns, to: IpAddr) {
    let tcp = Server::tcp(server, to, 0).unwrap();
    let mut connection = connect(client, tcp.address(), GENEROUS).unwrap();
    assert_eq!(connection.exchange(GENEROUS), Ok(()), "TCP to {to}");
    assert_eq!(connection.exchange(GENEROUS), Ok(()), "TCP to {to}, a second time");
    let udp = Server::udp(server, to, 0).unwrap();
    assert_eq!(udp_exchange(client, udp.address(), GENEROUS), Ok(()), "UDP to {to}");
    assert_eq!(ping(client, to, GENEROUS), Ok(()), "ping to {to}");
}

#[track_caller]
fn check_network(name: &str, network: Network, first: Mode, second: Mode) {
    let lab = Lab::joined(name, network).unwrap();
    let n1 = lab.node("n1", first).unwrap();
    let n2 = lab.node("n2", second).unwrap();
    let outside = lab.outside("world").unwrap();
    let (a, b, c) = (pod(&n1, "a"), pod(&n1, "b"), pod(&n2, "c"));
    for of in [Pod::v4 as fn(&Pod) -> IpAddr, Pod::v6] {
        check_reaches(a.netns(), b.netns(), of(&b));
        check_reaches(a.netns(), c.netns(), of(&c));
        check_reaches(n1.netns(), a.netns(), of(&a));
        check_reaches(n1.netns(), c.netns(), of(&c));
        if network == Network::Flat {
            check_reaches(&outside, a.netns(), of(&a));
        }
    }
    for address in [n2.v4(), n2.v6()] {
        check_reaches(a.netns(), n2.netns(), address);
        check_reaches(&outside, n2.netns(), address);
    }
}

#[test]
fn routed_pods_nodes_and_the_world_reach_each_other() {
    if skip_unless(&NEEDS) {
        return;
    }
    check_network("routed", Network::Flat, Mode::Routed, Mode::Routed);
}

#[test]
fn bridged_pods_nodes_and_the_world_reach_each_other() {
    if skip_unless(&NEEDS) {
        return;
    }
    check_network("bridged", Network::Flat, Mode::Bridged, Mode::Routed);
}

#[test]
fn pods_and_nodes_reach_each_other_through_tunnels() {
    if skip_unless(&NEEDS) {
        return;
    }
    check_network("tunnels", Network::Overlay, Mode::Routed, Mode::Bridged);
}

#[test]
fn packets_between_nodes_of_an_overlay_are_wrapped_and_those_of_a_flat_network_are_not() {
    if skip_unless(&NEEDS) {
        return;
    }
    for (network, wrapped) in [(Network::Flat, false), (Network::Overlay, true)] {
        let lab = Lab::joined("wrapped", network).unwrap();
        let (n1, n2) = (lab.node("n1", Mode::Routed).unwrap(), lab.node("n2", Mode::Routed).unwrap());
        let (a, b) = (pod(&n1, "a"), pod(&n2, "b"));
        for to in [b.v4(), b.v6()] {
            let mut wire = Tap::open(n2.netns(), "eth0").unwrap();
            let server = Server::udp(b.netns(), to, 2000).unwrap();
            assert_eq!(udp_exchange(a.netns(), server.address(), GENEROUS), Ok(()));
            let port = if wrapped { 8472 } else { 2000 };
            assert!(wire.capture(GENEROUS, |frame| is_to_port(frame, port)).unwrap().is_some(), "{network:?} {to}");
        }
    }
}

#[test]
fn what_does_not_answer_is_told_apart() {
    if skip_unless(&NEEDS) {
        return;
    }
    let lab = Lab::new("silence").unwrap();
    for (name, mode) in [("routed", Mode::Routed), ("bridged", Mode::Bridged)] {
        check_silence(&lab.node(name, mode).unwrap());
    }
}

#[track_caller]
fn check_silence(node: &Node) {
    let (a, b) = (pod(node, "a"), pod(node, "b"));
    let v4_only = node.pod(PodSpec::new("default", "old").families(Families::V4)).unwrap();
    assert_eq!(v4_only.addresses().len(), 1);

    let closed = SocketAddr::new(b.v4(), 81);
    assert_eq!(connect(a.netns(), closed, GENEROUS).unwrap_err(), NoAnswer::Refused);
    assert_eq!(udp_exchange(a.netns(), closed, GENEROUS), Err(NoAnswer::Refused));
    let nowhere = SocketAddr::new(b.v6(), 81);
    assert_eq!(connect(v4_only.netns(), nowhere, GENEROUS).unwrap_err(), NoAnswer::Unreachable);

    let server = Server::tcp(b.netns(), b.v4(), 80).unwrap();
    let from = SocketAddr::new(a.v4(), 40_000);
    let mut connection = connect_from(a.netns(), Some(from), server.address(), GENEROUS).unwrap();
    assert_eq!(connection.local(), from);
    assert_eq!(connection.exchange(GENEROUS), Ok(()));
    b.unplug().unwrap();
    assert_eq!(connection.exchange(SHORT), Err(NoAnswer::TimedOut));
    for address in [b.v4(), b.v6()] {
        assert_eq!(ping(a.netns(), address, SHORT), Err(NoAnswer::TimedOut));
    }
    assert_eq!(udp_exchange(a.netns(), server.address(), SHORT), Err(NoAnswer::TimedOut));
    assert_eq!(connect(a.netns(), server.address(), SHORT).unwrap_err(), NoAnswer::TimedOut);
    // The control: the same connection goes on as soon as the way is back.
    b.plug().unwrap();
    for address in [b.v4(), b.v6()] {
        assert_eq!(ping(a.netns(), address, GENEROUS), Ok(()));
    }
    assert_eq!(connection.exchange(GENEROUS), Ok(()));
    drop(server);
    assert!(matches!(connection.exchange(GENEROUS), Err(NoAnswer::Closed | NoAnswer::Reset)));
}

#[test]
fn a_frame_put_on_one_wire_is_caught_on_the_other() {
    if skip_unless(&NEEDS) {
        return;
    }
    let lab = Lab::new("frames").unwrap();
    for (name, mode) in [("routed", Mode::Routed), ("bridged", Mode::Bridged)] {
        let node = lab.node(name, mode).unwrap();
        let (a, b) = (pod(&node, "a"), pod(&node, "b"));
        let destination_mac = if mode == Mode::Bridged { b.mac().unwrap() } else { a.gateway_mac().unwrap() };
        for (source, destination) in [(a.v4(), b.v4()), (a.v6(), b.v6())] {
            let ends = Ends { source_mac: a.mac().unwrap(), destination_mac, source, destination };
            let sender = Tap::open(a.netns(), "eth0").unwrap();
            let mut receiver = Tap::open(b.netns(), "eth0").unwrap();
            sender.send(&ends.tcp(1000, 2000, "S", 7, 0)).unwrap();
            let frame = receiver.capture(GENEROUS, |frame| is_to_port(frame, 2000)).unwrap();
            assert_eq!(frame.expect("the frame arrives")[6..12], hop_before(&node, &a, &b), "{mode:?} {destination}");
            sender.send(&ends.udp(1000, 2001, b"hello")).unwrap();
            assert!(receiver.capture(GENEROUS, |frame| is_to_port(frame, 2001)).unwrap().is_some());
            assert_eq!(receiver.capture(PATIENCE, |frame| is_to_port(frame, 2002)).unwrap(), None);
        }
    }
}

/// Whose hardware address a frame from `a` carries when it reaches `b`.
fn hop_before(node: &Node, a: &Pod, b: &Pod) -> [u8; 6] {
    match node.mode() {
        Mode::Routed => b.gateway_mac().unwrap(),
        Mode::Bridged => a.mac().unwrap(),
    }
}

#[test]
fn manifests_are_in_every_nodes_directory_and_follow_changes() {
    if skip_unless(&NEEDS) {
        return;
    }
    let lab = Lab::new("manifests").unwrap();
    let n1 = lab.node("n1", Mode::Routed).unwrap();
    lab.manifests().namespace("shop", &[("team", "a")]).unwrap();
    let web = n1.pod(PodSpec::new("shop", "web").label("app", "web").port("http", 80, "TCP")).unwrap();
    let n2 = lab.node("n2", Mode::Routed).unwrap();
    web.set_labels(&[("app", "other")]).unwrap();
    for node in [&n1, &n2] {
        let mut files: Vec<String> = fs::read_dir(node.manifests_directory())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        assert_eq!(files, ["namespace-shop.yaml", "node-n1.yaml", "node-n2.yaml", "pod-shop-web.yaml"]);
        let text = fs::read_to_string(node.manifests_directory().join("pod-shop-web.yaml")).unwrap();
        assert!(text.contains("app: other") && text.contains("nodeName: n1"), "{text}");
        assert!(text.contains(&web.v6().to_string()), "{text}");
    }
    web.remove().unwrap();
    assert!(!n2.manifests_directory().join("pod-shop-web.yaml").exists());
}

/// What a lab occupies on the machine.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    directory: bool,
    namespaces: Vec<String>,
    mounts: usize,
    cgroup: bool,
    process: bool,
}

const NO_TRACES: Traces = Traces { directory: false, namespaces: vec![], mounts: 0, cgroup: false, process: false };

impl Traces {
    fn of(directory: &Path, cgroup: &Path, process: u32) -> Self {
        let prefix = directory.file_name().unwrap().to_str().unwrap();
        let names = fs::read_dir("/run/netns").into_iter().flatten();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        // A zombie is gone: only its parent, init in the case of a killed lab, has not noticed yet.
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        Self {
            directory: directory.exists(),
            namespaces: names.filter(|name| name.starts_with(prefix)).collect(),
            mounts: mounts.lines().filter(|line| line.contains(directory.to_str().unwrap())).count(),
            cgroup: cgroup.exists(),
            process: stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z')),
        }
    }
}

/// A lab that has one of everything, and a process of its node.
fn lab_with_everything(name: &str) -> (Lab, Node, Child) {
    let lab = Lab::new(name).unwrap();
    let node = lab.node("n1", Mode::Routed).unwrap();
    pod(&node, "a");
    // The shell's own child is noted nowhere.
    let mut command = Command::new("sh");
    command.args(["-c", "sleep 1000 & wait"]).stdin(Stdio::null()).stdout(Stdio::null());
    let child = node.spawn(&mut command).unwrap();
    (lab, node, child)
}

#[test]
fn nothing_is_left_when_a_lab_is_dropped() {
    if skip_unless(&NEEDS) {
        return;
    }
    let (lab, node, mut child) = lab_with_everything("dropped");
    let (directory, cgroup, process) = (lab.directory().to_owned(), node.cgroup().to_owned(), child.id());
    let there = Traces::of(&directory, &cgroup, process);
    assert_eq!((there.directory, there.cgroup, there.process, there.mounts), (true, true, true, 1));
    assert_eq!(there.namespaces.len(), 3, "{there:?}: switch, node and pod");
    let members = fs::read_to_string(cgroup.join("cgroup.threads")).unwrap();
    assert!(members.lines().any(|line| line == process.to_string()), "the node's process is in its cgroup");
    drop((lab, node));
    child.wait().unwrap();
    assert_eq!(Traces::of(&directory, &cgroup, process), NO_TRACES);
}

#[test]
fn a_lab_that_was_killed_is_swept_by_the_next() {
    if skip_unless(&NEEDS) {
        return;
    }
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "victim", "--ignored", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    let line = lines.map(Result::unwrap).find_map(|line| Some(line.split_once("VICTIM ")?.1.to_owned()));
    let line = line.expect("the victim says what it has made");
    let words: Vec<&str> = line.split(' ').collect();
    let (directory, cgroup, process) = (PathBuf::from(words[0]), PathBuf::from(words[1]), words[2].parse().unwrap());
    victim.kill().unwrap();
    victim.wait().unwrap();
    let left = Traces::of(&directory, &cgroup, process);
    assert_eq!((left.directory, left.cgroup, left.process, left.namespaces.len()), (true, true, true, 3));
    let _next = Lab::new("sweeper").unwrap();
    assert_eq!(Traces::of(&directory, &cgroup, process), NO_TRACES);
}

/// Not a test of its own: makes a lab and waits to be killed.
#[test]
#[ignore = "run by a_lab_that_was_killed_is_swept_by_the_next"]
fn victim() {
    let (lab, node, child) = lab_with_everything("victim");
    println!("VICTIM {} {} {}", lab.directory().display(), node.cgroup().display(), child.id());
    let mut end = Vec::new();
    std::io::stdin().read_to_end(&mut end).unwrap();
}

#[test]
fn datagrams_keep_their_port() {
    if skip_unless(&NEEDS) {
        return;
    }
    let lab = Lab::new("ports").unwrap();
    let node = lab.node("n1", Mode::Bridged).unwrap();
    let (a, b) = (pod(&node, "a"), pod(&node, "b"));
    let server = Server::udp(b.netns(), b.v6(), 53).unwrap();
    let from = SocketAddr::new(a.v6(), 5353);
    let mut client = UdpClient::new(a.netns(), Some(from), server.address()).unwrap();
    assert_eq!(client.local(), from);
    for _ in 0..3 {
        assert_eq!(client.exchange(GENEROUS), Ok(()));
    }
}
