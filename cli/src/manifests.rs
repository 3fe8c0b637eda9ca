//! Manifests from files and directories, as the agent finds them: recursive, `.yaml`, `.yml` and `.json`, no dotfiles.

use anyhow::{Context, bail};
use reeve_policy::manifest;
use reeve_policy::model::{Level, Problem};
use reeve_policy::store::{Object, ObjectKey};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::Read;
use std::path::{Path, PathBuf};

/// One text that was read.
#[derive(Debug)]
pub(crate) struct Text {
    /// Its path as people know it.
    pub(crate) origin: String,
    /// What it holds.
    pub(crate) text: String,
}

/// All manifests of a directory, in the order of their paths, which are told relative to it. That there are none is an
/// error: an answer from no facts at all allows everything.
pub(crate) fn of_directory(root: &Path) -> anyhow::Result<Vec<Text>> {
    let mut paths = Vec::new();
    list(root, &mut paths)?;
    if paths.is_empty() {
        bail!("{} holds no manifests: no file ends in .yaml, .yml or .json", root.display());
    }
    paths.sort();
    paths.iter().map(|path| text(path, path.strip_prefix(root).unwrap_or(path))).collect()
}

/// A file, all manifests of a directory, or what comes in by standard input for `-`.
pub(crate) fn of_argument(path: &Path) -> anyhow::Result<Vec<Text>> {
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().lock().read_to_string(&mut text).context("cannot read standard input")?;
        return Ok(vec![Text { origin: "standard input".to_owned(), text }]);
    }
    if !path.is_dir() {
        return Ok(vec![text(path, path)?]);
    }
    let mut texts = of_directory(path)?;
    for text in &mut texts {
        text.origin = path.join(&text.origin).display().to_string();
    }
    Ok(texts)
}

/// Objects of texts, each once: of several with the same name the first one holds, as for the agent.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Objects in the order in which they were found.
    pub(crate) objects: Vec<Object>,
    /// Texts that cannot be read.
    pub(crate) unreadable: Vec<Problem>,
    /// Objects that are there twice.
    pub(crate) duplicates: Vec<Problem>,
}

/// Reads the objects of these texts.
pub(crate) fn objects(texts: &[Text]) -> Found {
    let mut found = Found::default();
    let mut first: BTreeMap<ObjectKey, String> = BTreeMap::new();
    for Text { origin, text } in texts {
        if text.trim().is_empty() {
            found.unreadable.push(Problem {
                level: Level::Warning,
                object: origin.clone(),
                field: String::new(),
                value: String::new(),
                what: "the file is empty".to_owned(),
                effect: "what it said before, if anything, goes on to hold".to_owned(),
            });
            continue;
        }
        let objects = match manifest::parse(text, origin) {
            Ok(objects) => objects,
            Err(problem) => {
                found.unreadable.push(problem);
                continue;
            }
        };
        for object in objects {
            // The store makes the problem of an object without a key.
            let Ok(key) = ObjectKey::of(&object.value) else {
                found.objects.push(object);
                continue;
            };
            match first.entry(key) {
                Entry::Vacant(place) => {
                    place.insert(object.origin.clone());
                    found.objects.push(object);
                }
                Entry::Occupied(place) => found.duplicates.push(Problem {
                    level: Level::Warning,
                    object: place.key().to_string(),
                    field: "metadata.name".to_owned(),
                    value: place.key().name.clone(),
                    what: format!("the object is in {} and again in {}", place.get(), object.origin),
                    effect: format!("the one in {} holds", place.get()),
                }),
            }
        }
    }
    found
}

fn text(path: &Path, origin: &Path) -> anyhow::Result<Text> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Text { origin: origin.display().to_string(), text })
}

fn list(directory: &Path, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let context = || format!("cannot list {}", directory.display());
    for entry in std::fs::read_dir(directory).with_context(context)? {
        let path = entry.with_context(context)?.path();
        if path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b".")) {
            continue;
        }
        if path.is_dir() {
            list(&path, found)?;
        } else if path.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json") {
            found.push(path);
        }
    }
    Ok(())
}
