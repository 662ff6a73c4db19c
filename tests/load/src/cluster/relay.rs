//! A way to a server that can be cut and led elsewhere, as a load balancer or a virtual address does in a
//! failover.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

#[derive(Debug)]
pub struct Relay {
    pub address: SocketAddr,
    to: Arc<watch::Sender<Option<SocketAddr>>>,
    accepting: JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.to.send_replace(None);
        self.accepting.abort();
    }
}

impl Relay {
    pub async fn start(to: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let to = Arc::new(watch::Sender::new(Some(to)));
        let leads = to.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut leads = leads.subscribe();
                let Some(to) = *leads.borrow_and_update() else { continue };
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(to).await else { return };
                    // Whoever is connected when the way changes is cut off.
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        _ = leads.changed() => {}
                    }
                });
            }
        });
        Ok(Self { address, to, accepting })
    }

    /// Cuts all connections, and leads new ones there, or nowhere.
    pub fn lead(&self, to: Option<SocketAddr>) {
        self.to.send_replace(to);
    }

    pub fn leads_to(&self) -> Option<SocketAddr> {
        *self.to.borrow()
    }
}
