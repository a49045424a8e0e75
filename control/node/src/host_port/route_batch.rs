//! Many changes of routes in few system calls: in a large cluster there are tens of thousands of
//! services, and a request by itself costs three times what the kernel needs for the route.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::route::RouteMessage;
use tokio::task::JoinHandle;

/// Changes that go to the kernel together. It handles all of them within the call, and answers those
/// that it refuses, each with a copy: all answers have room in a socket's buffer of the usual size.
const AT_ONCE: usize = 256;
/// Netlink messages begin at multiples of this, in bytes (netlink(7), `NLMSG_ALIGN`).
const ALIGNMENT: usize = 4;

/// What is to become of a route.
#[derive(Debug, Clone)]
pub(super) enum Change {
    /// It is to be there, in the place of one to the same destination.
    Set(RouteMessage),
    /// It is to be there no more.
    Delete(RouteMessage),
}

/// A change that the kernel refuses, by its place among those asked for.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) place: usize,
    pub(super) source: io::Error,
}

/// Changes that are being made.
#[derive(Debug)]
pub(super) struct Making(Option<JoinHandle<Result<(), Refused>>>);

/// Begins to make `changes`, in order. What is to be deleted may be gone already. Meanwhile this thread
/// goes on: whoever follows the kernel's routes there is told of each.
pub(super) fn begin(changes: Vec<Change>) -> Making {
    let some = !changes.is_empty();
    Making(some.then(|| tokio::task::spawn_blocking(move || make_all(&changes))))
}

impl Making {
    /// Waits until all are made.
    ///
    /// # Errors
    /// [`Refused`] for the first that the kernel refuses; of those after it, some are made as well.
    pub(super) async fn made(self) -> Result<(), Refused> {
        let Some(making) = self.0 else { return Ok(()) };
        let made = making.await;
        made.unwrap_or_else(|error| Err(Refused { place: 0, source: io::Error::other(error) }))
    }
}

fn make_all(changes: &[Change]) -> Result<(), Refused> {
    let socket = open().map_err(|source| Refused { place: 0, source })?;
    for (turn, together) in changes.chunks(AT_ONCE).enumerate() {
        let first = turn * AT_ONCE;
        let made = make_together(&socket, together);
        made.map_err(|Refused { place, source }| Refused { place: first + place, source })?;
    }
    Ok(())
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    // Answers are there when the call that asked returns: there is nothing to wait for.
    socket.set_non_blocking(true)?;
    Ok(socket)
}

fn make_together(socket: &Socket, changes: &[Change]) -> Result<(), Refused> {
    let whole = |source| Refused { place: 0, source };
    let mut buffer = Vec::with_capacity(changes.len() * 128);
    for (place, change) in changes.iter().enumerate() {
        put(change, place, place + 1 == changes.len(), &mut buffer);
    }
    let sent = socket.send(&buffer, 0).map_err(whole)?;
    if sent != buffer.len() {
        return Err(whole(io::Error::other("the kernel took a part of the request")));
    }
    let mut refused = None;
    loop {
        let (answers, _) = socket.recv_from_full().map_err(whole)?;
        let mut rest = answers.as_slice();
        while !rest.is_empty() {
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(|error| whole(io::Error::other(error.to_string())))?;
            let length = usize::try_from(answer.header.length).unwrap_or(rest.len());
            rest = rest.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
            let place = usize::try_from(answer.header.sequence_number).unwrap_or(usize::MAX);
            let NetlinkPayload::Error(error) = answer.payload else { continue };
            let is_gone = matches!(changes.get(place), Some(Change::Delete(_)))
                && error.to_io().raw_os_error() == Some(libc::ESRCH);
            if error.code.is_some() && !is_gone && refused.is_none() {
                refused = Some(Refused { place, source: error.to_io() });
            }
            if place + 1 == changes.len() {
                return refused.map_or(Ok(()), Err);
            }
        }
    }
}

/// Appends a change as the kernel reads it. Only the last is confirmed: the others are answered where
/// they are refused.
fn put(change: &Change, place: usize, is_last: bool, buffer: &mut Vec<u8>) {
    let (message, flags) = match change {
        Change::Set(route) => {
            (RouteNetlinkMessage::NewRoute(route.clone()), NLM_F_CREATE | NLM_F_REPLACE)
        }
        Change::Delete(route) => (RouteNetlinkMessage::DelRoute(route.clone()), 0),
    };
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | flags | if is_last { NLM_F_ACK } else { 0 };
    request.header.sequence_number = u32::try_from(place).unwrap_or(u32::MAX);
    request.finalize();
    let (begin, length) = (buffer.len(), request.buffer_len());
    buffer.resize(begin + length.next_multiple_of(ALIGNMENT), 0);
    request.serialize(&mut buffer[begin..begin + length]);
}
