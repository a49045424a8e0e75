//! A watch's answer, line by line: each is one event, a JSON object.

use bytes::{Buf, Bytes, BytesMut};

use crate::client::ClientError;
use crate::client::timed::Timed;

/// Longest event, in bytes. Objects of more than [`crate::decode::OBJECT_BYTES_MAX`] are refused by
/// name; what is longer than this is no event of an API server, whose objects have 3 MiB at most.
const LINE_BYTES_MAX: usize = 8 << 20;

/// The lines of a body.
pub(crate) struct Lines {
    body: Timed,
    buffer: BytesMut,
    /// Bytes of the buffer that are known to hold no line's end.
    searched: usize,
}

impl Lines {
    /// The lines of `body`.
    pub(crate) fn new(body: Timed) -> Self {
        Self { body, buffer: BytesMut::new(), searched: 0 }
    }

    /// The server that answers.
    pub(crate) fn server(&self) -> String {
        self.body.server().name()
    }

    /// From now on no line may come for want of events.
    pub(crate) fn may_be_quiet(&mut self) {
        self.body.may_be_quiet();
    }

    /// Whether the next line is there already.
    pub(crate) fn is_at_hand(&self) -> bool {
        memchr::memchr(b'\n', self.buffer.get(self.searched..).unwrap_or_default()).is_some()
    }

    /// The next line without its end; `None` after the last. Nothing is lost when it is not waited
    /// for.
    ///
    /// # Errors
    /// What the body says; a line that is too long, or cut off by the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            let rest = self.buffer.get(self.searched..).unwrap_or_default();
            if let Some(at) = memchr::memchr(b'\n', rest) {
                let line = self.buffer.split_to(self.searched + at).freeze();
                self.buffer.advance(1);
                self.searched = 0;
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return Ok(Some(line));
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > LINE_BYTES_MAX {
                let message = format!("an event has more than {LINE_BYTES_MAX} bytes");
                return Err(ClientError::Garbage { server: self.server(), message });
            }
            match self.body.next().await? {
                Some(bytes) => self.buffer.extend_from_slice(&bytes),
                None if self.buffer.iter().all(u8::is_ascii_whitespace) => return Ok(None),
                None => {
                    let message = "the connection ended in the middle of an event".to_owned();
                    return Err(ClientError::Connection { server: self.server(), message });
                }
            }
        }
    }
}
