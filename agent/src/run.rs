//! The loop: one closed list of things that can wake it, one owner of the enforcement.

use crate::admin;
use crate::cni::installer::Installer;
use crate::cni::{Answer, Request, server};
use crate::config::Config;
use crate::enforcer::{Enforcer, Scope};
use crate::metrics::Metrics;
use crate::records::{Live, Recorder};
use crate::status::Teller;
use crate::watch::Source;
use crate::windows::Windows;
use anyhow::Context;
use futures_util::StreamExt;
use ipnet::IpNet;
use netlink_packet_core::NetlinkPayload;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

/// What can be asked through the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// How the node stands.
    Status,
    /// Its endpoints.
    Endpoints,
    /// What cannot be honoured.
    Problems,
    /// What became of each policy.
    Policies,
    /// The facts.
    World,
    /// What addresses are seen as.
    Identities,
    /// How full the maps are, and what happens when one is.
    Maps,
    /// Look at the facts now; the answer comes when the kernel has what they ask for.
    Sync,
}

/// What wakes the loop.
#[derive(Debug)]
pub enum Wake {
    /// Some facts have changed, or are told no longer.
    Facts,
    /// Interfaces or routes came, went or changed: what was heard is kept apart, as a full queue forgets.
    Interfaces,
    /// Somebody asks.
    Asked(Question, oneshot::Sender<Value>),
    /// The CNI plugin has a pod.
    Cni(Box<Request>, oneshot::Sender<Answer>),
}

