//! Embeds the compiled eBPF object named by `REEVE_BPF_OBJECT`, or nothing when it is unset (lint needs no eBPF tools).

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-env-changed=REEVE_BPF_OBJECT");
    let target = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("reeve-ebpf.o");
    match env::var_os("REEVE_BPF_OBJECT").filter(|path| !path.is_empty()) {
        Some(path) => {
            let path = PathBuf::from(path);
            println!("cargo:rerun-if-changed={}", path.display());
            if let Err(error) = fs::copy(&path, &target) {
                panic!("REEVE_BPF_OBJECT names {}, which cannot be copied: {error}", path.display());
            }
        }
        None => fs::write(&target, []).expect("OUT_DIR is writable"),
    }
}
