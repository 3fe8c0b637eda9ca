//! Waiting for another process, where nothing can be waited on but its answers.

use std::time::{Duration, Instant};

use anyhow::bail;

/// How often is asked.
const PAUSE: Duration = Duration::from_millis(5);

/// Asks until there is an answer; after `patience` fails with a sentence that names what was waited for.
pub fn until<T>(
    what: &str,
    patience: Duration,
    mut ask: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() >= deadline {
            bail!("waited {} ms in vain for {what}", patience.as_millis());
        }
        std::thread::sleep(PAUSE);
    }
}
