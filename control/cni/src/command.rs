//! What is done for each verb.
//!
//! ADD and CHECK end in an error whenever the node does not serve the pod as it is. DEL ends in none
//! once it is known what goes away: the node takes a pod away by itself when its interface is gone,
//! and an error would keep the plugins before from removing that. Nothing has code 3, by which a
//! runtime would leave their work undone.

use std::io;

use control::admin::status::Level;
use control::admin::{AdminError, Attachment, EndpointAdd, Reply, Request, Retained};

use super::admitted;
use super::configuration::{
    BandwidthLimits, CONFIGURATION_BYTES_MAX, Configuration, NodeAbsent, version_text,
};
use super::environment::{Environment, Verb};
use super::error::{CniError, Code};
use super::link::{self, PodLink};
use super::log::Log;
use super::node::{self, NodeError, Patience};
use super::previous::Previous;
use super::version::Version;

/// What goes to standard output, and whether the call succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// JSON, or nothing.
    pub output: String,
    /// Whether the exit code is 0.
    pub success: bool,
}

/// Does what environment and standard input, as far as it could be read, ask for. Never panics,
/// whatever they are.
#[must_use]
pub fn run(variable: impl Fn(&str) -> Option<String>, input: io::Result<&[u8]>) -> Outcome {
    let bytes = input.as_ref().copied().unwrap_or_default();
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    match answer(variable, input) {
        Ok(output) => Outcome { output, success: true },
        Err(error) => Outcome { output: error.json(&version_text(text)), success: false },
    }
}

fn answer(
    variable: impl Fn(&str) -> Option<String>,
    input: io::Result<&[u8]>,
) -> Result<String, CniError> {
    let environment = Environment::read(variable)?;
    // Part of a configuration could be taken for the whole of another one.
    let input = input.map_err(|error| {
        let message = "the network configuration does not come";
        CniError::new(Code::InputOutput, message, format!("standard input: {error}"))
    })?;
    let undecodable = |details: String| {
        CniError::new(Code::Undecodable, "the network configuration cannot be read", details)
    };
    if input.len() > CONFIGURATION_BYTES_MAX {
        let details = format!("it has more than {CONFIGURATION_BYTES_MAX} bytes");
        return Err(undecodable(details));
    }
    let text = std::str::from_utf8(input).map_err(|error| undecodable(error.to_string()))?;
    if environment.verb == Verb::Version {
        return Ok(versions(&version_text(text)));
    }
    let configuration = Configuration::parse(text, environment.verb)?;
    refuse_unknown_verb(environment.verb, configuration.version)?;
    let Environment { container_id, interface, .. } = &environment;
    let about = format!("{} {container_id} {interface}", environment.verb.label());
    let log = Log::new(configuration.log_file.clone(), about);
    let call = Call { environment, configuration, log };
    let answered = call.answer();
    match &answered {
        Ok(_) => call.log.note("done"),
        Err(error) => call.log.note(&format!("code {}: {error}", error.code())),
    }
    answered
}

fn versions(version: &str) -> String {
    let supported = Version::ALL.map(Version::text);
    serde_json::json!({ "cniVersion": version, "supportedVersions": supported }).to_string()
}

/// Verbs came with versions.
fn refuse_unknown_verb(verb: Verb, version: Version) -> Result<(), CniError> {
    let least = match verb {
        Verb::Check => Version::V0_4_0,
        Verb::CollectGarbage | Verb::Status => Version::V1_1_0,
        Verb::Add | Verb::Delete | Verb::Version => Version::V0_3_0,
    };
    if version >= least {
        return Ok(());
    }
    let (verb, version, least) = (verb.label(), version.text(), least.text());
    Err(CniError::new(
        Code::IncompatibleVersion,
        format!("cniVersion {version} knows no {verb}"),
        format!("{verb} came with {least}"),
    ))
}

struct Call<'a> {
    environment: Environment,
    configuration: Configuration<'a>,
    log: Log,
}

