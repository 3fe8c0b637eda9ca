//! Reads one number from Prometheus' text form.

use anyhow::Context;

/// The sum of a metric's samples that carry these labels; zero if there is none.
pub(super) fn sum(page: &str, name: &str, labels: &[(&str, &str)]) -> anyhow::Result<f64> {
    let mut sum = 0.0;
    for line in page.lines() {
        let Some(rest) = line.strip_prefix(name) else { continue };
        let (shown, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.rsplit_once("} ").with_context(|| format!("labels do not end: {line}"))?,
            None => ("", rest),
        };
        // A longer name with this one at its beginning.
        if !rest.starts_with(['{', ' ']) {
            continue;
        }
        if labels.iter().all(|(key, value)| has_label(shown, key, value)) {
            let number = value.split_whitespace().next().with_context(|| format!("no number: {line}"))?;
            sum += number.parse::<f64>().with_context(|| format!("no number: {line}"))?;
        }
    }
    Ok(sum)
}

fn has_label(shown: &str, key: &str, value: &str) -> bool {
    let wanted = format!("{key}=\"{value}\"");
    shown.match_indices(&wanted).any(|(at, _)| at == 0 || shown.as_bytes()[at - 1] == b',')
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# HELP x Help.\nx_total{verdict=\"allow\",direction=\"in}gress\"} 3\nx_total{verdict=\"deny\"} 4\n\
                        x_total_more 100\ny 2.5 1700000000\n";

    #[track_caller]
    fn check(name: &str, labels: &[(&str, &str)], want: f64) {
        let got = sum(PAGE, name, labels).unwrap();
        assert!((got - want).abs() < 1e-9, "{got} instead of {want}");
    }

    #[test]
    fn samples_with_the_labels_are_added() {
        check("x_total", &[], 7.0);
        check("x_total", &[("verdict", "deny")], 4.0);
        check("x_total", &[("direction", "in}gress"), ("verdict", "allow")], 3.0);
        check("x_total", &[("dict", "deny")], 0.0);
        check("y", &[], 2.5);
        check("z", &[], 0.0);
    }
}
