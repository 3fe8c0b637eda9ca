//! An agent that gives way to one of another build, under traffic and while the API server's objects change.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use reeve_tests::lab::{AgentOptions, Facts, Pod, until};
use reeve_tests::traffic::{Answer, Datagrams, NoAnswer, PATIENCE, connect, tcp_exchange};
use serde_json::{Value, json};

use crate::town::{Company, GENEROUS, LONG, Town, skipped};

/// The same, tried again and again: it has to end alike each time.
struct Attempts {
    stop: mpsc::Sender<()>,
    made: Arc<AtomicU64>,
    thread: JoinHandle<Vec<Answer>>,
}

/// Between two of them: the machine has other work.
const PACE: Duration = Duration::from_millis(20);

impl Attempts {
    fn start(wanted: Answer, mut attempt: impl FnMut() -> Answer + Send + 'static) -> Self {
        let ((stop, stopped), made) = (mpsc::channel(), Arc::new(AtomicU64::new(0)));
        let count = Arc::clone(&made);
        let thread = std::thread::spawn(move || {
            let mut wrong = Vec::new();
            while stopped.recv_timeout(PACE) == Err(RecvTimeoutError::Timeout) {
                let got = attempt();
                if got != wanted {
                    wrong.push(got);
                }
                count.fetch_add(1, Ordering::Relaxed);
            }
            wrong
        });
        Self { stop, made, thread }
    }

    fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    /// Waits until so many more have ended, those excepted that have begun already.
    #[track_caller]
    fn wait_for(&self, more: u64) {
        let enough = self.made() + more + 1;
        until("more connections", LONG, || Ok((self.made() >= enough).then_some(()))).expect("they go on");
    }

    fn finish(self) -> (u64, Vec<Answer>) {
        drop(self.stop);
        let wrong = self.thread.join().expect("no panic");
        (self.made.load(Ordering::Relaxed), wrong)
    }
}

#[test]
fn agent_of_another_build_takes_over_under_traffic_and_catches_up_with_what_changed_meanwhile() {
    if skipped() {
        return;
    }
    let mut town = Town::new("takeover", Company::Shared);
    let [web, front, client, guest] = ["web", "front", "client", "guest"].map(|name| town.pod(name));
    town.start();
    town.let_in("web", &[json!({ "podSelector": { "matchLabels": { "app": "client" } } })], &[town.own()]);
    let at = |pod: &Pod, port: u16| SocketAddr::new(pod.v4(), port);
    let opens = |from: &Pod, patience| {
        let (from, to) = (from.netns().clone(), at(&web, 8080));
        move || tcp_exchange(&from, to, patience)
    };
    let mut connection = connect(client.netns(), at(&web, 8080), GENEROUS).expect("an open connection");
    let live = Attempts::start(Ok(()), move || connection.exchange(GENEROUS));
    let allowed = Attempts::start(Ok(()), opens(&client, GENEROUS));
    let denied = Attempts::start(Err(NoAnswer::TimedOut), opens(&guest, PATIENCE));
    let datagrams = Datagrams::start(client.netns(), web.netns(), at(&web, 9000));
    let refused = Datagrams::start(guest.netns(), web.netns(), at(&web, 9001));
    let other = town.cluster.lab.another_build().expect("another build");
    for program in [Some(other.clone()), None, Some(other)] {
        for attempts in [&live, &allowed, &denied] {
            attempts.wait_for(2);
        }
        town.agent().terminate().expect("ended");
        // Said while nobody listens.
        town.close("front", "nobody-to-front");
        for attempts in [&live, &allowed, &denied] {
            attempts.wait_for(2);
        }
        let facts = Facts::Kubeconfig(town.kubeconfig());
        town.spawn_with(AgentOptions { facts, program, ..AgentOptions::default() });
        town.agent().wait_ready().expect("ready");
        town.in_force("nobody-to-front", &[town.own()]);
        town.is_denied(&client, &front, "nobody-to-front");
        let adopted = town.own().metric("reeve_adopted_links", &[]).expect("a metric");
        assert_eq!(adopted, 4.0, "of each pod");
        town.open("nobody-to-front");
        town.becomes_allowed(&client, &front);
    }
    for attempts in [&live, &allowed, &denied] {
        attempts.wait_for(2);
    }
    for (what, attempts, least) in
        [("exchanges of a live connection", live, 50), ("connections", allowed, 50), ("denied connections", denied, 10)]
    {
        let (made, wrong) = attempts.finish();
        assert!(made >= least, "{made} {what}");
        assert_eq!(wrong, [], "of {made} {what}");
    }
    let (sent, came) = datagrams.finish();
    assert_eq!(sent, came, "what client sends");
    let (sent, came) = refused.finish();
    assert_eq!((sent > 100, came), (true, 0), "what guest sends");
    all_records_are_right(&town, &web, &client, &guest);
}

/// Whatever was told of connections to `web`, by whichever agent, is what its policy says.
#[track_caller]
fn all_records_are_right(town: &Town, web: &Pod, client: &Pod, guest: &Pod) {
    let rows = town.own().records().rest().expect("records");
    let to_web = |row: &&Value| row["direction"] == "ingress" && row["destination"]["uid"] == web.uid();
    let mut seen = [0, 0];
    for row in rows.iter().filter(to_web) {
        let from = [client, guest].iter().position(|pod| row["source"]["uid"] == pod.uid());
        let from = from.unwrap_or_else(|| panic!("nobody else sends: {row}"));
        assert_eq!(row["verdict"], ["allow", "deny"][from], "{row}");
        assert!(row["decision"].to_string().contains("into-web"), "{row}");
        seen[from] += 1;
    }
    assert!(seen[0] > 100 && seen[1] > 10, "{seen:?} records");
}
