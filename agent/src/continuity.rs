//! Proves that nothing was missed between two agents: a checkpoint of what stood in the kernel, compared with what stands
//! there now.
//!
//! Invariant: an interval that is not proven is told as such, never as if somebody had watched it.

use crate::datapath::Mark;
use reeve_abi::ids::WorkloadId;
use reeve_flow::record::Flag;
use reeve_flow::time::Clock;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// What stood in the kernel when an agent last looked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoint {
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot: String,
    /// Kernel's id of map `EDGES`.
    pub edges: u32,
    /// Counts that had found no row so far.
    pub lost: u64,
    /// What stood at each hook, by the name of its pin.
    pub marks: BTreeMap<String, Mark>,
    /// Highest revision of the endpoints.
    pub revision: u64,
    /// The window that was being told: its records may be written while its rows are still there.
    pub telling: Option<Telling>,
}

/// A window whose records are on their way. Whoever tells its rows again does so with these readings, so that both
/// records say the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Telling {
    /// The bank that its rows are in: 0 or 1.
    pub bank: u32,
    /// When it ended, `CLOCK_MONOTONIC` ns.
    pub end_ns: u64,
    /// What turned the kernel's time into moments.
    pub clock: Clock,
}

/// What is known of the time before this agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missed {
    /// Why nothing of it is proven; empty if it is, pods in `unproven` excepted.
    pub reasons: Vec<String>,
    /// Pods for which it is not proven.
    pub unproven: BTreeSet<WorkloadId>,
    /// The window that the last agent ended in the middle of telling.
    pub telling: Option<Telling>,
}

impl Missed {
    /// Compares what the last agent wrote down with what there is. `subject` names the pod behind a hook's pin.
    pub fn between(last: Option<&Checkpoint>, now: &Checkpoint, subject: impl Fn(&str) -> Option<WorkloadId>) -> Self {
        let Some(last) = last else {
            let reasons = vec!["no agent has left a checkpoint".to_owned()];
            return Self { reasons, ..Self::default() };
        };
        let mut missed = Self { telling: last.telling, ..Self::default() };
        let mut reasons = Vec::new();
        if last.boot != now.boot {
            reasons.push("the machine has booted since".to_owned());
        }
        if last.edges != now.edges {
            reasons.push(format!("map EDGES is another one ({} instead of {})", now.edges, last.edges));
        }
        if now.lost > last.lost {
            reasons.push(format!("{} counts found no row", now.lost - last.lost));
        }
        for (hook, mark) in &last.marks {
            if now.marks.get(hook) == Some(mark) {
                continue;
            }
            if mark.link == 0 {
                let what = "clsact filters have no numbers by which to know them again";
                if !reasons.iter().any(|reason| reason == what) {
                    reasons.push(what.to_owned());
                }
                continue;
            }
            match subject(hook) {
                Some(subject) => drop(missed.unproven.insert(subject)),
                None => reasons.push(format!("what stood at {hook} is gone, and whose it was is not known")),
            }
        }
        missed.reasons = reasons;
        missed
    }

    /// Whether every packet of every pod was counted.
    pub fn is_proven(&self) -> bool {
        self.reasons.is_empty() && self.unproven.is_empty()
    }

    /// What a reader must know of counts of that time; `again`: they may have been told already.
    pub fn flags(&self, subject: WorkloadId, again: bool) -> Vec<Flag> {
        let proven = self.reasons.is_empty() && !self.unproven.contains(&subject);
        let mut flags = vec![if proven { Flag::Backfilled } else { Flag::Unproven }];
        if again {
            flags.push(Flag::MayRepeat);
        }
        flags
    }
}

/// The checkpoint on disk.
#[derive(Debug)]
pub struct CheckpointFile {
    path: PathBuf,
    written: Option<Checkpoint>,
}

