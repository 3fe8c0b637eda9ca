//! What was sent, counted, and what windows tell of it: sums that must agree to the packet.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use aya::maps::{Array, Map, MapData, PerCpuArray};
use bytemuck::pod_read_unaligned;
use reeve_abi::recent::RecentValue;
use reeve_abi::stats;
use serde_json::Value;

use super::{Stage, WEB};
use crate::lab::{AgentOptions, Mode, Node, Pod, Records, until};
use crate::traffic::Server;

/// Longest wait for a window and its record.
pub const WINDOW_PATIENCE: Duration = Duration::from_secs(20);
/// The same for all that flows have counted: what a flow has not told when it falls silent is told when it has ended, by
/// which half a minute passes, and the next sweep.
pub const FLOW_PATIENCE: Duration = Duration::from_mins(1);
/// A port of `web` behind which somebody listens and never answers.
pub const SINK: u16 = 9000;

/// `shop` with windows of this length, other settings as in a file, and a sink behind [`SINK`].
pub fn windowed(name: &str, seconds: u64, settings: &str) -> (Stage, Pod, Pod, Pod, UdpSocket) {
    let (stage, web, client, guest) = counted(name, seconds, settings);
    let address = SocketAddr::new(web.v4(), SINK);
    let sink = web.netns().run(|| UdpSocket::bind(address)).expect("entered").expect("bound");
    (stage, web, client, guest, sink)
}

/// `shop` with windows of this length and other settings as in a file.
pub fn counted(name: &str, seconds: u64, settings: &str) -> (Stage, Pod, Pod, Pod) {
    counted_with(name, seconds, settings, AgentOptions::default(), |_| {})
}

/// The same with an agent that is started in another way, after `prepare`.
pub fn counted_with(
    name: &str,
    seconds: u64,
    settings: &str,
    mut options: AgentOptions,
    prepare: impl FnOnce(&Stage),
) -> (Stage, Pod, Pod, Pod) {
    let mut stage = Stage::new(name, Mode::Routed);
    let web = stage.pod("web", &[("app", "web")]);
    let client = stage.pod("client", &[("role", "client")]);
    let guest = stage.pod("guest", &[]);
    stage.allow_from("web-clients", ("app", "web"), ("role", "client"));
    prepare(&stage);
    let path = stage.lab.directory().join("settings.toml");
    std::fs::write(&path, settings).expect("written");
    let arguments = ["--window-seconds", &seconds.to_string(), "--config", &path.display().to_string()];
    options.arguments.extend(arguments.map(str::to_owned));
    stage.start_with(options);
    // Who has which address is known before anything is counted.
    stage.allows(&client, &web, WEB, "web-clients");
    stage.denies(&guest, &web, WEB, "web-clients");
    (stage, web, client, guest)
}

/// One datagram from each of these ports, to as many ports as `spread` says; how many left the pod.
pub fn datagrams(from: &Pod, to: &Pod, ports: std::ops::Range<u16>, spread: u16) -> u64 {
    let (local, remote) = (from.v4(), to.v4());
    let send = move || -> anyhow::Result<u64> {
        let before = dropped()?;
        let mut sent = 0;
        for port in ports.clone() {
            let target = SocketAddr::new(remote, SINK + (port - ports.start) % spread);
            UdpSocket::bind((local, port))?.send_to(b"one", target)?;
            sent += 1;
        }
        Ok(sent - (dropped()? - before))
    };
    from.netns().run(send).expect("entered").expect("sent")
}

/// Datagrams of one flow as fast as they go, from this port; how many left the pod.
pub fn burst(from: &Pod, to: &Pod, port: u16, count: u64) -> u64 {
    let (local, remote) = (from.v4(), to.v4());
    let send = move || -> anyhow::Result<u64> {
        let before = dropped()?;
        let socket = UdpSocket::bind((local, port))?;
        for _ in 0..count {
            socket.send_to(b"one", (remote, SINK))?;
        }
        Ok(count - (dropped()? - before))
    };
    from.netns().run(send).expect("entered").expect("sent")
}

/// What processors have counted of flows for themselves on a node, whoever has added it up since.
pub fn rows_of_processors(node: &Node, map: &str) -> Vec<RecentValue> {
    let rows = Array::<_, [u8; size_of::<RecentValue>()]>::try_from(Map::Array(pinned(node, map))).expect("an array");
    rows.iter().map(|row| pod_read_unaligned(&row.expect("a row"))).collect()
}

