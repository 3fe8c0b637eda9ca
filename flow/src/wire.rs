//! Records as JSON lines, and back.

use crate::record::{FlowRecord, SCHEMA};
use serde::{Deserialize, Serialize};

/// One line of a stream of records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// A record.
    Record(Box<FlowRecord>),
    /// So many records were left out here, as the reader was too slow.
    Missed(u64),
}

/// A line that is no record.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// It is not what a record looks like.
    #[error("line {line} is no flow record: {source}")]
    Form {
        /// Number of the line, from 1.
        line: usize,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// It was written in another form.
    #[error("line {line} has schema {found}; this version reads schema {SCHEMA}")]
    Schema {
        /// Number of the line, from 1.
        line: usize,
        /// Schema found.
        found: u32,
    },
}

/// Writes a record as one line, without the line's end.
pub fn encode(record: &FlowRecord) -> String {
    serde_json::to_string(record).expect("a record is made of text, numbers and maps with text keys")
}

/// Writes how many records a reader missed, as one line without its end.
pub fn encode_missed(missed: u64) -> String {
    serde_json::to_string(&MissedForm { missed }).expect("a number has a JSON form")
}

/// Reads the line with this number (from 1).
pub fn parse_line(line: usize, text: &str) -> Result<Line, WireError> {
    let form = |source| WireError::Form { line, source };
    match serde_json::from_str(text).map_err(form)? {
        Head { missed: Some(missed), .. } => Ok(Line::Missed(missed)),
        Head { schema: Some(found), .. } if found != SCHEMA => Err(WireError::Schema { line, found }),
        Head { .. } => Ok(Line::Record(serde_json::from_str(text).map_err(form)?)),
    }
}

/// Reads lines; empty ones are skipped.
pub fn parse(text: &str) -> impl Iterator<Item = Result<Line, WireError>> {
    text.lines()
        .enumerate()
        .filter(|(_, text)| !text.trim().is_empty())
        .map(|(index, text)| parse_line(index + 1, text))
}

#[derive(Serialize)]
struct MissedForm {
    missed: u64,
}

/// What tells one line from another.
#[derive(Deserialize)]
struct Head {
    missed: Option<u64>,
    schema: Option<u32>,
}

#[cfg(test)]
mod tests;
