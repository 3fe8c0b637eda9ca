//! Puts the plugin onto the node: its program into the runtime's directory, and its name into the configuration in use.
//!
//! Invariant: the program is there before a configuration names it; a file is replaced whole or not at all, one that
//! cannot be read stays as it is, and what somebody else writes meanwhile is never replaced by what was made of older text.

use super::conflist::{self, Insertion, Ours, Removal};
use super::{PLUGIN, SOCKET};
use crate::config::Config;
use crate::run::Wake;
use anyhow::Context;
use notify::Watcher;
use reeve_policy::model::{Level, Problem};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;

/// Between two looks at the configurations, whether or not anything was heard.
const LOOK_ANYWAY: Duration = Duration::from_secs(10);
/// A change is often several events.
const SETTLE: Duration = Duration::from_millis(20);

/// What keeps the plugin from being in use, a file and a clause each.
pub type Complaints = Arc<Mutex<BTreeMap<PathBuf, String>>>;

/// A node's two directories, and what belongs into them.
#[derive(Clone, Debug)]
pub struct Installer {
    configurations: PathBuf,
    plugins: PathBuf,
    program: PathBuf,
    ours: Ours,
}

impl Installer {
    /// By the settings; none, if they name no directories.
    pub fn of(config: &Config) -> anyhow::Result<Option<Self>> {
        let (configurations, plugins) = match (&config.cni_conf_dir, &config.cni_bin_dir) {
            (Some(configurations), Some(plugins)) => (configurations.clone(), plugins.clone()),
            (None, None) => return Ok(None),
            _ => anyhow::bail!("--cni-conf-dir and --cni-bin-dir go together: give both or neither"),
        };
        let here = std::env::current_exe().context("the agent's program has no path")?;
        let socket = std::path::absolute(config.run_dir.join(SOCKET)).context("--run-dir has no absolute path")?;
        Ok(Some(Self {
            configurations,
            plugins,
            program: here.with_file_name(PLUGIN),
            ours: Ours { socket: socket.display().to_string() },
        }))
    }

    /// Does what is missing, and says what keeps it from that.
    pub fn look(&self) -> BTreeMap<PathBuf, String> {
        let mut complaints = BTreeMap::new();
        if let Err(error) = self.install_program() {
            let target = self.plugins.join(PLUGIN);
            let there = target.exists();
            complaints.insert(target, format!("cannot be put there: {error:#}"));
            if !there {
                return complaints; // a configuration that names what is not there stops every pod
            }
        }
        if let Err(error) = self.follow(&mut complaints) {
            complaints.insert(self.configurations.clone(), error.to_string());
        }
        complaints
    }

    fn install_program(&self) -> anyhow::Result<()> {
        let ours = fs::read(&self.program).with_context(|| format!("{} cannot be read", self.program.display()))?;
        if fs::read(self.plugins.join(PLUGIN)).ok().as_ref() == Some(&ours) {
            return Ok(());
        }
        replace(&self.plugins, PLUGIN, &ours, 0o755)?;
        tracing::info!(path = %self.plugins.join(PLUGIN).display(), "the CNI plugin was installed");
        Ok(())
    }

    /// Has the plugin in the configuration that a runtime uses, and no list around one that it does not.
    fn follow(&self, complaints: &mut BTreeMap<PathBuf, String>) -> io::Result<()> {
        let mut wrapping = BTreeMap::new();
        let mut active = None;
        for (name, text) in self.read_all(complaints)? {
            match conflist::parse(&name, &text) {
                Err(error) => drop(complaints.insert(self.configurations.join(&name), error.to_string())),
                Ok(value) if conflist::around(&value).is_some() && conflist::has_ours(&value) => {
                    drop(wrapping.insert(name, text));
                }
                Ok(_) if active.is_none() => active = Some((name, text)),
                Ok(_) => {}
            }
        }
        let mut wanted = None;
        if let Some((name, text)) = active {
            match conflist::insert(&name, &text, &self.ours) {
                Ok(Insertion::Nothing) => {}
                Ok(Insertion::Rewrite(new)) => {
                    // Whoever was faster has asked for the next look by that.
                    self.write(&name, Some(&text), &new)?;
                }
                Ok(Insertion::Wrap { name: list, text: new }) => {
                    if wrapping.get(&list) != Some(&new) {
                        self.write(&list, wrapping.get(&list).map(String::as_str), &new)?;
                    }
                    wanted = Some(list);
                }
                Err(error) => drop(complaints.insert(self.configurations.join(&name), error.to_string())),
            }
        }
        for list in wrapping.into_keys().filter(|list| wanted.as_ref() != Some(list)) {
            fs::remove_file(self.configurations.join(&list))?;
            tracing::info!(list, "the list around a configuration that is not used any more was removed");
        }
        Ok(())
    }

