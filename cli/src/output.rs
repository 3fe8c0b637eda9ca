//! How answers are printed: text for people, aligned and coloured on terminals, or JSON for programs.

use clap::ValueEnum;
use reeve_flow::text::{Allowed, Colour};
use std::io::{IsTerminal, Write};

/// What a command answers; an error is neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Allowed, ready, nothing wrong: exit code 0.
    Yes,
    /// Denied, not ready, something wrong: exit code 1.
    No,
}

/// Form of the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// The `-o` of every command.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct OutputArgs {
    /// Form of the answer.
    #[arg(short, long = "output", value_enum, default_value_t)]
    pub(crate) output: Format,
}

/// Colour for a terminal whose user has not said `NO_COLOR`.
pub(crate) fn colour() -> Colour {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if std::io::stdout().is_terminal() && !refused { Colour::Ansi } else { Colour::Never }
}

/// Green for what is well, red for what is not.
pub(crate) fn painted(colour: Colour, answer: Answer, text: &str) -> String {
    let allowed = match answer {
        Answer::Yes => Allowed::Yes,
        Answer::No => Allowed::No,
    };
    colour.verdict(allowed, text)
}

/// Prints a value as indented JSON.
pub(crate) fn json(out: &mut dyn Write, value: &impl serde::Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    writeln!(out, "{text}")?;
    Ok(())
}

/// Says something beside the answer. Where standard error is gone there is nobody to tell.
pub(crate) fn to_stderr(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Rows as lines with aligned columns, two spaces apart. Empty cells at the end leave no trailing spaces.
pub(crate) fn table(rows: &[Vec<String>]) -> Vec<String> {
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or_default()).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// A row of texts.
pub(crate) fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.iter().map(ToString::to_string).collect()
}

/// `1 policy`, `2 policies`.
pub(crate) fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [row(["POD", "STATE"]), row(["shop/wéb", ""]), row(["a", "ready"])];
        assert_eq!(table(&rows), ["POD       STATE", "shop/wéb", "a         ready"]);
    }
}
