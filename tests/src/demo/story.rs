//! The course of the demo: the table, a label given, a label taken away.

use std::io::IsTerminal;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use reeve_flow::record::{EventKind, FlowRecord};
use reeve_flow::text::{Colour, decision_text};
use reeve_policy::model::Verdict;
use serde_json::Value;

use super::attempt::{self, Attempt, Probe};
use super::cast::Cast;
use super::table;
use crate::lab::{Agent, AgentOptions, Lab, Mode, Node, Records, until};
use crate::traffic::PATIENCE;

/// What the demo is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Leave everything running until interrupted.
    pub keep: Keep,
    /// What to print.
    pub print: Print,
    /// How the pods are wired.
    pub mode: Mode,
    /// Whether to take a program away half-way, which must make the demo fail.
    pub sabotage: Sabotage,
}

/// Whether the demo stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Until interrupted.
    Running,
    /// Cleans up at the end.
    Nothing,
}

/// What goes to standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Print {
    /// The story.
    Story,
    /// The records alone, as JSON lines.
    Records,
}

/// Whether a program is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// No.
    None,
    /// The programs at card-db's interface.
    Detach,
}

struct Story {
    print: Print,
    colour: Colour,
    records: Records,
    allowed: usize,
    denied: usize,
    disagreements: Vec<String>,
}

/// Runs the demo; an error or a disagreement is a failure.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let begun = Instant::now();
    let lab = Lab::new("demo")?;
    let (node, cast) = Cast::new(&lab, options.mode)?;
    let agent = node.start_agent(AgentOptions::default())?;
    agent.settled()?;
    let terminal = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let mut story = Story {
        print: options.print,
        colour: if terminal { Colour::Ansi } else { Colour::Never },
        records: agent.records(),
        allowed: 0,
        denied: 0,
        disagreements: Vec::new(),
    };
    story.say(&format!(
        "One node, five pods, two policies: pci-isolation (PCI=true talks to PCI=true only) and\n\
         shop/web-readers (only report-gen reads from web). Ready after {:.1} s.\n\n\
         1. Connections, as the kernel judged them\n",
        begun.elapsed().as_secs_f64()
    ));
    story.first_table(&node, &cast)?;
    if options.sabotage == Sabotage::Detach {
        detach(&node, cast.card_db.host_side())?;
        story.attempts(&node, &[(&cast.web, &cast.card_db, Probe::Tcp(5432), false)])?;
    } else {
        story.label_given_and_taken(&node, &cast, &agent)?;
    }
    let total = story.allowed + story.denied;
    story.say(&format!(
        "\nSummary: {total} verdicts ({} allowed, {} denied), each with its decider; records, sockets and the oracle {}. {:.1} s.",
        story.allowed,
        story.denied,
        if story.disagreements.is_empty() { "agree in all of them" } else { "DISAGREE" },
        begun.elapsed().as_secs_f64()
    ));
    if options.keep == Keep::Running {
        keep(&node, &cast)?;
    }
    if !story.disagreements.is_empty() {
        bail!("{} disagreement(s):\n  {}", story.disagreements.len(), story.disagreements.join("\n  "));
    }
    Ok(())
}

impl Story {
    fn say(&self, text: &str) {
        if self.print == Print::Story {
            println!("{text}");
        }
    }

    fn show(&mut self, attempts: &[&Attempt]) {
        for attempt in attempts {
            for row in &attempt.rows {
                match row.record.decision.verdict() {
                    Verdict::Allow => self.allowed += 1,
                    Verdict::Deny => self.denied += 1,
                }
                if self.print == Print::Records {
                    println!("{}", row.line);
                }
            }
            self.disagreements.extend(attempt.disagreements());
        }
        if self.print == Print::Story {
            table::print(attempts, self.colour);
        }
    }

    fn attempts(
        &mut self,
        node: &Node,
        list: &[(&crate::lab::Pod, &crate::lab::Pod, Probe, bool)],
    ) -> anyhow::Result<Vec<Attempt>> {
        let store = attempt::facts(&node.manifests_directory(), node.name())?;
        let mut done = Vec::new();
        for (from, to, probe, v6) in list {
            done.push(attempt::attempt(&store, &mut self.records, from, to, *probe, *v6)?);
        }
        self.show(&done.iter().collect::<Vec<_>>());
        Ok(done)
    }

    fn first_table(&mut self, node: &Node, cast: &Cast) -> anyhow::Result<()> {
        let Cast { card_api, card_db, web, report_gen, dns, .. } = cast;
        let (database, shop, names) = (Probe::Tcp(5432), Probe::Tcp(8080), Probe::Udp(53));
        self.attempts(
            node,
            &[
                (card_api, card_db, database, false),
                (card_api, card_db, database, true),
                (web, card_db, database, false),
                (web, card_db, database, true),
                (report_gen, card_db, database, false),
                (card_api, web, shop, false),
                (report_gen, web, shop, false),
                (dns, web, shop, false),
                (web, dns, names, false),
                (card_api, dns, names, false),
                (card_api, card_db, Probe::Ping, false),
                (web, card_db, Probe::Ping, false),
                (web, dns, Probe::Ping, true),
            ],
        )?;
        Ok(())
    }

