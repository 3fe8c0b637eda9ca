//! The course of the demo: the table, a label given, a label taken away.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use reeve_flow::record::{EventKind, FlowRecord};
use reeve_flow::text::{Colour, decision_text};
use reeve_policy::model::{Direction, Verdict};
use reeve_policy::store::Store;
use serde_json::Value;

use super::attempt::{self, Attempt, Probe};
use super::cast::Cast;
use super::cluster::Kubernetes;
use super::files::Files;
use super::table;
use crate::lab::{Mode, Pod, Records, until};
use crate::traffic::PATIENCE;

/// Longest wait for the record of a connection that was cut.
const RECORD_PATIENCE: Duration = Duration::from_secs(5);

/// What the demo is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Leave everything running until interrupted.
    pub keep: Keep,
    /// What to print.
    pub print: Print,
    /// How the pods are wired.
    pub mode: Mode,
    /// Who tells the agents.
    pub control: Control,
    /// Whether to take a program away half-way, which must make the demo fail.
    pub sabotage: Sabotage,
}

/// Where pods, labels and policies are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Files on one node.
    Files,
    /// A Kubernetes API server, for two nodes.
    Kubernetes,
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

impl Print {
    /// Part of the story.
    pub(super) fn say(self, text: &str) {
        if self == Self::Story {
            println!("{text}");
        }
    }
}

/// What the story happens in.
pub(super) trait World {
    /// Who takes part.
    fn cast(&self) -> &Cast;

    /// What each agent has recorded and will.
    fn records(&self) -> Vec<Records>;

    /// The facts as whoever tells the agents has them now.
    fn facts(&self) -> anyhow::Result<Store>;

    /// Gives report-gen the label `PCI=true`, or takes it away, and waits until every kernel has it.
    fn give_pci(&self, given: bool) -> anyhow::Result<()>;

    /// Commands for somebody who wants to look around.
    fn commands(&self) -> String;
}

struct Story<'a> {
    world: &'a dyn World,
    print: Print,
    colour: Colour,
    records: Vec<Records>,
    allowed: usize,
    denied: usize,
    disagreements: Vec<String>,
}

/// Runs the demo; an error or a disagreement is a failure.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let begun = Instant::now();
    let print = options.print;
    let world: Box<dyn World> = match options.control {
        Control::Files => Box::new(Files::new(options.mode, print)?),
        Control::Kubernetes => Box::new(Kubernetes::new(options.mode, print)?),
    };
    let terminal = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let mut story = Story {
        world: &*world,
        print,
        colour: if terminal { Colour::Ansi } else { Colour::Never },
        records: world.records(),
        allowed: 0,
        denied: 0,
        disagreements: Vec::new(),
    };
    print.say("1. Connections, as the kernel judged them\n");
    story.first_table()?;
    if options.sabotage == Sabotage::Detach {
        let Cast { web, card_db, .. } = world.cast();
        detach(card_db)?;
        story.attempts(&[(web, card_db, Probe::Tcp(5432), false)])?;
    } else {
        story.label_given_and_taken()?;
    }
    let total = story.allowed + story.denied;
    print.say(&format!(
        "\nSummary: {total} verdicts ({} allowed, {} denied), each with its decider; records, sockets and the oracle {}. {:.1} s.",
        story.allowed,
        story.denied,
        if story.disagreements.is_empty() { "agree in all of them" } else { "DISAGREE" },
        begun.elapsed().as_secs_f64()
    ));
    if options.keep == Keep::Running {
        keep(&*world)?;
    }
    if !story.disagreements.is_empty() {
        bail!("{} disagreement(s):\n  {}", story.disagreements.len(), story.disagreements.join("\n  "));
    }
    Ok(())
}

impl Story<'_> {
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

    fn attempts(&mut self, list: &[(&Pod, &Pod, Probe, bool)]) -> anyhow::Result<Vec<Attempt>> {
        let store = self.world.facts()?;
        let mut done = Vec::new();
        for (from, to, probe, v6) in list {
            done.push(attempt::attempt_between(&store, &mut self.records, from, to, *probe, *v6)?);
        }
        self.show(&done.iter().collect::<Vec<_>>());
        Ok(done)
    }

    fn first_table(&mut self) -> anyhow::Result<()> {
        let Cast { card_api, card_db, web, report_gen, dns, .. } = self.world.cast();
        let (database, shop, names) = (Probe::Tcp(5432), Probe::Tcp(8080), Probe::Udp(53));
        self.attempts(&[
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
        ])?;
        Ok(())
    }

    fn label_given_and_taken(&mut self) -> anyhow::Result<()> {
        let Cast { card_db, report_gen, .. } = self.world.cast();
        self.print.say("\n2. report-gen gets the label PCI=true\n");
        self.world.give_pci(true)?;
        let list = [(report_gen, card_db, Probe::Tcp(5432), false)];
        let mut done = self.attempts(&list)?;
        let mut open =
            done.remove(0).connection.context("report-gen has no connection to card-db although it is PCI=true now")?;
        self.print.say("\n3. the label is taken away while that connection is open\n");
        self.world.give_pci(false)?;
        let answer = open.exchange(PATIENCE);
        if answer.is_ok() {
            self.disagreements.push("report-gen -> card-db: the live connection goes on without the label".to_owned());
        }
        let port = open.local().port();
        let line = until("the record of the connection that was cut", RECORD_PATIENCE, || {
            for records in &mut self.records {
                let cut = |line: &Value| {
                    line["event"] == "rejudged" && line["verdict"] == "deny" && line["source"]["port"] == port
                };
                if let Some(line) = records.rest()?.into_iter().find(cut) {
                    return Ok(Some(line));
                }
            }
            Ok(None)
        })?;
        let record: FlowRecord = serde_json::from_value(line.clone())?;
        debug_assert!(record.event == EventKind::Rejudged);
        let told = reeve_policy::oracle::explain(self.world.facts()?.world(), report_gen.v4(), card_db.v4(), 6, 5432);
        let expected = match record.direction {
            Direction::Egress => told.egress,
            Direction::Ingress => told.ingress,
        };
        if let Some(text) = attempt::differs(&record, expected.as_ref().map(|(_, decision)| decision)) {
            self.disagreements.push(format!("report-gen -> card-db, live: {text}"));
        }
        self.denied += 1;
        if self.print == Print::Records {
            println!("{line}");
        }
        let before = record.previous.as_ref().map_or_else(|| "?".to_owned(), decision_text);
        self.print.say(&format!(
            "  The open connection got {answer:?} and was recorded as re-judged:\n  \
             was allowed by {before},\n  now denied by {}\n\n  and the next one:\n",
            decision_text(&record.decision)
        ));
        self.attempts(&list)?;
        Ok(())
    }
}

/// Takes the programs at a pod's interface away behind the agent's back, as `bpftool link detach` does for an operator.
fn detach(pod: &Pod) -> anyhow::Result<()> {
    let (node, ifindex) = (pod.node(), pod.host_index()?);
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
fn keep(world: &dyn World) -> anyhow::Result<()> {
    println!("\nRunning until interrupted (Ctrl-C). In another terminal, as root:\n\n{}", world.commands());
    let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM])?;
    signals.forever().next();
    Ok(())
}

/// The program `reeve`: where cargo put this program, it put the others too.
pub(super) fn reeve_program() -> PathBuf {
    let beside = std::env::current_exe().ok().and_then(|path| path.parent().map(|folder| folder.join("reeve")));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| "reeve".into())
}
