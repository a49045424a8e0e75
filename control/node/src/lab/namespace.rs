//! One network namespace: its settings, its programs, and what its kernel counted.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;

use super::process::{Agent, Process};
use super::{LabError, Laboratory, command, registry};

/// A network namespace of ours, removed with its links and processes when dropped.
#[derive(Debug)]
pub struct Namespace {
    system_name: String,
    name: String,
    program: PathBuf,
    directory: PathBuf,
    kept: bool,
}

/// Packets that a namespace's own kernel forwarded (`/proc/net/snmp`, `/proc/net/snmp6`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForwardCounters {
    /// `Ip: ForwDatagrams`.
    pub ipv4: u64,
    /// `Ip6OutForwDatagrams`.
    pub ipv6: u64,
}

/// What `ping` saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ping {
    /// Echo requests sent.
    pub sent: u32,
    /// Echo replies received.
    pub received: u32,
}

impl Namespace {
    pub(super) fn new(
        system_name: String,
        name: &str,
        laboratory: &Laboratory,
    ) -> Result<Self, LabError> {
        registry::add_namespace(&system_name)?;
        let namespace = Self {
            system_name,
            name: name.to_owned(),
            program: laboratory.program().to_owned(),
            directory: laboratory.directory().to_owned(),
            kept: false,
        };
        namespace.ip("link set lo up")?;
        namespace.set(&[
            ("net/ipv6/conf/all/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/all/accept_ra", "0"),
            ("net/ipv6/conf/default/accept_ra", "0"),
            ("net/ipv4/conf/all/send_redirects", "0"),
            ("net/ipv4/conf/default/send_redirects", "0"),
        ])?;
        Ok(namespace)
    }

    /// The name given by its maker, for people.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name `ip netns` knows it by.
    #[must_use]
    pub fn system_name(&self) -> &str {
        &self.system_name
    }

    /// Runs `ip` on this namespace with `arguments` separated by spaces.
    ///
    /// # Errors
    /// `ip` failed; the error has its words.
    pub fn ip(&self, arguments: &str) -> Result<String, LabError> {
        let mut words = vec!["-n", self.system_name.as_str()];
        words.extend(arguments.split_whitespace());
        command::run("ip", &words)
    }

