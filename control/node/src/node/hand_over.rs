//! One process hands over to the next: the next makes everything ready that touches nothing (program
//! loaded, packet memory mapped, cluster compiled), and only then asks the one before to end. What is
//! ours is dropped from there until it serves; whatever goes wrong before leaves its predecessor serving.

use std::path::Path;
use std::time::{Duration, Instant};

use control::admin::{Reply, Request};

use super::network_claim::NetworkClaim;
use super::{Node, NodeError, Settings};
use crate::admin_server::{AdminSocketError, RunDirectory};
use crate::cli::client::{Client, ClientError};

/// How long the process before may take to end.
const ENDS_WITHIN: Duration = Duration::from_secs(10);
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(1);

/// That this process is the only one: the run directory and the network namespace.
pub(super) struct Claims {
    pub directory: RunDirectory,
    pub network: NetworkClaim,
}

impl Claims {
    pub fn take(settings: &Settings) -> Result<Self, NodeError> {
        let directory = RunDirectory::claim(&settings.run_directory)?;
        let network = NetworkClaim::claim()?;
        Ok(Self { directory, network })
    }
}

/// The process that serves now.
#[derive(Debug)]
pub struct Predecessor {
    client: Client,
}

impl Predecessor {
    /// Who answers at the admin socket of this run directory; `None` when nobody does.
    ///
    /// # Errors
    /// [`NodeError::HandOver`] when the socket is there and may not be used.
    pub fn find(run_directory: &Path) -> Result<Option<Self>, NodeError> {
        match Client::connect(&run_directory.join("admin.sock")) {
            Ok(client) => Ok(Some(Self { client })),
            Err(ClientError::Connect { source, .. }) if nobody_listens(&source) => Ok(None),
            Err(error) => Err(NodeError::HandOver(error)),
        }
    }

    /// Asks it to end, and waits until it has.
    pub(super) async fn hand_over(mut self, settings: &Settings) -> Result<Claims, NodeError> {
        let pid = match self.client.ask(Request::HandOver).map_err(NodeError::HandOver)? {
            Reply::HandingOver { pid } => pid,
            _ => return Err(NodeError::HandOver(ClientError::Silent)),
        };
        tracing::info!(pid, "the process before hands over");
        let until = Instant::now() + ENDS_WITHIN;
        loop {
            match Claims::take(settings) {
                Err(error) if is_taken(&error) && Instant::now() < until => {
                    tokio::time::sleep(LOOK).await;
                }
                claimed => return claimed,
            }
        }
    }
}

fn nobody_listens(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    [NotFound, ConnectionRefused].contains(&error.kind())
}

fn is_taken(error: &NodeError) -> bool {
    matches!(
        error,
        NodeError::SecondProcess { .. } | NodeError::Admin(AdminSocketError::InUse { .. })
    )
}

impl Node {
    /// Ends for the process that asks: what is attached stays, flow tables are closed for it. A service
    /// manager is told whom to follow instead, so that it neither ends the other one nor starts a third.
    pub(super) fn begin_hand_over(&mut self, peer: Option<u32>) -> Reply {
        tracing::info!(peer, "another process takes over");
        self.is_handing_over = true;
        self.tell_supervisor_followed_by(peer);
        Reply::HandingOver { pid: std::process::id() }
    }
}
