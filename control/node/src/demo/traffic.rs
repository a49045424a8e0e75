//! Traffic by agents, and what it shows in a few words.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::scene::{self, FAMILIES};
use super::{DemoError, Seen};
use crate::lab::agent::report::{Echoed, Fetched, Report, Trouble};
use crate::lab::{Agent, LabError, Namespace};

/// Requests of one step: with two backends, one in 500,000 runs would meet only one of them.
pub const REQUESTS: usize = 20;

/// Datagrams of one step.
const DATAGRAMS: u64 = 20;

/// Echo requests of one step.
const PINGS: u32 = 3;

/// How long one step's traffic may take in all.
const STEP_TIMEOUT: Duration = Duration::from_secs(15);

/// Makes `count` requests over new connections.
///
/// # Errors
/// The agent says nothing in time.
pub fn fetch(
    from: &Namespace,
    to: &str,
    count: usize,
    more: &[&str],
) -> Result<Vec<Fetched>, LabError> {
    let count_word = format!("--count={count}");
    let agent = from.agent(&[&["fetch", to, &count_word], more].concat())?;
    (0..count).map(|_| next_fetched(&agent, STEP_TIMEOUT)).collect()
}

/// The next answer of a running client.
///
/// # Errors
/// None in time.
pub fn next_fetched(agent: &Agent, timeout: Duration) -> Result<Fetched, LabError> {
    agent.expect("an answer", timeout, |report| match report {
        Report::Fetched(fetched) => Some(fetched),
        _ => None,
    })
}

/// Requests in both families. `hosts` are asked on `l4_port`; each answer must come from one of
/// `servers`, all of them must answer, and they must see the client as `seen_as`.
///
/// # Errors
/// An agent fails.
pub fn http(
    from: &Namespace,
    hosts: [&str; 2],
    l4_port: u16,
    servers: &[&str],
    seen_as: Option<[&str; 2]>,
) -> Result<Seen, DemoError> {
    both(|family| {
        let answers = fetch(from, &scene::to(hosts[family], l4_port), REQUESTS, &[])?;
        let client = seen_as.map(|addresses| scene::address(addresses[family]));
        Ok(judge_http(&answers, servers, client))
    })
}

fn judge_http(answers: &[Fetched], servers: &[&str], client: Option<IpAddr>) -> (bool, String) {
    let mut by_server = BTreeMap::<&str, usize>::new();
    for server in answers.iter().filter_map(|answer| answer.server.as_deref()) {
        *by_server.entry(server).or_default() += 1;
    }
    let answered = answers.iter().filter(|answer| answer.ok).count();
    let mut text = format!("{answered}/{}", answers.len());
    let trouble = answers.iter().find_map(|answer| answer.error);
    if let Some(trouble) = trouble {
        text += &format!(" {trouble}");
    }
    if servers.len() > 1 {
        let counts: Vec<_> =
            by_server.iter().map(|(name, count)| format!("{name} {count}")).collect();
        text += &format!(" ({})", counts.join(", "));
    }
    let stranger =
        answers.iter().filter_map(|answer| answer.client).find(|own| Some(*own) != client);
    let seen_right = client.is_none() || stranger.is_none();
    match (client, stranger) {
        (Some(_), Some(stranger)) => text += &format!(" seen as {stranger}"),
        (Some(client), None) => text += &format!(" seen as {client}"),
        (None, _) => {}
    }
    let all_servers = servers.iter().copied().eq(by_server.keys().copied());
    (answered == answers.len() && all_servers && seen_right, text)
}

/// Datagrams in both families, each from a port of its own.
///
/// # Errors
/// An agent fails.
pub fn echo(from: &Namespace, hosts: [&str; 2], l4_port: u16) -> Result<Seen, DemoError> {
    both(|family| {
        let to = scene::to(hosts[family], l4_port);
        let agent =
            from.agent(&["udp", &to, &format!("--count={DATAGRAMS}"), "--new-socket-each"])?;
        let echoed = agent.expect("echoes", STEP_TIMEOUT, |report| match report {
            Report::Echoed(echoed) => Some(echoed),
            _ => None,
        })?;
        let Echoed { sent, received, wrong, .. } = echoed;
        let ok = received == DATAGRAMS && wrong == 0;
        Ok((ok, format!("{received}/{sent} median {} us", echoed.median_us)))
    })
}

