//! Settings: a flag beats the `REEVE_*` environment, which beats the TOML file, which beats the default.

use clap::Parser;
use clap::parser::ValueSource;
use reeve_abi::mark;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// What may be given, on the command line or in the environment, and under the same names in the TOML file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Parser, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
#[command(version, about = "Enforces network policy on this node and names the decider of every verdict")]
pub struct Given {
    /// TOML file with these settings.
    #[arg(long, env = "REEVE_CONFIG", global = true)]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Directory of Kubernetes manifests to enforce.
    #[arg(long, env = "REEVE_MANIFESTS")]
    pub manifests: Option<PathBuf>,
    /// Kubeconfig of the cluster to enforce policies of; without it and without manifests, the pod's own service account.
    #[arg(long, env = "REEVE_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Name of this node, as in `spec.nodeName` of its pods.
    #[arg(long, env = "REEVE_NODE")]
    pub node: Option<String>,
    /// A mounted bpffs; pins are under `reeve/v1`.
    #[arg(long, env = "REEVE_BPFFS", global = true)]
    pub bpffs: Option<PathBuf>,
    /// Directory of the socket and the lock.
    #[arg(long, env = "REEVE_RUN_DIR", global = true)]
    pub run_dir: Option<PathBuf>,
    /// Directory of the dictionary.
    #[arg(long, env = "REEVE_STATE_DIR", global = true)]
    pub state_dir: Option<PathBuf>,
    /// A cgroup2 mount.
    #[arg(long, env = "REEVE_CGROUP")]
    pub cgroup: Option<PathBuf>,
    /// Bits of packet marks to use: 14 in a row.
    #[arg(long, env = "REEVE_MARK_MASK")]
    pub mark_mask: Option<MarkMask>,
    /// Where flow records go: a file, or `stdout`.
    #[arg(long, env = "REEVE_RECORDS")]
    pub records: Option<String>,
    /// Where `/metrics`, `/healthz` and `/readyz` listen.
    #[arg(long, env = "REEVE_METRICS_LISTEN")]
    pub metrics_listen: Option<SocketAddr>,
    /// Seconds between two records of exact counts per edge.
    #[arg(long, env = "REEVE_WINDOW_SECONDS")]
    pub window_seconds: Option<u64>,
    /// By what the programs are attached: `tcx`, `clsact`, or `auto` for what the kernel has.
    #[arg(long, env = "REEVE_ATTACH", value_enum)]
    pub attach: Option<Attach>,
    /// Seconds between two comparisons of everything in the kernel with what should be there.
    #[arg(long, env = "REEVE_ATTEST_INTERVAL")]
    pub attest_interval: Option<u64>,
    /// Seconds without a word after which a connection to the API server is taken for dead.
    #[arg(long, env = "REEVE_API_SILENCE")]
    pub api_silence: Option<u64>,
    /// Where the container runtime looks for network configurations; the CNI plugin is put into the one in use.
    #[arg(long, env = "REEVE_CNI_CONF_DIR", global = true)]
    pub cni_conf_dir: Option<PathBuf>,
    /// Where the container runtime looks for plugins.
    #[arg(long, env = "REEVE_CNI_BIN_DIR", global = true)]
    pub cni_bin_dir: Option<PathBuf>,
    /// Name of the Lease by which agents elect the one that tells the cluster how policies stand, in the namespace of the
    /// credentials; empty: this agent tells nothing.
    #[arg(long, env = "REEVE_STATUS_LEASE")]
    pub status_lease: Option<String>,
    /// `max_entries` by map name, in the TOML file only.
    #[arg(skip)]
    pub map_entries: BTreeMap<String, u32>,
}

/// A choice of mechanism.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Attach {
    /// TCX where the kernel has it.
    #[default]
    Auto,
    /// TCX links; without TCX nothing can be attached.
    Tcx,
    /// Filters of the clsact qdisc.
    Clsact,
}

