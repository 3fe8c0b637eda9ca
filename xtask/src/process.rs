//! Running other programs: with an environment that says only what we mean, and errors that name the program.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// The cargo that started us, without what it told us about our own package.
///
/// Those variables would otherwise reach build scripts of other packages and make cargo build them again.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os() {
        if about_this_package(&name) {
            command.env_remove(name);
        }
    }
    command
}

fn about_this_package(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name.starts_with("CARGO_PKG_")
        || name.starts_with("CARGO_MANIFEST_")
        || matches!(&*name, "CARGO_BIN_NAME" | "CARGO_CRATE_NAME" | "CARGO_PRIMARY_PACKAGE" | "OUT_DIR")
}

/// A program that must see nothing of the cargo and rustup that started us, nor of the user's compiler settings.
///
/// Kept: where crates are fetched from and how (`CARGO_HOME`, `CARGO_HTTP_*`, `CARGO_NET_*`, `CARGO_REGISTR*`), `RUSTUP_HOME`.
pub(crate) fn isolated(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, value) in env::vars_os() {
        if name == "LD_LIBRARY_PATH" {
            // rustup and cargo prepend their own library directories; another compiler must not find them.
            command.env(name, without_rust_directories(&value));
        } else if chooses_a_compiler(&name) {
            command.env_remove(name);
        }
    }
    // Empty means "none", whatever a cargo configuration file says.
    command.env("RUSTC_WRAPPER", "").env("RUSTC_WORKSPACE_WRAPPER", "");
    command
}

fn chooses_a_compiler(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let kept = matches!(&*name, "CARGO_HOME" | "RUSTUP_HOME" | "RUST_BACKTRACE")
        || ["CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR", "CARGO_TERM_"].iter().any(|prefix| name.starts_with(prefix));
    !kept && (name.starts_with("CARGO") || name.starts_with("RUST") || name == "OUT_DIR")
}

fn without_rust_directories(value: &OsStr) -> OsString {
    let of_rust = |path: &PathBuf| {
        let text = path.to_string_lossy();
        text.contains("/toolchains/")
            || text.contains("/rustlib/")
            || ["debug", "debug/deps", "release", "release/deps"].iter().any(|end| path.ends_with(end))
    };
    env::join_paths(env::split_paths(value).filter(|path| !of_rust(path))).unwrap_or_default()
}

/// Runs a program to its end with our standard streams.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("cannot run {}", shown(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", shown(command));
    }
    Ok(())
}

/// What a program prints on standard output; what it complains about is dropped, and a failure is an error.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", shown(command)))?;
    if !output.status.success() {
        bail!("{} failed ({})", shown(command), output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("{} did not print UTF-8", shown(command)))
}

/// The command line, to be read by a person.
fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut text = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

/// The first executable of that name in `PATH`.
pub(crate) fn in_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    // Debian keeps administrators' programs out of an ordinary user's PATH; knowing that they are there needs no root.
    let directories = env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    directories.map(|directory| directory.join(program)).find(|path| path.is_file())
}

/// Whether this process may do what only root may.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_compiler_sees_where_crates_come_from_but_not_who_started_us() {
        for kept in
            ["CARGO_HOME", "CARGO_HTTP_PROXY", "CARGO_NET_OFFLINE", "CARGO_REGISTRIES_X_INDEX", "RUSTUP_HOME", "PATH"]
        {
            assert!(!chooses_a_compiler(OsStr::new(kept)), "{kept}");
        }
        for removed in
            ["CARGO", "CARGO_BUILD_RUSTC_WRAPPER", "CARGO_PKG_NAME", "RUSTC", "RUSTFLAGS", "RUSTUP_TOOLCHAIN"]
        {
            assert!(chooses_a_compiler(OsStr::new(removed)), "{removed}");
        }
    }

    #[test]
    fn only_libraries_of_rust_are_taken_from_the_path() {
        let given = "/t/debug/deps:/t/debug:/h/toolchains/stable/lib:/opt/release-1/lib:/usr/lib";
        assert_eq!(without_rust_directories(OsStr::new(given)), "/opt/release-1/lib:/usr/lib");
    }
}
