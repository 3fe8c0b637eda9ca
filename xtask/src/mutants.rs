//! Mutants: each takes one guard out of a copy of the checkout, and the test that it names must notice.
//!
//! Invariant: the checkout itself is never touched, and neither are the programs that other commands have built.

mod patch;
mod scratch;

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::bail;

use crate::places::Places;
use crate::setup;
use crate::tiers::Tier;
use patch::{Mutant, Target};
use scratch::{Outcome, Scratch};

/// Which mutants to try.
pub(crate) enum Choice {
    /// Every one.
    All,
    /// So many of those whose test needs neither root nor the lab; successive seeds take turns.
    Some { count: usize, seed: u64 },
    /// Those of these names.
    Named(Vec<String>),
}

/// Tries the chosen mutants; fails if one survives, or if a test does not pass without its mutant.
pub(crate) fn run(places: &Places, choice: &Choice) -> anyhow::Result<()> {
    let mutants = chosen(patch::all(places)?, choice)?;
    if mutants.iter().any(|mutant| mutant.target.tier != Tier::Unit) {
        setup::need_root("a chosen mutant is noticed by a test that loads eBPF programs")?;
    }
    let scratch = Scratch::new(places)?;
    controls(&scratch, &mutants)?;
    let mut survivors = Vec::new();
    for mutant in &mutants {
        let begun = Instant::now();
        let outcome = scratch.with(mutant, |scratch| scratch.test(&mutant.target))?;
        let seconds = begun.elapsed().as_secs_f64();
        match outcome {
            Outcome::Failed => println!("caught   {} ({seconds:.0} s): {}", mutant.name, mutant.target),
            Outcome::Passed(_) => {
                println!("SURVIVED {} ({seconds:.0} s): {}", mutant.name, mutant.target);
                survivors.push(mutant.name.as_str());
            }
        }
    }
    println!("{} mutants, {} survived", mutants.len(), survivors.len());
    if !survivors.is_empty() {
        bail!("no test noticed {}", survivors.join(", "));
    }
    Ok(())
}

/// Each test passes as long as nothing is taken out: otherwise its failing would say nothing.
fn controls(scratch: &Scratch, mutants: &[Mutant]) -> anyhow::Result<()> {
    let mut targets: BTreeMap<String, &Target> = BTreeMap::new();
    for mutant in mutants {
        targets.insert(mutant.target.to_string(), &mutant.target);
    }
    for (shown, target) in targets {
        match scratch.test(target)? {
            Outcome::Passed(0) => bail!("{shown}: no test has such a name"),
            Outcome::Passed(_) => {}
            Outcome::Failed => bail!("{shown}: fails without any mutant"),
        }
    }
    Ok(())
}

fn chosen(all: Vec<Mutant>, choice: &Choice) -> anyhow::Result<Vec<Mutant>> {
    match choice {
        Choice::All => Ok(all),
        Choice::Some { count, seed } => {
            let mut cheap: Vec<Mutant> = all.into_iter().filter(|mutant| mutant.target.is_cheap()).collect();
            if cheap.is_empty() {
                bail!("tests/mutants has no mutant whose test needs neither root nor the lab");
            }
            // Successive seeds take turns, so that a rotation by date or build number meets every mutant.
            let turns = u64::try_from(cheap.len())?;
            let step = seed.wrapping_mul(u64::try_from(*count)?) % turns;
            cheap.rotate_left(usize::try_from(step)?);
            cheap.truncate(*count);
            Ok(cheap)
        }
        Choice::Named(names) => {
            if let Some(unknown) = names.iter().find(|name| all.iter().all(|mutant| mutant.name != **name)) {
                bail!("tests/mutants has no {unknown}.patch");
            }
            Ok(all.into_iter().filter(|mutant| names.contains(&mutant.name)).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mutant(name: &str, tier: &str) -> Mutant {
        let text = format!("Guard.\n\ntest: {tier} reeve-packet x\n\n--- a/x\n+++ b/x\n");
        Mutant::parse(name, &text).expect("well formed")
    }

    #[test]
    fn successive_seeds_meet_every_cheap_mutant() {
        let all = || vec![mutant("a", "unit"), mutant("b", "kernel"), mutant("c", "unit"), mutant("d", "unit")];
        let names = |seed| -> Vec<String> {
            let some = chosen(all(), &Choice::Some { count: 2, seed }).expect("there are some");
            some.into_iter().map(|mutant| mutant.name).collect()
        };
        assert_eq!((names(0), names(1)), (vec!["a".into(), "c".into()], vec!["d".into(), "a".into()]));
        assert_eq!(names(u64::MAX).len(), 2);
    }

    #[test]
    fn a_name_that_is_not_there_is_an_error() {
        let names = Choice::Named(vec!["z".into()]);
        assert!(chosen(vec![mutant("a", "unit")], &names).is_err());
    }
}