/// What holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "as in `Given`")]
pub struct Config {
    pub manifests: Option<PathBuf>,
    pub kubeconfig: Option<PathBuf>,
    pub node: Option<String>,
    pub bpffs: PathBuf,
    pub run_dir: PathBuf,
    pub state_dir: PathBuf,
    pub cgroup: PathBuf,
    pub mark_mask: MarkMask,
    pub records: String,
    pub metrics_listen: SocketAddr,
    pub window_seconds: u64,
    pub attach: Attach,
    pub attest_interval: u64,
    pub api_silence: u64,
    pub cni_conf_dir: Option<PathBuf>,
    pub cni_bin_dir: Option<PathBuf>,
    pub status_lease: String,
    pub map_entries: BTreeMap<String, u32>,
}

/// The bits of packet marks that the programs use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MarkMask {
    /// Number of the lowest bit.
    pub shift: u32,
}

impl Default for MarkMask {
    fn default() -> Self {
        Self { shift: mark::DEFAULT_SHIFT }
    }
}

impl std::str::FromStr for MarkMask {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hex = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
        let bits = hex.map_or_else(|| text.parse(), |hex| u32::from_str_radix(hex, 16));
        let bits = bits.map_err(|error| format!("mark mask {text:?} is no number of 32 bits: {error}"))?;
        let shift = bits.trailing_zeros();
        if bits == 0 || bits >> shift != mark::MASK {
            return Err(format!(
                "mark mask {text:?} is not {} bits in a row, such as 0x3fff0000",
                mark::MASK.count_ones()
            ));
        }
        Ok(Self { shift })
    }
}

impl TryFrom<String> for MarkMask {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<MarkMask> for String {
    fn from(mask: MarkMask) -> Self {
        format!("{:#010x}", mark::MASK << mask.shift)
    }
}

/// The settings cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the sentence of each variant says it")]
pub enum ConfigError {
    #[error("settings file {path} cannot be read")]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("settings file {path}: {what}")]
    Text { path: PathBuf, what: String },
    #[error("setting {key} = {value} ({origin}): {what}")]
    Value { key: &'static str, value: u64, origin: String, what: &'static str },
}

/// Where each setting that holds comes from, by its key in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(BTreeMap<String, String>);

impl Origins {
    /// By what clap found and what the settings file has; what is in neither is a default.
    pub fn of(matches: &clap::ArgMatches) -> Result<Self, ConfigError> {
        let mut origins = BTreeMap::new();
        if let Ok(Some(path)) = matches.try_get_one::<PathBuf>("config") {
            let table: toml::Table = parse(path, &text(path)?)?;
            origins.extend(table.into_iter().map(|(key, _)| (key, format!("file {}", path.display()))));
        }
        for id in matches.ids() {
            let key = id.as_str().replace('_', "-");
            match matches.value_source(id.as_str()) {
                Some(ValueSource::CommandLine) => origins.insert(key.clone(), format!("--{key}")),
                Some(ValueSource::EnvVariable) => {
                    origins.insert(key, format!("REEVE_{}", id.as_str().to_ascii_uppercase()))
                }
                _ => None,
            };
        }
        Ok(Self(origins))
    }