impl CheckpointFile {
    /// Reads what the last agent left. One that cannot be read proves nothing, and says why.
    pub fn open(path: &Path) -> Self {
        let written = match std::fs::read(path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(checkpoint) => Some(checkpoint),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "the last agent's checkpoint cannot be read");
                    None
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the last agent's checkpoint cannot be read");
                None
            }
        };
        Self { path: path.to_owned(), written }
    }

    /// What was written last.
    pub fn last(&self) -> Option<&Checkpoint> {
        self.written.as_ref()
    }

    /// Writes a checkpoint whole, unless it is the one that stands there.
    pub fn write(&mut self, checkpoint: &Checkpoint) -> io::Result<()> {
        if self.written.as_ref() == Some(checkpoint) {
            return Ok(());
        }
        // A crash of the machine takes the maps along with what was not synced: a process that ends does not.
        let beside = self.path.with_extension("new");
        let text = serde_json::to_vec(checkpoint).expect("a checkpoint is plain data");
        std::fs::File::create(&beside)?.write_all(&text)?;
        std::fs::rename(&beside, &self.path)?;
        self.written = Some(checkpoint.clone());
        Ok(())
    }
}

/// The kernel's name of this boot.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint() -> Checkpoint {
        let marks = BTreeMap::from([
            ("7-from".to_owned(), Mark { link: 3, program: 9 }),
            ("8-to".to_owned(), Mark { link: 4, program: 9 }),
        ]);
        Checkpoint { boot: "b".to_owned(), edges: 5, lost: 2, marks, revision: 1, telling: None }
    }

    fn subject(hook: &str) -> Option<WorkloadId> {
        hook.starts_with('7').then_some(WorkloadId(70))
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut Checkpoint), reason: &str) {
        let mut now = checkpoint();
        change(&mut now);
        let missed = Missed::between(Some(&checkpoint()), &now, subject);
        assert!(!missed.is_proven());
        assert!(missed.reasons.iter().any(|found| found.contains(reason)), "{reason} is not in {:?}", missed.reasons);
        assert_eq!(missed.flags(WorkloadId(1), false), [Flag::Unproven]);
    }

    #[test]
    fn what_stands_as_it_stood_is_proven() {
        let missed = Missed::between(Some(&checkpoint()), &checkpoint(), subject);
        assert!(missed.is_proven());
        assert_eq!(missed.flags(WorkloadId(70), false), [Flag::Backfilled]);
        assert_eq!(missed.flags(WorkloadId(70), true), [Flag::Backfilled, Flag::MayRepeat]);
        assert_eq!(missed.telling, None);
    }

    #[test]
    fn a_window_that_was_being_told_is_known_to_the_next_agent_by_its_very_readings() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("checkpoint.json");
        let clock = Clock::from_readings(7, reeve_flow::time::Timestamp { unix_ns: 1_769_860_801_123_456_789 });
        let telling = Some(Telling { bank: 1, end_ns: 123_456_789_012, clock });
        CheckpointFile::open(&path).write(&Checkpoint { telling, ..checkpoint() }).expect("written");
        let last = CheckpointFile::open(&path);
        assert_eq!(Missed::between(last.last(), &checkpoint(), subject).telling, telling);
    }

    #[test]
    fn each_difference_is_a_reason() {
        check(|now| now.boot = "c".to_owned(), "booted");
        check(|now| now.edges = 6, "another one");
        check(|now| now.lost = 3, "1 counts found no row");
        check(
            |now| {
                now.marks.remove("8-to");
            },
            "8-to is gone",
        );
        assert_eq!(Missed::between(None, &checkpoint(), subject).flags(WorkloadId(1), false), [Flag::Unproven]);
    }

    #[test]
    fn a_link_that_was_made_anew_leaves_its_own_pod_unproven_and_no_other() {
        let mut now = checkpoint();
        now.marks.insert("7-from".to_owned(), Mark { link: 30, program: 9 });
        let missed = Missed::between(Some(&checkpoint()), &now, subject);
        assert_eq!(missed.flags(WorkloadId(70), false), [Flag::Unproven]);
        assert_eq!(missed.flags(WorkloadId(80), false), [Flag::Backfilled]);
    }

    #[test]
    fn a_checkpoint_is_read_back_and_a_torn_one_proves_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("checkpoint.json");
        CheckpointFile::open(&path).write(&checkpoint()).expect("written");
        assert_eq!(CheckpointFile::open(&path).last(), Some(&checkpoint()));
        std::fs::write(&path, "{").expect("written");
        assert_eq!(CheckpointFile::open(&path).last(), None);
    }
}
