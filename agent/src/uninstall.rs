//! Takes enforcement off this node: the only thing that does. Removes what the agent made, by name, and nothing else.

pub mod everywhere;
pub mod stay;

use crate::cni::SOCKET;
use crate::cni::installer::Installer;
use crate::config::Config;
use crate::datapath::attach;
use crate::datapath::maps::PINNED;
use crate::datapath::uplinks;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// Something could not be removed.
#[derive(Debug, thiserror::Error)]
#[error("{path} cannot be removed")]
pub struct UninstallError {
    /// What.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// What was taken off a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    lines: Vec<String>,
    /// What could not be, a file and a clause each.
    pub complaints: BTreeMap<PathBuf, String>,
}

impl Done {
    /// What was done, a line each.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }
}

/// Takes everything off this node: the CNI plugin, enforcement, and what is on disk.
pub fn node(config: &Config) -> anyhow::Result<Done> {
    // An agent that runs would put back what is taken away.
    let _lock = if config.run_dir.is_dir() { Some(crate::run::lock(config)?) } else { None };
    let mut done = Done::default();
    // First: a plugin without an agent lets no pod start.
    if let Some(installer) = Installer::of(config)? {
        (done.lines, done.complaints) = installer.uninstall();
    }
    let filters = attach::clsact::detach_everywhere()?;
    done.lines.extend(filters.iter().map(|filter| format!("removed the clsact filter of {filter}")));
    done.lines.extend(uninstall(config)?.iter().map(|path| format!("removed {}", path.display())));
    if crate::datapath::guard::remove()? {
        done.lines.push(format!("removed table {}", crate::datapath::guard::TABLE));
    }
    Ok(done)
}

/// Removes links first (enforcement ends), then maps, then the state. Returns what was removed.
pub fn uninstall(config: &Config) -> Result<Vec<PathBuf>, UninstallError> {
    let mut removed = Vec::new();
    let (links, maps) = (config.link_pins(), config.map_pins());
    for path in entries(&links)? {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if attach::is_ours(&path) || uplinks::is_pin(name) {
            attach::detach(&path);
            file(path, &mut removed)?;
        }
    }
    for name in PINNED {
        file(maps.join(name), &mut removed)?;
        file(maps.join(format!("{name}-replaced")), &mut removed)?;
    }
    for path in [
        config.dictionary(),
        config.checkpoint(),
        config.announced(),
        config.run_dir.join("agent.sock"),
        config.run_dir.join(SOCKET),
        config.run_dir.join("lock"),
    ] {
        file(path, &mut removed)?;
    }
    for directory in [links, maps, config.bpffs.join("reeve/v1"), config.bpffs.join("reeve")] {
        // One that is not empty holds something that is not ours.
        if std::fs::remove_dir(&directory).is_ok() {
            removed.push(directory);
        }
    }
    Ok(removed)
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, UninstallError> {
    let failed = |source| UninstallError { path: directory.to_owned(), source };
    match std::fs::read_dir(directory) {
        Ok(found) => found.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<_>>().map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}

fn file(path: PathBuf, removed: &mut Vec<PathBuf>) -> Result<(), UninstallError> {
    match std::fs::remove_file(&path) {
        Ok(()) => removed.push(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(UninstallError { path, source }),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Given;

    #[test]
    fn only_what_the_agent_made_goes() {
        let base = tempfile::tempdir().expect("a directory");
        let at = |name: &str| Some(base.path().join(name));
        let given = Given { bpffs: at("bpf"), run_dir: at("run"), state_dir: at("state"), ..Given::default() };
        let config = given.resolve(&crate::config::Origins::default()).expect("resolved");
        for directory in [config.link_pins(), config.map_pins(), config.state_dir.clone()] {
            std::fs::create_dir_all(directory).expect("made");
        }
        let foreign = config.link_pins().join("somebody");
        for path in [
            config.link_pins().join("6-from"),
            config.link_pins().join("host-in"),
            config.map_pins().join("FLOWS"),
            config.dictionary(),
            foreign.clone(),
        ] {
            std::fs::write(path, "").expect("written");
        }
        let mut removed = uninstall(&config).expect("removed");
        removed[..2].sort();
        assert_eq!(
            removed,
            [
                config.link_pins().join("6-from"),
                config.link_pins().join("host-in"),
                config.map_pins().join("FLOWS"),
                config.dictionary(),
                config.map_pins()
            ]
        );
        assert!(foreign.exists());
        assert_eq!(uninstall(&config).expect("again"), Vec::<PathBuf>::new());
    }
}
