//! The plugin's commands: reads what the runtime gives, asks the agent, and prints a result or an error.
//!
//! Invariant: whatever fails ends as a CNI error on standard output with a status other than 0, DEL without an agent
//! excepted, which has nothing to take back.

use super::client::{self, ClientError};
use super::failure::{self, Failure};
use super::network::{self, NEWEST, Network, VERSIONS};
use super::{Announcement, Answer, Attachment, Request, peer};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long an answer that nothing has to happen for is waited for.
const SHORT: Duration = Duration::from_secs(2);
/// So much before the plugin gives up the agent does: its reason says more.
const MARGIN: Duration = Duration::from_millis(300);

/// What the process is to print, and how it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// For standard output.
    pub output: String,
    /// The exit status.
    pub status: u8,
}

/// The variables that the runtime sets; those that are empty are none.
pub struct Environment<'a>(pub &'a dyn Fn(&str) -> Option<String>);

impl Environment<'_> {
    fn find(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|text| !text.is_empty())
    }

    fn get(&self, name: &str) -> Result<String, Failure> {
        let missing = || Failure::new(failure::ENVIRONMENT, format!("{name} is not set"), "the runtime has to set it");
        self.find(name).ok_or_else(missing)
    }

    fn attachment(&self) -> Result<Attachment, Failure> {
        Ok(Attachment { container: self.get("CNI_CONTAINERID")?, interface: self.get("CNI_IFNAME")? })
    }
}

/// Carries out one command.
pub fn run(environment: &Environment<'_>, input: &[u8]) -> Outcome {
    let version = network::decode(input).ok().as_ref().and_then(network::version_of);
    match command(environment, input) {
        Ok(output) => Outcome { output, status: 0 },
        Err(failure) => Outcome { output: failure.json(version), status: 1 },
    }
}

fn command(environment: &Environment<'_>, input: &[u8]) -> Result<String, Failure> {
    let command = environment.get("CNI_COMMAND")?;
    if command == "VERSION" {
        return versions(input);
    }
    if !["ADD", "DEL", "CHECK", "STATUS", "GC"].contains(&command.as_str()) {
        let known = "ADD, DEL, CHECK, STATUS, GC and VERSION are known";
        return Err(Failure::new(failure::ENVIRONMENT, format!("CNI_COMMAND {command} is unknown"), known));
    }
    let network = Network::read(&network::decode(input)?)?;
    let since = match command.as_str() {
        "CHECK" => "0.4.0",
        "STATUS" | "GC" => "1.1.0",
        _ => VERSIONS[0],
    };
    let place = |version: &str| VERSIONS.iter().position(|other| *other == version);
    if place(network.version) < place(since) {
        let details = format!("CNI {} has no {command}, {since} brought it", network.version);
        return Err(Failure::new(failure::VERSION, "incompatible CNI version", details));
    }
    match command.as_str() {
        "ADD" => add(environment, &network),
        "DEL" => del(environment, &network),
        "CHECK" => check(environment, &network),
        "GC" => gc(&network),
        _ => status(&network),
    }
}

fn versions(input: &[u8]) -> Result<String, Failure> {
    // Who asks for versions may send nothing else.
    let asked = if input.trim_ascii().is_empty() { Value::Null } else { network::decode(input)? };
    let version = network::version_of(&asked).unwrap_or(NEWEST);
    Ok(json!({ "cniVersion": version, "supportedVersions": VERSIONS }).to_string())
}

fn add(environment: &Environment<'_>, network: &Network) -> Result<String, Failure> {
    let deadline = Instant::now() + network.timeout;
    let result = network.result()?;
    let announcement = announcement(environment, network)?;
    let pod = announcement.full_name();
    let mut gone = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout_ms = u64::try_from(left.saturating_sub(MARGIN).as_millis()).unwrap_or(u64::MAX);
        let request = Request::Add { announcement: announcement.clone(), timeout_ms, gone: gone.clone() };
        match client::ask(&network.socket, &request, left) {
            Ok(Answer::Done) => return Ok(passed_on(result, network.version)),
            Ok(Answer::Not { why }) => {
                let msg = format!("pod {pod} is not enforced, so it does not start");
                return Err(Failure::new(failure::NOT_ENFORCED, msg, why));
            }
            // The agent cannot look into the host's directories; what it takes for living may be gone.
            Ok(Answer::Claimed { by, netns, .. }) if !gone.contains(&by.container) && !Path::new(&netns).exists() => {
                gone.push(by.container);
            }
            Ok(Answer::Claimed { why, .. }) => {
                let msg = format!("pod {pod} cannot be told from another, so it does not start");
                return Err(Failure::new(failure::CLAIMED, msg, why));
            }
            Err(error) => return Err(unanswered(&network.socket, &error, &format!("pod {pod} does not start"))),
        }
    }
}

