//! What `tc` has at an interface that limits or filters. Frames that AF_XDP receives and sends go past all
//! of it.

use std::io;

use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage};

use super::asking::Asking;

/// Disciplines that only order what an interface sends.
const UNLIMITED: [&str; 8] =
    ["noqueue", "mq", "fq_codel", "fq", "pfifo_fast", "pfifo", "bfifo", "sfq"];
/// Where filters of both kinds of ingress disciplines (`ingress`, `clsact`) are: `TC_H_CLSACT` and
/// `TC_H_MIN_INGRESS` (linux/pkt_sched.h).
const INGRESS_FILTERS: TcHandle = TcHandle { major: 0xffff, minor: 0xfff2 };

/// Whether a discipline of this kind may hold back or drop what the link would take.
#[must_use]
pub fn limits(kind: &str) -> bool {
    !UNLIMITED.contains(&kind)
}

/// What `tc` has at an interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Queueing {
    /// The kind of the discipline that limits what the interface sends.
    pub sent: Option<String>,
    /// The kind of the one that has filters for what it receives.
    pub received: Option<String>,
}

impl Queueing {
    /// Asks the kernel about the interface with this index.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn at(ifindex: u32) -> io::Result<Self> {
        let index = i32::try_from(ifindex).map_err(io::Error::other)?;
        let asking = Asking::open()?;
        let sent = kind(&asking, index, TcHandle::ROOT)?.filter(|kind| limits(kind));
        let ingress = kind(&asking, index, TcHandle::INGRESS)?;
        let received = ingress.filter(|_| has_filters(&asking, index));
        Ok(Self { sent, received })
    }
}

/// The kind of a discipline; `None` when there is none but what the kernel makes by itself.
fn kind(asking: &Asking, index: i32, parent: TcHandle) -> io::Result<Option<String>> {
    let question = RouteNetlinkMessage::GetQueueDiscipline(message(index, parent));
    let answer = match asking.one(question) {
        Ok(RouteNetlinkMessage::NewQueueDiscipline(answer)) => answer,
        Ok(_) => return Ok(None),
        // Of its own `noqueue` it says nothing at all.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    Ok(answer.attributes.into_iter().find_map(|one| match one {
        TcAttribute::Kind(kind) => Some(kind),
        _ => None,
    }))
}

/// Whether there are any; also when they cannot be read.
fn has_filters(asking: &Asking, index: i32) -> bool {
    let question = RouteNetlinkMessage::GetTrafficFilter(message(index, INGRESS_FILTERS));
    asking.all(question).map_or(true, |filters| !filters.is_empty())
}

fn message(index: i32, parent: TcHandle) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = index;
    message.header.parent = parent;
    message
}
