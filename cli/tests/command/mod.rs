//! Runs the `reeve` binary as a user does.

use std::path::Path;
use std::process::{Command, Stdio};

/// What a run left.
#[derive(Debug)]
pub(crate) struct Told {
    /// Standard output.
    pub(crate) out: String,
    /// Standard error.
    pub(crate) err: String,
    /// Exit code.
    pub(crate) code: i32,
}

impl Told {
    /// Standard output as JSON.
    #[allow(dead_code, reason = "not every test asks for JSON")]
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// The command, without input and away from whatever the user's environment says.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reeve"));
    command.args(arguments).stdin(Stdio::null()).env_remove("REEVE_SOCKET").env_remove("COLUMNS");
    command
}

/// Runs it to its end.
#[track_caller]
pub(crate) fn reeve(arguments: &[&str]) -> Told {
    let output = command(arguments).output().expect("the binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    Told { out: text(output.stdout), err: text(output.stderr), code: output.status.code().expect("it ends by itself") }
}

/// Writes a file below a directory.
#[allow(dead_code, reason = "not every test writes files")]
pub(crate) fn write(directory: &Path, name: &str, text: &str) {
    let path = directory.join(name);
    std::fs::create_dir_all(path.parent().expect("it is below the directory")).expect("a directory");
    std::fs::write(path, text).expect("written");
}
