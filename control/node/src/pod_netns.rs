//! What must be done inside a pod's network namespace: a thread enters it and ends there.

use std::fs::File;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::TryStreamExt;
use nix::sched::{CloneFlags, setns};
use xdp_redirect::ethtool::{Offload, OffloadError, offload, set_offload};

use crate::netlink::{Link, decode};
use crate::offloads::Switch;
use crate::privileges;

/// Something inside the namespace failed.
#[derive(Debug, thiserror::Error)]
pub enum PodNetnsError {
    /// The namespace cannot be entered.
    #[error("network namespace {netns}: {source}; is the pod still there?")]
    Enter {
        /// Its path.
        netns: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The addresses are on no interface there.
    #[error("no interface in {netns} has the endpoint's addresses")]
    NoInterface {
        /// Its path.
        netns: String,
    },
    /// Netlink there failed.
    #[error("network namespace {netns}: {detail}")]
    Netlink {
        /// Its path.
        netns: String,
        /// What failed.
        detail: String,
    },
    /// The offload cannot be switched.
    #[error(transparent)]
    Offload(#[from] OffloadError),
}

/// A pod's end of its link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodEnd {
    /// Its offloads that are on.
    pub on: Vec<Offload>,
    /// Largest packet that it takes, in bytes.
    pub mtu: u32,
}

/// Looks at the interface that has one of `addresses` in the namespace at path `netns`, within `limit`.
///
/// # Errors
/// [`PodNetnsError`].
pub fn look(netns: &str, addresses: &[IpAddr], limit: Duration) -> Result<PodEnd, PodNetnsError> {
    inside(netns, addresses, limit, |link| {
        let mut on = Vec::new();
        for one in Offload::ALL {
            if offload(&link.name, one)? {
                on.push(one);
            }
        }
        Ok(PodEnd { on, mtu: link.mtu })
    })
}

/// Switches offloads at the same interface, in order.
///
/// # Errors
/// [`PodNetnsError`]; those before the one that failed are switched.
pub fn switch_offloads(
    netns: &str,
    addresses: &[IpAddr],
    limit: Duration,
    switches: &[Switch],
) -> Result<(), PodNetnsError> {
    let switches = switches.to_vec();
    inside(netns, addresses, limit, move |link| {
        switches.iter().try_for_each(|(one, on)| set_offload(&link.name, *one, *on))
    })
}

/// Whether an offload of an interface is on in the namespace at path `netns`.
///
/// # Errors
/// [`PodNetnsError`].
pub fn offload_of(netns: &str, interface: &str, one: Offload) -> Result<bool, PodNetnsError> {
    let interface = interface.to_owned();
    entered(netns, move |_| Ok(offload(&interface, one)?))
}

/// Runs `act` in the namespace, with the interface as it is there.
fn inside<T: Send + 'static>(
    netns: &str,
    addresses: &[IpAddr],
    limit: Duration,
    act: impl FnOnce(&Link) -> Result<T, OffloadError> + Send + 'static,
) -> Result<T, PodNetnsError> {
    let wanted = addresses.to_vec();
    entered(netns, move |path| {
        let link = interface_with(path, &wanted, limit)?;
        Ok(act(&link)?)
    })
}

/// Runs `act` in a thread that has entered the namespace at path `netns`, and ends there.
fn entered<T: Send + 'static>(
    netns: &str,
    act: impl FnOnce(&str) -> Result<T, PodNetnsError> + Send + 'static,
) -> Result<T, PodNetnsError> {
    let path = netns.to_owned();
    let inside = std::thread::Builder::new().name("pod-netns".into()).spawn(move || {
        enter(&path)?;
        act(&path)
    });
    let refuse = |source| PodNetnsError::Enter { netns: netns.to_owned(), source };
    let joined = inside.map_err(refuse)?.join();
    joined.unwrap_or_else(|_| Err(refuse(std::io::Error::other("the thread inside panicked"))))
}

fn enter(netns: &str) -> Result<(), PodNetnsError> {
    let refuse = |source| PodNetnsError::Enter { netns: netns.to_owned(), source };
    let file = File::open(netns).map_err(refuse)?;
    // This thread ends soon, and with it what it may do.
    privileges::raise(caps::Capability::CAP_SYS_ADMIN);
    setns(file, CloneFlags::CLONE_NEWNET).map_err(|errno| refuse(errno.into()))
}

fn interface_with(
    netns: &str,
    addresses: &[IpAddr],
    limit: Duration,
) -> Result<Link, PodNetnsError> {
    let refuse = |detail: String| PodNetnsError::Netlink { netns: netns.to_owned(), detail };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let found = runtime
        .map_err(|error| refuse(error.to_string()))?
        .block_on(async { tokio::time::timeout(limit, find(addresses)).await });
    match found {
        Ok(Ok(Some(link))) => Ok(link),
        Ok(Ok(None)) => Err(PodNetnsError::NoInterface { netns: netns.to_owned() }),
        Ok(Err(detail)) => Err(refuse(detail)),
        Err(_) => Err(refuse("the kernel did not answer in time".into())),
    }
}

async fn find(addresses: &[IpAddr]) -> Result<Option<Link>, String> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(|error| error.to_string())?;
    let driver = tokio::spawn(connection);
    let mut index = None;
    let mut answers = std::pin::pin!(handle.address().get().execute());
    while let Some(message) = answers.try_next().await.map_err(|error| error.to_string())? {
        let decoded = decode::decode_address(&message);
        index = index.or(decoded
            .filter(|(_, own)| addresses.contains(&own.address))
            .map(|(index, _)| index));
    }
    let mut found = None;
    if let Some(index) = index {
        let mut links = std::pin::pin!(handle.link().get().match_index(index).execute());
        let link = links.try_next().await.map_err(|error| error.to_string())?;
        found = link.as_ref().and_then(decode::decode_link).map(|(_, link)| link);
    }
    driver.abort();
    Ok(found)
}
