//! A relay between a node's agent and the API server, which ends connections after so many bytes.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};

use super::Cluster;
use crate::lab::Node;

/// Where it listens, in the node's namespace: one of the names in the API server's certificate.
const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 6443);

/// A running relay; what it carries ends when it is dropped.
pub struct Relay {
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    to: SocketAddr,
    /// What the server may say on one connection.
    allowance_bytes: watch::Sender<u64>,
    cuts: AtomicU64,
}

impl Relay {
    /// Starts it on a node; every connection to its [`Relay::address`] ends after so many bytes of the server's.
    pub fn start(cluster: &Cluster, node: &Node, allowance_bytes: u64) -> anyhow::Result<Self> {
        let listener = node.netns().run(|| std::net::TcpListener::bind(ADDRESS))?;
        let listener = listener.with_context(|| format!("cannot listen on {ADDRESS}"))?;
        listener.set_nonblocking(true)?;
        let to = SocketAddr::new(cluster.address(), ADDRESS.port());
        let (allowance_bytes, cuts) = (watch::Sender::new(allowance_bytes), AtomicU64::default());
        let shared = Arc::new(Shared { to, allowance_bytes, cuts });
        let (stop, stopped) = oneshot::channel();
        let (netns, theirs) = (node.netns().clone(), Arc::clone(&shared));
        let thread = std::thread::Builder::new().name("relay".to_owned()).spawn(move || {
            // All its sockets are made on this thread, in the node's namespace.
            let ended = netns.run(|| serve(listener, &theirs, stopped));
            if let Err(error) = ended.and_then(|served| Ok(served?)) {
                eprintln!("the relay to {} stops: {error:#}", theirs.to);
            }
        })?;
        Ok(Self { shared, stop: Some(stop), thread: Some(thread) })
    }

    /// Where a kubeconfig has to lead.
    pub fn address(&self) -> SocketAddr {
        ADDRESS
    }

    /// From now on every connection ends after so many bytes of the server's; those that have had them end at once.
    pub fn allow(&self, bytes: u64) {
        self.shared.allowance_bytes.send_replace(bytes);
    }

    /// How many connections were ended in the middle of an answer.
    pub fn cuts(&self) -> u64 {
        self.shared.cuts.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so already.
            let _ = thread.join();
        }
    }
}

fn serve(listener: std::net::TcpListener, shared: &Arc<Shared>, stopped: oneshot::Receiver<()>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener)?;
        let accepting = async {
            loop {
                let (client, _) = listener.accept().await?;
                let shared = Arc::clone(shared);
                // Either side's end is the end of both; whose fault it is does not matter here.
                tokio::spawn(async move { carry(client, &shared).await });
            }
        };
        tokio::select! {
            // The sender was dropped.
            _ = stopped => Ok(()),
            ended = accepting => ended,
        }
    })
}

async fn carry(mut client: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut server = TcpStream::connect(shared.to).await?;
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let answers = async {
        let mut allowance_bytes = shared.allowance_bytes.subscribe();
        let mut bytes = vec![0; 16 << 10];
        let mut said_bytes = 0;
        loop {
            let length = tokio::select! {
                length = from_server.read(&mut bytes) => match length? {
                    0 => return Ok(()),
                    length => length,
                },
                // The sender is there for as long as anything is carried.
                _ = allowance_bytes.changed() => 0,
            };
            said_bytes += length as u64;
            if said_bytes > *allowance_bytes.borrow_and_update() {
                shared.cuts.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            to_client.write_all(&bytes[..length]).await?;
        }
    };
    tokio::select! {
        ended = tokio::io::copy(&mut from_client, &mut to_server) => ended.map(drop),
        ended = answers => ended,
    }
}
