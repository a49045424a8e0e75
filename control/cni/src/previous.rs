//! What the plugins before have done (`prevResult`): the pod's addresses and interfaces. It goes on to
//! the runtime as it came; here it is only read.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::error::{CniError, Code};

/// What is read of it. Its form has been the same since 0.3.0, but for `version` beside each
/// address, which 1.0.0 took away.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Result_ {
    interfaces: Vec<Interface>,
    ips: Vec<Ip>,
}

/// An interface.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Path of the namespace that it is in; empty: the host's.
    pub sandbox: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Ip {
    address: String,
    interface: Option<i64>,
}

/// What the plugins before have done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Previous {
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// Interfaces on the host.
    pub on_host: Vec<String>,
}

fn invalid(details: impl Into<String>) -> CniError {
    let message = "prevResult in the network configuration is invalid";
    CniError::new(Code::InvalidConfiguration, message, details)
}

impl Previous {
    /// Reads it for the container's interface of that name.
    ///
    /// # Errors
    /// Code 7: it is missing, is no result, or gives the interface no address.
    pub fn parse(raw: Option<&RawValue>, interface: &str) -> Result<Self, CniError> {
        let raw = raw.ok_or_else(|| {
            CniError::new(
                Code::InvalidConfiguration,
                "prevResult is missing",
                "xskiff-cni makes no interface: chain it behind a plugin that does, such as ptp or \
                 bridge (`xskiff cni install`)",
            )
        })?;
        let result: Result_ =
            serde_json::from_str(raw.get()).map_err(|error| invalid(error.to_string()))?;
        let mut addresses = Vec::new();
        for ip in &result.ips {
            if is_of(ip, &result.interfaces, interface)? {
                let address = parse_address(&ip.address)?;
                // Two plugins may name one twice.
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
        }
        if addresses.is_empty() {
            return Err(invalid(format!("it names no address of {interface}")));
        }
        let on_host = result.interfaces.into_iter().filter(|other| other.sandbox.is_empty());
        Ok(Self { addresses, on_host: on_host.map(|other| other.name).collect() })
    }

    /// What of a bandwidth plugin is there: it names the device that it sends a pod's packets
    /// through, which AF_XDP goes past.
    #[must_use]
    pub fn bandwidth_device(&self) -> Option<&str> {
        self.on_host.iter().map(String::as_str).find(|name| name.starts_with("bwp"))
    }
}

/// Whether it is the interface's address; where a plugin does not say whose, it is.
fn is_of(ip: &Ip, interfaces: &[Interface], interface: &str) -> Result<bool, CniError> {
    let Some(index) = ip.interface else { return Ok(true) };
    let named = usize::try_from(index).ok().and_then(|index| interfaces.get(index));
    match named {
        Some(named) => Ok(!named.sandbox.is_empty() && named.name == interface),
        None => Err(invalid(format!("{} is on interface {index}, which is not there", ip.address))),
    }
}

fn parse_address(text: &str) -> Result<IpAddr, CniError> {
    let parsed = text.parse::<IpNet>().map(|net| net.addr()).or_else(|_| text.parse::<IpAddr>());
    parsed.map_err(|_| invalid(format!("{text:?} is no address with its prefix length")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Previous, CniError> {
        let raw: Box<RawValue> = serde_json::from_str(text).unwrap();
        Previous::parse(Some(&raw), "eth0")
    }

    /// As Debian's bridge 1.1.1 wrote it, in 0.4.0.
    const BRIDGE: &str = r#"{"cniVersion":"0.4.0","interfaces":[{"name":"cni0","mac":"7a:00:00:00:00:01"},
        {"name":"veth12345678","mac":"7a:00:00:00:00:02"},
        {"name":"eth0","mac":"7a:00:00:00:00:03","sandbox":"/run/netns/pod"}],
        "ips":[{"version":"4","interface":2,"address":"10.1.0.5/24","gateway":"10.1.0.1"},
        {"version":"6","interface":2,"address":"fd00:1::5/64"}],"routes":[],"dns":{}}"#;

    #[test]
    fn addresses_are_those_of_the_containers_interface() {
        let previous = parse(BRIDGE).unwrap();
        let addresses: Vec<IpAddr> =
            vec!["10.1.0.5".parse().unwrap(), "fd00:1::5".parse().unwrap()];
        assert_eq!(previous.addresses, addresses);
        assert_eq!(previous.on_host, ["cni0", "veth12345678"]);
        let unsaid = parse(r#"{"ips":[{"address":"10.1.0.5/32"},{"address":"10.1.0.5/24"}]}"#);
        assert_eq!(unsaid.unwrap().addresses, addresses[..1]);
    }

    #[test]
    fn the_device_of_a_bandwidth_plugin_is_seen() {
        assert_eq!(parse(BRIDGE).unwrap().bandwidth_device(), None);
        let limited = BRIDGE.replace("cni0", "bwp0a1b2c3d4e5f");
        assert_eq!(parse(&limited).unwrap().bandwidth_device(), Some("bwp0a1b2c3d4e5f"));
    }

    #[test]
    fn what_cannot_be_a_result_has_code_7() {
        assert!(Previous::parse(None, "eth0").unwrap_err().to_string().contains("chain it"));
        for (text, word) in [
            ("7", "invalid type"),
            ("{}", "no address of eth0"),
            (r#"{"ips":{}}"#, "invalid type"),
            (r#"{"ips":[{"address":"10.1.0.5/24","interface":3}]}"#, "interface 3"),
            (r#"{"ips":[{"address":"10.1.0.5/24","interface":-1}]}"#, "interface -1"),
            (r#"{"ips":[{"address":"10.1.0/24"}]}"#, "10.1.0/24"),
            (&BRIDGE.replace("\"name\":\"eth0\"", "\"name\":\"net1\""), "no address of eth0"),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.code(), 7, "{text}");
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
