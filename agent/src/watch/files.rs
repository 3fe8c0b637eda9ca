//! A directory of manifests: read whole at each scan, told as changes since the last one.
//!
//! Invariant: a file that cannot be read keeps the objects of its last good version; nothing opens because of it.

use super::Scan;
use crate::run::Wake;
use anyhow::Context;
use notify::Watcher;
use reeve_policy::manifest;
use reeve_policy::model::{Level, Problem};
use reeve_policy::store::{Change, Object, ObjectKey};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{fs, io};
use tokio::sync::mpsc;

/// The directory and what was last read of it.
#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
    files: BTreeMap<PathBuf, File>,
    /// What was told: the winning object of each key.
    told: BTreeMap<ObjectKey, Object>,
}

#[derive(Debug, Default)]
struct File {
    text: Option<String>,
    /// Objects of the last good version; `None`: there was none yet.
    objects: Option<Vec<Object>>,
    problem: Option<Problem>,
}

impl Directory {
    /// Nothing is read before the first [`Directory::scan`].
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), files: BTreeMap::new(), told: BTreeMap::new() }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Objects in force, as they were written.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        self.told.values()
    }

    /// Reads the directory. An error means that it could not be listed; what was told before still holds.
    pub fn scan(&mut self) -> io::Result<Scan> {
        let mut paths = BTreeSet::new();
        list(&self.root, &mut paths)?;
        self.files.retain(|path, _| paths.contains(path));
        for path in paths {
            let file = self.files.entry(path.clone()).or_default();
            file.read(&path, &self.root);
        }
        let mut scan = Scan::default();
        let mut winners: BTreeMap<ObjectKey, Object> = BTreeMap::new();
        let mut nameless = Vec::new();
        for (path, file) in &self.files {
            scan.problems.extend(file.problem.clone());
            let Some(objects) = &file.objects else {
                scan.unread.push(format!("{} has not been readable yet", path.display()));
                continue;
            };
            for object in objects {
                match ObjectKey::of(&object.value) {
                    // The store makes the problem and needs it by origin.
                    Err(problem) => nameless.push((object, problem)),
                    Ok(key) => match winners.get(&key) {
                        Some(first) => scan.problems.push(duplicate(&key, first, object)),
                        None => {
                            winners.insert(key, object.clone());
                        }
                    },
                }
            }
        }
        for (object, mut problem) in nameless {
            problem.object.clone_from(&object.origin);
            scan.problems.push(problem);
        }
        for (key, object) in &winners {
            if self.told.get(key).is_none_or(|before| before.value != object.value) {
                scan.changes.push(Change::Apply(object.clone()));
            }
        }
        scan.changes.extend(self.told.keys().filter(|key| !winners.contains_key(*key)).cloned().map(Change::Delete));
        self.told = winners;
        Ok(scan)
    }
}

impl File {
    fn read(&mut self, path: &Path, root: &Path) {
        let origin = path.strip_prefix(root).unwrap_or(path).display().to_string();
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                self.text = None;
                self.problem = Some(self.kept(origin, error.to_string()));
                return;
            }
        };
        if self.text.as_ref() == Some(&text) {
            return;
        }
        if text.trim().is_empty() {
            self.problem = Some(self.kept(origin, "the file is empty".to_owned()));
        } else {
            match manifest::parse(&text, &origin) {
                Ok(objects) => {
                    self.objects = Some(objects);
                    self.problem = None;
                }
                Err(problem) => {
                    let effect = self.effect();
                    self.problem = Some(Problem { object: origin, effect, ..problem });
                }
            }
        }
        self.text = Some(text);
    }

    fn effect(&self) -> String {
        if self.objects.is_some() {
            "the objects of its last good version stay in force".to_owned()
        } else {
            "there is no earlier version: nothing of it is in force; an agent that starts waits for it".to_owned()
        }
    }

    fn kept(&self, object: String, what: String) -> Problem {
        Problem {
            level: Level::Warning,
            object,
            field: String::new(),
            value: String::new(),
            what,
            effect: self.effect(),
        }
    }
}

