//! Rounds: every variant takes its turn in each, so that what the machine does meanwhile meets all alike.

/// A quantile of samples, `part` from 0 to 1; sorts them. There is at least one.
pub fn quantile(samples: &mut [f64], part: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
    let index = ((samples.len() as f64 * part) as usize).min(samples.len() - 1);
    samples[index]
}

/// The median of samples; sorts them.
pub fn median(samples: &mut [f64]) -> f64 {
    quantile(samples, 0.5)
}

/// The numbers of `count` variants in the order of one turn: each turn begins with another one.
pub fn order(count: usize, turn: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |nth| (nth + turn) % count)
}

/// One round of several variants: `turns` times each adds samples, and the median of each variant's samples is told.
pub fn round<V>(
    variants: &mut [V],
    turns: usize,
    mut add: impl FnMut(&mut V, &mut Vec<f64>) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<f64>> {
    let mut samples = vec![Vec::new(); variants.len()];
    for turn in 0..turns {
        for index in order(variants.len(), turn) {
            add(&mut variants[index], &mut samples[index])?;
        }
    }
    Ok(samples.iter_mut().map(|samples| median(samples)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_has_as_many_turns_and_goes_first_in_turn() {
        let orders: Vec<Vec<usize>> = (0..3).map(|turn| order(3, turn).collect()).collect();
        assert_eq!(orders, [[0, 1, 2], [1, 2, 0], [2, 0, 1]]);
    }

    #[test]
    fn a_quantile_is_one_of_the_samples() {
        let mut samples: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert!((median(&mut samples) - 51.0).abs() < 1e-9);
        assert!((quantile(&mut samples, 0.99) - 100.0).abs() < 1e-9);
        assert!((quantile(&mut [7.0], 0.99) - 7.0).abs() < 1e-9);
    }

    #[test]
    fn a_round_tells_each_variants_median() {
        let mut variants = [1.0, 10.0];
        let medians = round(&mut variants, 3, |variant, samples| {
            samples.push(*variant);
            *variant *= 2.0;
            Ok(())
        });
        assert_eq!(medians.unwrap(), [2.0, 20.0]);
    }
}
