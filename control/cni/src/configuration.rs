//! The network configuration on standard input: one plugin's part of a conflist, as the container
//! runtime hands it on.
//!
//! A key that nobody reads would silently be its default, so that unknown ones are refused (the
//! specification's code 2), except where a pod goes away: a refusal there would keep the plugins
//! before from taking back what they gave.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use control::admin::Bandwidth;
use control::admin::endpoint::validate_network;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::environment::Verb;
use super::error::{CniError, Code};
use super::version::Version;

/// Largest configuration, in bytes: 4,096 attachments of 400 bytes and more fit.
pub const CONFIGURATION_BYTES_MAX: usize = 4 << 20;
/// Longest value that an error repeats, in bytes.
const SHOWN_BYTES_MAX: usize = 200;
/// Longest wait that may be configured, in seconds: kubelets give a sandbox four minutes.
const SECONDS_MAX: u64 = 120;

/// Where the node listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/xskiff/admin.sock";

/// What to do about a pod while no node process is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeAbsent {
    /// Wait for it, within a bound, then ask the runtime to try again later.
    #[default]
    Wait,
    /// Ask the runtime to try again later, at once.
    Fail,
    /// Let the pod run, unpoliced, and leave word for the node.
    Admit,
}

/// What to do about limits on a pod's bandwidth that a bandwidth plugin before keeps by itself, and
/// would not behind AF_XDP: nobody told us their rates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BandwidthLimits {
    /// Refuse the pod.
    #[default]
    Refuse,
    /// Say so in the log, and let it run without.
    Warn,
}

/// An attachment that a runtime knows (GC).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ValidAttachment {
    /// The container.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The interface in it.
    pub ifname: String,
}

/// The configuration.
#[derive(Debug)]
pub struct Configuration<'a> {
    /// Of the specification.
    pub version: Version,
    /// The network's name.
    pub network: String,
    /// The node's socket.
    pub socket: PathBuf,
    /// What to do without a node.
    pub node_absent: NodeAbsent,
    /// How long to wait for one.
    pub wait: Duration,
    /// How long one that is there may take to answer.
    pub answer: Duration,
    /// Where every call is noted, if anywhere.
    pub log_file: Option<PathBuf>,
    /// What to do about limits whose rates are not told.
    pub bandwidth_limits: BandwidthLimits,
    /// Limits that the runtime asks for.
    pub bandwidth: Option<Bandwidth>,
    /// What the plugins before have done, as it was written.
    pub previous: Option<&'a RawValue>,
    /// Of GC.
    pub valid_attachments: Option<Vec<ValidAttachment>>,
}

/// `runtimeConfig`, as far as it concerns us.
#[derive(Debug, Default, Deserialize)]
struct RuntimeConfig<'a> {
    #[serde(borrow, default)]
    bandwidth: Option<&'a RawValue>,
}

/// `runtimeConfig.bandwidth`, as the conventions of CNI write it: rates in bits a second, bursts in
/// bits; 0 or nothing is no limit.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Limits {
    ingress_rate: u64,
    ingress_burst: u64,
    egress_rate: u64,
    egress_burst: u64,
}

/// Keys that the specification and runtimes set beside ours.
const NOT_OURS: [&str; 3] = ["type", "capabilities", "args"];

/// The version that a configuration names, as far as it can be read at all: errors are answered in it.
#[must_use]
pub fn version_text(input: &str) -> String {
    let named = serde_json::from_str::<serde_json::Value>(input).ok();
    let text = named.as_ref().and_then(|json| json.get("cniVersion")).and_then(|v| v.as_str());
    let is_plain = |text: &&str| text.len() < 20 && text.bytes().all(|b| b.is_ascii_graphic());
    text.filter(is_plain).unwrap_or(Version::NEWEST.text()).to_owned()
}

