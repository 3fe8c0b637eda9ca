//! Whether everything is told and counted: 20,000 flows a second into a file, and one pod's flood beside others' connections.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::Value;

use super::Sheet;
use super::agent::processor_time;
use super::measure::{Measure, Target};
use crate::lab::{AgentOptions, Mode, Pod, until};
use crate::stage::counts::{SINK, dropped};
use crate::stage::{Stage, WEB};
use crate::traffic::{self, Tcp};

/// Pods that open flows at the same time.
const SENDERS: u16 = 8;
/// Datagrams of each in a second, all from different ports: with an entry at either end, 20,000 new flows a second.
const PACE: u64 = 1_250;
/// How long they do so in each round.
const ROUND: Duration = Duration::from_secs(5);
/// Ports from which flows are opened.
const PORTS: std::ops::Range<u16> = 10_000..60_000;
/// Ports of `web` behind which somebody listens and never answers.
const SINKS: u16 = 32;
/// Connections of others beside a flood.
const IDLE: usize = 1_000;
const BUSY: usize = 100;
/// How long a flood lasts.
const FLOOD: Duration = Duration::from_secs(10);
/// Longest wait for what was sent to be told.
const PATIENCE: Duration = Duration::from_secs(90);
/// Longest wait of a connection beside the flood for its answer.
const ANSWER: Duration = Duration::from_secs(5);

const CORE: &str = "records/steady-core";
const OPENED: &str = "records/steady-opened";
const LOST: &str = "records/steady-lost";
const UNCOUNTED: &str = "records/steady-uncounted";
const FLOOD_RATE: &str = "records/flood-datagrams";
const BROKEN: &str = "records/flood-others-broken";
const DENIED: &str = "records/flood-others-denied";
const FLOOD_UNCOUNTED: &str = "records/flood-uncounted";

/// All of them.
pub fn measures() -> Vec<Measure> {
    let steady = "while 10,000 datagrams a second, each from a port of its own, open a flow at either end";
    let flood = "one pod sends datagrams from and to ever other ports as fast as it can, for 10 s, beside 1,000 idle and 100 busy connections of another";
    vec![
        Measure::new(OPENED, "1/s", format!("flows told as opened, {steady}")).target(Target::AtLeast(19_000.0)),
        Measure::new(CORE, "%", format!("of one core, all threads of the agent, {steady}"))
            .target(Target::AtMost(50.0)),
        Measure::new(LOST, "records", "flows of those that were never told, all rounds").target(Target::AtMost(0.0)),
        Measure::new(UNCOUNTED, "packets", "datagrams of those by which the windows are wrong, all rounds")
            .target(Target::AtMost(0.0)),
        Measure::new(FLOOD_RATE, "1/s", flood),
        Measure::new(BROKEN, "connections", "of the others that do not answer any more, or late, beside that flood")
            .target(Target::AtMost(0.0)),
        Measure::new(DENIED, "packets", "of the others that are denied beside that flood").target(Target::AtMost(0.0)),
        Measure::new(FLOOD_UNCOUNTED, "packets", "of the flood by which windows are wrong, let through or not")
            .target(Target::AtMost(0.0)),
    ]
}

/// Measures what is wanted.
pub fn run(sheet: &mut Sheet<'_>) -> anyhow::Result<()> {
    if sheet.wants_any("records/steady") {
        steady(sheet)?;
    }
    if sheet.wants_any("records/flood") { flood(sheet) } else { Ok(()) }
}

/// `web`, which lets everybody in who is a client, and its sinks.
fn stage(name: &str) -> anyhow::Result<(Stage, Pod, Vec<UdpSocket>)> {
    let mut stage = Stage::new(name, Mode::Routed);
    let web = stage.pod("web", &[("app", "web")]);
    stage.allow_from("web-clients", ("app", "web"), ("role", "client"));
    let address = web.v4();
    let bind = || (SINK..SINK + SINKS).map(|port| UdpSocket::bind((address, port))).collect::<Result<_, _>>();
    let sinks = web.netns().run(bind)?.context("the sinks")?;
    Ok((stage, web, sinks))
}

fn start(stage: &mut Stage, settings: &str) -> anyhow::Result<()> {
    let path = stage.lab.directory().join("settings.toml");
    std::fs::write(&path, settings)?;
    let arguments = ["--window-seconds", "5", "--config", &path.display().to_string()].map(str::to_owned);
    stage.start_with(AgentOptions { arguments: arguments.to_vec(), ..AgentOptions::default() });
    Ok(())
}

