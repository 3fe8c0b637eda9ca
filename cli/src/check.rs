//! `reeve policy check`: what of these manifests would not be honoured.

use crate::manifests::{self, Text};
use crate::output::{self, Answer, Format, OutputArgs, counted};
use crate::problems;
use reeve_policy::model::{Level, Problem};
use reeve_policy::store::{Change, ObjectKey, Store};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

/// Reads manifests as the agent would and shows what it would not honour, with object, field, value and effect.
#[derive(Debug, clap::Args)]
#[command(after_help = "The files are read together: a policy's tier, for example, must be among them.\n\
    Exit code 0 if all is honoured, 1 if something is not (any warning; with --strict any note too), 2 on error.\n\n\
    Examples:\n  \
    reeve policy check policies/*.yaml\n  \
    reeve policy check ./cluster --strict\n  \
    kubectl get networkpolicies -A -o yaml | reeve policy check - -o json")]
pub(crate) struct Args {
    /// Manifests: files, directories (all their .yaml, .yml and .json files), or - for standard input
    #[arg(value_name = "FILES", required = true)]
    files: Vec<PathBuf>,
    /// Fails on notes too
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// The answer as JSON.
#[derive(Serialize)]
struct Form<'a> {
    files: usize,
    objects: usize,
    policies: usize,
    problems: Vec<Located<'a>>,
}

#[derive(Serialize)]
struct Located<'a> {
    #[serde(flatten)]
    problem: &'a Problem,
    /// The file and document that holds the object.
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<&'a str>,
}

/// Lowers the manifests.
pub(crate) fn run(args: &Args, out: &mut dyn Write) -> anyhow::Result<Answer> {
    let mut texts: Vec<Text> = Vec::new();
    for path in &args.files {
        texts.extend(manifests::of_argument(path)?);
    }
    let found = manifests::objects(&texts);
    let mut origins: BTreeMap<String, String> = BTreeMap::new();
    let mut store = Store::new("");
    let objects = found.objects.len();
    for object in found.objects {
        if let Ok(key) = ObjectKey::of(&object.value) {
            origins.insert(key.to_string(), object.origin.clone());
        }
        store.apply(Change::Apply(object));
    }
    let mut all = found.unreadable;
    all.extend(found.duplicates);
    all.extend(store.problems());
    let policies = store.world().tiers.iter().map(|(_, policies)| policies.len()).sum();
    let origin = |problem: &Problem| origins.get(&problem.object).map(String::as_str);
    match args.output.output {
        Format::Json => {
            let problems = all.iter().map(|problem| Located { problem, origin: origin(problem) }).collect();
            output::json(out, &Form { files: texts.len(), objects, policies, problems })?;
        }
        Format::Text => {
            let colour = output::colour();
            for problem in &all {
                write!(out, "{}", problems::paragraph(problem, origin(problem), colour))?;
            }
            writeln!(
                out,
                "{}, {}, {}: {}",
                counted(texts.len(), "file", "files"),
                counted(objects, "object", "objects"),
                counted(policies, "policy", "policies"),
                problems::summary(&all)
            )?;
        }
    }
    Ok(problems::answer(&all, if args.strict { Level::Note } else { Level::Warning }))
}
