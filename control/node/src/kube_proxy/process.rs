//! Whether a kube-proxy runs: it answers at a port of its own, wherever its process is. A node of ours
//! answers there in its place ([`crate::health_checks`]), and says who it is.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::http::SERVER;

/// Where it tells its mode (`--metrics-bind-address`), and that it lives (`--healthz-bind-address`).
const METRICS_PORT: u16 = 10249;
const HEALTH_PORT: u16 = 10256;
/// Patience with a port of this host.
const TIMEOUT: Duration = Duration::from_millis(400);
/// Longest answer that is read, in bytes: both are a line.
const ANSWER_BYTES_MAX: u64 = 4096;

/// The mode of the kube-proxy that runs (`iptables`, `ipvs`, `nftables`), or `unknown`; `None` when none
/// answers.
#[must_use]
pub fn mode() -> Option<String> {
    let mode = get(METRICS_PORT, "/proxyMode").and_then(|answer| as_mode(&answer));
    mode.or_else(|| {
        let health = get(HEALTH_PORT, "/healthz")?;
        is_health(&health).then(|| "unknown".to_owned())
    })
}

/// Another program at the port says something else.
fn as_mode(body: &str) -> Option<String> {
    ["iptables", "ipvs", "nftables"]
        .into_iter()
        .find(|mode| body.trim() == *mode)
        .map(str::to_owned)
}

fn is_health(body: &str) -> bool {
    body.contains("\"lastUpdated\"") && body.contains("\"currentTime\"")
}

/// Whether a socket of the caller's network namespace listens on the port (proc_net(5)). Asking one
/// where nobody does would make a reset each time, and whoever counts resets wonder.
fn is_listened_to(list: &str, l4_port: u16) -> bool {
    const LISTEN: &str = "0A";
    list.lines().any(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (local, state) = (words.next().unwrap_or_default(), words.nth(1));
        let port = local.rsplit_once(':').and_then(|(_, hex)| u16::from_str_radix(hex, 16).ok());
        state == Some(LISTEN) && port == Some(l4_port)
    })
}

/// The body of an answer, whatever its code: an unhealthy kube-proxy runs all the same. `None` of a node
/// of ours.
fn get(l4_port: u16, path: &str) -> Option<String> {
    let lists = ["tcp", "tcp6"].map(|name| {
        std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default()
    });
    if !lists.iter().any(|list| is_listened_to(list, l4_port)) {
        return None;
    }
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, l4_port));
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT).ok()?;
    stream.set_read_timeout(Some(TIMEOUT)).ok()?;
    stream.set_write_timeout(Some(TIMEOUT)).ok()?;
    // In one piece.
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    // What came before a time-out will do.
    let _ = stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    body_of_another(&answer).map(str::to_owned)
}

/// The body, unless its head says that it is ours.
fn body_of_another(answer: &str) -> Option<&str> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let is_ours = |line: &str| {
        let field = line.split_once(':');
        field.is_some_and(|(name, value)| {
            name.eq_ignore_ascii_case("server") && value.trim() == SERVER
        })
    };
    (!head.lines().any(is_ours)).then_some(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_of_ours_answers_is_no_kube_proxys() {
        let answer = |server: &str| format!("HTTP/1.0 200 OK\r\n{server}date: now\r\n\r\nbody");
        assert_eq!(body_of_another(&answer("")), Some("body"));
        assert_eq!(body_of_another(&answer("server: another\r\n")), Some("body"));
        assert_eq!(body_of_another(&answer("Server: xskiff\r\n")), None);
    }

    #[test]
    fn a_port_is_asked_only_where_somebody_listens() {
        let list = "  sl  local_address rem_address   st tx_queue rx_queue\n   \
            0: 0100007F:2809 00000000:0000 0A 00000000:00000000 00:00000000\n   \
            1: 0100007F:2810 0100007F:2809 01 00000000:00000000 00:00000000\n";
        assert!(is_listened_to(list, 10249));
        assert!(!is_listened_to(list, 10256), "a connection is no listener");
        assert!(!is_listened_to("", 10249));
    }

    #[test]
    fn only_what_kube_proxy_says_is_taken_for_it() {
        assert_eq!(as_mode("iptables\n").as_deref(), Some("iptables"));
        assert_eq!(as_mode("<html>iptables</html>"), None);
        assert!(is_health("{\"lastUpdated\": \"2026\",\"currentTime\": \"2026\"}"));
        assert!(!is_health("ok"));
    }
}
