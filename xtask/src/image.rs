//! The agent's container image: its programs without shared libraries, and `nft`, which it runs, with those that it loads.

mod archive;

use std::fs;
use std::path::PathBuf;

use anyhow::Context;

use crate::compile;
use crate::places::Places;
use crate::process;
use crate::program::{libraries, stripped};
use crate::setup;

use archive::{Image, Layer};

/// What it is built for. A target of its own, so that build scripts and procedural macros, which need shared libraries,
/// are not built without.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The programs of the agent's package, and where they are in the image.
const PROGRAMS: [&str; 2] = ["reeve-agent", "reeve-cni"];

/// What the daemonset tier's pods run, and the image that it is in.
const POD: (&str, &str) = ("reeve-pod", "localhost/reeve-pod:test");

/// Builds it; where the archive is.
pub(crate) fn build(places: &Places, tag: Option<&str>) -> anyhow::Result<PathBuf> {
    setup::need("nft", "nftables")?;
    setup::need("strip", "binutils")?;
    compile::bpf_object(places)?;
    let built = build_static(places, &["reeve-agent"])?;
    let mut layer = Layer::default();
    for name in PROGRAMS {
        layer.program(&format!("/{name}"), stripped(&built.join(name))?);
    }
    let nft = process::in_path("nft").context("nft is not in PATH")?;
    layer.program("/usr/sbin/nft", stripped(&nft)?);
    for library in libraries(&nft)? {
        let place = library.to_str().context("a library whose path is no text")?;
        layer.program(place, fs::read(&library).with_context(|| format!("cannot read {place}"))?);
    }
    let version = env!("CARGO_PKG_VERSION");
    let tag = tag.map_or_else(|| format!("localhost/reeve:{version}"), str::to_owned);
    let image = Image { tag: &tag, entrypoint: "/reeve-agent", environment: &["PATH=/usr/sbin"], version };
    write(places, "reeve", &image, &layer)
}

/// Builds the image of the daemonset tier's pods; where the archive is.
pub(crate) fn pod(places: &Places) -> anyhow::Result<PathBuf> {
    let (name, tag) = POD;
    let built = build_static(places, &[name])?;
    let mut layer = Layer::default();
    layer.program(&format!("/{name}"), stripped(&built.join(name))?);
    let entrypoint = format!("/{name}");
    write(places, "pod", &Image { tag, entrypoint: &entrypoint, environment: &[], version: "test" }, &layer)
}

/// Builds the programs of packages without shared libraries; the folder that they are in.
fn build_static(places: &Places, packages: &[&str]) -> anyhow::Result<PathBuf> {
    let mut cargo = compile::cargo_with_object(places);
    cargo.args(["build", "--release", "--bins", "--target", TARGET, "--target-dir"]);
    cargo.arg(places.target.join("static")).env("RUSTFLAGS", "-Ctarget-feature=+crt-static");
    for package in packages {
        cargo.args(["-p", package]);
    }
    process::run(&mut cargo)?;
    Ok(places.target.join("static").join(TARGET).join("release"))
}

fn write(places: &Places, name: &str, image: &Image<'_>, layer: &Layer) -> anyhow::Result<PathBuf> {
    let place = places.target.join("image");
    fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
    let path = place.join(name).with_extension("tar");
    fs::write(&path, image.archive(layer)?).with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!("{}: {} KiB", image.tag, fs::metadata(&path)?.len() / 1024);
    Ok(path)
}
