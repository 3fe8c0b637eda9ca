//! What the runtime hands to the plugin: configuration, result of the plugins before it, and arguments.
//!
//! Invariant: what cannot be understood is a CNI error; a pod is never let through for want of reading its result.

use super::Attachment;
use super::failure::{self, Failure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Versions of the specification that are spoken.
pub const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The newest of them.
pub const NEWEST: &str = "1.1.0";

const DEFAULT_SOCKET: &str = "/run/reeve/cni.sock";
const DEFAULT_TIMEOUT_SECONDS: u64 = 10;
const MOST_TIMEOUT_SECONDS: u64 = 600;

/// The plugin's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// One of [`VERSIONS`].
    pub version: &'static str,
    /// Where the agent listens.
    pub socket: PathBuf,
    /// How long ADD may take.
    pub timeout: Duration,
    /// What the plugins before this one have made.
    pub result: Option<Value>,
    /// GC: what the runtime knows.
    pub valid: Option<Vec<Attachment>>,
}

/// What of a result concerns the plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// Addresses of the container.
    pub addresses: Vec<IpAddr>,
    /// Interfaces on the node's side, in their order.
    pub host_interfaces: Vec<String>,
}

/// Whose container it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID; older runtimes tell none.
    pub uid: Option<String>,
}

/// The version that the input asks for, if it is spoken.
pub fn version_of(input: &Value) -> Option<&'static str> {
    let asked = input.get("cniVersion")?.as_str()?;
    VERSIONS.into_iter().find(|version| *version == asked)
}

/// The input as JSON.
pub fn decode(input: &[u8]) -> Result<Value, Failure> {
    let value: Value = serde_json::from_slice(input)
        .map_err(|error| Failure::new(failure::DECODE, "the network configuration is no JSON", error.to_string()))?;
    if value.is_object() {
        Ok(value)
    } else {
        Err(Failure::new(failure::DECODE, "the network configuration is no JSON object", value.to_string()))
    }
}

impl Network {
    /// Reads a configuration.
    pub fn read(value: &Value) -> Result<Self, Failure> {
        let Some(version) = version_of(value) else {
            let asked = value.get("cniVersion").map_or_else(|| "none".to_owned(), Value::to_string);
            let spoken = format!("cniVersion is {asked}; reeve-cni speaks {}", VERSIONS.join(", "));
            return Err(Failure::new(failure::VERSION, "incompatible CNI version", spoken));
        };
        let bad = |field: &str, what: &str| {
            let found = value.get(field).map(Value::to_string).unwrap_or_default();
            Failure::new(failure::CONFIGURATION, format!("{field} of reeve-cni's configuration {what}"), found)
        };
        let socket = match value.get("socket") {
            None => DEFAULT_SOCKET.into(),
            Some(Value::String(path)) if path.starts_with('/') => path.into(),
            Some(_) => return Err(bad("socket", "must be an absolute path")),
        };
        let seconds = match value.get("timeoutSeconds") {
            None => DEFAULT_TIMEOUT_SECONDS,
            Some(given) => given
                .as_u64()
                .filter(|seconds| (1..=MOST_TIMEOUT_SECONDS).contains(seconds))
                .ok_or_else(|| bad("timeoutSeconds", "must be a whole number from 1 to 600"))?,
        };
        let result = match value.get("prevResult") {
            None | Some(Value::Null) => None,
            Some(result @ Value::Object(_)) => Some(result.clone()),
            Some(_) => return Err(bad("prevResult", "must be an object")),
        };
        let valid = match value.get("cni.dev/valid-attachments") {
            None | Some(Value::Null) => None,
            Some(Value::Array(list)) => Some(
                list.iter()
                    .map(attachment)
                    .collect::<Option<_>>()
                    .ok_or_else(|| bad("cni.dev/valid-attachments", "must name containerID and ifname"))?,
            ),
            Some(_) => return Err(bad("cni.dev/valid-attachments", "must be a list")),
        };
        Ok(Self { version, socket, timeout: Duration::from_secs(seconds), result, valid })
    }

    /// The result of the plugins before this one, which ADD and CHECK cannot do without.
    pub fn result(&self) -> Result<&Value, Failure> {
        self.result.as_ref().ok_or_else(|| {
            Failure::new(
                failure::CONFIGURATION,
                "there is no prevResult",
                "reeve-cni makes no network: chain it behind the plugin that does, as the last of its conflist",
            )
        })
    }
}

fn attachment(value: &Value) -> Option<Attachment> {
    let text = |field: &str| value.get(field)?.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    Some(Attachment { container: text("containerID")?, interface: text("ifname")? })
}

/// Reads a result. Its shape is the same in all versions, as far as it is read here.
pub fn made(result: &Value) -> Result<Made, Failure> {
    let bad = |what: &str, found: &Value| {
        Failure::new(failure::CONFIGURATION, format!("prevResult: {what}"), found.to_string())
    };
    let list = |field: &str| match result.get(field) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => Ok(list.clone()),
        Some(other) => Err(bad(&format!("{field} is no list"), other)),
    };
    let mut made = Made::default();
    for ip in list("ips")? {
        let text = ip.get("address").and_then(Value::as_str).ok_or_else(|| bad("an address is missing", &ip))?;
        let address = text.split('/').next().unwrap_or_default().parse::<IpAddr>();
        let address = address.map_err(|_| bad("an address cannot be read", &ip))?.to_canonical();
        if !made.addresses.contains(&address) {
            made.addresses.push(address);
        }
    }
    for interface in list("interfaces")? {
        let text = |field: &str| interface.get(field).and_then(Value::as_str).unwrap_or_default();
        if text("sandbox").is_empty() && !text("name").is_empty() {
            made.host_interfaces.push(text("name").to_owned());
        }
    }
    if made.addresses.is_empty() {
        return Err(bad("the container has no address", result));
    }
    Ok(made)
}

