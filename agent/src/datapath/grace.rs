//! Waiting until no program still works with what it saw before.

use std::sync::Once;
use std::time::Duration;

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