    fn get(&self, key: &str) -> &str {
        self.0.get(key).map_or("default", String::as_str)
    }
}

impl Given {
    /// Adds the TOML file, if one is named, and the defaults.
    pub fn resolve(self, origins: &Origins) -> Result<Config, ConfigError> {
        let file = match &self.config {
            Some(path) => read(path)?,
            None => Self::default(),
        };
        let positive = |key: &'static str, value: u64| match value {
            0 => Err(ConfigError::Value { key, value, origin: origins.get(key).to_owned(), what: "at least 1 second" }),
            value => Ok(value),
        };
        let window_seconds = self.window_seconds.or(file.window_seconds).unwrap_or(60);
        let attest_interval = self.attest_interval.or(file.attest_interval).unwrap_or(300);
        let api_silence = self.api_silence.or(file.api_silence).unwrap_or(100);
        Ok(Config {
            manifests: self.manifests.or(file.manifests),
            kubeconfig: self.kubeconfig.or(file.kubeconfig),
            node: self.node.or(file.node),
            bpffs: self.bpffs.or(file.bpffs).unwrap_or_else(|| "/sys/fs/bpf".into()),
            run_dir: self.run_dir.or(file.run_dir).unwrap_or_else(|| "/run/reeve".into()),
            state_dir: self.state_dir.or(file.state_dir).unwrap_or_else(|| "/var/lib/reeve".into()),
            cgroup: self.cgroup.or(file.cgroup).unwrap_or_else(|| "/sys/fs/cgroup".into()),
            mark_mask: self.mark_mask.or(file.mark_mask).unwrap_or_default(),
            records: self.records.or(file.records).unwrap_or_else(|| "stdout".to_owned()),
            metrics_listen: self.metrics_listen.or(file.metrics_listen).unwrap_or((Ipv4Addr::LOCALHOST, 9464).into()),
            window_seconds: positive("window-seconds", window_seconds)?,
            attach: self.attach.or(file.attach).unwrap_or_default(),
            attest_interval: positive("attest-interval", attest_interval)?,
            api_silence: positive("api-silence", api_silence)?,
            cni_conf_dir: self.cni_conf_dir.or(file.cni_conf_dir),
            cni_bin_dir: self.cni_bin_dir.or(file.cni_bin_dir),
            status_lease: self.status_lease.or(file.status_lease).unwrap_or_else(|| "reeve-status".to_owned()),
            map_entries: file.map_entries,
        })
    }
}

impl Config {
    /// A line for each setting, as the TOML file has it, with where its value comes from. Settings without a value have
    /// no line.
    pub fn lines(&self, origins: &Origins) -> Vec<String> {
        let all = toml::Table::try_from(self).expect("settings are plain data");
        let line = |(key, value): (String, toml::Value)| match value {
            toml::Value::Table(table) if table.is_empty() => format!("[{key}]  # {}", origins.get(&key)),
            toml::Value::Table(table) => {
                let rows: Vec<String> = table.iter().map(|(name, value)| format!("{name} = {value}")).collect();
                format!("{key} = {{ {} }}  # {}", rows.join(", "), origins.get(&key))
            }
            value => format!("{key} = {value}  # {}", origins.get(&key)),
        };
        all.into_iter().map(line).collect()
    }

    /// Directory of the pinned maps.
    pub fn map_pins(&self) -> PathBuf {
        self.bpffs.join("reeve/v1/maps")
    }

    /// Directory of the pinned links.
    pub fn link_pins(&self) -> PathBuf {
        self.bpffs.join("reeve/v1/links")
    }

    /// The checkpoint's file.
    pub fn checkpoint(&self) -> PathBuf {
        self.state_dir.join("checkpoint.json")
    }

    /// What the CNI plugin announced, for the next agent.
    pub fn announced(&self) -> PathBuf {
        self.state_dir.join("announced.json")
    }

    /// The dictionary's file.
    pub fn dictionary(&self) -> PathBuf {
        self.state_dir.join("dictionary.jsonl")
    }
}

fn read(path: &Path) -> Result<Given, ConfigError> {
    parse(path, &text(path)?)
}

