//! Servers whose answers of one kind were of no use.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::error::ClientError;
use super::server::backoff;

/// Servers that spoilt what they had begun to say of one kind, or do not find what every server has. Of other kinds they may speak well, so that
/// they are not at rest: whoever asks for this kind asks others first, for a while that grows.
#[derive(Debug, Default)]
pub(crate) struct Spoilers(BTreeMap<String, Spoilt>);

#[derive(Debug)]
struct Spoilt {
    /// Times in a row.
    in_a_row: u32,
    until: Instant,
}

impl Spoilers {
    /// Takes the server that `error` blames, if it is one for garbage or for what is not found. `rest`: the first while, and the
    /// longest. Gives its name.
    pub(super) fn take<'a>(
        &mut self,
        error: &'a ClientError,
        rest: (Duration, Duration),
    ) -> Option<&'a str> {
        let server = match error {
            ClientError::Garbage { server, .. } => server,
            ClientError::Http { server, status: 404, .. } => server,
            _ => return None,
        };
        let now = Instant::now();
        let spoilt = self.0.entry(server.clone()).or_insert(Spoilt { in_a_row: 0, until: now });
        spoilt.in_a_row = spoilt.in_a_row.saturating_add(1);
        spoilt.until = now + backoff(rest, spoilt.in_a_row);
        Some(server)
    }

    /// The server gave a whole list.
    pub(crate) fn forgive(&mut self, server: &str) {
        self.0.remove(server);
    }

    /// Whether others are asked before the server.
    pub(super) fn holds(&self, server: &str) -> bool {
        self.0.get(server).is_some_and(|spoilt| spoilt.until > Instant::now())
    }
}
