//! The demo's table: who, to whom, port, verdict, decided by, labels of both.

use reeve_flow::record::Side;
use reeve_flow::text::{Allowed, Colour, decision_text, side_text};
use reeve_policy::model::{Direction, Verdict};

use super::attempt::{Attempt, Row};

const HEAD: [&str; 6] = ["WHO", "TO WHOM", "PORT", "AT", "VERDICT", "DECIDED BY"];

/// Prints attempts as one aligned table; each enforcement point's record is a line.
pub fn print(attempts: &[&Attempt], colour: Colour) {
    let rows: Vec<(&Row, [String; 6])> = attempts.iter().flat_map(|a| &a.rows).map(|row| (row, cells(row))).collect();
    let mut widths = HEAD.map(str::len);
    for (_, cells) in &rows {
        for (width, cell) in widths.iter_mut().zip(cells) {
            *width = (*width).max(cell.chars().count());
        }
    }
    println!("  {}  LABELS", line(&HEAD.map(str::to_owned), &widths, |_, padded| padded));
    for (row, cells) in rows {
        let allowed = if row.record.decision.verdict() == Verdict::Allow { Allowed::Yes } else { Allowed::No };
        let text =
            line(&cells, &widths, |column, padded| if column == 4 { colour.verdict(allowed, &padded) } else { padded });
        println!("  {text}  {} -> {}", labels(&row.record.source), labels(&row.record.destination));
        if let Some(disagreement) = &row.disagreement {
            println!("  !! {disagreement}");
        }
    }
    for attempt in attempts {
        if let Some(disagreement) = &attempt.disagreement {
            println!("  !! {}: {disagreement}", attempt.what);
        }
    }
}

fn cells(row: &Row) -> [String; 6] {
    let record = &row.record;
    let verdict = match record.decision.verdict() {
        Verdict::Allow => "ALLOW",
        Verdict::Deny => "DENY",
    };
    let at = match record.direction {
        Direction::Egress => "egress",
        Direction::Ingress => "ingress",
    };
    let family = if record.destination.ip.is_some_and(|ip| ip.is_ipv6()) { " (v6)" } else { "" };
    [
        side_text(&record.source),
        side_text(&record.destination),
        format!("{}{family}", row.probe.text()),
        at.to_owned(),
        verdict.to_owned(),
        decision_text(&record.decision),
    ]
}

fn line(cells: &[String; 6], widths: &[usize; 6], paint: impl Fn(usize, String) -> String) -> String {
    let padded =
        cells.iter().zip(widths).enumerate().map(|(column, (cell, width))| paint(column, format!("{cell:<width$}")));
    padded.collect::<Vec<_>>().join("  ")
}

fn labels(side: &Side) -> String {
    if side.labels.is_empty() {
        return "{}".to_owned();
    }
    let pairs: Vec<String> = side.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    format!("{{{}}}", pairs.join(","))
}
