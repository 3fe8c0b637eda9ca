//! Exact counts: windows add up to what was sent, whatever becomes of the agent and however small its map is.

use anyhow::Context;
use reeve_tests::lab::{AgentOptions, Mode, Pod, Records, until};
use reeve_tests::stage::{Stage, WEB, shop};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Longest wait for a window and its record.
const WINDOW_PATIENCE: Duration = Duration::from_secs(20);
/// A port of `web` behind which somebody listens and never answers.
pub(crate) const SINK: u16 = 9000;

/// `shop` with windows of this length, other settings as in a file, and a sink behind [`SINK`].
pub(crate) fn windowed(name: &str, seconds: u64, settings: &str) -> (Stage, Pod, Pod, Pod, UdpSocket) {
    let mut stage = Stage::new(name, Mode::Routed);
    let web = stage.pod("web", &[("app", "web")]);
    let client = stage.pod("client", &[("role", "client")]);
    let guest = stage.pod("guest", &[]);
    stage.allow_from("web-clients", ("app", "web"), ("role", "client"));
    let path = stage.lab.directory().join("settings.toml");
    std::fs::write(&path, settings).expect("written");
    let arguments = ["--window-seconds", &seconds.to_string(), "--config", &path.display().to_string()];
    stage.start_with(AgentOptions { arguments: arguments.map(str::to_owned).to_vec(), ..AgentOptions::default() });
    // Who has which address is known before anything is counted.
    stage.allows(&client, &web, WEB, "web-clients");
    stage.denies(&guest, &web, WEB, "web-clients");
    let address = SocketAddr::new(web.v4(), SINK);
    let sink = web.netns().run(|| UdpSocket::bind(address)).expect("entered").expect("bound");
    (stage, web, client, guest, sink)
}

/// One datagram from each of these ports, to as many ports as `spread` says; how many left the pod.
pub(crate) fn datagrams(from: &Pod, to: &Pod, ports: std::ops::Range<u16>, spread: u16) -> u64 {
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

/// Packets that the pod's own wire has dropped before any program saw them.
fn dropped() -> anyhow::Result<u64> {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev")?;
    let line = table.lines().find_map(|line| line.trim().strip_prefix("eth0:")).context("no eth0")?;
    Ok(line.split_whitespace().nth(11).context("no column of drops")?.parse()?)
}

/// Packets that windows of one subject and direction tell, rows told twice counted once.
#[derive(Default)]
pub(crate) struct Sums {
    seen: BTreeSet<String>,
    rows: Vec<Value>,
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

    /// Waits until the windows tell so many packets, and no more.
    #[track_caller]
    pub(crate) fn check(&mut self, stage: &mut Stage, what: &str, packets: u64, wanted: impl Fn(&Value) -> bool) {
        let found = until(what, WINDOW_PATIENCE, || {
            self.read(stage.records());
            Ok((self.packets(&wanted) >= packets).then_some(()))
        });
        let counted = self.packets(&wanted);
        found.unwrap_or_else(|error| panic!("{error:#}: {counted} of {packets}\n{}", stage.agent().log()));
        assert_eq!(counted, packets, "{what}");
    }
}

/// Datagrams to the sink, judged as `web` receives them.
pub(crate) fn received(verdict: &'static str) -> impl Fn(&Value) -> bool {
    move |row| {
        row["direction"] == "ingress"
            && row["destination"]["pod"] == "web"
            && row["verdict"] == verdict
            && row["destination"]["port"].as_u64().is_none_or(|port| port >= u64::from(SINK))
    }
}

/// Datagrams to the sink, judged as this pod sends them.
fn sent(pod: &'static str) -> impl Fn(&Value) -> bool {
    move |row| {
        row["direction"] == "egress"
            && row["source"]["pod"] == pod
            && row["destination"]["port"].as_u64().is_none_or(|port| port >= u64::from(SINK))
    }
}

/// A pod that sends all the time, each datagram from a port of its own.
pub(crate) struct Stream {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<u64>,
}

/// Between two bursts: some thousand datagrams a second are traffic enough.
const PACE: Duration = Duration::from_millis(5);

impl Stream {
    pub(crate) fn start(from: &Pod, to: &Pod) -> Self {
        let (stop, stopped) = mpsc::channel();
        let (from, to) = (from.clone(), to.clone());
        let thread = std::thread::spawn(move || {
            let mut all = 0;
            for begin in (10_000..60_000_u16).step_by(10) {
                if stopped.recv_timeout(PACE) != Err(mpsc::RecvTimeoutError::Timeout) {
                    break;
                }
                all += datagrams(&from, &to, begin..begin + 10, 1);
            }
            all
        });
        Self { stop, thread }
    }

    pub(crate) fn stop(self) -> u64 {
        self.stop.send(()).expect("it sends until it is told to stop");
        self.thread.join().expect("no panic")
    }
}

#[test]
fn windows_add_up_to_every_packet_under_traffic_and_over_two_kills() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest, _sink) = windowed("w-exact", 1, "");
    let (allowed, denied) = (Stream::start(&client, &web), Stream::start(&guest, &web));
    for _ in 0..2 {
        let told = |row: &Value| row["event"] == "window" && row["destination"]["port"] == SINK;
        stage.records().wait_for(WINDOW_PATIENCE, told).expect("a window under traffic");
        stage.agent().kill9().expect("killed");
        stage.agent().start_again().expect("started again");
    }
    let (allowed, denied) = (allowed.stop(), denied.stop());
    assert!(allowed > 500 && denied > 500, "{allowed} and {denied} datagrams are hardly traffic");
    let all = stage.agent().records();
    *stage.records() = all;
    let mut sums = Sums::default();
    sums.check(&mut stage, "what client sent", allowed, sent("client"));
    sums.check(&mut stage, "what guest sent", denied, sent("guest"));
    sums.check(&mut stage, "what web got", allowed, received("allow"));
    sums.check(&mut stage, "what web did not get", denied, received("deny"));
    assert_eq!(stage.agent().metric("reeve_windows_total", &[("state", "start")]).expect("a metric"), 1.0);
    assert!(stage.agent().metric("reeve_window_rows_total", &[("state", "backfilled")]).expect("a metric") > 0.0);
    assert!(stage.agent().metric("reeve_windows_total", &[("state", "time")]).expect("a metric") > 0.0);
}

