//! The chained CNI plugin: a pod does not start before the agent enforces it.

use reeve_agent::cni::plugin::{self, Environment};
use std::io::{Read, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut input = Vec::new();
    // What could not be read is no JSON, which is said.
    let _ = std::io::stdin().read_to_end(&mut input);
    let outcome = plugin::run(&Environment(&|name| std::env::var(name).ok()), &input);
    let printed = std::io::stdout().write_all(outcome.output.as_bytes());
    if printed.is_ok() { ExitCode::from(outcome.status) } else { ExitCode::FAILURE }
}
