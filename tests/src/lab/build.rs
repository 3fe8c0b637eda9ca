//! The agent's program as another build would be: all its eBPF programs differ, and do the same.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::Context;
use object::{Object, ObjectSection, SectionKind};

use super::{Lab, agent_program};

/// The same instruction, written otherwise: a small number is put into a whole register, or into its lower half, which
/// clears the upper one.
const MOVE_64: u8 = 0xb7;
const MOVE_32: u8 = 0xb4;

impl Lab {
    /// The agent's program at hand, with the object that `REEVE_BPF_OBJECT` names as another compiler might have written
    /// it; it lies in the lab's directory.
    pub fn another_build(&self) -> anyhow::Result<PathBuf> {
        let object = std::env::var_os("REEVE_BPF_OBJECT").context("REEVE_BPF_OBJECT names no file")?;
        let object = fs::read(&object).with_context(|| format!("cannot read {}", object.display()))?;
        let mut program = fs::read(agent_program()?).context("cannot read the agent's program")?;
        let last = program.len().checked_sub(object.len()).context("the agent is smaller than its object")?;
        let mut places = (0..=last).step_by(8);
        let at = places.find(|at| program[*at..].starts_with(&object)).context("the agent has another object in it")?;
        program[at..at + object.len()].copy_from_slice(&written_otherwise(&object)?);
        let path = self.directory().join("another-agent");
        fs::write(&path, program).with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(&path, Permissions::from_mode(0o755)).context("it cannot be made executable")?;
        Ok(path)
    }
}

/// The eBPF object as another compiler might have written it.
fn written_otherwise(object: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut other = object.to_vec();
    let file = object::File::parse(object).context("no object")?;
    for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
        let (at, length) = section.file_range().context("a program has no code")?;
        let code = usize::try_from(at)?..usize::try_from(at + length)?;
        for instruction in other[code].chunks_exact_mut(8) {
            // The second half of a long one begins with 0.
            let number = i32::from_le_bytes(instruction[4..].try_into()?);
            if instruction[0] == MOVE_64 && number >= 0 {
                instruction[0] = MOVE_32;
            }
        }
    }
    Ok(other)
}