#[test]
fn port_scan_that_overflows_the_map_is_counted_whole_and_its_decider_named() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest, _sink) = windowed("w-scan", 600, "[map-entries]\nEDGES = 16\n");
    let denied = datagrams(&guest, &web, 20_000..20_500, 500);
    let allowed = datagrams(&client, &web, 20_000..20_300, 300);
    let mut sums = Sums::default();
    sums.check(&mut stage, "what web did not get", denied, received("deny"));
    sums.check(&mut stage, "what web got", allowed, received("allow"));
    let overflowed: Vec<&Value> =
        sums.rows.iter().filter(|row| row["flags"].to_string().contains("overflowed")).collect();
    let of_scan = overflowed.iter().find(|row| received("deny")(row)).expect("a reserved row");
    assert_eq!(of_scan["decision"]["default"], "tierDefault", "{of_scan}");
    assert!(of_scan["decision"]["isolating"].to_string().contains("web-clients"), "{of_scan}");
    assert_eq!(of_scan["source"]["owner"], "various", "{of_scan}");
    let state = |state| [("state", state)];
    stage.settled();
    let agent = stage.agent();
    assert!(agent.metric("reeve_datapath_packets_total", &state("edges_overflowed")).expect("a metric") > 500.0);
    assert_eq!(agent.metric("reeve_datapath_packets_total", &state("edges_lost")).expect("a metric"), 0.0);
    assert!(agent.metric("reeve_windows_total", &state("filling")).expect("a metric") > 0.0, "not after 600 s");
}

#[test]
fn window_ends_early_when_its_map_is_filling_and_nothing_overflows() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, _, guest, _sink) = windowed("w-filling", 600, "[map-entries]\nEDGES = 4096\n");
    let denied = datagrams(&guest, &web, 20_000..21_400, 1_400); // a row at each end
    let mut sums = Sums::default();
    sums.check(&mut stage, "what web did not get", denied, received("deny"));
    stage.settled();
    let state = |state| [("state", state)];
    let agent = stage.agent();
    assert!(agent.metric("reeve_windows_total", &state("filling")).expect("a metric") > 0.0, "not after 600 s");
    assert_eq!(agent.metric("reeve_datapath_packets_total", &state("edges_overflowed")).expect("a metric"), 0.0);
}

/// Flags of the rows that tell these datagrams.
pub(crate) fn flags(sums: &Sums, wanted: impl Fn(&Value) -> bool) -> BTreeSet<String> {
    sums.rows.iter().filter(|row| wanted(row)).map(|row| row["flags"].to_string()).collect()
}