impl Call<'_> {
    fn answer(&self) -> Result<String, CniError> {
        match self.environment.verb {
            Verb::Add => self.add(),
            Verb::Check => self.check(),
            Verb::Delete => self.delete(),
            Verb::CollectGarbage => self.collect_garbage(),
            Verb::Status => self.status(),
            Verb::Version => Ok(versions(self.configuration.version.text())),
        }
    }

    fn attachment(&self) -> Attachment {
        self.environment.attachment(&self.configuration.network)
    }

    fn ask(&self, request: &Request, waits: bool) -> Result<Reply, NodeError> {
        let Configuration { socket, wait, answer, .. } = &self.configuration;
        let wait = if waits { *wait } else { std::time::Duration::ZERO };
        node::ask(socket, request, Patience { wait, answer: *answer })
    }

    fn waits(&self) -> bool {
        self.configuration.node_absent == NodeAbsent::Wait
    }

    fn add(&self) -> Result<String, CniError> {
        let (endpoint, link) = self.endpoint()?;
        let request = Request::EndpointAdd(endpoint.clone());
        match self.ask(&request, self.waits()) {
            Ok(Reply::Endpoint(_)) => {}
            Ok(_) => return Err(misunderstood("it answered another question")),
            Err(NodeError::Absent { .. })
                if self.configuration.node_absent == NodeAbsent::Admit =>
            {
                let name = endpoint.name.clone();
                let left = admitted::leave(&self.configuration.socket, endpoint, link.ifindex);
                left.map_err(|error| {
                    let message = "no node is there, and no word can be left for it";
                    CniError::new(Code::TryAgainLater, message, error.to_string())
                })?;
                self.log.warn(&format!("{name} runs unpoliced until a node process adopts it"));
            }
            Err(error) => return Err(told(error)),
        }
        // As it came: what is not known here is not ours to drop.
        Ok(self.configuration.previous.map(|raw| raw.get().to_owned()).unwrap_or_default())
    }

    /// What the node is to be told.
    fn endpoint(&self) -> Result<(EndpointAdd, PodLink), CniError> {
        let Environment { netns, interface, pod, .. } = &self.environment;
        let previous = Previous::parse(self.configuration.previous, interface)?;
        let name = self.environment.pod_name()?;
        if pod.sandbox.as_ref().is_some_and(|id| *id != self.environment.container_id) {
            self.log
                .note("K8S_POD_INFRA_CONTAINER_ID names another container; CNI_CONTAINERID holds");
        }
        let netns = netns.clone().unwrap_or_default();
        let link = link::find(&netns, interface)?;
        self.log.note(&format!("{name} is on {}", link.interface));
        self.mind_bandwidth(&previous, &link)?;
        let endpoint = EndpointAdd {
            name,
            interface: link.interface.clone(),
            netns: Some(netns.to_string_lossy().into_owned()),
            addresses: previous.addresses,
            mac: Some(link.mac.clone()),
            attachment: Some(self.attachment()),
            pod_uid: pod.uid.clone(),
            bandwidth: self.configuration.bandwidth,
        };
        endpoint.validate().map_err(invalid_endpoint)?;
        Ok((endpoint, link))
    }

    /// A bandwidth plugin before us whose rates are in its own configuration: what it made limits
    /// nothing any more. For what a pod sends it makes a device, for what goes to the pod none.
    fn mind_bandwidth(&self, previous: &Previous, link: &PodLink) -> Result<(), CniError> {
        let device = previous.bandwidth_device().map(str::to_owned);
        let on_link =
            || link::is_limited(link.ifindex).then(|| format!("tbf on {}", link.interface));
        let Some(device) = device.or_else(on_link) else { return Ok(()) };
        if self.configuration.bandwidth.is_some() {
            self.log.note(&format!("{device} limits nothing: the node keeps the limits itself"));
            return Ok(());
        }
        let why = "packets of pods go past every queueing discipline, and no runtimeConfig.bandwidth \
                   tells its rates";
        match self.configuration.bandwidth_limits {
            BandwidthLimits::Warn => {
                self.log.warn(&format!("NOT LIMITED: a bandwidth plugin made {device}, but {why}"));
                Ok(())
            }
            BandwidthLimits::Refuse => Err(CniError::new(
                Code::UnsupportedField,
                format!("the limits of {device} cannot be kept"),
                format!(
                    "{why}: limit the pod by its kubernetes.io/ingress-bandwidth and \
                     egress-bandwidth annotations instead of the bandwidth plugin's configuration, \
                     with \"capabilities\": {{\"bandwidth\": true}} for xskiff-cni, or set \
                     bandwidthLimits to warn"
                ),
            )),
        }
    }

    fn check(&self) -> Result<String, CniError> {
        let (endpoint, link) = self.endpoint()?;
        let name = endpoint.name.clone();
        match self.ask(&Request::EndpointCheck(endpoint.clone()), self.waits()) {
            Ok(Reply::Endpoint(_)) => Ok(String::new()),
            Ok(_) => Err(misunderstood("it answered another question")),
            Err(NodeError::Absent { .. })
                if self.configuration.node_absent == NodeAbsent::Admit
                    && self.is_admitted(&endpoint, &link) =>
            {
                self.log.warn(&format!("{name} still runs unpoliced: no node process is there"));
                Ok(String::new())
            }
            Err(error) => Err(told(error)),
        }
    }

    fn is_admitted(&self, endpoint: &EndpointAdd, link: &PodLink) -> bool {
        let left = admitted::read(&self.configuration.socket, &self.attachment());
        left.is_some_and(|left| left.endpoint == *endpoint && left.ifindex == link.ifindex)
    }

    fn delete(&self) -> Result<String, CniError> {
        let attachment = self.attachment();
        // First: a node that starts meanwhile must not adopt it any more.
        if let Err(error) = admitted::take_back(&self.configuration.socket, &attachment) {
            self.log.warn(&format!("the word left for a node stays: {error}"));
        }
        match self.ask(&Request::EndpointDetach(attachment), false) {
            Ok(Reply::Removed(true)) => self.log.note("removed"),
            Ok(_) => self.log.note("there was none"),
            Err(error) => self
                .log
                .warn(&format!("{error}; the node takes the pod away when its interface goes")),
        }
        Ok(String::new())
    }

    fn collect_garbage(&self) -> Result<String, CniError> {
        let valid = self.configuration.valid_attachments.iter().flatten();
        let attachments = valid.map(|one| (one.container_id.clone(), one.ifname.clone())).collect();
        let retained = Retained { network: self.configuration.network.clone(), attachments };
        retained.validate().map_err(invalid_endpoint)?;
        // First: a node that starts meanwhile must not adopt them any more.
        match admitted::collect(&self.configuration.socket, &retained) {
            Ok(files) => files.iter().for_each(|file| self.log.note(&format!("{file} is removed"))),
            Err(error) => self.log.warn(&format!("what was left for a node stays: {error}")),
        }
        match self.ask(&Request::EndpointRetain(retained), false) {
            Ok(Reply::RemovedEndpoints(names)) => {
                for name in &names {
                    self.log.note(&format!("{name} was nobody's any more"));
                }
                Ok(String::new())
            }
            Ok(_) => Err(misunderstood("it answered another question")),
            Err(error) => Err(told(error)),
        }
    }

    fn status(&self) -> Result<String, CniError> {
        let unavailable = |code, details: String| {
            Err(CniError::new(code, "the node process cannot serve pods now", details))
        };
        match self.ask(&Request::Status, false) {
            Ok(Reply::Status(status)) if status.verdict.level == Level::Failing => {
                unavailable(Code::UnavailableAndLimited, status.verdict.summary)
            }
            Ok(Reply::Status(_)) => Ok(String::new()),
            Ok(_) => Err(misunderstood("it answered another question")),
            // Pods are admitted all the same.
            Err(NodeError::Absent { .. })
                if self.configuration.node_absent == NodeAbsent::Admit =>
            {
                Ok(String::new())
            }
            // With the process its XDP program is gone, and with it services and policy.
            Err(error @ NodeError::Absent { .. }) => {
                unavailable(Code::UnavailableAndLimited, error.to_string())
            }
            // Packets go on while its control thread hangs.
            Err(error) => unavailable(Code::Unavailable, error.to_string()),
        }
    }
}

