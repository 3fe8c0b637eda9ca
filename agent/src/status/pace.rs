//! How fast the API server is asked, and asked again.

use std::time::Duration;

/// How long one request may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Between two writes, so that an agent that finds a thousand policies untold does not ask for more than twenty a second.
pub(super) const BETWEEN: Duration = Duration::from_millis(50);

/// Pauses, each twice the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Doubling {
    next: Duration,
    most: Duration,
}

impl Doubling {
    /// From the first to the longest.
    pub(super) const fn new(first: Duration, most: Duration) -> Self {
        Self { next: first, most }
    }

    /// The next pause.
    pub(super) fn next(&mut self) -> Duration {
        let pause = self.next;
        self.next = (self.next * 2).min(self.most);
        pause
    }
}

/// Something between half of a pause and all of it: many agents lose the same server at the same moment.
pub(super) fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let second = Duration::from_secs(1);
        let mut pauses = Doubling::new(second, 5 * second);
        let taken: Vec<u64> = (0..5).map(|_| pauses.next().as_secs()).collect();
        assert_eq!(taken, [1, 2, 4, 5, 5]);
    }
}