/// Packets in them.
pub fn counted_by_processors(node: &Node, map: &str) -> u64 {
    rows_of_processors(node, map).iter().map(|row| row.packets[0] + row.packets[1]).sum()
}

/// Frames that a node has let through by the entry of their flow so far, those included that no metric has yet.
pub fn established_frames(node: &Node) -> u64 {
    let counters = PerCpuArray::<_, u64>::try_from(Map::PerCpuArray(pinned(node, "STATS"))).expect("an array");
    let told: u64 = counters.get(&stats::ALLOWED_ESTABLISHED, 0).expect("a counter").iter().sum();
    let rows = rows_of_processors(node, "RECENT");
    told + rows.iter().map(|row| row.frames - row.added_frames).sum::<u64>()
}

fn pinned(node: &Node, map: &str) -> MapData {
    MapData::from_pin(node.bpffs().join("reeve/v1/maps").join(map)).expect("a pinned map")
}

/// Packets that the pod's own wire has dropped before any program saw them.
pub(crate) fn dropped() -> anyhow::Result<u64> {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev")?;
    let line = table.lines().find_map(|line| line.trim().strip_prefix("eth0:")).context("no eth0")?;
    Ok(line.split_whitespace().nth(11).context("no column of drops")?.parse()?)
}

/// Packets that windows of one subject and direction tell, rows told twice counted once.
#[derive(Default)]
pub struct Sums {
    seen: BTreeSet<String>,
    /// The rows themselves.
    pub rows: Vec<Value>,
}

impl Sums {
    fn read(&mut self, records: &mut Records) {
        for row in records.rest().expect("records") {
            if row["event"] != "window" || row["protocol"] != 17 && row["protocol"] != "UDP" {
                continue;
            }
            let same =
                ["source", "destination", "decision", "first", "last", "packets", "connections", "policyRevision"]
                    .map(|key| row[key].to_string());
            let again = row["flags"].to_string().contains("mayRepeat");
            if self.seen.insert(same.concat()) || !again {
                self.rows.push(row);
            }
        }
    }

    fn packets(&self, wanted: impl Fn(&Value) -> bool) -> u64 {
        let rows = self.rows.iter().filter(|row| wanted(row));
        rows.map(|row| row["packets"]["forward"].as_u64().expect("a number")).sum()
    }

    /// What the windows have told so far.
    pub fn told(&mut self, stage: &mut Stage, wanted: impl Fn(&Value) -> bool) -> u64 {
        self.read(stage.records());
        self.packets(wanted)
    }

    /// Waits until the windows tell so many packets, and no more.
    #[track_caller]
    pub fn check(&mut self, stage: &mut Stage, what: &str, packets: u64, wanted: impl Fn(&Value) -> bool) {
        self.check_within(WINDOW_PATIENCE, stage, what, packets, wanted);
    }

    /// The same with other patience.
    #[track_caller]
    pub fn check_within(
        &mut self,
        patience: Duration,
        stage: &mut Stage,
        what: &str,
        packets: u64,
        wanted: impl Fn(&Value) -> bool,
    ) {
        let found = until(what, patience, || {
            self.read(stage.records());
            Ok((self.packets(&wanted) >= packets).then_some(()))
        });
        let counted = self.packets(&wanted);
        found.unwrap_or_else(|error| panic!("{error:#}: {counted} of {packets}\n{}", stage.agent().log()));
        assert_eq!(counted, packets, "{what}");
    }
}

/// Datagrams to the sink, judged as `web` receives them.
pub fn received(verdict: &'static str) -> impl Fn(&Value) -> bool {
    move |row| {
        row["direction"] == "ingress"
            && row["destination"]["pod"] == "web"
            && row["verdict"] == verdict
            && row["destination"]["port"].as_u64().is_none_or(|port| port >= u64::from(SINK))
    }
}

/// Datagrams to the sink, judged as this pod sends them.
pub fn sent(pod: &'static str) -> impl Fn(&Value) -> bool {
    move |row| {
        row["direction"] == "egress"
            && row["source"]["pod"] == pod
            && row["destination"]["port"].as_u64().is_none_or(|port| port >= u64::from(SINK))
    }
}

/// A pod that sends all the time, each datagram from another port than those before it.
pub struct Stream {
    stop: mpsc::Sender<()>,
    sent: Arc<AtomicU64>,
    thread: JoinHandle<u64>,
}

/// Between two bursts: some hundred datagrams a second are traffic enough, and as flows that live for half a minute they
/// stay below a pod's share of the flow table.
const PACE: Duration = Duration::from_millis(20);

