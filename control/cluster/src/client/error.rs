//! Why a server did not answer, or not well.

use std::net::SocketAddr;
use std::time::Duration;

/// What a server says is shown as far as so many bytes.
pub(super) const MESSAGE_BYTES_TOLD: usize = 512;

/// A request that got no answer, or none that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// Who we are cannot be read.
    #[error("{server}: the credentials cannot be used: {message}")]
    Credentials {
        /// The server.
        server: String,
        /// What is wrong.
        message: String,
    },
    /// It would be reached through this node's own tables.
    #[error(
        "{server}: {address} is a Service's address that this node serves itself: an outage could \
         never be ended through it; name the API servers' own addresses (kubernetes.api_servers, \
         --api-server)"
    )]
    Frontend {
        /// The server.
        server: String,
        /// What it resolves to.
        address: SocketAddr,
    },
    /// No connection, or one that broke.
    #[error("{server}: {message}")]
    Connection {
        /// The server.
        server: String,
        /// What the system or TLS said.
        message: String,
    },
    /// No answer.
    #[error("{server}: no answer within {} s", after.as_secs_f32())]
    Timeout {
        /// The server.
        server: String,
        /// How long was waited.
        after: Duration,
    },
    /// A connection that says nothing.
    #[error("{server}: not a byte for {} s: the connection was given up", after.as_secs_f32())]
    Silent {
        /// The server.
        server: String,
        /// How long was waited.
        after: Duration,
    },
    /// An answer other than what was asked for.
    #[error("{server}: HTTP {status}: {message}")]
    Http {
        /// The server.
        server: String,
        /// The status.
        status: u16,
        /// What it said.
        message: String,
    },
    /// An answer that is no answer.
    #[error("{server}: {message}")]
    Garbage {
        /// The server.
        server: String,
        /// What is wrong with it.
        message: String,
    },
}

impl ClientError {
    /// For metrics: one word for each way to fail.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Credentials { .. } => "credentials",
            Self::Frontend { .. } => "own-service",
            Self::Connection { .. } => "connection",
            Self::Timeout { .. } => "timeout",
            Self::Silent { .. } => "silent",
            Self::Http { status: 401 | 403, .. } => "forbidden",
            Self::Http { status: 404, .. } => "absent",
            Self::Http { status: 410, .. } => "expired",
            Self::Http { status: 429, .. } => "busy",
            Self::Http { status: 500.., .. } => "server-error",
            Self::Http { .. } => "refused",
            Self::Garbage { .. } => "garbage",
        }
    }

    /// Every [`Self::reason`].
    pub const REASONS: [&'static str; 12] = [
        "credentials",
        "own-service",
        "connection",
        "timeout",
        "silent",
        "forbidden",
        "absent",
        "expired",
        "busy",
        "server-error",
        "refused",
        "garbage",
    ];
}

/// An error with all that caused it: the outermost alone says "client error (Connect)".
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    cut(text)
}

/// No longer than a line of a log should be.
pub(super) fn cut(mut text: String) -> String {
    if text.len() > MESSAGE_BYTES_TOLD {
        let end = (0..=MESSAGE_BYTES_TOLD).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
        text.push_str("...");
    }
    text
}