/// A change is often several events: they are taken together.
const SETTLE: Duration = Duration::from_millis(2);
/// Between two looks while a bridge is asked for a pod's port.
const RESOLVE: Duration = Duration::from_millis(10);
/// Between two looks at interfaces while an endpoint has none.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Between two looks at everything, whether or not anything was heard.
const LOOK_ANYWAY: Duration = Duration::from_secs(2);
/// Longest time after a step until what nobody waits for is done.
const TIDY_WITHIN: Duration = Duration::from_secs(1);
/// Between two looks at whether a window ends, by time or because the map is filling.
const WINDOW_LOOK: Duration = Duration::from_millis(250);
/// Between two sweeps of the flow table.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// Runs the agent until it is told to stop. What is pinned stays.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let started_at = reeve_flow::time::Timestamp::from_system(std::time::SystemTime::now()).to_string();
    for directory in [&config.run_dir, &config.state_dir] {
        std::fs::create_dir_all(directory).with_context(|| format!("{} cannot be created", directory.display()))?;
    }
    let _lock = lock(&config)?;
    let installer = Installer::of(&config)?;
    let metrics = Arc::new(Metrics::default());
    let (connection, handle, _) = rtnetlink::new_connection().context("no netlink socket")?;
    tokio::spawn(connection);
    let (wake, mut woken) = mpsc::channel::<Wake>(1024);
    let source = Source::open(&config, wake.clone(), Arc::clone(&metrics)).await?;
    let mut enforcer = Enforcer::start(&config, source, handle, Arc::clone(&metrics)).await?;
    let live = Live::default();
    let (closed, made) = mpsc::unbounded_channel();
    let events = enforcer.loaded.take_events().context("the event buffer has another reader")?;
    let recorder = Recorder::new(
        events,
        made,
        enforcer.meanings(),
        enforcer.node.clone(),
        &config.records,
        live.clone(),
        Arc::clone(&metrics),
    )?;
    enforcer.unseen = recorder.unseen();
    let (stop_telling, stop) = oneshot::channel();
    let telling = tokio::spawn(recorder.run(stop));

    let heard = Heard::default();
    listen(wake.clone(), Arc::clone(&heard))?;
    let installing = wake.clone();
    server::serve(&config, wake.clone())?;
    admin::serve(&config, wake, live, Arc::clone(&metrics)).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut sweep = tokio::time::interval(SWEEP_EVERY);
    let window = Duration::from_secs(config.window_seconds);
    let mut look_at_window = tokio::time::interval(WINDOW_LOOK);
    let between = Duration::from_secs(config.attest_interval);
    let mut attest = tokio::time::interval_at(tokio::time::Instant::now() + between, between);
    let missed = enforcer.missed();
    let mut windows = Windows::new(window, missed, closed.clone(), Arc::clone(&metrics));
    // What the last agent left is told before this one changes anything.
    report(windows.look(&mut enforcer), "what was counted before cannot be told");

    let teller = Teller::start(&config, &enforcer);
    look_patiently(&mut enforcer).await;
    enforcer.tidy_up();
    if let Some(installer) = installer {
        installer.keep(Arc::clone(&enforcer.complaints), installing)?;
    }
    let passed = Arc::clone(&enforcer.passed);
    let mut looked = tokio::time::Instant::now();
    let mut untidied = None;
    loop {
        // One program at a time, so that nobody waits for more than that.
        while woken.is_empty() && enforcer.hook_ahead() {
            tokio::task::yield_now().await;
        }
        let patience = if enforcer.waiting.is_empty() && enforcer.settled() && !enforcer.fresh.is_any() {
            LOOK_ANYWAY
        } else {
            LOOK_AGAIN
        };
        let look_at =
            enforcer.newcomers.deadline().map_or(looked + patience, |end| (looked + patience).min(end.into()));
        let first = tokio::select! {
            // From the last look on: questions that keep coming must not put it off.
            () = tokio::time::sleep_until(look_at) => None,
            heard = woken.recv() => heard,
            _ = sweep.tick() => {
                report(enforcer.sweep(&closed).map(drop), "idle flows could not be ended");
                continue;
            }
            _ = look_at_window.tick() => {
                report(enforcer.sweep_if_crowded(&closed), "idle flows could not be ended");
                report(windows.look(&mut enforcer), "the window could not be ended; counts stay in the kernel");
                continue;
            }
            written = windows.written() => {
                report(windows.finish(&mut enforcer, written), "counts that were told could not be deleted");
                continue;
            }
            _ = attest.tick() => {
                report(enforcer.attest().await, "what is in the kernel could not be compared");
                continue;
            }
            () = passed.notified() => {
                enforcer.let_go();
                continue;
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        };
        let (mut asked, mut announced) = (Vec::new(), Vec::new());
        let anyway = first.is_none();
        let mut look = anyway;
        if let Some(wake) = first {
            match wake {
                Wake::Facts | Wake::Interfaces => {
                    tokio::time::sleep(SETTLE).await;
                    look = true;
                }
                Wake::Asked(question, answer) => asked.push((question, answer)),
                Wake::Cni(request, answer) => announced.push((request, answer)),
            }
        }
        while let Ok(wake) = woken.try_recv() {
            match wake {
                Wake::Facts | Wake::Interfaces => look = true,
                Wake::Asked(question, answer) => asked.push((question, answer)),
                Wake::Cni(request, answer) => announced.push((request, answer)),
            }
        }
        for (request, answer) in announced {
            look |= enforcer.asked(*request, answer).await;
        }
        let begun = Instant::now();
        let mut scope = std::mem::take(&mut *heard.lock().expect("nobody panics while hearing"));
        let sync = asked.iter().any(|(question, _)| *question == Question::Sync);
        if sync {
            look_patiently(&mut enforcer).await;
            looked = tokio::time::Instant::now();
        } else if look {
            scope.devices |= anyway;
            enforcer.step(&scope).await;
            looked = tokio::time::Instant::now();
        }
        enforcer.answer_newcomers();
        for (question, answer) in asked {
            // Who asked may have gone.
            let _ = answer.send(reply(&enforcer, question, &started_at, begun));
        }
        if sync || look {
            untidied.get_or_insert(begun);
        }
        // Who has come meanwhile goes first, unless there is always somebody.
        if untidied.is_some_and(|since| woken.is_empty() || since.elapsed() > TIDY_WITHIN) {
            enforcer.tidy_up();
            untidied = None;
        }
    }
    report(windows.stop(&mut enforcer), "the last window could not be ended; its counts stay in the kernel");
    drop(stop_telling);
    telling.await.context("the last records could not be told")?;
    // The recorder has ended: it has written the window, or never will.
    tokio::select! {
        biased;
        written = windows.written() => report(windows.finish(&mut enforcer, written), "counts that were told stay"),
        () = std::future::ready(()) => {}
    }
    if let Some(teller) = teller {
        teller.stop().await;
    }
    tracing::info!("stopping; what is pinned goes on enforcing");
    Ok(())
}

