//! Questions to the kernel that a thread waits for, which is not the control thread: a node asks them
//! seldom, and about what the [view](super::view) does not hold.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rtnetlink::packet_core::{
    NLM_F_DUMP, NLM_F_ECHO, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;

/// Netlink messages begin at multiples of this, in bytes (netlink(7), `NLMSG_ALIGN`).
const ALIGNMENT: usize = 4;

/// A socket of the caller's network namespace.
pub struct Asking(Socket);

impl Asking {
    /// Opens it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Or dumps are of everything in this namespace, whatever the question says (kernel 4.20).
        socket.set_netlink_get_strict_chk(true)?;
        // The first part of an answer is there when `send` returns, and each other one when the one
        // before was read: there is nothing to wait for.
        socket.set_non_blocking(true)?;
        Ok(Self(socket))
    }

    /// The one answer to `question`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn one(&self, question: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
        // Kernel 6.8 and newer answer about one discipline only whoever wants an echo.
        self.ask(question, NLM_F_ECHO)?;
        let mut answers = Vec::new();
        self.read(&mut answers)?;
        answers.pop().ok_or_else(|| io::Error::other("no answer"))
    }

    /// All answers to `question`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn all(&self, question: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.ask(question, NLM_F_DUMP)?;
        let mut answers = Vec::new();
        while !self.read(&mut answers)? {}
        Ok(answers)
    }

    fn ask(&self, question: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut message = NetlinkMessage::from(question);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = 1;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.0.send(&bytes, 0).map(drop)
    }

    /// Adds what one datagram brings to `answers`; says whether nothing follows it.
    fn read(&self, answers: &mut Vec<RouteNetlinkMessage>) -> io::Result<bool> {
        let (datagram, _) = self.0.recv_from_full()?;
        let mut rest = datagram.as_slice();
        let mut is_last = false;
        while !rest.is_empty() {
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(|error| io::Error::other(error.to_string()))?;
            let length = usize::try_from(answer.header.length).unwrap_or(rest.len());
            rest = rest.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => answers.push(message),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Done(done) if done.code != 0 => {
                    return Err(io::Error::from_raw_os_error(-done.code));
                }
                _ => is_last = true,
            }
        }
        Ok(is_last)
    }
}
