//! Plain manifests for those who install without Helm: what the chart renders with its defaults.

use std::fs;
use std::process::Command;

use anyhow::Context;

use crate::places::Places;
use crate::process;
use crate::setup::{self, Extent};

/// The namespace of docs/install.md. Pods that see the node are let in wherever admission is strict by default.
const NAMESPACE: &str = "reeve-system";

/// The oldest Kubernetes that the chart takes: what is written is for all of them.
const OLDEST: &str = "1.28.0";

const HEAD: &str =
    "# Written by `cargo xtask manifests` from deploy/helm/reeve, with the chart's defaults; change it there.\n";

/// Writes both files.
pub(crate) fn write(places: &Places) -> anyhow::Result<()> {
    let programs = setup::kubernetes(places, Extent::ControlPlane)?;
    let render = |arguments: &[&str]| {
        let mut helm = Command::new(programs.join("bin/helm"));
        helm.args(["template", "reeve"]).arg(places.root.join("deploy/helm/reeve"));
        process::output(helm.args(["--namespace", NAMESPACE, "--kube-version", OLDEST]).args(arguments))
    };
    let namespace = format!(
        "---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: {NAMESPACE}\n  labels:\n    \
         pod-security.kubernetes.io/enforce: privileged\n"
    );
    let folder = places.root.join("deploy/manifests");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for (name, text) in [
        ("reeve.yaml", format!("{HEAD}{namespace}{}", render(&["--no-hooks"])?)),
        ("uninstall.yaml", format!("{HEAD}{}", render(&["--show-only", "templates/uninstall.yaml"])?)),
    ] {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}
