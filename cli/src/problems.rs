//! `reeve problems`: what of the input the agent does not honour; and how a problem is written.

use crate::output::{self, Answer, Format, OutputArgs, counted, painted};
use crate::socket::SocketArgs;
use reeve_flow::text::{Colour, plain};
use reeve_policy::model::{Level, Problem};
use std::io::Write;

/// Shows what of its input an agent does not honour, and what that means for enforcement.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit code 1 if there is any problem of level warning.\n\n\
    Examples:\n  \
    reeve problems\n  \
    reeve problems --socket /run/reeve/agent.sock -o json")]
pub(crate) struct Args {
    #[command(flatten)]
    socket: SocketArgs,
    #[command(flatten)]
    output: OutputArgs,
}

const PATH: &str = "/problems";

/// Asks the agent.
pub(crate) fn run(args: &Args, out: &mut dyn Write) -> anyhow::Result<Answer> {
    let agent = args.socket.agent();
    let value = agent.get(PATH)?;
    let problems: Vec<Problem> = serde_json::from_value(value.clone()).map_err(|source| agent.form(PATH, source))?;
    match args.output.output {
        Format::Json => output::json(out, &value)?,
        Format::Text => {
            let colour = output::colour();
            for problem in &problems {
                write!(out, "{}", paragraph(problem, None, colour))?;
            }
            writeln!(out, "{}", summary(&problems))?;
        }
    }
    Ok(answer(&problems, Level::Warning))
}

/// Yes if nothing is of this level or worse.
pub(crate) fn answer(problems: &[Problem], least: Level) -> Answer {
    if problems.iter().any(|problem| problem.level >= least) { Answer::No } else { Answer::Yes }
}

/// A problem on one line. Whoever wrote a manifest does not get to write to the terminal.
pub(crate) fn line(problem: &Problem) -> String {
    plain(&format!("{} {}: {}; {}", level(problem.level), place(problem), problem.what, problem.effect))
}

/// A problem on several lines, with where its object stands if that is known.
pub(crate) fn paragraph(problem: &Problem, origin: Option<&str>, colour: Colour) -> String {
    let answer = if problem.level == Level::Warning { Answer::No } else { Answer::Yes };
    let level = painted(colour, answer, &format!("{:<7}", level(problem.level)));
    let origin = origin.map(|origin| format!("  ({origin})")).unwrap_or_default();
    let (place, what, effect) = (plain(&place(problem)), plain(&problem.what), plain(&problem.effect));
    format!("{level}  {place}{origin}\n         {what}\n         effect: {effect}\n\n")
}

/// `2 warnings, 1 note`.
pub(crate) fn summary(problems: &[Problem]) -> String {
    let count = |level| problems.iter().filter(|problem| problem.level == level).count();
    let (warnings, notes) = (count(Level::Warning), count(Level::Note));
    match (warnings, notes) {
        (0, 0) => "no problems".to_owned(),
        (0, notes) => counted(notes, "note", "notes"),
        (warnings, 0) => counted(warnings, "warning", "warnings"),
        (warnings, notes) => {
            format!("{}, {}", counted(warnings, "warning", "warnings"), counted(notes, "note", "notes"))
        }
    }
}

fn level(level: Level) -> &'static str {
    match level {
        Level::Note => "note",
        Level::Warning => "warning",
    }
}

/// Object, field and value, as far as they are there.
fn place(problem: &Problem) -> String {
    let Problem { object, field, value, .. } = problem;
    match (field.is_empty(), value.is_empty()) {
        (true, true) => object.clone(),
        (true, false) => format!("{object} {value}"),
        (false, true) => format!("{object} {field}"),
        (false, false) => format!("{object} {field}: {value}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_cannot_write_to_the_terminal() {
        let problem = Problem {
            level: Level::Note,
            object: "Pod/shop/wéb".to_owned(),
            field: "spec.x".to_owned(),
            value: "a\n\u{1b}[2Jb".to_owned(),
            what: "must be text".to_owned(),
            effect: "ignored".to_owned(),
        };
        assert_eq!(line(&problem), "note Pod/shop/wéb spec.x: a\\n\\u{1b}[2Jb: must be text; ignored");
        let text = paragraph(&problem, Some("p.yaml, document 1"), Colour::Never);
        let want = "note     Pod/shop/wéb spec.x: a\\n\\u{1b}[2Jb  (p.yaml, document 1)\n         must be text\n         \
            effect: ignored\n\n";
        assert_eq!(text, want);
    }
}