    fn label_given_and_taken(&mut self, node: &Node, cast: &Cast, agent: &Agent) -> anyhow::Result<()> {
        self.say("\n2. report-gen gets the label PCI=true\n");
        let took = relabel(agent, cast, &[("app", "report-gen"), ("PCI", "true")])?;
        self.say(&format!("  {:.1} ms from the file's change to the kernel\n", took.as_secs_f64() * 1e3));
        let list = [(&cast.report_gen, &cast.card_db, Probe::Tcp(5432), false)];
        let mut done = self.attempts(node, &list)?;
        let mut open =
            done.remove(0).connection.context("report-gen has no connection to card-db although it is PCI=true now")?;
        self.say("\n3. the label is taken away while that connection is open\n");
        let took = relabel(agent, cast, &[("app", "report-gen")])?;
        let answer = open.exchange(PATIENCE);
        if answer.is_ok() {
            self.disagreements.push("report-gen -> card-db: the live connection goes on without the label".to_owned());
        }
        let (source, port) = (cast.report_gen.v4(), open.local().port());
        let line = self.records.wait_for(Duration::from_secs(3), |line| {
            line["event"] == "rejudged" && line["verdict"] == "deny" && line["source"]["port"] == port
        })?;
        let record: FlowRecord = serde_json::from_value(line.clone())?;
        debug_assert!(record.event == EventKind::Rejudged);
        let store = attempt::facts(&node.manifests_directory(), node.name())?;
        let told = reeve_policy::oracle::explain(store.world(), source, cast.card_db.v4(), 6, 5432);
        let expected = match record.direction {
            reeve_policy::model::Direction::Egress => told.egress,
            reeve_policy::model::Direction::Ingress => told.ingress,
        };
        if let Some(text) = attempt::differs(&record, expected.as_ref().map(|(_, decision)| decision)) {
            self.disagreements.push(format!("report-gen -> card-db, live: {text}"));
        }
        self.denied += 1;
        if self.print == Print::Records {
            println!("{line}");
        }
        let before = record.previous.as_ref().map_or_else(|| "?".to_owned(), decision_text);
        self.say(&format!(
            "  {:.1} ms to the kernel; the open connection got {answer:?} and was recorded as re-judged:\n  \
             was allowed by {before},\n  now denied by {}\n\n  and the next one:\n",
            took.as_secs_f64() * 1e3,
            decision_text(&record.decision)
        ));
        self.attempts(node, &list)?;
        Ok(())
    }
}

/// Changes report-gen's labels and waits until the kernel has them. The watcher has to notice by itself.
fn relabel(agent: &Agent, cast: &Cast, labels: &[(&str, &str)]) -> anyhow::Result<Duration> {
    let revision = |status: &Value| status["revision"].as_u64().context("the agent's status has no revision");
    let before = revision(&agent.status()?)?;
    let begun = Instant::now();
    cast.report_gen.set_labels(labels)?;
    until("the relabelled pod's revision", Duration::from_secs(5), || {
        Ok((revision(&agent.status()?)? > before).then(|| begun.elapsed()))
    })
}

/// Takes the programs at an interface away behind the agent's back, as `bpftool link detach` does for an operator.
fn detach(node: &Node, interface: &str) -> anyhow::Result<()> {
    let name = std::ffi::CString::new(interface)?;
    // SAFETY: the name is a terminated string that outlives the call.
    let ifindex = node.netns().run(|| unsafe { libc::if_nametoindex(name.as_ptr()) })?;
    if ifindex == 0 {
        bail!("{interface} is no interface of the node");
    }
    for side in ["from", "to"] {
        let pin = node.bpffs().join(format!("reeve/v1/links/{ifindex}-{side}"));
        let output = Command::new("bpftool")
            .args(["link", "detach", "pinned"])
            .arg(&pin)
            .output()
            .context("bpftool cannot be run")?;
        if !output.status.success() {
            bail!("bpftool could not detach {}: {}", pin.display(), String::from_utf8_lossy(&output.stderr));
        }
    }
    Ok(())
}

/// Prints the commands to look around with and waits for an interrupt.
fn keep(node: &Node, cast: &Cast) -> anyhow::Result<()> {
    // Where cargo put this program, it put the others too.
    let beside = std::env::current_exe().ok().and_then(|path| path.parent().map(|folder| folder.join("reeve")));
    let reeve = beside.filter(|path| path.is_file()).unwrap_or_else(|| "reeve".into());
    let (reeve, socket) = (reeve.display(), node.run_directory().join("agent.sock"));
    let socket = socket.display();
    println!(
        "\nRunning until interrupted (Ctrl-C). In another terminal, as root:\n\n  \
         {reeve} status    --socket {socket}\n  \
         {reeve} endpoints --socket {socket}\n  \
         {reeve} flows     --socket {socket} --follow\n  \
         {reeve} explain shop/web payments/card-db:5432/TCP --socket {socket}\n  \
         {reeve} explain shop/web payments/card-db:5432/TCP --manifests {} --node {}\n  \
         nsenter --net=/run/netns/{} ping -c1 {}   # web pings card-db: denied\n\n\
         Edit a manifest in {} and watch the flows change.",
        node.manifests_directory().display(),
        node.name(),
        cast.web.netns().name(),
        cast.card_db.v4(),
        node.manifests_directory().display(),
    );
    let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM])?;
    signals.forever().next();
    Ok(())
}
