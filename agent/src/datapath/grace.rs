//! Waiting until no program still works with what it saw before.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::Notify;

/// `MEMBARRIER_CMD_GLOBAL`: returns after a grace period of RCU.
const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;

/// Longest that a program runs, by a wide margin: the verifier bounds it, and bottom halves are off meanwhile.
const LONGEST_RUN: Duration = Duration::from_millis(20);

/// Waits until every program that had begun when this was called has ended, so that what only it could refer to (an old
/// endpoint row, a bank of `EDGES`) can go.
///
/// TC programs run inside an RCU read-side section, so one grace period suffices; `membarrier(MEMBARRIER_CMD_GLOBAL)`
/// waits for one. Where the kernel refuses that (CPUs without a tick, `nohz_full`) a fixed time is waited instead.
pub fn grace() {
    static SAID: Once = Once::new();
    // SAFETY: takes numbers only.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        let error = std::io::Error::last_os_error();
        SAID.call_once(|| tracing::warn!(%error, "this kernel has no global membarrier: a fixed time is waited"));
        std::thread::sleep(LONGEST_RUN);
    }
}

/// A grace period that passes while other things are done.
#[derive(Debug)]
pub struct Passing {
    thread: Option<JoinHandle<()>>,
    over: Arc<AtomicBool>,
}

impl Passing {
    /// It begins; `heard` hears of its end.
    pub fn begin(heard: &Arc<Notify>) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (tells, hears) = (Arc::clone(&over), Arc::clone(heard));
        let wait = move || {
            grace();
            tells.store(true, Ordering::Release);
            hears.notify_one();
        };
        let thread = std::thread::Builder::new().name("grace".to_owned()).spawn(wait);
        let thread = thread.inspect_err(|error| {
            tracing::warn!(%error, "no thread for a grace period: it is waited for");
            over.store(true, Ordering::Release);
            heard.notify_one();
        });
        Self { thread: thread.ok(), over }
    }

    /// Whether [`Passing::end`] is worth asking for.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Waits for its end.
    pub fn end(self) {
        match self.thread.map(JoinHandle::join) {
            Some(Ok(())) => {}
            // Nothing in it panics; and if it did, nothing would be known of the period.
            Some(Err(_)) | None => grace(),
        }
    }
}
