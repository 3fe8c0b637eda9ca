//! Moments and the clock that makes them from kernel time.
//!
//! Invariant: no clock is read here; the offset between the kernel's clock and the wall is a value that comes in.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A moment: nanoseconds since 1970-01-01T00:00:00Z. Written as RFC 3339 in UTC with nine decimals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Nanoseconds since 1970-01-01T00:00:00Z.
    pub unix_ns: i64,
}

/// A text that is no moment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no RFC 3339 time such as 2026-01-31T12:00:00.5Z: {what}")]
pub struct TimeError {
    /// The text.
    pub text: String,
    /// What is wrong with it.
    pub what: String,
}

impl Timestamp {
    /// The moment of the operating system's clock; moments before 1970 are 1970.
    pub fn from_system(time: std::time::SystemTime) -> Self {
        let since = time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self { unix_ns: i64::try_from(since.as_nanos()).unwrap_or(i64::MAX) }
    }

    /// The time of day in UTC with milliseconds, `12:00:01.123`.
    pub fn time_of_day(self) -> String {
        self.to_string()[11..23].to_owned()
    }

    /// Date and time in UTC with milliseconds, `2026-01-31T12:00:01.123Z`.
    pub fn date_and_time(self) -> String {
        format!("{}Z", &self.to_string()[..23])
    }
}

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Every i64 of nanoseconds lies in the years 1677 to 2262, which the library covers.
        let moment = jiff::Timestamp::from_nanosecond(i128::from(self.unix_ns)).map_err(|_| std::fmt::Error)?;
        write!(f, "{moment:.9}")
    }
}

impl std::str::FromStr for Timestamp {
    type Err = TimeError;

    fn from_str(text: &str) -> Result<Self, TimeError> {
        let error = |what: String| TimeError { text: text.to_owned(), what };
        let moment: jiff::Timestamp = text.parse().map_err(|fault: jiff::Error| error(fault.to_string()))?;
        let unix_ns = i64::try_from(moment.as_nanosecond())
            .map_err(|_| error("it is outside the years 1678 to 2261".to_owned()))?;
        Ok(Self { unix_ns })
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Turns the kernel's `CLOCK_MONOTONIC` into moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// The moment at which the kernel's clock stood at 0.
    origin: Timestamp,
}

impl Clock {
    /// From two readings taken together: the kernel's clock in ns and the wall's.
    pub fn from_readings(monotonic_ns: u64, wall: Timestamp) -> Self {
        Self { origin: Timestamp { unix_ns: wall.unix_ns.saturating_sub(signed(monotonic_ns)) } }
    }

    /// The moment at which the kernel's clock showed this many ns.
    pub fn moment(self, monotonic_ns: u64) -> Timestamp {
        Timestamp { unix_ns: self.origin.unix_ns.saturating_add(signed(monotonic_ns)) }
    }
}

/// Kernel times stay below 2^63 ns for 292 years of uptime.
fn signed(monotonic_ns: u64) -> i64 {
    i64::try_from(monotonic_ns).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_with_nanoseconds_and_read_back() {
        let moment = Timestamp { unix_ns: 1_769_860_801_123_000_000 };
        assert_eq!(moment.to_string(), "2026-01-31T12:00:01.123000000Z");
        assert_eq!(moment.time_of_day(), "12:00:01.123");
        assert_eq!(moment.date_and_time(), "2026-01-31T12:00:01.123Z");
        assert_eq!("2026-01-31T13:00:01.123+01:00".parse(), Ok(moment));
        assert_eq!(Timestamp::default().to_string(), "1970-01-01T00:00:00.000000000Z");
        let error = "yesterday".parse::<Timestamp>().expect_err("no time").to_string();
        assert!(error.starts_with("\"yesterday\" is no RFC 3339 time"), "{error}");
    }

    #[test]
    fn kernel_time_is_shifted_by_the_offset_of_the_two_clocks() {
        let wall = Timestamp { unix_ns: 1_769_860_800_000_000_000 };
        let clock = Clock::from_readings(5_000_000_000, wall);
        assert_eq!(clock.moment(5_000_000_000), wall);
        assert_eq!(clock.moment(6_123_000_000).to_string(), "2026-01-31T12:00:01.123000000Z");
        assert_eq!(clock.moment(0).to_string(), "2026-01-31T11:59:55.000000000Z");
    }
}