/// Reads `CNI_ARGS`.
pub fn pod_name(arguments: &str) -> Result<PodName, Failure> {
    let given: BTreeMap<&str, &str> =
        arguments.split(';').filter_map(|pair| pair.split_once('=')).map(|(key, value)| (key.trim(), value)).collect();
    let text = |key: &str| given.get(key).filter(|text| !text.is_empty()).map(|text| (*text).to_owned());
    match (text("K8S_POD_NAMESPACE"), text("K8S_POD_NAME")) {
        (Some(namespace), Some(name)) => Ok(PodName { namespace, name, uid: text("K8S_POD_UID") }),
        _ => Err(Failure::new(
            failure::ENVIRONMENT,
            "CNI_ARGS names no pod",
            format!("K8S_POD_NAMESPACE and K8S_POD_NAME are needed; given was {arguments:?}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn refused(value: &Value, code: u32, named: &str) {
        let failure = Network::read(value).expect_err("refused");
        assert_eq!(failure.code, code, "{failure}");
        assert!(failure.to_string().contains(named), "{failure}");
    }

    #[test]
    fn settings_have_defaults_and_bounds() {
        for version in VERSIONS {
            let network =
                Network::read(&json!({"cniVersion": version, "name": "n", "type": "reeve-cni"})).expect("read");
            assert_eq!((network.version, network.timeout), (version, Duration::from_secs(10)));
            assert_eq!(network.socket, PathBuf::from("/run/reeve/cni.sock"));
            assert_eq!(network.result().expect_err("nothing before it").code, failure::CONFIGURATION);
        }
        let given =
            json!({"cniVersion": "1.0.0", "socket": "/x/cni.sock", "timeoutSeconds": 3, "prevResult": {"ips": []}});
        let network = Network::read(&given).expect("read");
        assert_eq!((network.socket, network.timeout), (PathBuf::from("/x/cni.sock"), Duration::from_secs(3)));
        for (field, value) in [
            ("socket", json!("cni.sock")),
            ("socket", json!(1)),
            ("timeoutSeconds", json!(0)),
            ("timeoutSeconds", json!("10")),
            ("timeoutSeconds", json!(601)),
            ("prevResult", json!([])),
            ("cni.dev/valid-attachments", json!([{"containerID": "c"}])),
        ] {
            refused(&json!({"cniVersion": "1.1.0", field: value}), failure::CONFIGURATION, field);
        }
    }

    #[test]
    fn other_versions_are_refused_with_those_that_are_spoken() {
        for version in [json!("0.2.0"), json!("2.0.0"), json!(1), Value::Null] {
            refused(&json!({"cniVersion": version}), failure::VERSION, "0.3.1, 0.4.0, 1.0.0, 1.1.0");
        }
        refused(&json!({}), failure::VERSION, "cniVersion is none");
        assert_eq!(decode(b"{\"cniVersion\":").expect_err("torn").code, failure::DECODE);
        assert_eq!(decode(b"[]").expect_err("no object").code, failure::DECODE);
    }

    #[test]
    fn results_of_every_version_are_read() {
        let interfaces = json!([{"name": "cni0", "mac": "x"}, {"name": "veth1"}, {"name": "eth0", "sandbox": "/n"}]);
        let want = Made {
            addresses: vec!["10.0.0.5".parse().expect("v4"), "fd00::5".parse().expect("v6")],
            host_interfaces: vec!["cni0".to_owned(), "veth1".to_owned()],
        };
        let old = json!([{"version": "4", "address": "10.0.0.5/24", "interface": 2}, {"version": "6", "address": "fd00::5/64"}]);
        let new = json!([{"address": "10.0.0.5/24", "gateway": "10.0.0.1"}, {"address": "fd00::5/64"}]);
        for ips in [old, new] {
            assert_eq!(made(&json!({"interfaces": interfaces, "ips": ips})).expect("read"), want);
        }
        for broken in [
            json!({}),
            json!({"ips": []}),
            json!({"ips": {}}),
            json!({"ips": [{}]}),
            json!({"ips": [{"address": "10.0.0.5/24"}, {"address": "x"}]}),
        ] {
            assert_eq!(made(&broken).expect_err("refused").code, failure::CONFIGURATION, "{broken}");
        }
    }

    #[test]
    fn arguments_name_the_pod() {
        let all = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=u";
        let web = PodName { namespace: "shop".to_owned(), name: "web".to_owned(), uid: Some("u".to_owned()) };
        assert_eq!(pod_name(all), Ok(web.clone()));
        assert_eq!(pod_name("K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID="), Ok(PodName { uid: None, ..web }));
        for lacking in ["", "K8S_POD_NAME=web", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME="] {
            assert_eq!(pod_name(lacking).expect_err("refused").code, failure::ENVIRONMENT, "{lacking}");
        }
    }
}