/// What records tell of datagrams to the sinks.
#[derive(Debug, Default)]
struct Told {
    /// Flows opened, at either end.
    opened: u64,
    /// Datagrams in windows, at either end.
    counted: u64,
    /// The same, only where a pod of this name sent them.
    sent: u64,
    /// Packets of others that were denied.
    denied: u64,
}

impl Told {
    /// Reads what has come since; `sender` is the pod whose packets are `sent`.
    fn read(&mut self, stage: &mut Stage, sender: &str) -> anyhow::Result<()> {
        for row in stage.records().rest()? {
            let packets = || row["packets"]["forward"].as_u64().context("a record without packets");
            let window = row["event"] == "window";
            let port = row["destination"]["port"].as_u64().unwrap_or_default();
            // Windows, not events: in a flood some of those are lost.
            if window && row["verdict"] == "deny" && row["source"]["pod"] == "client" {
                self.denied += packets()?;
            }
            // What has no row of its own is counted without its port.
            let to_sink = port >= u64::from(SINK) && port < u64::from(SINK + SINKS) || window && port == 0;
            if !to_sink || !is_udp(&row) {
                continue;
            }
            if window {
                self.counted += packets()?;
                if row["direction"] == "egress" && row["source"]["pod"] == sender {
                    self.sent += packets()?;
                }
            } else if row["event"] == "opened" {
                self.opened += 1;
            }
        }
        Ok(())
    }
}

fn is_udp(row: &Value) -> bool {
    row["protocol"] == 17 || row["protocol"] == "UDP"
}

fn steady(sheet: &mut Sheet<'_>) -> anyhow::Result<()> {
    let (mut stage, web, _sinks) = stage("bench-records")?;
    let senders: Vec<Pod> =
        (0..SENDERS).map(|nth| stage.pod(&format!("sender-{nth}"), &[("role", "client")])).collect();
    // Flows live for half a minute, and a pod may have a quarter of them.
    start(&mut stage, "[map-entries]\nFLOWS = 2097152\n")?;
    let (mut told, mut sent) = (Told::default(), 0);
    let (mut core, mut opened) = (Vec::new(), Vec::new());
    let per_round = u16::try_from(PACE * ROUND.as_secs())?;
    for round in 0..sheet.rounds() {
        // Each (pod, port, sink) once in all rounds.
        let rounds_of_ports = (PORTS.end - PORTS.start) / per_round;
        let (turn, sink) = (u16::try_from(round)? % rounds_of_ports, SINK + u16::try_from(round)? / rounds_of_ports);
        let first = PORTS.start + turn * per_round;
        let agent = stage.agent().process_id();
        let (before, begun, known) = (processor_time(agent)?, Instant::now(), told.opened);
        let each = std::thread::scope(|scope| {
            let threads: Vec<_> = senders
                .iter()
                .map(|pod| scope.spawn(|| paced(pod, SocketAddr::new(web.v4(), sink), first..first + per_round)))
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum::<anyhow::Result<u64>>()
        })?;
        let took = begun.elapsed().as_secs_f64();
        let busy = processor_time(agent)?.saturating_sub(before).as_secs_f64();
        sent += each;
        // Reading costs as much as writing does: not while it is timed. What is missing in the end is lost.
        let all = until("the round's records", PATIENCE, || {
            told.read(&mut stage, "")?;
            Ok((told.opened >= 2 * sent).then_some(()))
        });
        if let Err(error) = all {
            eprintln!("{error:#}: {told:?} of {sent}");
        }
        core.push(busy / took * 100.0);
        opened.push(count(told.opened - known) / took);
    }
    let counted = until("the windows", PATIENCE, || {
        told.read(&mut stage, "")?;
        Ok((told.counted >= 2 * sent).then_some(()))
    });
    if let Err(error) = counted {
        eprintln!("{error:#}: {told:?} of {sent}");
    }
    sheet.put(CORE, core);
    sheet.put(OPENED, opened);
    sheet.put(LOST, vec![count((2 * sent).saturating_sub(told.opened))]);
    sheet.put(UNCOUNTED, vec![count(told.counted.abs_diff(2 * sent))]);
    Ok(())
}

