//! Formatting, clippy, rustdoc and dependency rules, with warnings as errors; needs neither root nor the eBPF tools.

use crate::places::Places;
use crate::process;

/// Runs every check, cheapest first, and stops at the first that fails.
pub(crate) fn run(places: &Places) -> anyhow::Result<()> {
    let cargo = || {
        let mut cargo = process::cargo();
        cargo.current_dir(&places.root);
        cargo
    };
    process::run(cargo().args(["fmt", "--all", "--check"]))?;
    if places.ebpf_crate().join("Cargo.toml").exists() {
        process::run(cargo().args(["fmt", "--check"]).current_dir(places.ebpf_crate()))?;
    }
    process::run(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    process::run(cargo().args(["doc", "--workspace", "--no-deps", "--quiet"]).env("RUSTDOCFLAGS", "-Dwarnings"))?;
    if process::in_path("cargo-deny").is_some() {
        process::run(cargo().args(["deny", "--all-features", "check"]))?;
    } else {
        eprintln!("skipped: cargo-deny is not installed (`cargo install cargo-deny --locked` brings it)");
    }
    eprintln!("lint: no complaints");
    Ok(())
}