    /// The files that a runtime looks at, in its order.
    fn read_all(&self, complaints: &mut BTreeMap<PathBuf, String>) -> io::Result<BTreeMap<String, String>> {
        let mut all = BTreeMap::new();
        for entry in fs::read_dir(&self.configurations)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if !conflist::is_configuration(&name) || entry.path().is_dir() {
                continue;
            }
            match fs::read_to_string(entry.path()) {
                Ok(text) => drop(all.insert(name, text)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => drop(complaints.insert(entry.path(), format!("it cannot be read: {error}"))),
            }
        }
        Ok(all)
    }

    /// Replaces a configuration, unless somebody else has done so since it was read.
    fn write(&self, name: &str, before: Option<&str>, text: &str) -> io::Result<Written> {
        let path = self.configurations.join(name);
        let mode = fs::metadata(&path).map_or(0o600, |metadata| metadata.permissions().mode() & 0o7777);
        let beside = write_beside(&self.configurations, name, text.as_bytes(), mode)?;
        let written = settle(&path, &beside, before, text, exchange)?;
        match fs::remove_file(&beside) {
            // Where nothing was, it was not exchanged.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => File::open(&self.configurations)?.sync_all()?,
        }
        if written == Written::Done {
            tracing::info!(path = %path.display(), "the node's CNI configuration was changed");
        }
        Ok(written)
    }

    /// Takes the plugin out of every configuration, and its program away. Returns what was done, and what could not be.
    pub fn uninstall(&self) -> (Vec<String>, BTreeMap<PathBuf, String>) {
        let (mut done, mut complaints) = (Vec::new(), BTreeMap::new());
        let all = self.read_all(&mut complaints).unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                complaints.insert(self.configurations.clone(), error.to_string());
            }
            BTreeMap::new()
        });
        for (name, text) in all {
            let path = self.configurations.join(&name);
            let taken = match conflist::remove(&name, &text) {
                Ok(Removal::Rewrite(new)) => match self.write(&name, Some(&text), &new) {
                    Ok(Written::Overtaken) => {
                        Err(io::Error::other("somebody else has just changed it: uninstall again"))
                    }
                    done => done.map(drop),
                },
                Ok(Removal::Delete) => fs::remove_file(&path),
                // A file that no runtime can use does not run the plugin either, unless it is mended by hand.
                Err(error) if text.contains(PLUGIN) => Err(io::Error::other(error)),
                Ok(Removal::Nothing) | Err(_) => continue,
            };
            match taken {
                Ok(()) => done.push(format!("took {PLUGIN} out of {}", path.display())),
                Err(error) => drop(complaints.insert(path, error.to_string())),
            }
        }
        let program = self.plugins.join(PLUGIN);
        // A configuration that still names it would stop every pod without it, and DEL as well.
        if complaints.is_empty() {
            match fs::remove_file(&program) {
                Ok(()) => done.push(format!("removed {}", program.display())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => drop(complaints.insert(program, error.to_string())),
            }
        }
        (done, complaints)
    }

    /// Looks now, whenever something changes in the directory of configurations, and now and then. `wake` hears when what
    /// keeps the plugin from being in use has changed.
    pub(crate) fn keep(self, complaints: Complaints, wake: mpsc::Sender<Wake>) -> anyhow::Result<()> {
        let (heard, mut hears) = mpsc::channel::<()>(1);
        let told = move |event: notify::Result<notify::Event>| {
            if !matches!(&event, Ok(event) if matches!(event.kind, notify::EventKind::Access(_))) {
                // A full queue holds a wake-up already.
                let _ = heard.try_send(());
            }
        };
        let mut watcher = notify::recommended_watcher(told).context("inotify is not to be had")?;
        let watching = watcher.watch(&self.configurations, notify::RecursiveMode::NonRecursive);
        if let Err(error) = watching {
            tracing::warn!(%error, "changes of the node's CNI configuration are not heard of, only looked for");
        }
        tokio::spawn(async move {
            // Gone with the task, and nothing is heard any more.
            let _watcher = watcher;
            loop {
                let installer = self.clone();
                let found = tokio::task::spawn_blocking(move || installer.look()).await.unwrap_or_default();
                let changed = {
                    let mut known = complaints.lock().expect("nobody panics while complaining");
                    let changed = *known != found;
                    *known = found;
                    changed
                };
                if changed {
                    let _ = wake.try_send(Wake::Facts);
                }
                if let Ok(Some(())) = tokio::time::timeout(LOOK_ANYWAY, hears.recv()).await {
                    tokio::time::sleep(SETTLE).await;
                }
            }
        });
        Ok(())
    }
}

