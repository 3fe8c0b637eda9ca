//! Fuzzing: builds the targets of `fuzz/` with sanitizers and runs each for a while.
//!
//! What a run finds out stays in the target directory; `fuzz/seeds` is only read.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, bail};

use crate::places::Places;
use crate::process;

/// The version of cargo-fuzz that we build where there is none.
const VERSION: &str = "0.13.2";

/// Runs one target, or each in turn, for so many seconds; stops at the first that fails.
pub(crate) fn run(places: &Places, target: Option<&str>, seconds: u32) -> anyhow::Result<()> {
    let all = targets(places)?;
    let chosen: Vec<String> = match target {
        None => all,
        Some(name) if all.iter().any(|one| one == name) => vec![name.to_owned()],
        Some(name) => bail!("there is no fuzz target {name}; there are {}", all.join(", ")),
    };
    let program = cargo_fuzz(places)?;
    let found = places.target.join("fuzz");
    for name in chosen {
        let corpus = found.join("corpus").join(&name);
        let artifacts = found.join("artifacts").join(&name);
        for directory in [&corpus, &artifacts] {
            fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        eprintln!("fuzzing {name} for {seconds} s");
        let mut fuzz = process::isolated(&program);
        // Sanitizers are unstable options of the compiler that builds everything else too.
        fuzz.env("RUSTC_BOOTSTRAP", "1").current_dir(&places.root);
        fuzz.args(["fuzz", "run", "--fuzz-dir", "fuzz", "--target-dir"]).arg(found.join("target")).arg(&name);
        fuzz.arg(&corpus).arg(places.root.join("fuzz/seeds").join(&name));
        fuzz.args([
            "--",
            &format!("-max_total_time={seconds}"),
            "-timeout=10",
            "-print_final_stats=1",
            "-print_funcs=0",
            "-verbosity=0",
        ]);
        fuzz.arg(format!("-artifact_prefix={}/", artifacts.display()));
        process::run(&mut fuzz).with_context(|| format!("{name} fails for an input in {}", artifacts.display()))?;
    }
    Ok(())
}

/// Names of the programs in `fuzz/Cargo.toml`.
fn targets(places: &Places) -> anyhow::Result<Vec<String>> {
    let path = places.root.join("fuzz/Cargo.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let manifest: toml::Table = text.parse().with_context(|| path.display().to_string())?;
    let programs = manifest.get("bin").and_then(toml::Value::as_array).context("fuzz/Cargo.toml has no [[bin]]")?;
    let name = |program: &toml::Value| program.get("name").and_then(toml::Value::as_str).map(str::to_owned);
    programs.iter().map(name).collect::<Option<_>>().context("a [[bin]] of fuzz/Cargo.toml has no name")
}

/// The one in the cache or in `PATH`, else one built now.
fn cargo_fuzz(places: &Places) -> anyhow::Result<PathBuf> {
    let cached = places.tools().join("bin/cargo-fuzz");
    if cached.exists() {
        return Ok(cached);
    }
    if let Some(installed) = process::in_path("cargo-fuzz") {
        return Ok(installed);
    }
    eprintln!("building cargo-fuzz {VERSION} (once, a minute)");
    let target = places.cache.join("build-cargo-fuzz");
    let mut cargo = process::cargo();
    cargo.args(["install", "cargo-fuzz", "--version", VERSION, "--locked", "--root"]).arg(places.tools());
    process::run(cargo.current_dir("/").env("CARGO_TARGET_DIR", &target))?;
    fs::remove_dir_all(&target).with_context(|| format!("cannot remove {}", target.display()))?;
    Ok(cached)
}