impl Stream {
    /// Starts it.
    pub fn start(from: &Pod, to: &Pod) -> Self {
        let (stop, stopped) = mpsc::channel();
        let (from, to) = (from.clone(), to.clone());
        let sent = Arc::new(AtomicU64::new(0));
        let told = Arc::clone(&sent);
        let thread = std::thread::spawn(move || {
            for begin in (10_000..60_000_u16).step_by(10).cycle() {
                if stopped.recv_timeout(PACE) != Err(mpsc::RecvTimeoutError::Timeout) {
                    break;
                }
                told.fetch_add(datagrams(&from, &to, begin..begin + 10, 1), Ordering::Relaxed);
            }
            told.load(Ordering::Relaxed)
        });
        Self { stop, sent, thread }
    }

    /// How many datagrams left the pod so far.
    pub fn so_far(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Waits until it has sent so many more.
    pub fn wait_for(&self, more: u64) {
        let wanted = self.so_far() + more;
        let sent = until("more datagrams", WINDOW_PATIENCE, || Ok((self.so_far() >= wanted).then_some(())));
        sent.expect("the stream goes on");
    }

    /// Ends it; how many datagrams left the pod.
    pub fn stop(self) -> u64 {
        self.stop.send(()).expect("it sends until it is told to stop");
        self.thread.join().expect("no panic")
    }
}

/// Flags of the rows that tell these datagrams.
pub fn flags(sums: &Sums, wanted: impl Fn(&Value) -> bool) -> BTreeSet<String> {
    sums.rows.iter().filter(|row| wanted(row)).map(|row| row["flags"].to_string()).collect()
}

/// Datagrams of `client`, which `web` takes, and of `guest`, which it does not, without a pause; and who of them came.
pub struct Traffic {
    /// Behind [`SINK`].
    sink: Server,
    /// What `client` sends.
    pub allowed: Stream,
    /// What `guest` sends.
    pub denied: Stream,
    senders: [IpAddr; 2],
}

/// What became of [`Traffic`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// Datagrams that left `client`.
    pub allowed: u64,
    /// Those of them that `web` got.
    pub delivered: u64,
    /// Datagrams that left `guest`.
    pub denied: u64,
    /// Those of them that `web` got nonetheless.
    pub leaked: u64,
}

impl Traffic {
    /// Starts it.
    pub fn start(web: &Pod, client: &Pod, guest: &Pod) -> Self {
        let sink = Server::sink(web.netns(), web.v4(), SINK).expect("a sink");
        let senders = [client.v4(), guest.v4()];
        Self { sink, allowed: Stream::start(client, web), denied: Stream::start(guest, web), senders }
    }

    /// Ends it, and waits for what is on its way.
    pub fn stop(self) -> Account {
        let (allowed, denied) = (self.allowed.stop(), self.denied.stop());
        let mut account = Account { allowed, delivered: 0, denied, leaked: 0 };
        let arrived = until("what is on its way", Duration::from_secs(2), || {
            for client in self.sink.clients() {
                account.delivered += u64::from(client.ip() == self.senders[0]);
                account.leaked += u64::from(client.ip() == self.senders[1]);
            }
            Ok((account.delivered >= allowed).then_some(()))
        });
        if let Err(error) = arrived {
            eprintln!("{error:#}: {account:?}"); // whoever expects all of it says so
        }
        assert!(allowed > 100 && denied > 100, "hardly traffic: {account:?}");
        account
    }
}

impl Account {
    /// Everything that was allowed came, nothing else did, and windows tell each datagram at each end.
    #[track_caller]
    pub fn check_exact(self, stage: &mut Stage) {
        assert_eq!((self.delivered, self.leaked), (self.allowed, 0), "{self:?}\n{}", stage.agent().log());
        self.check_told(stage);
    }

    /// Windows tell each datagram at each end, those that leaked excepted: nobody judged them.
    #[track_caller]
    pub fn check_told(self, stage: &mut Stage) {
        *stage.records() = stage.agent().records();
        let mut sums = Sums::default();
        sums.check_within(FLOW_PATIENCE, stage, "what client sent", self.allowed, sent("client"));
        sums.check_within(FLOW_PATIENCE, stage, "what guest sent", self.denied, sent("guest"));
        sums.check_within(FLOW_PATIENCE, stage, "what web got", self.delivered, received("allow"));
        sums.check_within(FLOW_PATIENCE, stage, "what web did not get", self.denied - self.leaked, received("deny"));
    }
}