/// The complaints as problems.
pub(crate) fn problems(complaints: &Complaints) -> Vec<Problem> {
    let known = complaints.lock().expect("nobody panics while complaining");
    let problem = |(path, what): (&PathBuf, &String)| Problem {
        level: Level::Warning,
        object: path.display().to_string(),
        field: String::new(),
        value: String::new(),
        what: what.clone(),
        effect: "the file stays as it is; pods may start before they are enforced".to_owned(),
    };
    known.iter().map(problem).collect()
}

/// What became of a file that was to be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    /// It holds the new text.
    Done,
    /// Somebody else was faster, and the file holds what that one wrote.
    Overtaken,
}

/// Writes beside, with everything on disk, and renames: a runtime reads the old file or the new one.
fn replace(directory: &Path, name: &str, content: &[u8], mode: u32) -> io::Result<()> {
    fs::rename(write_beside(directory, name, content, mode)?, directory.join(name))?;
    File::open(directory)?.sync_all()
}

/// Puts content onto the disk under another name; where it is.
fn write_beside(directory: &Path, name: &str, content: &[u8], mode: u32) -> io::Result<PathBuf> {
    // No runtime looks at names that begin with a dot or end like this.
    let beside = directory.join(format!(".{name}.reeve"));
    let mut file = File::create(&beside)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()?;
    Ok(beside)
}

/// Puts `text`, which is in `beside`, into the place of `before`. What comes out there tells whether that was still so: if it
/// is something else, somebody has written it since, and gets the place back.
fn settle(
    path: &Path,
    beside: &Path,
    before: Option<&str>,
    text: &str,
    mut exchange: impl FnMut(&Path, &Path) -> Result<(), Errno>,
) -> io::Result<Written> {
    let Some(before) = before else {
        // A list around another configuration, where nothing was.
        return match renameat_with(CWD, beside, CWD, path, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(Written::Done),
            // As below for file systems that cannot.
            Err(Errno::INVAL) if !path.exists() => fs::rename(beside, path).map(|()| Written::Done),
            Err(Errno::EXIST | Errno::INVAL) => Ok(Written::Overtaken),
            Err(error) => Err(error.into()),
        };
    };
    let (mut placed, mut expected) = (text.as_bytes().to_owned(), before.as_bytes().to_owned());
    let mut written = Written::Done;
    loop {
        match exchange(beside, path) {
            Ok(()) => {}
            // Whoever took it away does not want it there.
            Err(Errno::NOENT) => return Ok(Written::Overtaken),
            // Not every file system can; then a look has to do, which leaves a moment for others.
            Err(Errno::INVAL) if written == Written::Done => {
                if fs::read(path).ok() != Some(expected) {
                    return Ok(Written::Overtaken);
                }
                fs::rename(beside, path)?;
                return Ok(written);
            }
            Err(error) => return Err(error.into()),
        }
        let came_out = fs::read(beside)?;
        if came_out == expected {
            return Ok(written);
        }
        // Newer than what took its place. That is expected out again, unless there is something newer still.
        written = Written::Overtaken;
        expected = std::mem::replace(&mut placed, came_out);
    }
}