    /// Runs a program in this namespace to its end and gives back what it wrote.
    ///
    /// # Errors
    /// It is missing or failed; the error repeats the end of its output.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String, LabError> {
        let mut words = vec!["netns", "exec", self.system_name.as_str(), program];
        words.extend(arguments);
        command::run("ip", &words)
    }

    /// A command that will run `program` in this namespace, out of the terminal's reach.
    #[must_use]
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut words = vec!["netns", "exec", self.system_name.as_str(), program];
        words.extend(arguments);
        command::prepare("ip", &words)
    }

    /// Starts a program in this namespace; what it writes goes to a log named by `name`.
    ///
    /// # Errors
    /// The log cannot be made, or the process cannot be started.
    pub fn spawn(
        &self,
        name: &str,
        program: &str,
        arguments: &[&str],
    ) -> Result<Process, LabError> {
        Process::start(self.command(program, arguments), name, &self.directory)
    }

    /// Starts a traffic agent (`xskiff lab-agent ARGUMENTS`) in this namespace.
    ///
    /// # Errors
    /// The log cannot be made, or the process cannot be started.
    pub fn agent(&self, arguments: &[&str]) -> Result<Agent, LabError> {
        let program = self.program.to_string_lossy().into_owned();
        let mut words = vec!["lab-agent"];
        words.extend(arguments);
        let name = format!("{}-{}", self.name, arguments.first().unwrap_or(&"agent"));
        Agent::start(self.command(&program, &words), &name, &self.directory)
    }

    /// Writes kernel settings: paths below `/proc/sys` and their values.
    ///
    /// # Errors
    /// A setting does not exist or refuses the value.
    pub fn set(&self, settings: &[(&str, &str)]) -> Result<(), LabError> {
        // The values travel as arguments, so that the shell interprets none of them.
        let script =
            r#"while [ $# -gt 1 ]; do echo "$2" > "/proc/sys/$1" || exit 1; shift 2; done"#;
        let mut words = vec!["-c", script, "sh"];
        words.extend(settings.iter().flat_map(|(path, value)| [*path, *value]));
        self.run("sh", &words).map(drop)
    }

    /// Changes features of an interface (`ethtool -K INTERFACE FEATURES`), such as `tx off`.
    ///
    /// # Errors
    /// `ethtool` is missing or the interface refuses.
    pub fn features(&self, interface: &str, features: &str) -> Result<(), LabError> {
        let mut words = vec!["-K", interface];
        words.extend(features.split_whitespace());
        self.run("ethtool", &words).map(drop)
    }

    /// What this namespace's kernel forwarded by itself so far.
    ///
    /// # Errors
    /// `/proc/net` cannot be read or lacks the counters.
    pub fn forward_counters(&self) -> Result<ForwardCounters, LabError> {
        let text = self.run("cat", &["/proc/net/snmp", "/proc/net/snmp6"])?;
        parse_forward_counters(&text).ok_or_else(|| LabError::Io {
            what: "find",
            object: "ForwDatagrams and Ip6OutForwDatagrams in /proc/net".into(),
            source: std::io::ErrorKind::InvalidData.into(),
        })
    }

    /// Sends `count` echo requests, 100 ms apart, and counts the answers.
    ///
    /// # Errors
    /// `ping` is missing or says nothing that can be read.
    pub fn ping(&self, address: IpAddr, count: u32) -> Result<Ping, LabError> {
        let (count, address) = (count.to_string(), address.to_string());
        let arguments = ["-n", "-q", "-c", &count, "-i", "0.1", "-W", "1", &address];
        let output =
            self.command("ping", &arguments).output().map_err(LabError::io("run", "ping"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        parse_ping(&text).ok_or_else(|| LabError::CommandFailed {
            command: format!("ping {}", arguments.join(" ")),
            status: output.status.to_string(),
            output: format!("{text}{}", String::from_utf8_lossy(&output.stderr)),
        })
    }

    /// Leaves the namespace behind when this value is dropped and when the process ends.
    pub fn keep(&mut self) {
        self.kept = true;
        registry::release_namespace(&self.system_name);
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if !self.kept {
            registry::remove_namespace(&self.system_name);
        }
    }
}

/// `snmp` has a line of names and a line of numbers per protocol; `snmp6` one pair a line.
fn parse_forward_counters(text: &str) -> Option<ForwardCounters> {
    let mut ip_lines = text.lines().filter_map(|line| line.strip_prefix("Ip: "));
    let (names, numbers) = (ip_lines.next()?, ip_lines.next()?);
    let place = names.split_whitespace().position(|name| name == "ForwDatagrams")?;
    let ipv4 = numbers.split_whitespace().nth(place)?.parse().ok()?;
    let ipv6 = text.lines().find_map(|line| line.strip_prefix("Ip6OutForwDatagrams"))?;
    Some(ForwardCounters { ipv4, ipv6: ipv6.trim().parse().ok()? })
}

/// Reads `3 packets transmitted, 3 received, 0% packet loss, time 402ms`.
fn parse_ping(text: &str) -> Option<Ping> {
    let line = text.lines().find(|line| line.contains("packets transmitted"))?;
    let mut parts = line.split(", ");
    let number = |part: &str| part.split_whitespace().next()?.parse().ok();
    Some(Ping { sent: number(parts.next()?)?, received: number(parts.next()?)? })
}

#[cfg(test)]
mod tests {
    use super::{ForwardCounters, Ping, parse_forward_counters, parse_ping};

    #[test]
    fn forward_counters_are_found_by_their_names() {
        let text = "Ip: Forwarding DefaultTTL InReceives ForwDatagrams\nIp: 2 64 9 7\n\
                    Icmp: InMsgs\nIcmp: 1\nIp6InReceives  5\nIp6OutForwDatagrams    \t3\n";
        let counters = parse_forward_counters(text);
        assert_eq!(counters, Some(ForwardCounters { ipv4: 7, ipv6: 3 }));
        assert_eq!(parse_forward_counters("Ip: A\n"), None);
    }

    #[test]
    fn ping_summaries_are_read_with_and_without_errors() {
        let quiet = "--- ::1 ping statistics ---\n3 packets transmitted, 2 received, 33% packet \
                     loss, time 402ms\n";
        assert_eq!(parse_ping(quiet), Some(Ping { sent: 3, received: 2 }));
        let errors = "2 packets transmitted, 0 received, +2 errors, 100% packet loss\n";
        assert_eq!(parse_ping(errors), Some(Ping { sent: 2, received: 0 }));
        assert_eq!(parse_ping("ping: unknown host\n"), None);
    }
}
