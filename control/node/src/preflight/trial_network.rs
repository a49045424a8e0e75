//! Network namespaces of threads, which end with them, and links among them: nothing has a name that
//! others could see, and nothing can be left behind.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use control::config::{Segments, Transmit};
use futures_util::TryStreamExt;
use nix::sched::{CloneFlags, unshare};
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth};
use xdp_redirect::ethtool::set_offload;

use crate::netlink::decode;
use crate::offloads;

/// How long the middle may take until it forwards.
const READY_WITHIN: Duration = Duration::from_secs(5);

type Order = Box<dyn FnOnce() + Send>;

/// A thread in a network namespace of its own, which does what it is told.
pub struct Apart {
    netns: File,
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Apart {
    /// Starts it.
    ///
    /// # Errors
    /// No thread; EPERM without `CAP_SYS_ADMIN`.
    pub fn start() -> io::Result<Self> {
        let (orders, ordered) = channel::<Order>();
        let (ready, is_ready) = channel();
        let thread = std::thread::Builder::new().name("preflight".into()).spawn(move || {
            crate::privileges::raise(caps::Capability::CAP_SYS_ADMIN);
            let entered = unshare(CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
            let opened = entered.and_then(|()| File::open("/proc/thread-self/ns/net"));
            let is_there = opened.is_ok();
            // Whoever waits for it has it before anything is ordered.
            let _ = ready.send(opened);
            if is_there {
                ordered.iter().for_each(|order| order());
            }
        })?;
        let netns = is_ready.recv().map_err(io::Error::other)??;
        Ok(Self { netns, orders: Some(orders), thread: Some(thread) })
    }

    /// Has it do something; what it gives comes by the channel.
    pub fn begin<T: Send + 'static>(
        &self,
        act: impl FnOnce() -> T + Send + 'static,
    ) -> Receiver<T> {
        let (done, is_done) = channel();
        let order: Order = Box::new(move || {
            // Nobody waits any more where something else went wrong.
            let _ = done.send(act());
        });
        if let Some(orders) = &self.orders {
            let _ = orders.send(order);
        }
        is_done
    }

    /// Has it do something, and waits.
    ///
    /// # Errors
    /// What it gave, or that it panicked.
    pub fn run<T: Send + 'static>(
        &self,
        act: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        self.begin(act).recv().map_err(io::Error::other)?
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What links are made like.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Receive and transmit queues of each end.
    pub queues: u32,
    /// Largest packet.
    pub mtu: u32,
    /// The ends' offloads are switched as an ADD switches those of a pod for these ways.
    pub ways: (Segments, Transmit),
}

/// How whoever forwards in the middle and whoever sends from the ends wait for each other.
#[derive(Debug, Clone, Default)]
pub struct Signals {
    is_ready: Arc<AtomicBool>,
    is_over: Arc<AtomicBool>,
}

impl Signals {
    /// The middle forwards.
    pub fn set_ready(&self) {
        self.is_ready.store(true, Ordering::SeqCst);
    }

    /// Whether the ends have all they will get.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }
}

/// `left` and `right` in the middle, each with a link to an end that has an address.
pub struct Network {
    /// Has `left` and `right`.
    pub middle: Apart,
    /// Behind `left` and `right`.
    pub ends: [Apart; 2],
}

/// Of the ends.
pub const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
/// In the middle.
pub const INTERFACES: [&str; 2] = ["left", "right"];
const FAR: &str = "far";

impl Network {
    /// Makes it, with all links up and the ends knowing each other's link address.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn make(shape: Shape) -> io::Result<Self> {
        let network = Self { middle: Apart::start()?, ends: [Apart::start()?, Apart::start()?] };
        for (end, interface) in network.ends.iter().zip(INTERFACES) {
            let netns = end.netns.try_clone()?;
            network.middle.run(move || make_link(interface, shape, &netns))?;
        }
        let mut addresses = Vec::new();
        for end in &network.ends {
            addresses.push(end.run(link_address)?);
        }
        let [left, right] = &network.ends;
        let (of_left, of_right) = (addresses[0].clone(), addresses[1].clone());
        left.run(move || settle(ADDRESSES[0], ADDRESSES[1], of_right, shape.ways))?;
        right.run(move || settle(ADDRESSES[1], ADDRESSES[0], of_left, shape.ways))?;
        Ok(network)
    }