fn misunderstood(details: &str) -> CniError {
    let message = "plugin and node do not understand each other";
    CniError::new(Code::Misunderstood, message, format!("{details}: install both of one version"))
}

/// What is wrong with what the runtime and the plugins before said of the pod.
fn invalid_endpoint(error: AdminError) -> CniError {
    let field = match &error {
        AdminError::Invalid { field, .. } => field.as_str(),
        _ => "",
    };
    let (code, message) = match field {
        "name" | "pod_uid" => (Code::InvalidEnvironment, "CNI_ARGS names no pod that can be"),
        "netns" => (Code::InvalidEnvironment, "CNI_NETNS is no path that can be"),
        "addresses" => {
            (Code::InvalidConfiguration, "prevResult has addresses that no pod can have")
        }
        _ => (Code::InvalidConfiguration, "the pod cannot be as it is told"),
    };
    CniError::new(code, message, error.to_string())
}

/// Why the node does not do it.
fn told(error: NodeError) -> CniError {
    match error {
        NodeError::Absent { .. } => CniError::new(
            Code::TryAgainLater,
            "no node process is there",
            format!("{error}; is `xskiff run` running on this node?"),
        ),
        NodeError::Late { .. } => {
            CniError::new(Code::TryAgainLater, "the node process hangs", error.to_string())
        }
        NodeError::Refused(AdminError::Busy { .. }) => {
            CniError::new(Code::TryAgainLater, "the node process is busy", error.to_string())
        }
        NodeError::Socket { .. } => {
            CniError::new(Code::InputOutput, "the node's socket cannot be used", error.to_string())
        }
        NodeError::Unreadable(_) => misunderstood(&error.to_string()),
        NodeError::Refused(AdminError::Version { .. } | AdminError::Malformed { .. }) => {
            misunderstood(&error.to_string())
        }
        NodeError::Refused(_) => {
            CniError::new(Code::Refused, "the node refuses the pod", error.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_with(variables: &[(&str, &str)], input: &str) -> Outcome {
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        run(variable, Ok(input.as_bytes()))
    }

    #[test]
    fn versions_are_told_whatever_is_on_standard_input() {
        let all = r#""supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}"#;
        for (input, version) in
            [("", "1.1.0"), ("{", "1.1.0"), (r#"{"cniVersion":"0.4.0"}"#, "0.4.0")]
        {
            let told = run_with(&[("CNI_COMMAND", "VERSION")], input);
            assert!(told.success);
            assert_eq!(told.output, format!(r#"{{"cniVersion":"{version}",{all}"#));
        }
    }

    #[test]
    fn a_verb_that_the_version_does_not_know_has_code_1() {
        for (verb, version) in [("CHECK", "0.3.1"), ("GC", "1.0.0"), ("STATUS", "0.4.0")] {
            let input = format!(
                r#"{{"cniVersion":"{version}","name":"pods","cni.dev/valid-attachments":[]}}"#
            );
            let variables = [
                ("CNI_COMMAND", verb),
                ("CNI_CONTAINERID", "a"),
                ("CNI_IFNAME", "eth0"),
                ("CNI_NETNS", "/run/netns/x"),
            ];
            let told = run_with(&variables, &input);
            assert!(!told.success && told.output.contains("\"code\":1,"), "{}", told.output);
        }
    }

    #[test]
    fn bytes_that_are_no_text_and_too_many_of_them_have_code_6() {
        let variable = |name: &str| (name == "CNI_COMMAND").then(|| "STATUS".to_owned());
        for input in [vec![0xff; 10], vec![b' '; CONFIGURATION_BYTES_MAX + 1]] {
            let told = run(variable, Ok(&input));
            assert!(!told.success && told.output.contains("\"code\":6,"), "{}", told.output);
        }
    }
}
