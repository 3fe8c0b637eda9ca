//! `reeve endpoints`: the pods of a node, with what selects them.

use crate::output::{self, Answer, Format, OutputArgs, row, table};
use crate::socket::SocketArgs;
use serde::Deserialize;
use std::io::Write;
use std::net::IpAddr;

/// Shows the pods of a node: interface, addresses, identity, state, and the policies that select each.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    reeve endpoints\n  \
    reeve endpoints -o json | jq '.[] | select(.state != \"ready\")'")]
pub(crate) struct Args {
    #[command(flatten)]
    socket: SocketArgs,
    #[command(flatten)]
    output: OutputArgs,
}

const PATH: &str = "/endpoints";

/// One row of the answer to `GET /endpoints`.
#[derive(Deserialize)]
struct Endpoint {
    namespace: String,
    pod: String,
    /// Absent while no interface was found.
    interface: Option<String>,
    addresses: Vec<IpAddr>,
    identity: String,
    state: String,
    revision: u64,
    policies: Policies,
}

/// Names of the policies that select the pod.
#[derive(Deserialize)]
struct Policies {
    ingress: Vec<String>,
    egress: Vec<String>,
}

/// Asks the agent.
pub(crate) fn run(args: &Args, out: &mut dyn Write) -> anyhow::Result<Answer> {
    let agent = args.socket.agent();
    let value = agent.get(PATH)?;
    let mut endpoints: Vec<Endpoint> =
        serde_json::from_value(value.clone()).map_err(|source| agent.form(PATH, source))?;
    match args.output.output {
        Format::Json => output::json(out, &value)?,
        Format::Text if endpoints.is_empty() => writeln!(out, "no endpoints")?,
        Format::Text => {
            endpoints.sort_by(|a, b| (&a.namespace, &a.pod).cmp(&(&b.namespace, &b.pod)));
            let mut rows =
                vec![row(["POD", "STATE", "INTERFACE", "ADDRESSES", "IDENTITY", "REVISION", "INGRESS", "EGRESS"])];
            rows.extend(endpoints.iter().map(Endpoint::row));
            table(&rows).iter().try_for_each(|line| writeln!(out, "{line}"))?;
        }
    }
    Ok(Answer::Yes)
}

impl Endpoint {
    fn row(&self) -> Vec<String> {
        let addresses: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
        row([
            &format!("{}/{}", self.namespace, self.pod),
            &self.state,
            self.interface.as_deref().unwrap_or("-"),
            &joined(&addresses),
            &self.identity,
            &self.revision.to_string(),
            &joined(&self.policies.ingress),
            &joined(&self.policies.egress),
        ])
    }
}

fn joined(names: &[String]) -> String {
    if names.is_empty() { "-".to_owned() } else { names.join(", ") }
}
