//! Which crate of ours may depend on which.

use anyhow::Context;

use super::{Complaint, File};

/// Directory of a crate and the crates of ours that it may use; the arrows of the architecture's picture.
const ALLOWED: [(&str, &[&str]); 11] = [
    ("abi", &[]),
    ("packet", &["reeve-abi"]),
    ("policy", &["reeve-abi"]),
    ("flow", &["reeve-abi", "reeve-policy"]),
    ("ebpf", &["reeve-abi", "reeve-packet"]),
    ("agent", &["reeve-abi", "reeve-packet", "reeve-policy", "reeve-flow"]),
    ("cli", &["reeve-policy", "reeve-flow"]),
    ("tests", &["reeve-abi", "reeve-packet", "reeve-policy", "reeve-flow"]),
    ("tests/pod", &[]),
    ("fuzz", &["reeve-abi", "reeve-packet", "reeve-policy", "reeve-flow"]),
    ("xtask", &[]),
];

/// Dependencies that point the wrong way, and crates that have no row yet.
pub(super) fn forbidden(files: &[File]) -> anyhow::Result<Vec<Complaint>> {
    let mut complaints = Vec::new();
    for manifest in files {
        let Some(directory) = manifest.path.strip_suffix("/Cargo.toml") else { continue };
        let parsed: toml::Table = manifest.text.parse().with_context(|| manifest.path.clone())?;
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == directory) else {
            complaints.push(manifest.complaint(1, "this crate has no row in xtask/src/tidy/edges.rs"));
            continue;
        };
        for name in dependencies(&parsed) {
            if name.starts_with("reeve") && !allowed.contains(&name.as_str()) {
                let line = manifest.lines().find(|(_, line)| line.starts_with(&name)).map_or(1, |(line, _)| line);
                let what = format!("`{directory}` may not use `{name}`: arrows go down only");
                complaints.push(manifest.complaint(line, what));
            }
        }
    }
    Ok(complaints)
}

/// Names of packages in every dependency table, those of one target or for tests included.
fn dependencies(manifest: &toml::Table) -> Vec<String> {
    let mut names = Vec::new();
    for (key, value) in manifest {
        let Some(table) = value.as_table() else { continue };
        if key.ends_with("dependencies") {
            names.extend(
                table
                    .iter()
                    .map(|(name, value)| value.get("package").and_then(toml::Value::as_str).unwrap_or(name).to_owned()),
            );
        } else if key == "target" {
            names.extend(table.values().filter_map(toml::Value::as_table).flat_map(dependencies));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(path: &str, text: &str, want: &[&str]) {
        let files = [File { path: path.to_owned(), text: text.to_owned() }];
        let got: Vec<String> = forbidden(&files).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(got, want);
    }

    #[test]
    fn arrows_go_down_only() {
        check("flow/Cargo.toml", "[dependencies]\nreeve-policy = { workspace = true }\n", &[]);
        check(
            "policy/Cargo.toml",
            "[dev-dependencies]\nreeve-flow = { workspace = true }\n",
            &["policy/Cargo.toml:2: `policy` may not use `reeve-flow`: arrows go down only"],
        );
        check(
            "abi/Cargo.toml",
            "[target.'cfg(unix)'.dependencies]\nx = { package = \"reeve-agent\", path = \"../agent\" }\n",
            &["abi/Cargo.toml:1: `abi` may not use `reeve-agent`: arrows go down only"],
        );
    }
}