/// Sends a datagram from each of these ports, evenly; how many left the pod.
fn paced(pod: &Pod, to: SocketAddr, ports: std::ops::Range<u16>) -> anyhow::Result<u64> {
    let from = pod.v4();
    pod.netns().run(|| -> anyhow::Result<u64> {
        let (begun, before) = (Instant::now(), dropped()?);
        let mut sent = 0;
        for port in ports {
            let due = Duration::from_nanos(sent * 1_000_000_000 / PACE);
            // As coarse as the machine sleeps: a few at a time.
            if sent.is_multiple_of(10) {
                std::thread::sleep(due.saturating_sub(begun.elapsed()));
            }
            UdpSocket::bind((from, port))?.send_to(b"one", to)?;
            sent += 1;
        }
        Ok(sent - (dropped()? - before))
    })?
}

fn flood(sheet: &mut Sheet<'_>) -> anyhow::Result<()> {
    let (mut stage, web, _sinks) = stage("bench-flood")?;
    let client = stage.pod("client", &[("role", "client")]);
    let mob = stage.pod("mob", &[("role", "client")]);
    start(&mut stage, "")?;
    stage.allows(&client, &web, WEB, "web-clients");
    let address = SocketAddr::new(web.v4(), 8080);
    let connect = || traffic::connect(client.netns(), address, ANSWER).map_err(|why| anyhow::anyhow!("{why:?}"));
    let mut idle = (0..IDLE).map(|_| connect()).collect::<anyhow::Result<Vec<Tcp>>>()?;
    let mut busy = (0..BUSY).map(|_| connect()).collect::<anyhow::Result<Vec<Tcp>>>()?;
    for one in idle.iter_mut().chain(&mut busy) {
        one.exchange(ANSWER).map_err(|why| anyhow::anyhow!("before the flood: {why:?}"))?;
    }
    let (done, exchanges) = (AtomicBool::new(false), AtomicU64::new(0));
    let (sent, took, mut broken) = std::thread::scope(|scope| {
        let others = scope.spawn(|| {
            let mut broken = vec![false; busy.len()];
            while !done.load(Ordering::Acquire) {
                for (one, broken) in busy.iter_mut().zip(&mut broken).filter(|(_, broken)| !**broken) {
                    *broken = one.exchange(ANSWER).is_err();
                    exchanges.fetch_add(1, Ordering::Relaxed);
                }
            }
            broken.into_iter().filter(|broken| *broken).count()
        });
        let begun = Instant::now();
        let sent = pour(&mob, web.v4());
        let took = begun.elapsed().as_secs_f64();
        done.store(true, Ordering::Release);
        (sent, took, others.join().expect("no panic"))
    });
    let sent = sent?;
    let exchanged = exchanges.load(Ordering::Relaxed);
    anyhow::ensure!(exchanged > u64::try_from(BUSY)?, "the busy connections were idle: {exchanged} exchanges");
    broken += idle.iter_mut().filter_map(|one| one.exchange(ANSWER).err()).count();
    let mut told = Told::default();
    let counted = until("the windows", PATIENCE, || {
        told.read(&mut stage, "mob")?;
        Ok((told.sent >= sent).then_some(()))
    });
    if let Err(error) = counted {
        eprintln!("{error:#}: {told:?} of {sent}");
    }
    sheet.put(FLOOD_RATE, vec![count(sent) / took]);
    sheet.put(BROKEN, vec![count(u64::try_from(broken)?)]);
    sheet.put(DENIED, vec![count(told.denied)]);
    sheet.put(FLOOD_UNCOUNTED, vec![count(told.sent.abs_diff(sent))]);
    Ok(())
}

/// Sends as fast as one thread can, each datagram between another pair of ports; how many left the pod.
fn pour(pod: &Pod, to: std::net::IpAddr) -> anyhow::Result<u64> {
    let from = pod.v4();
    pod.netns().run(|| -> anyhow::Result<u64> {
        let (begun, before) = (Instant::now(), dropped()?);
        let mut sent = 0;
        for port in PORTS {
            let socket = UdpSocket::bind((from, port))?;
            for sink in SINK..SINK + SINKS {
                socket.send_to(b"one", SocketAddr::new(to, sink))?;
                sent += 1;
            }
            if begun.elapsed() > FLOOD {
                break;
            }
        }
        Ok(sent - (dropped()? - before))
    })?
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
fn count(number: u64) -> f64 {
    number as f64
}