/// `ping` in both families.
///
/// # Errors
/// `ping` is missing.
pub fn ping(from: &Namespace, hosts: [&str; 2]) -> Result<Seen, DemoError> {
    both(|family| {
        let ping = from.ping(scene::address(hosts[family]), PINGS)?;
        Ok((ping.received == PINGS, format!("{}/{}", ping.received, ping.sent)))
    })
}

/// One large upload; both ends hash what they sent and got.
///
/// # Errors
/// The agent says nothing in time.
pub fn upload(from: &Namespace, host: &str, bytes: u64) -> Result<Seen, DemoError> {
    let to = scene::to(host, scene::HTTP[0]);
    let agent = from.agent(&["fetch", &to, &format!("--upload-bytes={bytes}")])?;
    let fetched = next_fetched(&agent, STEP_TIMEOUT * 2)?;
    let mib = fetched.bytes >> 20;
    Ok(match (fetched.ok, &fetched.sha256) {
        (true, Some(sha256)) => {
            let mbits = mbits(&fetched);
            let start = sha256.get(..8).unwrap_or_default();
            Seen::when(
                fetched.bytes == bytes,
                format!("{mib} MiB, {mbits} Mbit/s, {start}... equal"),
            )
        }
        _ => Seen::when(false, format!("{} after {mib} MiB", word(fetched.error))),
    })
}

/// One large download; the client computes every byte by itself, and compares.
///
/// # Errors
/// The agent says nothing in time.
pub fn download(
    from: &Namespace,
    host: &str,
    l4_port: u16,
    bytes: u64,
) -> Result<Fetched, LabError> {
    let to = scene::to(host, l4_port);
    let agent = from.agent(&["fetch", &to, &format!("--download-bytes={bytes}"), "--unhashed"])?;
    next_fetched(&agent, STEP_TIMEOUT * 2)
}

/// Megabits per second of a transfer.
#[must_use]
pub fn mbits(fetched: &Fetched) -> u64 {
    fetched.bytes * 8 / 1000 / fetched.took_ms.max(1)
}

/// Connections that must time out in both families.
///
/// # Errors
/// An agent fails.
pub fn forbidden(from: &Namespace, hosts: [&str; 2], l4_port: u16) -> Result<Seen, DemoError> {
    both(|family| {
        let to = scene::to(hosts[family], l4_port);
        let answers = fetch(from, &to, 1, &["--timeout-ms=1200"])?;
        let error = answers.first().and_then(|answer| answer.error);
        Ok((error == Some(Trouble::TimedOut), word(error)))
    })
}

/// A client's trouble, or that it had none.
#[must_use]
pub fn word(trouble: Option<Trouble>) -> String {
    trouble.map_or_else(|| "answered".into(), |trouble| trouble.to_string())
}

fn both(
    mut each: impl FnMut(usize) -> Result<(bool, String), LabError>,
) -> Result<Seen, DemoError> {
    let (v4, v6) = (each(0)?, each(1)?);
    let text = format!("{} {}, {} {}", FAMILIES[0], v4.1, FAMILIES[1], v6.1);
    Ok(Seen::when(v4.0 && v6.0, text))
}

#[cfg(test)]
mod tests {
    use super::{Fetched, judge_http};
    use crate::lab::agent::report::Trouble;

    fn answer(server: &str) -> Fetched {
        let client = Some("192.0.2.2".parse().unwrap());
        Fetched { ok: true, server: Some(server.into()), client, ..Fetched::default() }
    }

    #[test]
    fn a_backend_that_never_answers_is_a_difference() {
        let client = Some("192.0.2.2".parse().unwrap());
        let answers = [answer("web-1"), answer("web-1")];
        assert!(!judge_http(&answers, &["web-1", "web-2"], client).0);
        let answers = [answer("web-1"), answer("web-2")];
        let (ok, text) = judge_http(&answers, &["web-1", "web-2"], client);
        assert!(ok, "{text}");
        assert_eq!(text, "2/2 (web-1 1, web-2 1) seen as 192.0.2.2");
    }

    #[test]
    fn a_wrong_source_address_and_a_failed_request_are_differences_and_said() {
        let answers = [answer("client")];
        let (ok, text) = judge_http(&answers, &["client"], Some("192.0.2.1".parse().unwrap()));
        assert!(!ok && text.contains("seen as 192.0.2.2"), "{text}");
        let failed = Fetched { error: Some(Trouble::TimedOut), ..Fetched::default() };
        let (ok, text) = judge_http(&[answer("client"), failed], &["client"], None);
        assert!(!ok && text.contains("1/2 timed out"), "{text}");
    }
}
