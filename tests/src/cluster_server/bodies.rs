//! Bodies of answers, spoilt.

use std::time::Duration;

use bytes::Bytes;
use cluster::serve::{Answer, AnswerBody};
use futures_util::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use serde_json::Value;
use tokio::sync::watch;

use super::faults::Live;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Until what was said is surely sent: an error overtakes what is still buffered.
const SENT: Duration = Duration::from_millis(10);
/// No JSON, and no UTF-8.
const GARBAGE: &[u8] = b"\xff\xfe{]\x00]}garbage\n";

/// The pieces of `body`, of `bytes` at most.
fn pieces(
    body: AnswerBody,
    bytes: usize,
) -> impl futures_util::Stream<Item = Result<Bytes, Error>> + Send + 'static {
    let bytes = bytes.max(1);
    stream::unfold((body, Bytes::new()), move |(mut body, mut rest)| async move {
        while rest.is_empty() {
            match body.frame().await? {
                Ok(frame) => rest = frame.into_data().unwrap_or_default(),
                Err(error) => return Some((Err(error), (body, rest))),
            }
        }
        let piece = rest.split_to(rest.len().min(bytes));
        Some((Ok(piece), (body, rest)))
    })
}

fn body(
    pieces: impl futures_util::Stream<Item = Result<Bytes, Error>> + Send + 'static,
) -> AnswerBody {
    StreamBody::new(pieces.map(|piece| piece.map(Frame::data))).boxed_unsync()
}

/// The first `after` bytes of `body`.
fn head(
    body: AnswerBody,
    after: usize,
) -> impl futures_util::Stream<Item = Result<Bytes, Error>> + Send + 'static {
    let pieces = Box::pin(pieces(body, after));
    stream::unfold((pieces, after), |(mut pieces, left)| async move {
        if left == 0 {
            return None;
        }
        let piece = pieces.next().await?;
        let piece = piece.map(|piece| piece.slice(..piece.len().min(left)));
        let left = left - piece.as_ref().map_or(left, Bytes::len);
        Some((piece, (pieces, left)))
    })
}

fn broken() -> Error {
    "the connection is closed by a fault of the test".into()
}

/// Says nothing after so many bytes.
pub(super) fn half_open(from: AnswerBody, after: usize) -> AnswerBody {
    body(head(from, after).chain(stream::pending()))
}

/// Closes the connection after so many bytes.
pub(super) fn cut(from: AnswerBody, after: usize) -> AnswerBody {
    let broken = stream::once(async {
        // What comes before is on its way by then.
        tokio::time::sleep(SENT).await;
        Err(broken())
    });
    body(head(from, after).chain(broken))
}

/// Says what is no JSON after so many bytes.
pub(super) fn garbage(from: AnswerBody, after: usize) -> AnswerBody {
    let garbage = stream::once(async { Ok(Bytes::from_static(GARBAGE)) });
    body(head(from, after).chain(garbage))
}

/// Sends a few bytes at a time.
pub(super) fn slow(from: AnswerBody, bytes: usize, pause: Duration) -> AnswerBody {
    body(pieces(from, bytes).then(move |piece| async move {
        tokio::time::sleep(pause).await;
        piece
    }))
}

/// Leaves every third object out of a list.
pub(super) async fn lossy(answer: Answer) -> Answer {
    let (parts, from) = answer.into_parts();
    let text = from.collect().await.map(|whole| whole.to_bytes()).unwrap_or_default();
    let mut list: Value = serde_json::from_slice(&text).unwrap_or(Value::Null);
    if let Some(items) = list["items"].as_array_mut() {
        let mut index = 0;
        items.retain(|_| {
            index += 1;
            index % 3 != 0
        });
    }
    let rest = Full::new(Bytes::from(list.to_string())).map_err(|never| match never {});
    Answer::from_parts(parts, rest.boxed_unsync())
}

/// A watch that meets what is meant for all that are open.
pub(super) fn live(from: AnswerBody, live: watch::Receiver<Live>) -> AnswerBody {
    let pieces = Box::pin(pieces(from, usize::MAX));
    body(stream::unfold(Some((pieces, live)), |state| async move {
        let (mut pieces, mut live) = state?;
        loop {
            let now = *live.borrow_and_update();
            match now {
                Live::Cut => return Some((Err(broken()), None)),
                Live::Garbage => return Some((Ok(Bytes::from_static(GARBAGE)), None)),
                Live::Silent => live.changed().await.ok()?,
                // What is meant for watches comes before whatever they would say.
                Live::Flowing => tokio::select! {
                    biased;
                    changed = live.changed() => changed.ok()?,
                    piece = pieces.next() => {
                        return piece.map(|piece| (piece, Some((pieces, live))));
                    }
                },
            }
        }
    }))
}