/// Hears of whatever changes in the directory.
pub(super) fn watch(root: &Path, wake: mpsc::Sender<Wake>) -> anyhow::Result<notify::RecommendedWatcher> {
    let told = move |event: notify::Result<notify::Event>| {
        let heard = !matches!(&event, Ok(event) if matches!(event.kind, notify::EventKind::Access(_)));
        if heard {
            // A full queue holds a wake-up already.
            let _ = wake.try_send(Wake::Facts);
        }
    };
    let mut watcher = notify::recommended_watcher(told).context("inotify is not to be had")?;
    watcher
        .watch(root, notify::RecursiveMode::Recursive)
        .with_context(|| format!("manifests directory {} cannot be watched", root.display()))?;
    Ok(watcher)
}

fn duplicate(key: &ObjectKey, first: &Object, second: &Object) -> Problem {
    Problem {
        level: Level::Warning,
        object: key.to_string(),
        field: "metadata.name".to_owned(),
        value: key.name.clone(),
        what: format!("the object is in {} and again in {}", first.origin, second.origin),
        effect: format!("the one in {} holds", first.origin),
    }
}

fn list(directory: &Path, found: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b".")) {
            continue;
        }
        // Follows symbolic links (mounted ConfigMaps are made of them); what vanished meanwhile is gone.
        match fs::metadata(&path) {
            Ok(kind) if kind.is_dir() => match list(&path, found) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            },
            Ok(_) => {
                if path.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json") {
                    found.insert(path);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";

    fn names(scan: &Scan) -> Vec<String> {
        let name = |change: &Change| match change {
            Change::Apply(object) => format!("+{}", ObjectKey::of(&object.value).expect("named")),
            Change::Delete(key) => format!("-{key}"),
            Change::LocalAddresses(_) => "addresses".to_owned(),
        };
        scan.changes.iter().map(name).collect()
    }

    #[test]
    fn half_written_file_keeps_its_last_good_objects() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("shop.yaml");
        let mut watched = Directory::new(directory.path());
        fs::write(&path, POD).expect("written");
        assert_eq!(names(&watched.scan().expect("read")), ["+Namespace/shop"]);
        for broken in ["", "apiVersion: v1\nkind: [\n"] {
            fs::write(&path, broken).expect("written");
            let scan = watched.scan().expect("read");
            assert_eq!((names(&scan), scan.problems.len(), scan.unread.len()), (vec![], 1, 0));
        }
        fs::remove_file(&path).expect("removed");
        let scan = watched.scan().expect("read");
        assert_eq!((names(&scan), scan.problems.len()), (vec!["-Namespace/shop".to_owned()], 0));
    }

    #[test]
    fn unreadable_file_without_a_good_version_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("bad.yaml");
        fs::write(&path, "{").expect("written");
        let scan = Directory::new(directory.path()).scan().expect("read");
        let named = format!("{} has not been readable yet", path.display());
        assert_eq!((scan.unread, scan.problems.len()), (vec![named], 1));
    }

    #[test]
    fn first_path_wins_and_a_rename_changes_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("sub")).expect("made");
        let (a, b) = (directory.path().join("a.yml"), directory.path().join("sub/b.yaml"));
        fs::write(&a, POD).expect("written");
        fs::write(&b, POD.replace("shop}", "shop, labels: {a: b}}")).expect("written");
        fs::write(directory.path().join(".hidden.yaml"), "{").expect("written");
        fs::write(directory.path().join("notes.txt"), "{").expect("written");
        let mut watched = Directory::new(directory.path());
        let scan = watched.scan().expect("read");
        assert_eq!((names(&scan), scan.problems.len()), (vec!["+Namespace/shop".to_owned()], 1));
        fs::rename(&a, directory.path().join("aa.yml")).expect("renamed");
        assert_eq!(names(&watched.scan().expect("read")), Vec::<String>::new());
        fs::remove_file(directory.path().join("aa.yml")).expect("removed");
        let scan = watched.scan().expect("read");
        assert_eq!((names(&scan), scan.problems.len()), (vec!["+Namespace/shop".to_owned()], 0));
    }
}