fn del(environment: &Environment<'_>, network: &Network) -> Result<String, Failure> {
    let request = Request::Del { attachment: environment.attachment()? };
    // Without an agent nothing has to be forgotten: the next one sees that the interface is gone.
    let _ = client::ask(&network.socket, &request, SHORT.min(network.timeout));
    Ok(String::new())
}

fn check(environment: &Environment<'_>, network: &Network) -> Result<String, Failure> {
    let announcement = announcement(environment, network)?;
    let pod = announcement.full_name();
    let request = Request::Check { announcement };
    match client::ask(&network.socket, &request, network.timeout) {
        Ok(Answer::Done) => Ok(String::new()),
        Ok(Answer::Not { why } | Answer::Claimed { why, .. }) => {
            Err(Failure::new(failure::NOT_ENFORCED, format!("pod {pod} is not enforced as it was announced"), why))
        }
        Err(error) => Err(unanswered(&network.socket, &error, &format!("pod {pod} cannot be checked"))),
    }
}

fn gc(network: &Network) -> Result<String, Failure> {
    let Some(valid) = network.valid.clone() else {
        let details = "cni.dev/valid-attachments is missing";
        return Err(Failure::new(failure::CONFIGURATION, "GC needs the list of attachments", details));
    };
    match client::ask(&network.socket, &Request::Gc { valid }, network.timeout) {
        Ok(Answer::Done) => Ok(String::new()),
        Ok(Answer::Not { why } | Answer::Claimed { why, .. }) => {
            Err(Failure::new(failure::IO, "attachments that are gone were not forgotten", why))
        }
        Err(error) => Err(unanswered(&network.socket, &error, "attachments that are gone are not forgotten yet")),
    }
}

fn status(network: &Network) -> Result<String, Failure> {
    let why = match client::ask(&network.socket, &Request::Status, SHORT.min(network.timeout)) {
        Ok(Answer::Done) => return Ok(String::new()),
        Ok(Answer::Not { why } | Answer::Claimed { why, .. }) => why,
        Err(error) => unanswered(&network.socket, &error, "").details,
    };
    Err(Failure::new(failure::UNAVAILABLE, "reeve cannot enforce new pods", why))
}

fn announcement(environment: &Environment<'_>, network: &Network) -> Result<Announcement, Failure> {
    let made = network::made(network.result()?)?;
    let attachment = environment.attachment()?;
    let netns = environment.get("CNI_NETNS")?;
    let pod = network::pod_name(&environment.find("CNI_ARGS").unwrap_or_default())?;
    let device = peer::find(&netns, &attachment.interface, &made.host_interfaces)?;
    Ok(Announcement {
        attachment,
        netns,
        namespace: pod.namespace,
        pod: pod.name,
        uid: pod.uid,
        addresses: made.addresses,
        device: device.name,
        ifindex: device.ifindex,
    })
}

/// The result as it came. The specification wants a version in it, which some plugins leave to the runtime.
fn passed_on(result: &Value, version: &str) -> String {
    let mut result = result.clone();
    if let Value::Object(fields) = &mut result {
        fields.entry("cniVersion").or_insert_with(|| json!(version));
    }
    result.to_string()
}

