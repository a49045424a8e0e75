//! The body of an answer, whose silence is bounded.
//!
//! A half-open connection gives neither bytes nor an error: a server that was stopped, or a path
//! that swallows packets, would be waited for without end.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame};
use kube::client::Body;
use tokio::time::{Instant, Sleep};

use super::error::{ClientError, chain};
use super::server::Server;
use crate::kept::EVERYTHING;

/// The body of an answer.
pub struct Timed {
    body: Body,
    server: Arc<Server>,
    /// How much of objects it passes on.
    kept: u32,
    /// Longest silence.
    bound: Duration,
    silence: Pin<Box<Sleep>>,
    /// Whether silence is the server's failure: a watch may be quiet for want of events.
    is_awaited: bool,
}

impl Timed {
    pub(super) fn new(body: Body, server: Arc<Server>, bound: Duration) -> Self {
        let silence = Box::pin(tokio::time::sleep(bound));
        Self { body, server, kept: EVERYTHING, bound, silence, is_awaited: true }
    }

    /// The same of a server that passes so much of objects on.
    pub(super) fn keeping(self, kept: u32) -> Self {
        Self { kept, ..self }
    }

    /// How much of objects is passed on ([`crate::kept`]).
    pub(crate) fn kept(&self) -> u32 {
        self.kept
    }

    /// From now on silence may be for want of anything to say: the connection is given up, and the
    /// server is asked again.
    pub fn may_be_quiet(&mut self) {
        self.is_awaited = false;
    }

    /// The server that answers.
    #[must_use]
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The next bytes; `None` at the end. Nothing is lost when it is not waited for.
    ///
    /// # Errors
    /// [`ClientError::Silent`], [`ClientError::Connection`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ClientError>> {
        loop {
            return match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Ready(None) => Poll::Ready(Ok(None)),
                Poll::Ready(Some(Ok(frame))) => {
                    let next = Instant::now() + self.bound;
                    self.silence.as_mut().reset(next);
                    // Trailers say nothing here.
                    let Some(bytes) = data(frame) else { continue };
                    self.server.received.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    Poll::Ready(Ok(Some(bytes)))
                }
                Poll::Ready(Some(Err(error))) => {
                    let (server, message) = (self.server.name(), chain(&error));
                    let error = ClientError::Connection { server, message };
                    self.server.failed(&error, None);
                    Poll::Ready(Err(error))
                }
                Poll::Pending => match self.silence.as_mut().poll(context) {
                    Poll::Ready(()) => {
                        let error =
                            ClientError::Silent { server: self.server.name(), after: self.bound };
                        if self.is_awaited {
                            self.server.failed(&error, None);
                        }
                        Poll::Ready(Err(error))
                    }
                    Poll::Pending => Poll::Pending,
                },
            };
        }
    }

    /// The whole body, of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// As [`Self::next`]; [`ClientError::Garbage`] for one that is longer.
    pub async fn whole(mut self, bytes_max: usize) -> Result<Vec<u8>, ClientError> {
        let mut whole = Vec::new();
        while let Some(bytes) = self.next().await? {
            if whole.len() + bytes.len() > bytes_max {
                let message = format!("the answer has more than {bytes_max} bytes");
                return Err(ClientError::Garbage { server: self.server.name(), message });
            }
            whole.extend_from_slice(&bytes);
        }
        Ok(whole)
    }
}

fn data(frame: Frame<Bytes>) -> Option<Bytes> {
    frame.into_data().ok()
}
