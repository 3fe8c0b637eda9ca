//! Datagrams that are sent while something happens, counted at both ends.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::PATIENCE;
use crate::lab::{Netns, until};

/// Datagrams from here to there without a pause, each from a socket of its own and so a flow of its own.
pub struct Datagrams {
    stop: mpsc::Sender<()>,
    sends: JoinHandle<u64>,
    over: Arc<AtomicBool>,
    heard: Arc<AtomicU64>,
    hears: JoinHandle<()>,
}

/// Between two datagrams: some hundred a second leave a pod its share of the flow table for minutes.
const PACE: Duration = Duration::from_millis(5);

impl Datagrams {
    /// Starts them; the target is an address of `to`, where nobody listens yet.
    ///
    /// # Panics
    ///
    /// If the sockets cannot be made.
    #[must_use]
    pub fn start(from: &Netns, to: &Netns, target: SocketAddr) -> Self {
        let ear = to.run(|| UdpSocket::bind(target)).expect("entered").expect("bound");
        ear.set_read_timeout(Some(PATIENCE)).expect("set");
        // Whoever hears may be late; nothing is to be lost by that.
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&ear, 1 << 22).expect("set");
        let (over, heard) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ends, counts) = (Arc::clone(&over), Arc::clone(&heard));
        let hears = std::thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                if ear.recv(&mut [0; 16]).is_ok() {
                    counts.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let (stop, stopped) = mpsc::channel();
        let from = from.clone();
        let sends = std::thread::spawn(move || {
            let send = move || {
                let mut sent = 0;
                while stopped.recv_timeout(PACE) == Err(RecvTimeoutError::Timeout) {
                    let socket = UdpSocket::bind(("0.0.0.0", 0)).expect("bound");
                    socket.send_to(b"word", target).expect("sent");
                    sent += 1;
                }
                sent
            };
            from.run(send).expect("entered")
        });
        Self { stop, sends, over, heard, hears }
    }

    /// How many came so far.
    pub fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }

    /// Ends it; how many were sent, and how many of them came.
    ///
    /// # Panics
    ///
    /// If a datagram could not be sent.
    pub fn finish(self) -> (u64, u64) {
        drop(self.stop);
        let sent = self.sends.join().expect("no panic");
        // What is still on its way comes within a moment; what was dropped never does.
        let _ = until("the last datagram", PATIENCE, || Ok((self.heard.load(Ordering::Relaxed) >= sent).then_some(())));
        self.over.store(true, Ordering::Relaxed);
        self.hears.join().expect("no panic");
        (sent, self.heard.load(Ordering::Relaxed))
    }
}
