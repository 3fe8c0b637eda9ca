//! Directories of manifests, as agents read them: every file appears whole or not at all.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::Context;
use serde_json::{Value, json};

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// One or more directories that hold the same files.
#[derive(Default)]
pub struct Manifests {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    directories: Vec<PathBuf>,
    /// File names and texts, for directories that join later.
    files: BTreeMap<String, String>,
}

impl Manifests {
    pub(super) fn of(directory: &Path) -> Self {
        Self { inner: Mutex::new(Inner { directories: vec![directory.to_owned()], files: BTreeMap::new() }) }
    }

    /// Writes to one more directory from now on, beginning with what the others hold.
    pub(super) fn mirror_into(&self, directory: &Path) -> anyhow::Result<()> {
        let mut inner = self.lock();
        for (file, text) in &inner.files {
            replace(directory, file, text)?;
        }
        inner.directories.push(directory.to_owned());
        Ok(())
    }

    /// Writes or replaces a manifest; the name is without extension and only names the file.
    pub fn write(&self, name: &str, object: &Value) -> anyhow::Result<()> {
        self.write_text(&format!("{name}.yaml"), &serde_norway::to_string(object)?)
    }

    /// Writes or replaces a file with any text.
    pub fn write_text(&self, file: &str, text: &str) -> anyhow::Result<()> {
        let mut inner = self.lock();
        for directory in &inner.directories {
            replace(directory, file, text)?;
        }
        inner.files.insert(file.to_owned(), text.to_owned());
        Ok(())
    }

    /// Removes a manifest that [`Manifests::write`] wrote.
    pub fn remove(&self, name: &str) -> anyhow::Result<()> {
        self.remove_file(&format!("{name}.yaml"))
    }

    /// Removes a file.
    pub fn remove_file(&self, file: &str) -> anyhow::Result<()> {
        let mut inner = self.lock();
        for directory in &inner.directories {
            let path = directory.join(file);
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        inner.files.remove(file);
        Ok(())
    }

    /// Writes a Namespace with these labels and the one that the API server adds.
    pub fn namespace(&self, name: &str, labels: &[(&str, &str)]) -> anyhow::Result<()> {
        let mut all: Labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        all.insert("kubernetes.io/metadata.name".to_owned(), name.to_owned());
        let object = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": all } });
        self.write(&format!("namespace-{name}"), &object)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().expect("no thread panics while it holds the manifests")
    }
}

/// Writes beside and renames: a reader sees the old file or the new one.
fn replace(directory: &Path, file: &str, text: &str) -> anyhow::Result<()> {
    let (hidden, path) = (directory.join(format!(".{file}.new")), directory.join(file));
    fs::write(&hidden, text).with_context(|| format!("cannot write {}", hidden.display()))?;
    fs::rename(&hidden, &path).with_context(|| format!("cannot rename to {}", path.display()))
}
