//! Errors of the plugin, as the CNI specification shapes and numbers them.

use super::network::NEWEST;
use serde_json::json;

/// The configuration's version is not spoken, or has no such command.
pub const VERSION: u32 = 1;
/// A variable of the environment is missing or means nothing.
pub const ENVIRONMENT: u32 = 4;
/// Reading or writing failed.
pub const IO: u32 = 5;
/// The input is no JSON.
pub const DECODE: u32 = 6;
/// The configuration cannot be used.
pub const CONFIGURATION: u32 = 7;
/// STATUS: new pods cannot be served.
pub const UNAVAILABLE: u32 = 50;
/// The agent does not answer.
pub const ABSENT: u32 = 100;
/// The pod is not enforced (yet).
pub const NOT_ENFORCED: u32 = 101;
/// Another container has the device or an address.
pub const CLAIMED: u32 = 102;

/// What a command failed for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{msg}: {details}")]
pub struct Failure {
    /// Below 100 as the specification says.
    pub code: u32,
    /// What failed.
    pub msg: String,
    /// Why, and what to do.
    pub details: String,
}

impl Failure {
    /// With these words.
    pub fn new(code: u32, msg: impl Into<String>, details: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: details.into() }
    }

    /// As it is printed for the runtime.
    pub fn json(&self, version: Option<&str>) -> String {
        json!({
            "cniVersion": version.unwrap_or(NEWEST), "code": self.code, "msg": self.msg, "details": self.details,
        })
        .to_string()
    }
}