impl<'a> Configuration<'a> {
    /// Reads what is on standard input for a call with that verb.
    ///
    /// # Errors
    /// Code 1 (version), 2 (unknown key), 6 (not JSON) or 7 (a value that cannot be, by its key).
    pub fn parse(input: &'a str, verb: Verb) -> Result<Self, CniError> {
        let mut keys: BTreeMap<String, &'a RawValue> =
            serde_json::from_str(input).map_err(|error| {
                let message = "the network configuration is no JSON object";
                CniError::new(Code::Undecodable, message, error.to_string())
            })?;
        let is_lenient = verb == Verb::Delete;
        let mut take = Keys { keys: &mut keys, is_lenient };
        let version = take.text("cniVersion")?.unwrap_or_default();
        let version = Version::parse(&version)?;
        let network = take.network()?;
        let runtime = take.runtime()?;
        let configuration = Self {
            version,
            network,
            socket: take.path("socket")?.unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET)),
            node_absent: take.value("nodeAbsent", "wait, fail or admit")?.unwrap_or_default(),
            wait: take.seconds("waitSeconds", 10)?,
            answer: take.seconds("answerSeconds", 15)?,
            log_file: take.path("logFile")?,
            bandwidth_limits: take.value("bandwidthLimits", "refuse or warn")?.unwrap_or_default(),
            bandwidth: limits(runtime.bandwidth, is_lenient)?,
            previous: take.keys.remove("prevResult").filter(|raw| raw.get() != "null"),
            valid_attachments: take.valid_attachments(verb)?,
        };
        take.nothing_left()?;
        Ok(configuration)
    }
}

/// Limits that hold; `None` where there is no limit.
fn limits(raw: Option<&RawValue>, is_lenient: bool) -> Result<Option<Bandwidth>, CniError> {
    const KEY: &str = "runtimeConfig.bandwidth";
    let Some(raw) = raw.filter(|raw| raw.get() != "null" && !is_lenient) else { return Ok(None) };
    let wanted =
        "an object of ingressRate, ingressBurst, egressRate and egressBurst, whole numbers";
    let read = serde_json::from_str::<Limits>(raw.get()).ok().filter(|_| is_object(raw));
    let read = read.ok_or_else(|| invalid(KEY, raw.get(), wanted))?;
    let limits = Bandwidth {
        ingress_rate: read.ingress_rate,
        ingress_burst: read.ingress_burst,
        egress_rate: read.egress_rate,
        egress_burst: read.egress_burst,
    };
    limits.validate().map_err(|error| invalid(KEY, raw.get(), &error.to_string()))?;
    Ok(Some(limits).filter(Bandwidth::is_limit))
}

/// A list would be read as an object's values in order.
fn is_object(raw: &RawValue) -> bool {
    raw.get().starts_with('{')
}

struct Keys<'k, 'a> {
    keys: &'k mut BTreeMap<String, &'a RawValue>,
    /// Whether what cannot be used is passed over.
    is_lenient: bool,
}

impl<'a> Keys<'_, 'a> {
    fn value<T: Deserialize<'a>>(
        &mut self,
        key: &str,
        wanted: &str,
    ) -> Result<Option<T>, CniError> {
        let Some(raw) = self.keys.remove(key).filter(|raw| raw.get() != "null") else {
            return Ok(None);
        };
        match serde_json::from_str(raw.get()) {
            Ok(value) => Ok(Some(value)),
            Err(_) if self.is_lenient => Ok(None),
            Err(_) => Err(invalid(key, raw.get(), wanted)),
        }
    }

    /// Text, whatever the verb.
    fn text(&mut self, key: &str) -> Result<Option<String>, CniError> {
        let Some(raw) = self.keys.remove(key) else { return Ok(None) };
        let read: Result<String, _> = owned(raw);
        read.map(Some).map_err(|_| invalid(key, raw.get(), "text"))
    }

    fn runtime(&mut self) -> Result<RuntimeConfig<'a>, CniError> {
        const KEY: &str = "runtimeConfig";
        let raw = self.keys.get(KEY).filter(|raw| raw.get() != "null" && !is_object(raw));
        match raw.filter(|_| !self.is_lenient) {
            Some(raw) => Err(invalid(KEY, raw.get(), "an object")),
            None => Ok(self.value(KEY, "an object")?.unwrap_or_default()),
        }
    }

    fn network(&mut self) -> Result<String, CniError> {
        let name = self.text("name")?.unwrap_or_default();
        match validate_network(&name) {
            Ok(()) => Ok(name),
            Err(error) => Err(invalid("name", &name, &error.to_string())),
        }
    }

    fn path(&mut self, key: &str) -> Result<Option<PathBuf>, CniError> {
        let wanted = "an absolute path";
        let path: Option<String> = self.value(key, wanted)?;
        match path {
            Some(path) if path.starts_with('/') && !path.contains('\0') => {
                Ok(Some(PathBuf::from(path)))
            }
            Some(path) if !self.is_lenient => Err(invalid(key, &path, wanted)),
            _ => Ok(None),
        }
    }

    fn seconds(&mut self, key: &str, default: u64) -> Result<Duration, CniError> {
        let wanted = format!("1 to {SECONDS_MAX} whole seconds");
        let seconds: u64 = self.value(key, &wanted)?.unwrap_or(default);
        match seconds {
            1..=SECONDS_MAX => Ok(Duration::from_secs(seconds)),
            _ if self.is_lenient => Ok(Duration::from_secs(default)),
            _ => Err(invalid(key, &seconds.to_string(), &wanted)),
        }
    }

    fn valid_attachments(&mut self, verb: Verb) -> Result<Option<Vec<ValidAttachment>>, CniError> {
        const KEY: &str = "cni.dev/valid-attachments";
        let wanted = "a list of {\"containerID\": ..., \"ifname\": ...}";
        let Some(raw) = self.keys.get(KEY) else {
            // As if nothing were valid: every pod would be cut off.
            return match verb {
                Verb::CollectGarbage => Err(invalid(KEY, "nothing", wanted)),
                _ => Ok(None),
            };
        };
        // Runtimes in Go write an empty list as null.
        if raw.get() == "null" {
            return Ok(Some(Vec::new()));
        }
        self.value(KEY, wanted)
    }

    fn nothing_left(&self) -> Result<(), CniError> {
        let mut left = self
            .keys
            .iter()
            .filter(|(key, _)| !NOT_OURS.contains(&key.as_str()) && !key.starts_with("cni.dev/"));
        match left.next() {
            Some((key, raw)) if !self.is_lenient => Err(CniError::new(
                Code::UnsupportedField,
                format!("{} is not supported: its value is {}", shown(key), shown(raw.get())),
                "known are socket, nodeAbsent, waitSeconds, answerSeconds, logFile and \
                 bandwidthLimits, beside the specification's own",
            )),
            _ => Ok(()),
        }
    }
}