    /// Has the middle forward with `forward` while `exchange` has the ends send to each other; gives
    /// what both gave.
    ///
    /// # Errors
    /// Those of both, the middle's first, or that it ended before it was asked to.
    pub fn while_forwarding<M: Send + 'static, T>(
        &self,
        forward: impl FnOnce(&Signals) -> io::Result<M> + Send + 'static,
        exchange: impl FnOnce(&[Apart; 2]) -> io::Result<T>,
    ) -> io::Result<(M, T)> {
        let signals = Signals::default();
        let own = signals.clone();
        let forwarding = self.middle.begin(move || forward(&own));
        let began = Instant::now();
        while !signals.is_ready.load(Ordering::SeqCst) && began.elapsed() < READY_WITHIN {
            if let Ok(ended) = forwarding.try_recv() {
                return Err(ended.err().unwrap_or_else(|| io::Error::other("it ended too soon")));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let exchanged = exchange(&self.ends);
        signals.is_over.store(true, Ordering::SeqCst);
        let forwarded = forwarding.recv().map_err(io::Error::other)??;
        Ok((forwarded, exchanged?))
    }
}

/// Asks the kernel in the namespace of the calling thread.
fn netlink<T, F: Future<Output = Result<T, rtnetlink::Error>>>(
    act: impl FnOnce(Handle) -> F,
) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let driver = tokio::spawn(connection);
        let result = act(handle).await;
        driver.abort();
        result.map_err(errno)
    })
}

fn errno(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}

async fn index_of(handle: &Handle, name: &str) -> Result<(u32, Vec<u8>), rtnetlink::Error> {
    let mut links = std::pin::pin!(handle.link().get().match_name(name.to_owned()).execute());
    let message = links.try_next().await?.ok_or(rtnetlink::Error::RequestFailed)?;
    let (index, link) = decode::decode_link(&message).ok_or(rtnetlink::Error::RequestFailed)?;
    Ok((index, link.mac.unwrap_or_default().0.to_vec()))
}

fn make_link(interface: &'static str, shape: Shape, netns: &File) -> io::Result<()> {
    let sizes =
        [LinkAttribute::NumTxQueues(shape.queues), LinkAttribute::NumRxQueues(shape.queues)];
    let mut far = LinkMessageBuilder::<LinkUnspec>::new()
        .name(FAR)
        .mtu(shape.mtu)
        .setns_by_fd(netns.as_raw_fd());
    let mut near = LinkVeth::new(interface, FAR).mtu(shape.mtu);
    for size in sizes {
        far = far.append_extra_attribute(size.clone());
        near = near.append_extra_attribute(size);
    }
    let pair = near.set_info_data(InfoData::Veth(InfoVeth::Peer(far.build()))).build();
    netlink(async move |handle| {
        handle.link().add(pair).execute().await?;
        let (index, _) = index_of(&handle, interface).await?;
        handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await
    })
}

fn link_address() -> io::Result<Vec<u8>> {
    netlink(async |handle| Ok(index_of(&handle, FAR).await?.1))
}

fn settle(
    own: Ipv4Addr,
    other: Ipv4Addr,
    link_address: Vec<u8>,
    (segments, transmit): (Segments, Transmit),
) -> io::Result<()> {
    for one in offloads::unwanted(segments) {
        set_offload(FAR, *one, false).map_err(io::Error::other)?;
    }
    netlink(async move |handle| {
        let (index, _) = index_of(&handle, FAR).await?;
        handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await?;
        handle.address().add(index, IpAddr::V4(own), 24).execute().await?;
        let neighbour = handle.neighbours().add(index, IpAddr::V4(other));
        neighbour.link_layer_address(&link_address).replace().execute().await
    })?;
    // Of a link that is up, as an ADD does: where GRO is on before, the kernel does not tell the near end
    // that frames may be redirected there.
    for one in offloads::needed(segments, transmit) {
        set_offload(FAR, *one, true).map_err(io::Error::other)?;
    }
    Ok(())
}