#[test]
fn interval_without_an_agent_is_backfilled_when_everything_stands_as_it_stood() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest, _sink) = windowed("w-proven", 600, "");
    stage.agent().kill9().expect("killed");
    let (allowed, denied) = (datagrams(&client, &web, 20_000..20_040, 1), datagrams(&guest, &web, 20_000..20_030, 1));
    stage.agent().start_again().expect("started again");
    let mut sums = Sums::default();
    sums.check(&mut stage, "what web got", allowed, received("allow"));
    sums.check(&mut stage, "what web did not get", denied, received("deny"));
    assert_eq!(flags(&sums, received("deny")), BTreeSet::from(["[\"backfilled\"]".to_owned()]));
    let intervals = |state: &str, stage: &mut Stage| {
        stage.agent().metric("reeve_intervals_total", &[("state", state)]).expect("a metric")
    };
    assert_eq!((intervals("proven", &mut stage), intervals("unproven", &mut stage)), (1.0, 0.0));
    // Control: what is counted from now on is told by who was there.
    let live = datagrams(&guest, &web, 21_000..21_010, 1);
    stage.agent().terminate().expect("ended");
    sums.check(&mut stage, "what web did not get", denied + live, received("deny"));
    assert!(flags(&sums, received("deny")).contains("null"), "{:?}", flags(&sums, received("deny")));
}

#[test]
fn interval_in_which_a_link_was_taken_off_is_unproven_for_its_pod_only() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest, _sink) = windowed("w-unproven", 600, "");
    let ifindex = stage.endpoint(&web).expect("an endpoint")["ifindex"].to_string();
    stage.agent().kill9().expect("killed");
    let denied = datagrams(&guest, &web, 20_000..20_030, 1);
    let pin = stage.node.bpffs().join("reeve/v1/links").join(format!("{ifindex}-to"));
    std::fs::remove_file(pin).expect("removed");
    stage.agent().start_again().expect("started again");
    let mut sums = Sums::default();
    sums.check(&mut stage, "what guest sent", denied, sent("guest"));
    sums.check(&mut stage, "what web did not get", denied, received("deny"));
    assert_eq!(flags(&sums, received("deny")), BTreeSet::from(["[\"unproven\"]".to_owned()]));
    assert_eq!(flags(&sums, sent("guest")), BTreeSet::from(["[\"backfilled\"]".to_owned()]));
    let unproven = stage.agent().metric("reeve_intervals_total", &[("state", "unproven")]).expect("a metric");
    assert_eq!(unproven, 1.0);
    assert!(stage.agent().log().contains("nothing proves that every packet"));
    // The new agent has put it back.
    stage.denies(&guest, &web, WEB, "web-clients");
    stage.allows(&client, &web, WEB, "web-clients");
}

#[test]
fn interval_after_a_lost_checkpoint_is_never_backfilled() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, _, guest, _sink) = windowed("w-lost", 600, "");
    stage.agent().kill9().expect("killed");
    let denied = datagrams(&guest, &web, 20_000..20_030, 1);
    std::fs::remove_file(stage.node.state_directory().join("checkpoint.json")).expect("removed");
    stage.agent().start_again().expect("started again");
    let mut sums = Sums::default();
    sums.check(&mut stage, "what web did not get", denied, received("deny"));
    assert_eq!(flags(&sums, received("deny")), BTreeSet::from(["[\"unproven\"]".to_owned()]));
}

#[test]
fn counts_that_cannot_be_written_stay_in_the_kernel_until_they_can() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop("w-sink", Mode::Routed);
    stage.denies(&guest, &web, WEB, "web-clients");
    stage.allows(&client, &web, WEB, "web-clients");
    stage.agent().terminate().expect("ended");
    let denied = datagrams(&guest, &web, 20_000..20_030, 1);
    // The device that is always full takes no record.
    let (file, away) = (stage.node.records_file(), stage.node.run_directory().with_file_name("away.jsonl"));
    std::fs::rename(&file, &away).expect("moved away");
    std::os::unix::fs::symlink("/dev/full", &file).expect("a sink that is full");
    stage.agent().start_again().expect("started again");
    let lost = until("lost records", WINDOW_PATIENCE, || {
        Ok((stage.agent().metric("reeve_records_lost_total", &[])? > 0.0).then_some(()))
    });
    lost.expect("the sink takes nothing");
    stage.agent().terminate().expect("ended");
    std::fs::remove_file(&file).expect("removed");
    std::fs::rename(&away, &file).expect("moved back");
    stage.agent().start_again().expect("started again");
    let mut sums = Sums::default();
    sums.check(&mut stage, "what web did not get", denied, received("deny"));
}
