//! `reeve identities`: what addresses are seen as by policies.

use crate::output::{self, Answer, Format, OutputArgs, row, table};
use crate::socket::SocketArgs;
use reeve_policy::model::Labels;
use reeve_policy::provenance::Identity;
use serde::Deserialize;
use std::io::Write;

/// Shows what addresses are seen as: the labels that some policy reads, how many addresses share them, and the class
/// that this node's policies put them in.
#[derive(Debug, clap::Args)]
#[command(after_help = "Identities of one class are treated alike by every policy of this node.\n\n\
    Examples:\n  \
    reeve identities\n  \
    reeve identities -o json | jq '.[] | select(.identity.labels.PCI == \"true\")'")]
pub(crate) struct Args {
    #[command(flatten)]
    socket: SocketArgs,
    #[command(flatten)]
    output: OutputArgs,
}

const PATH: &str = "/identities";

/// One row of the answer to `GET /identities`.
#[derive(Deserialize)]
struct Shown {
    id: String,
    class: String,
    addresses: u64,
    prefixes: u64,
    /// Absent if the agent's dictionary has lost it.
    identity: Option<Identity>,
}

/// Asks the agent.
pub(crate) fn run(args: &Args, out: &mut dyn Write) -> anyhow::Result<Answer> {
    let agent = args.socket.agent();
    let value = agent.get(PATH)?;
    let shown: Vec<Shown> = serde_json::from_value(value.clone()).map_err(|source| agent.form(PATH, source))?;
    match args.output.output {
        Format::Json => output::json(out, &value)?,
        Format::Text if shown.is_empty() => writeln!(out, "no identities")?,
        Format::Text => {
            let mut rows = vec![row(["IDENTITY", "KIND", "NAMESPACE", "ADDRESSES", "CLASS", "READ BY POLICIES"])];
            rows.extend(shown.iter().map(Shown::row));
            table(&rows).iter().try_for_each(|line| writeln!(out, "{line}"))?;
        }
    }
    Ok(Answer::Yes)
}

impl Shown {
    fn row(&self) -> Vec<String> {
        let (kind, namespace, read) = self.identity.as_ref().map_or_else(
            || ("unknown".to_owned(), "-".to_owned(), String::new()),
            |identity| {
                let kind = serde_json::to_value(identity.kind).expect("a unit variant is a string");
                (
                    kind.as_str().unwrap_or_default().to_owned(),
                    identity.namespace.clone().unwrap_or_else(|| "-".to_owned()),
                    read(identity),
                )
            },
        );
        let counted = match self.prefixes {
            0 => self.addresses.to_string(),
            prefixes => format!("{} + {prefixes} prefixes", self.addresses),
        };
        row([&self.id, &kind, &namespace, &counted, &self.class, &read])
    }
}

/// Everything of an identity that policies read, as they would write it.
fn read(identity: &Identity) -> String {
    let labels = |of: &str, labels: &Labels| -> Vec<String> {
        labels.iter().map(|(key, value)| format!("{of}{key}={value}")).collect()
    };
    let mut all = labels("", &identity.labels);
    all.extend(labels("namespace:", &identity.namespace_labels));
    all.extend(identity.service_account.iter().map(|name| format!("serviceAccount={name}")));
    all.extend(labels("serviceAccount:", &identity.service_account_labels));
    all.extend(identity.ports.iter().map(|port| format!("port:{}={}", port.name, port.port)));
    all.extend(identity.networks.iter().map(ToString::to_string));
    if all.is_empty() { "-".to_owned() } else { all.join(" ") }
}