fn unanswered(socket: &Path, error: &ClientError, so: &str) -> Failure {
    let socket = socket.display();
    match error {
        ClientError::Absent(cause) => Failure::new(
            failure::ABSENT,
            format!("reeve-agent does not run on this node: {so}"),
            format!(
                "{socket}: {cause}; see why the agent's pod of this node does not run, pods start once it does; if its \
                 DaemonSet was deleted for good, run `reeve-agent uninstall` on this node, or take the plugin \
                 \"reeve-cni\" out of the node's CNI configuration"
            ),
        ),
        ClientError::Silent(cause) => Failure::new(
            failure::ABSENT,
            format!("reeve-agent gives no answer in time: {so}"),
            format!("{socket}: {cause}; the agent's log tells what it is busy with"),
        ),
        ClientError::Answer(cause) => Failure::new(
            failure::ABSENT,
            format!("reeve-agent gives an answer that reeve-cni cannot read: {so}"),
            format!("{socket}: {cause}; are the agent and the plugin of one version?"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(variables: &[(&str, &str)], input: &str) -> (Value, u8) {
        let find = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        let outcome = run(&Environment(&find), input.as_bytes());
        let output =
            if outcome.output.is_empty() { Value::Null } else { serde_json::from_str(&outcome.output).expect("JSON") };
        (output, outcome.status)
    }

    #[track_caller]
    fn fails(variables: &[(&str, &str)], input: &str, code: u32, named: &str) {
        let (output, status) = outcome(variables, input);
        assert_eq!((output["code"].as_u64(), status), (Some(u64::from(code)), 1), "{output}");
        assert!(output["cniVersion"].is_string() && output["msg"].is_string(), "{output}");
        assert!(output.to_string().contains(named), "{named} is not in {output}");
    }

    const NOWHERE: &str = r#"{"cniVersion":"1.1.0","socket":"/nonexistent/cni.sock","cni.dev/valid-attachments":[]}"#;
    const CONTAINER: [(&str, &str); 4] = [
        ("CNI_CONTAINERID", "c"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/nonexistent/netns"),
        ("CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web"),
    ];

    fn with(command: &str) -> Vec<(&str, &str)> {
        std::iter::once(("CNI_COMMAND", command)).chain(CONTAINER).collect()
    }

    #[test]
    fn what_is_spoken_is_told_in_every_version() {
        for version in VERSIONS {
            let (output, status) = outcome(&[("CNI_COMMAND", "VERSION")], &json!({"cniVersion": version}).to_string());
            assert_eq!(output, json!({"cniVersion": version, "supportedVersions": VERSIONS}));
            assert_eq!(status, 0);
        }
        assert_eq!(outcome(&[("CNI_COMMAND", "VERSION")], "").0["cniVersion"], NEWEST);
        fails(&[("CNI_COMMAND", "VERSION")], "{", failure::DECODE, "no JSON");
    }

    #[test]
    fn what_means_nothing_is_an_error_by_its_number() {
        fails(&[], NOWHERE, failure::ENVIRONMENT, "CNI_COMMAND is not set");
        fails(&with("UPDATE"), NOWHERE, failure::ENVIRONMENT, "CNI_COMMAND UPDATE is unknown");
        for command in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
            fails(&with(command), "{\"cniVersion\":", failure::DECODE, "no JSON");
            fails(&with(command), r#"{"cniVersion":"0.2.0"}"#, failure::VERSION, "0.3.1");
        }
        for command in ["GC", "STATUS"] {
            fails(&with(command), r#"{"cniVersion":"1.0.0"}"#, failure::VERSION, "1.1.0 brought it");
        }
        fails(&with("CHECK"), r#"{"cniVersion":"0.3.1"}"#, failure::VERSION, "0.4.0 brought it");
        fails(&with("ADD"), NOWHERE, failure::CONFIGURATION, "no prevResult");
        fails(&[("CNI_COMMAND", "DEL")], NOWHERE, failure::ENVIRONMENT, "CNI_CONTAINERID is not set");
        fails(&with("GC"), r#"{"cniVersion":"1.1.0"}"#, failure::CONFIGURATION, "valid-attachments");
    }

    #[test]
    fn without_an_agent_only_del_succeeds() {
        assert_eq!(outcome(&with("DEL"), NOWHERE), (Value::Null, 0));
        fails(&with("STATUS"), NOWHERE, failure::UNAVAILABLE, "reeve-agent uninstall");
        fails(&with("GC"), NOWHERE, failure::ABSENT, "reeve-agent uninstall");
        let add = r#"{"cniVersion":"1.0.0","socket":"/nonexistent/cni.sock",
            "prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"lo"}],"ips":[{"address":"10.0.0.5/24"}]}}"#;
        fails(&with("ADD"), add, failure::ABSENT, "pod shop/web does not start");
        fails(&with("CHECK"), add, failure::ABSENT, "pod shop/web cannot be checked");
    }

    #[test]
    fn a_result_is_passed_on_as_it_came() {
        let result = json!({"cniVersion": "0.3.1", "ips": [], "dns": {"x": 1}, "own": [1, {"a": null}]});
        assert_eq!(serde_json::from_str::<Value>(&passed_on(&result, "1.0.0")).expect("JSON"), result);
        let without: Value = serde_json::from_str(&passed_on(&json!({"ips": []}), "1.0.0")).expect("JSON");
        assert_eq!(without, json!({"cniVersion": "1.0.0", "ips": []}));
    }
}