fn exchange(one: &Path, other: &Path) -> Result<(), Errno> {
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    struct Place {
        base: tempfile::TempDir,
        installer: Installer,
    }

    impl Place {
        fn new() -> Self {
            let base = tempfile::tempdir().expect("a directory");
            let at = |name: &str| base.path().join(name);
            for name in ["conf", "bin"] {
                fs::create_dir(at(name)).expect("made");
            }
            fs::write(at(PLUGIN), "program").expect("written");
            let ours = Ours { socket: "/run/reeve/cni.sock".to_owned() };
            let installer = Installer { configurations: at("conf"), plugins: at("bin"), program: at(PLUGIN), ours };
            Self { base, installer }
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.base.path().join("conf").join(name), text).expect("written");
        }

        fn read(&self, name: &str) -> Value {
            serde_json::from_str(&self.text(name)).expect("JSON")
        }

        fn text(&self, name: &str) -> String {
            fs::read_to_string(self.base.path().join("conf").join(name)).expect("a file")
        }

        fn files(&self, directory: &str) -> Vec<String> {
            let entries = fs::read_dir(self.base.path().join(directory)).expect("listed");
            let mut names: Vec<String> =
                entries.map(|entry| entry.expect("listed").file_name().into_string().expect("text")).collect();
            names.sort();
            names
        }

        #[track_caller]
        fn looks(&self, complaining_of: &[&str]) {
            let found = self.installer.look();
            let names: Vec<_> = found.keys().filter_map(|path| path.file_name()?.to_str()).collect();
            assert_eq!(names, complaining_of, "{found:?}");
        }
    }

    fn list(plugins: &[&str]) -> String {
        let plugins: Vec<Value> = plugins.iter().map(|name| json!({ "type": name, "own": 1 })).collect();
        json!({ "cniVersion": "1.0.0", "name": "n", "plugins": plugins, "other": {"x": []} }).to_string()
    }

    fn last(value: &Value) -> &Value {
        let plugins = value["plugins"].as_array().expect("a list");
        assert_eq!(plugins.iter().filter(|one| one["type"] == PLUGIN).count(), 1, "{value}");
        &plugins[plugins.len() - 1]["type"]
    }

    #[test]
    fn the_first_configuration_gets_the_plugin_and_gives_it_back() {
        let place = Place::new();
        place.looks(&[]);
        place.write("20-later.conflist", &list(&["later"]));
        place.write("10-first.conflist", &list(&["first", "portmap"]));
        let path = place.base.path().join("conf/10-first.conflist");
        fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("set");
        for _ in 0..2 {
            place.looks(&[]);
            assert_eq!(last(&place.read("10-first.conflist")), PLUGIN);
            assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o640);
        }
        assert_eq!(place.text("20-later.conflist"), list(&["later"]));
        // Its owner writes it anew.
        place.write("10-first.conflist", &list(&["first"]));
        place.looks(&[]);
        assert_eq!(last(&place.read("10-first.conflist")), PLUGIN);
        // Another network comes before it.
        place.write("05-new.conflist", &list(&["new"]));
        place.looks(&[]);
        assert_eq!(last(&place.read("05-new.conflist")), PLUGIN);
        let (done, complaints) = place.installer.uninstall();
        assert_eq!((done.len(), complaints.len()), (3, 0), "{done:?} {complaints:?}");
        for (name, before) in [("10-first.conflist", list(&["first"])), ("05-new.conflist", list(&["new"]))] {
            assert_eq!(place.text(name), before);
        }
        assert_eq!(place.files("bin"), Vec::<String>::new());
        assert_eq!(place.files("conf"), ["05-new.conflist", "10-first.conflist", "20-later.conflist"]);
        assert_eq!(place.installer.uninstall(), (Vec::new(), BTreeMap::new()));
    }

    #[test]
    fn a_single_plugin_is_wrapped_followed_and_left_as_it_was() {
        let place = Place::new();
        let single = |kind: &str| json!({"cniVersion": "0.4.0", "name": "n", "type": kind}).to_string();
        place.write("10-old.conf", &single("bridge"));
        for _ in 0..2 {
            place.looks(&[]);
            assert_eq!(place.files("conf"), ["00-reeve-10-old.conflist", "10-old.conf"]);
        }
        place.write("10-old.conf", &single("ptp"));
        place.looks(&[]);
        assert_eq!(place.read("00-reeve-10-old.conflist")["plugins"][0]["type"], "ptp");
        assert_eq!(place.text("10-old.conf"), single("ptp"));
        place.write("05-new.conflist", &list(&["new"]));
        place.looks(&[]);
        assert_eq!(
            place.files("conf"),
            ["05-new.conflist", "10-old.conf"],
            "nobody's list stands before a new network"
        );
        fs::remove_file(place.base.path().join("conf/05-new.conflist")).expect("removed");
        place.looks(&[]);
        fs::remove_file(place.base.path().join("conf/10-old.conf")).expect("removed");
        place.looks(&[]);
        assert_eq!(place.files("conf"), Vec::<String>::new());
        place.write("10-old.conf", &single("bridge"));
        place.looks(&[]);
        place.installer.uninstall();
        assert_eq!(
            (place.files("conf"), place.text("10-old.conf")),
            (vec!["10-old.conf".to_owned()], single("bridge"))
        );
    }

    #[test]
    fn broken_files_are_named_and_stay() {
        let place = Place::new();
        for (name, text) in [("00-a.conflist", "{"), ("01-b.conf", "{}"), ("02-c.json", "")] {
            place.write(name, text);
        }
        place.write("10-good.conflist", &list(&["good"]));
        place.looks(&["00-a.conflist", "01-b.conf", "02-c.json"]);
        assert_eq!((place.text("00-a.conflist"), place.text("01-b.conf")), ("{".to_owned(), "{}".to_owned()));
        assert_eq!(last(&place.read("10-good.conflist")), PLUGIN);
    }

    #[test]
    fn without_its_program_no_configuration_names_the_plugin() {
        let place = Place::new();
        place.write("10-good.conflist", &list(&["good"]));
        fs::remove_file(&place.installer.program).expect("removed");
        place.looks(&[PLUGIN]);
        assert_eq!(place.text("10-good.conflist"), list(&["good"]));
        fs::write(&place.installer.program, "program").expect("written");
        place.looks(&[]);
        let mode = fs::metadata(place.base.path().join("bin").join(PLUGIN)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        // One that was installed before does until there is a better one.
        fs::remove_file(&place.installer.program).expect("removed");
        place.write("10-good.conflist", &list(&["good"]));
        place.looks(&[PLUGIN]);
        assert_eq!(last(&place.read("10-good.conflist")), PLUGIN);
    }

    /// Replaces `old` by `ours`, while others write before the first exchange, before the second, and so on.
    #[track_caller]
    fn settles(others: &[Option<&str>], wanted: Written, left: Option<&str>) {
        let place = Place::new();
        place.write("a.conflist", "old");
        let path = place.base.path().join("conf/a.conflist");
        let beside = write_beside(&place.base.path().join("conf"), "a.conflist", b"ours", 0o600).expect("written");
        let mut others = others.iter();
        let written = settle(&path, &beside, Some("old"), "ours", |one, other| {
            match others.next() {
                // As most do it: another file under this name.
                Some(Some(text)) => {
                    place.write("new", text);
                    fs::rename(place.base.path().join("conf/new"), &path).expect("renamed");
                }
                Some(None) => fs::remove_file(&path).expect("removed"),
                None => {}
            }
            exchange(one, other)
        });
        assert_eq!(written.expect("settled"), wanted);
        assert!(others.next().is_none(), "all have written");
        assert_eq!(fs::read_to_string(&path).ok().as_deref(), left);
    }

    #[test]
    fn whoever_writes_last_is_never_replaced_by_what_was_made_of_older_text() {
        settles(&[], Written::Done, Some("ours"));
        settles(&[Some("new")], Written::Overtaken, Some("new"));
        settles(&[Some("new"), Some("newer")], Written::Overtaken, Some("newer"));
        settles(&[Some("new"), Some("newer"), Some("newest")], Written::Overtaken, Some("newest"));
        settles(&[None], Written::Overtaken, None);
        settles(&[Some("new"), None], Written::Overtaken, None);
    }

    #[test]
    fn a_file_system_that_cannot_exchange_is_looked_at_before() {
        for (there, wanted, left) in [("old", Written::Done, "ours"), ("new", Written::Overtaken, "new")] {
            let place = Place::new();
            place.write("a.conflist", there);
            let directory = place.base.path().join("conf");
            let beside = write_beside(&directory, "a.conflist", b"ours", 0o600).expect("written");
            let path = directory.join("a.conflist");
            let written = settle(&path, &beside, Some("old"), "ours", |_, _| Err(Errno::INVAL));
            assert_eq!((written.expect("settled"), place.text("a.conflist").as_str()), (wanted, left));
        }
    }

    #[test]
    fn a_list_that_has_changed_since_it_was_read_stays_as_its_owner_wrote_it() {
        let place = Place::new();
        let name = "10-first.conflist";
        place.write(name, &list(&["new"]));
        let written = place.installer.write(name, Some(&list(&["old"])), &list(&["old", PLUGIN]));
        assert_eq!(written.expect("written"), Written::Overtaken);
        assert_eq!(place.text(name), list(&["new"]));
        assert_eq!(place.files("conf"), [name], "nothing is left beside");
        // Nor is one replaced that was not there before.
        let written = place.installer.write(name, None, &list(&[PLUGIN]));
        assert_eq!(written.expect("written"), Written::Overtaken);
        assert_eq!((place.text(name), place.files("conf")), (list(&["new"]), vec![name.to_owned()]));
        let written = place.installer.write("00-second.conflist", None, &list(&[PLUGIN]));
        assert_eq!(written.expect("written"), Written::Done, "where nothing is, there is room");
        assert_eq!(place.text("00-second.conflist"), list(&[PLUGIN]));
    }
}
