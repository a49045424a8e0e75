//! Namespaces and links: one namespace with all clients and servers, and one for each node under
//! test, each with its own client (behind `upN`) and server (behind `podN`).
//!
//! ```text
//! far: cN ---- upN  node-N  podN ---- sN :far
//! ```
//! Nothing in them speaks by itself: no IPv6, neighbours are permanent.

use std::fs::File;

use anyhow::Result;
use dataplane::address::MacAddr;

use crate::netns::{self, Namespaces, enter, run};

const FAR: &str = "far";

/// All namespaces of a run; removed when dropped.
pub struct Network {
    namespaces: Namespaces,
    /// Of clients and servers.
    far: String,
    home: File,
}

/// One node's namespace and its two links.
#[derive(Debug, Clone)]
pub struct Links {
    /// Name of the namespace, as `ip netns` knows it.
    pub namespace: String,
    /// The node's end toward the client.
    pub uplink: String,
    /// The node's end toward the server.
    pub pod: String,
    /// The client's end.
    pub client: String,
    /// The server's end.
    pub server: String,
    number: u8,
}

impl Links {
    /// Link address of the node toward the client.
    pub fn uplink_mac(&self) -> MacAddr {
        MacAddr([2, 0, 0, 0, 1, self.number])
    }

    /// Link address of the node toward the server.
    pub fn pod_mac(&self) -> MacAddr {
        MacAddr([2, 0, 0, 0, 2, self.number])
    }

    /// Link address of the client.
    pub fn client_mac(&self) -> MacAddr {
        MacAddr([2, 0, 0, 0, 3, self.number])
    }

    /// Link address of the server.
    pub fn server_mac(&self) -> MacAddr {
        MacAddr([2, 0, 0, 0, 4, self.number])
    }

    /// Runs `ip` on the node's namespace, one command a line.
    pub fn ip(&self, commands: &str) -> Result<()> {
        run("ip", &["-n", &self.namespace, "-batch", "-"], commands)
    }

    /// Runs a shell script in the node's namespace, with its own `/sys`.
    pub fn shell(&self, script: &str) -> Result<()> {
        run("ip", &["netns", "exec", &self.namespace, "sh", "-ec", script], "")
    }

    /// Moves the calling thread into the node's namespace.
    pub fn enter(&self) -> Result<()> {
        enter(&self.namespace)
    }
}

impl Network {
    /// The namespace of clients and servers, which the calling thread enters until this drops.
    /// Removes first what killed runs left behind.
    pub fn new() -> Result<Self> {
        let mut namespaces = Namespaces::new("veth")?;
        let far = add(&mut namespaces, FAR)?;
        let network = Self { namespaces, far: far.clone(), home: netns::current()? };
        // Keeps the kernel's dispatcher of XDP programs in place; see `LiveFrames::load`.
        run("ip", &["-n", &far, "-batch", "-"], "link add spare type veth peer name spare-peer")?;
        enter(&far)?;
        Ok(network)
    }

    /// Adds a node's namespace with its links.
    pub fn add_node(&mut self, number: u8) -> Result<Links> {
        let far = self.far.clone();
        let links = Links {
            namespace: add(&mut self.namespaces, &format!("node{number}"))?,
            uplink: format!("up{number}"),
            pod: format!("pod{number}"),
            client: format!("c{number}"),
            server: format!("s{number}"),
            number,
        };
        let pair = |ours: &str, mac: MacAddr, theirs: &str, their_mac: MacAddr| {
            let queues = "numrxqueues 1 numtxqueues 1";
            format!(
                "link add dev {ours} address {mac} {queues} type veth peer name {theirs} \
                 address {their_mac} netns {far} {queues}\nlink set dev {ours} up\n"
            )
        };
        links.ip(&format!(
            "{}{}",
            pair(&links.uplink, links.uplink_mac(), &links.client, links.client_mac()),
            pair(&links.pod, links.pod_mac(), &links.server, links.server_mac()),
        ))?;
        let up = format!("link set dev {} up\nlink set dev {} up\n", links.client, links.server);
        run("ip", &["-n", &far, "-batch", "-"], &up)?;
        Ok(links)
    }
}

/// Adds a namespace whose ends speak IPv4 only.
fn add(namespaces: &mut Namespaces, whose: &str) -> Result<String> {
    let name = namespaces.add(whose)?;
    let quiet = "for scope in all default; do \
                 file=/proc/sys/net/ipv6/conf/$scope/disable_ipv6; \
                 [ ! -e $file ] || echo 1 >$file; done; ip link set lo up";
    run("ip", &["netns", "exec", &name, "sh", "-ec", quiet], "")?;
    Ok(name)
}

impl Drop for Network {
    fn drop(&mut self) {
        // Before the namespace that this thread is in goes.
        netns::go_back(&self.home);
    }
}