fn owned<T: DeserializeOwned>(raw: &RawValue) -> Result<T, serde_json::Error> {
    serde_json::from_str(raw.get())
}

fn invalid(key: &str, value: &str, wanted: &str) -> CniError {
    CniError::new(
        Code::InvalidConfiguration,
        format!("{key} in the network configuration is invalid"),
        format!("{}: it must be {wanted}", shown(value)),
    )
}

/// A value as an error repeats it.
fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN_BYTES_MAX).collect();
    if shown.len() < text.len() {
        shown.push_str("...");
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str, verb: Verb) -> (u32, String) {
        let error = Configuration::parse(text, verb).unwrap_err();
        (error.code(), error.to_string())
    }

    fn with(more: &str) -> String {
        format!(r#"{{"cniVersion":"1.1.0","name":"pods","type":"xskiff-cni"{more}}}"#)
    }

    #[test]
    fn what_is_left_out_has_a_default_and_what_is_given_is_taken() {
        let text = with("");
        let plain = Configuration::parse(&text, Verb::Add).unwrap();
        assert_eq!(plain.socket.to_str(), Some(DEFAULT_SOCKET));
        assert_eq!((plain.node_absent, plain.wait.as_secs()), (NodeAbsent::Wait, 10));
        assert_eq!((plain.bandwidth_limits, plain.bandwidth), (BandwidthLimits::Refuse, None));
        let text = with(
            r#","socket":"/x.sock","nodeAbsent":"admit","waitSeconds":3,"answerSeconds":4,
            "logFile":"/var/log/x","bandwidthLimits":"warn","args":{"a":1},"capabilities":{},
            "cni.dev/new":7,"prevResult":{"ips":[]}"#,
        );
        let full = Configuration::parse(&text, Verb::Add).unwrap();
        assert_eq!((full.node_absent, full.answer.as_secs()), (NodeAbsent::Admit, 4));
        assert_eq!(full.previous.unwrap().get(), r#"{"ips":[]}"#);
    }

    #[test]
    fn what_is_no_json_has_code_6_and_its_place() {
        for text in ["", "{", "[]", "nonsense", "{\"a\":1}}", "\"text\"", "{\"cniVersion\":}"] {
            let (code, words) = code(text, Verb::Add);
            assert_eq!(code, 6, "{text}: {words}");
            assert!(words.contains("line 1"), "{words}");
            // A pod that goes away cannot be known then, either.
            assert_eq!(super::tests::code(text, Verb::Delete).0, 6);
        }
    }

    #[test]
    fn a_version_that_is_absent_or_unknown_has_code_1() {
        for text in [r#"{"name":"pods"}"#, r#"{"cniVersion":"0.2.0","name":"pods"}"#] {
            assert_eq!(code(text, Verb::Add).0, 1);
            assert_eq!(code(text, Verb::Delete).0, 1);
        }
    }

    #[test]
    fn every_value_that_cannot_be_has_code_7_and_its_key() {
        for (more, key) in [
            (r#","socket":"x.sock""#, "socket"),
            (r#","socket":7"#, "socket"),
            (r#","nodeAbsent":"panic""#, "nodeAbsent"),
            (r#","waitSeconds":0"#, "waitSeconds"),
            (r#","waitSeconds":121"#, "waitSeconds"),
            (r#","answerSeconds":1.5"#, "answerSeconds"),
            (r#","answerSeconds":-1"#, "answerSeconds"),
            (r#","logFile":"""#, "logFile"),
            (r#","bandwidthLimits":"keep""#, "bandwidthLimits"),
            (r#","runtimeConfig":[]"#, "runtimeConfig"),
        ] {
            let (code, words) = code(&with(more), Verb::Add);
            assert_eq!(code, 7, "{words}");
            assert!(words.contains(key), "{words}");
            let text = with(more);
            assert!(Configuration::parse(&text, Verb::Delete).is_ok(), "{more}: it must go away");
        }
        let nameless = r#"{"cniVersion":"1.0.0","type":"xskiff-cni"}"#;
        assert!(code(nameless, Verb::Add).1.contains("name"));
    }

    #[test]
    fn an_unknown_key_has_code_2_with_key_and_value_unless_a_pod_goes_away() {
        let text = with(r#","sockett":"/x.sock""#);
        let (code, words) = code(&text, Verb::Add);
        assert_eq!(code, 2);
        assert!(words.contains("sockett") && words.contains("/x.sock"), "{words}");
        assert!(Configuration::parse(&text, Verb::Delete).is_ok());
    }

    #[test]
    fn limits_are_read_and_what_cannot_be_one_is_refused() {
        let read = |limits: &str, verb| {
            let text = with(&format!(r#","runtimeConfig":{{"bandwidth":{limits},"ips":[]}}"#));
            Configuration::parse(&text, verb).map(|configuration| configuration.bandwidth)
        };
        for none in ["null", "{}", r#"{"ingressRate":0,"egressBurst":5}"#] {
            assert_eq!(read(none, Verb::Add).unwrap(), None, "{none}");
        }
        let limits = r#"{"ingressRate":1000000,"ingressBurst":2147483647,
            "egressRate":1000,"egressBurst":4294967295}"#;
        let wanted = Bandwidth {
            ingress_rate: 1_000_000,
            ingress_burst: 2_147_483_647,
            egress_rate: 1_000,
            egress_burst: 4_294_967_295,
        };
        assert_eq!(read(limits, Verb::Check).unwrap(), Some(wanted));
        for wrong in ["[]", "[1,2,3,4]", "7", r#"{"egressRate":"10M"}"#, r#"{"egressRate":1}"#] {
            let error = read(wrong, Verb::Add).unwrap_err();
            assert_eq!(error.code(), 7, "{wrong}");
            assert!(error.to_string().contains("runtimeConfig.bandwidth"), "{error}");
            assert_eq!(read(wrong, Verb::Delete).unwrap(), None);
        }
    }

    #[test]
    fn collecting_without_a_list_is_refused_and_with_an_empty_one_is_not() {
        assert_eq!(code(&with(""), Verb::CollectGarbage).0, 7);
        for list in ["null", "[]"] {
            let text = with(&format!(r#","cni.dev/valid-attachments":{list}"#));
            let parsed = Configuration::parse(&text, Verb::CollectGarbage).unwrap();
            assert_eq!(parsed.valid_attachments, Some(Vec::new()));
        }
        let text = with(r#","cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}]"#);
        let parsed = Configuration::parse(&text, Verb::CollectGarbage).unwrap();
        assert_eq!(parsed.valid_attachments.unwrap()[0].container_id, "a");
        let text = with(r#","cni.dev/valid-attachments":[{"ifname":"eth0"}]"#);
        assert_eq!(code(&text, Verb::CollectGarbage).0, 7);
    }

    #[test]
    fn errors_are_answered_in_the_callers_version_where_it_can_be_read() {
        assert_eq!(version_text(r#"{"cniVersion":"0.2.0"}"#), "0.2.0");
        for text in ["", "{", r#"{"cniVersion":7}"#, r#"{"cniVersion":"a b"}"#] {
            assert_eq!(version_text(text), "1.1.0");
        }
    }
}