fn report(result: anyhow::Result<()>, what: &'static str) {
    if let Err(error) = result {
        tracing::error!(error = format!("{error:#}"), what);
    }
}

/// Looks until the bridges have told where their pods are, or have been silent for long enough.
async fn look_patiently(enforcer: &mut Enforcer) {
    enforcer.step(&Scope::everything()).await;
    while enforcer.is_resolving() {
        tokio::time::sleep(RESOLVE).await;
        enforcer.step(&Scope::everything()).await;
    }
}

fn reply(enforcer: &Enforcer, question: Question, started_at: &str, begun: Instant) -> Value {
    match question {
        Question::Status => enforcer.status(started_at),
        Question::Endpoints => enforcer.endpoints(),
        Question::Problems => enforcer.told_problems(),
        Question::Policies => enforcer.told_policies(),
        Question::World => enforcer.facts(),
        Question::Identities => enforcer.identities(),
        Question::Maps => enforcer.told_maps(),
        Question::Sync if enforcer.ready() => {
            let applied_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            json!({ "revision": enforcer.active, "applied_us": applied_us })
        }
        Question::Sync => json!({ "reasons": enforcer.all_reasons() }),
    }
}

/// What was heard of interfaces and routes since the last step.
type Heard = Arc<Mutex<Scope>>;

/// Hears of interfaces and routes as they come and go: a pod's new device is not to wait for the next look.
fn listen(wake: mpsc::Sender<Wake>, heard: Heard) -> anyhow::Result<()> {
    let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Route];
    let (connection, _, mut messages) = rtnetlink::new_multicast_connection(&groups).context("no netlink socket")?;
    tokio::spawn(connection);
    tokio::spawn(async move {
        while let Some((message, _)) = messages.next().await {
            hear(&message.payload, &mut heard.lock().expect("nobody panics while hearing"));
            // A full queue holds a wake-up already.
            let _ = wake.try_send(Wake::Interfaces);
        }
    });
    Ok(())
}

/// Notes what a message is about; one that is about nobody in particular is about everybody.
fn hear(message: &NetlinkPayload<RouteNetlinkMessage>, heard: &mut Scope) {
    use RouteNetlinkMessage::{DelLink, DelRoute, NewLink, NewRoute};
    match message {
        NetlinkPayload::InnerMessage(NewLink(_) | DelLink(_)) => heard.devices = true,
        NetlinkPayload::InnerMessage(NewRoute(route) | DelRoute(route)) => heard.hear_of_route(destination(route)),
        _ => heard.everywhere = true,
    }
}

/// Where a route leads to; `None` for a default route, and for one that cannot be read.
fn destination(route: &RouteMessage) -> Option<IpNet> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::Destination(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    })?;
    IpNet::new(address, route.header.destination_prefix_length).ok()
}

/// One agent per run directory; uninstalling, too, needs it for itself.
pub fn lock(config: &Config) -> anyhow::Result<std::fs::File> {
    let path = config.run_dir.join("lock");
    let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("{} cannot be opened", path.display()))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| anyhow::anyhow!("another reeve-agent runs here: it holds {}", path.display()))?;
    Ok(file)
}
