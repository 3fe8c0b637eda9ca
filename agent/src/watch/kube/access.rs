//! How the API server is reached, and as whom.

use ::kube::config::{KubeConfigOptions, Kubeconfig};
use ::kube::{Client, Config};
use anyhow::Context;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Longest time to make a connection, whatever silence is borne later.
const CONNECT: Duration = Duration::from_secs(30);

/// Between two readings of credentials.
const RENEW_AFTER: Duration = Duration::from_secs(10);

/// A way to the API server.
pub struct Access {
    kubeconfig: Option<PathBuf>,
    silence: Duration,
    client: Mutex<(Client, Instant)>,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("kubeconfig", &self.kubeconfig).finish_non_exhaustive()
    }
}

impl Access {
    /// By this kubeconfig, or as the pod that this process runs in. The server need not answer yet; once it does not for
    /// so long as `silence`, it is taken for gone.
    pub async fn open(kubeconfig: Option<PathBuf>, silence: Duration) -> anyhow::Result<Self> {
        let client = connect(kubeconfig.as_ref(), Some(silence)).await?;
        Ok(Self { kubeconfig, silence, client: Mutex::new((client, Instant::now())) })
    }

    /// How long a connection may say nothing.
    pub(crate) fn silence(&self) -> Duration {
        self.silence
    }

    /// The client of now.
    pub(crate) fn client(&self) -> Client {
        self.client.lock().expect("nobody panics while taking the client").0.clone()
    }

    /// The namespace that the credentials are of.
    pub(crate) fn namespace(&self) -> String {
        self.client().default_namespace().to_owned()
    }

    /// Reads the credentials anew, if an answer says that the server does not know them.
    pub(crate) async fn renew_if_unknown(&self, error: &::kube::Error) {
        if let ::kube::Error::Api(status) = error
            && status.code == 401
            && let Err(error) = self.renew().await
        {
            tracing::warn!(error = format!("{error:#}"), "credentials cannot be read anew");
        }
    }

    /// Reads the credentials anew, as the server takes those of before no longer; some files are replaced before they end.
    async fn renew(&self) -> anyhow::Result<()> {
        let due = |read: Instant| read.elapsed() >= RENEW_AFTER;
        if !due(self.client.lock().expect("nobody panics while taking the client").1) {
            return Ok(());
        }
        let client = connect(self.kubeconfig.as_ref(), Some(self.silence)).await?;
        *self.client.lock().expect("nobody panics while taking the client") = (client, Instant::now());
        Ok(())
    }
}

/// A client that waits for no word longer than `silence`, if that is limited.
pub(crate) async fn connect(kubeconfig: Option<&PathBuf>, silence: Option<Duration>) -> anyhow::Result<Client> {
    let mut config = match kubeconfig {
        Some(path) => {
            let named = || format!("kubeconfig {}", path.display());
            let file = Kubeconfig::read_from(path).with_context(named)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.with_context(named)?
        }
        None => Config::incluster().context("this is no pod of a cluster, or has no service account")?,
    };
    if let Some(silence) = silence {
        config.connect_timeout = Some(CONNECT.min(silence));
        // Watches that are silent end by themselves before that (`stream`).
        config.read_timeout = Some(silence + silence / 10);
        // A connection that was kept for the next request has not been silent for as long as nobody asked.
        config.reset_reader_on_write = true;
    }
    Client::try_from(config).context("no client can be made of the credentials")
}
