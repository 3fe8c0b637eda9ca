//! Fuzzing: builds the targets of `fuzz/` with sanitizers and runs each for a while.
//!
//! What a run finds out stays in the target directory; `fuzz/seeds` changes only when it is asked for.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, bail};

use crate::places::Places;
use crate::process;
use crate::setup;

/// The version of cargo-fuzz that we build where there is none.
const VERSION: &str = "0.13.2";

/// What to do with the targets.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    /// Look for inputs that fail, for so many seconds each.
    Find { seconds: u32 },
    /// Replace the seeds by the smallest set of inputs, among them and all that were found, that reaches as much.
    Minimise,
}

/// Runs one target, or each in turn; stops at the first that fails.
pub(crate) fn run(places: &Places, target: Option<&str>, purpose: Purpose) -> anyhow::Result<()> {
    let all = targets(places)?;
    let chosen: Vec<String> = match target {
        None => all,
        Some(name) if all.iter().any(|one| one == name) => vec![name.to_owned()],
        Some(name) => bail!("there is no fuzz target {name}; there are {}", all.join(", ")),
    };
    // libFuzzer is C++.
    setup::need("c++", "g++")?;
    let program = cargo_fuzz(places)?;
    let found = places.target.join("fuzz");
    for name in chosen {
        let (corpus, seeds) = (found.join("corpus").join(&name), places.root.join("fuzz/seeds").join(&name));
        let artifacts = found.join("artifacts").join(&name);
        let mut fuzz = process::isolated(&program);
        // Sanitizers are unstable options of the compiler that builds everything else too.
        fuzz.env("RUSTC_BOOTSTRAP", "1").current_dir(&places.root);
        fuzz.args(["fuzz", "run", "--fuzz-dir", "fuzz", "--target-dir"]).arg(found.join("target")).arg(&name);
        for directory in [&corpus, &artifacts] {
            fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        match purpose {
            Purpose::Find { seconds } => {
                eprintln!("fuzzing {name} for {seconds} s");
                fuzz.arg(&corpus).arg(&seeds).args(["--", &format!("-max_total_time={seconds}")]);
            }
            Purpose::Minimise => {
                eprintln!("choosing seeds of {name}");
                let chosen = empty(found.join("seeds").join(&name))?;
                fuzz.arg(&chosen).arg(&seeds).arg(&corpus).args(["--", "-merge=1"]);
            }
        }
        fuzz.args(["-timeout=10", "-print_final_stats=1", "-print_funcs=0", "-verbosity=0"]);
        fuzz.arg(format!("-artifact_prefix={}/", artifacts.display()));
        process::run(&mut fuzz).with_context(|| format!("{name} fails for an input in {}", artifacts.display()))?;
        if let Purpose::Minimise = purpose {
            let chosen = found.join("seeds").join(&name);
            empty(seeds.clone())?;
            for seed in fs::read_dir(&chosen).with_context(|| format!("cannot read {}", chosen.display()))? {
                let seed = seed?;
                fs::copy(seed.path(), seeds.join(seed.file_name()))?;
            }
        }
    }
    Ok(())
}

/// A directory with nothing in it.
fn empty(directory: PathBuf) -> anyhow::Result<PathBuf> {
    if directory.exists() {
        fs::remove_dir_all(&directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    Ok(directory)
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