fn text(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::File { path: path.to_owned(), source })
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| ConfigError::Text { path: path.to_owned(), what: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flag_beats_file_and_file_beats_default() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("agent.toml");
        std::fs::write(&path, "node = \"file\"\nrecords = \"/records\"\n[map-entries]\nFLOWS = 64\n").expect("written");
        let path = path.to_str().expect("text");
        let config = Given::parse_from(["reeve-agent", "--config", path, "--node", "flag"])
            .resolve(&Origins::default())
            .expect("read");
        assert_eq!(config.node.as_deref(), Some("flag"));
        assert_eq!((config.records.as_str(), config.run_dir.as_path()), ("/records", Path::new("/run/reeve")));
        assert_eq!(config.map_entries, BTreeMap::from([("FLOWS".to_owned(), 64)]));
    }

    #[test]
    fn a_mark_mask_is_fourteen_bits_in_a_row() {
        for (text, want) in
            [("0x3fff0000", Some(16)), ("0x3fff", Some(0)), ("4294705152", Some(18)), ("0xffff0000", None), ("0", None)]
        {
            assert_eq!(text.parse::<MarkMask>().ok().map(|mask| mask.shift), want, "{text}");
        }
        let said = "0x3ffe8000x".parse::<MarkMask>().expect_err("no number");
        assert!(said.contains("0x3ffe8000x"), "{said}");
        assert_eq!(String::from(MarkMask::default()), "0x3fff0000");
        assert!(Given::try_parse_from(["reeve-agent", "--mark-mask", "0xff"]).is_err());
    }

    #[test]
    fn what_the_file_cannot_mean_is_refused_by_file_key_and_value() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("agent.toml");
        for (text, named) in [
            ("nod = \"x\"\n", &["agent.toml", "nod"][..]),
            ("attach = \"xdp\"\n", &["agent.toml", "attach", "xdp"]),
            ("mark-mask = \"0xff\"\n", &["agent.toml", "mark-mask", "0xff"]),
            ("window-seconds = 0\n", &["window-seconds", "0"]),
            ("api-silence = 0\n", &["api-silence", "0"]),
        ] {
            std::fs::write(&path, text).expect("written");
            let given = Given { config: Some(path.clone()), ..Given::default() };
            let said = given.resolve(&Origins::default()).expect_err(text).to_string();
            assert!(named.iter().all(|name| said.contains(name)), "{text}: {said}");
        }
    }

    #[test]
    fn each_setting_is_told_with_where_it_comes_from() {
        use clap::{CommandFactory, FromArgMatches};
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("agent.toml");
        std::fs::write(&path, "records = \"/records\"\nnode = \"file\"\n[map-entries]\nFLOWS = 64\n").expect("written");
        let path = path.to_str().expect("text");
        let arguments = ["reeve-agent", "--config", path, "--node", "flag"];
        let matches = Given::command().try_get_matches_from(arguments).expect("arguments");
        let origins = Origins::of(&matches).expect("a file");
        let given = Given::from_arg_matches(&matches).expect("arguments");
        let lines = given.resolve(&origins).expect("settings").lines(&origins);
        for wanted in [
            "node = \"flag\"  # --node".to_owned(),
            format!("records = \"/records\"  # file {path}"),
            format!("map-entries = {{ FLOWS = 64 }}  # file {path}"),
            "attach = \"auto\"  # default".to_owned(),
            "mark-mask = \"0x3fff0000\"  # default".to_owned(),
        ] {
            assert!(lines.contains(&wanted), "{wanted} is not in\n{}", lines.join("\n"));
        }
    }

    #[test]
    fn every_setting_is_documented_with_flag_variable_and_default() {
        use clap::CommandFactory;
        let document = include_str!("../../docs/configuration.md");
        let command = Given::command();
        let settings =
            command.get_arguments().filter(|argument| !matches!(argument.get_id().as_str(), "help" | "version"));
        for argument in settings {
            let flag = format!("`--{}`", argument.get_long().expect("a long flag"));
            let variable = format!("`{}`", argument.get_env().and_then(std::ffi::OsStr::to_str).expect("a variable"));
            let row = document.lines().find(|line| line.contains(&flag) && line.starts_with('|'));
            assert!(row.is_some_and(|row| row.contains(&variable)), "{flag} and {variable} are no row of the document");
        }
        let defaults = Given::default().resolve(&Origins::default()).expect("defaults").lines(&Origins::default());
        for line in defaults {
            let Some((key, value)) = line.strip_suffix("  # default").and_then(|line| line.split_once(" = ")) else {
                continue;
            };
            let row = document.lines().find(|row| row.contains(&format!("`--{key}`")));
            let row = row.unwrap_or_else(|| panic!("{key} is no row of the document"));
            assert!(
                row.contains(&format!("`{}`", value.trim_matches('"'))),
                "{key}: the default {value} is not in {row}"
            );
        }
    }
}
