//! Pods' interfaces as they are told to the node: by a person, or by a container runtime through a
//! CNI plugin, which names the attachment as well.
//!
//! An attachment is what the CNI specification calls one: a network, a container and an interface in
//! it. A pod's name stays while its containers come and go, so that what is taken away must be named
//! by the attachment: the removal of an older container of a pod must not end the newer one's.

use std::net::IpAddr;

use dataplane::pacing::{RATE_BITS_MAX, RATE_BITS_MIN};
use serde::{Deserialize, Serialize};

use super::other_version::{Fields, leave_unknown_out};
use super::{AdminError, DETAIL_BYTES_MAX, PATH_BYTES_MAX, parse_mac, validate_interface};
use crate::shown::cut;

/// Addresses of one endpoint, at most: several of each family.
pub const ENDPOINT_ADDRESSES_MAX: usize = 16;
/// Longest container id, in bytes. Runtimes use 64 hexadecimal digits.
pub const CONTAINER_ID_BYTES_MAX: usize = 128;
/// Longest name of a network, in bytes.
pub const NETWORK_BYTES_MAX: usize = 253;
/// Longest `metadata.uid` of a pod, in bytes. API servers use 36 characters, kubelets 32 for pods of
/// their own files.
pub const POD_UID_BYTES_MAX: usize = 64;
/// Attachments in one request: four times as many as a node has ports.
pub const ATTACHMENTS_MAX: usize = 4096;
/// Largest file of an [`Admitted`], in bytes.
pub const ADMITTED_BYTES_MAX: u64 = 16 << 10;

/// Directory below the node's run directory (where its socket is, too) of pods that were admitted
/// while no node process was there: one [`Admitted`] a file.
pub const ADMITTED_DIRECTORY: &str = "admitted";

/// A pod port to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointAdd {
    /// `namespace/pod`, which ties it to the Pod object.
    pub name: String,
    /// The node's end of the pod's veth pair.
    pub interface: String,
    /// Path of the pod's network namespace; needed only to turn offloads off at the pod's end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<String>,
    /// Addresses the pod may speak from.
    pub addresses: Vec<IpAddr>,
    /// The pod's link address; asked of the pod by ARP and ND when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The runtime's name for it; absent when a person added it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<Attachment>,
    /// The Pod's `metadata.uid`, when the runtime told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// Limits of its bandwidth; the Pod's annotations outrank the rates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
}

impl EndpointAdd {
    /// What is wrong with it by itself, before anything else is asked.
    ///
    /// # Errors
    /// [`AdminError::Invalid`], naming the field.
    pub fn validate(&self) -> Result<(), AdminError> {
        validate_pod_name(&self.name)?;
        validate_interface("interface", &self.interface)?;
        validate_addresses(&self.addresses)?;
        if let Some(netns) = &self.netns
            && (!netns.starts_with('/') || netns.len() > PATH_BYTES_MAX || netns.contains('\0'))
        {
            let detail = "give the absolute path, as in /run/netns/pod-a";
            return Err(AdminError::invalid("netns", detail));
        }
        self.mac.as_deref().map_or(Ok(()), |mac| parse_mac(mac).map(drop))?;
        self.attachment.as_ref().map_or(Ok(()), Attachment::validate)?;
        self.bandwidth.as_ref().map_or(Ok(()), Bandwidth::validate)?;
        self.pod_uid.as_deref().map_or(Ok(()), validate_pod_uid)
    }
}

/// Limits of a pod's bandwidth as a container runtime tells them: in bits and bits a second; 0 is
/// none. Directions are the pod's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bandwidth {
    /// Of what goes to the pod.
    pub ingress_rate: u64,
    /// What may go to it at once after a pause.
    pub ingress_burst: u64,
    /// Of what the pod sends.
    pub egress_rate: u64,
    /// What it may send at once after a pause.
    pub egress_burst: u64,
}

impl Bandwidth {
    /// Whether it limits anything.
    #[must_use]
    pub fn is_limit(&self) -> bool {
        self.ingress_rate > 0 || self.egress_rate > 0
    }

    /// What is wrong with it.
    ///
    /// # Errors
    /// [`AdminError::Invalid`], naming the field.
    pub fn validate(&self) -> Result<(), AdminError> {
        let rates = [
            ("bandwidth.ingress_rate", self.ingress_rate),
            ("bandwidth.egress_rate", self.egress_rate),
        ];
        for (field, rate) in rates {
            if rate != 0 && !(RATE_BITS_MIN..=RATE_BITS_MAX).contains(&rate) {
                let detail = format!(
                    "{rate}: write 0 for no limit, or {RATE_BITS_MIN} to {RATE_BITS_MAX} bits a second"
                );
                return Err(AdminError::invalid(field, detail));
            }
        }
        Ok(())
    }
}

/// What a container runtime attached a pod by, as the CNI specification names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    /// The network configuration's name.
    pub network: String,
    /// `CNI_CONTAINERID`: in Kubernetes the pod's sandbox, a new one each time it is made anew.
    pub container_id: String,
    /// `CNI_IFNAME`: the interface inside.
    pub interface: String,
}

impl Attachment {
    /// What is wrong with it.
    ///
    /// # Errors
    /// [`AdminError::Invalid`], naming the field.
    pub fn validate(&self) -> Result<(), AdminError> {
        validate_network(&self.network)?;
        validate_container_id(&self.container_id)?;
        validate_interface("attachment.interface", &self.interface)
    }

    /// Name of its file in [`ADMITTED_DIRECTORY`]. No two have the same: a container has one
    /// interface of a name, whatever the network, and no id holds an `@` or a `/`.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("{}@{}.json", self.container_id, self.interface)
    }
}

/// Attachments of one network that are to stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retained {
    /// The network; attachments of others stay in any case.
    pub network: String,
    /// Container id and interface of each, at most [`ATTACHMENTS_MAX`].
    pub attachments: Vec<(String, String)>,
}

impl Retained {
    /// What is wrong with it.
    ///
    /// # Errors
    /// [`AdminError::Invalid`], naming the field.
    pub fn validate(&self) -> Result<(), AdminError> {
        validate_network(&self.network)?;
        if self.attachments.len() > ATTACHMENTS_MAX {
            let detail = format!("{} of at most {ATTACHMENTS_MAX}", self.attachments.len());
            return Err(AdminError::invalid("attachments", detail));
        }
        // What else stands there is only compared, and has no other use.
        Ok(())
    }

    /// Whether `attachment` is to stay.
    #[must_use]
    pub fn keeps(&self, attachment: &Attachment) -> bool {
        let same = |(container, interface): &(String, String)| {
            *container == attachment.container_id && *interface == attachment.interface
        };
        attachment.network != self.network || self.attachments.iter().any(same)
    }
}

/// Fields of an [`Admitted`].
const ADMITTED_FIELDS: [Fields<'_>; 1] = [(&[], &["boot_id", "ifindex", "endpoint"])];

/// A pod that was admitted while no node process was there, for the next one to adopt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Admitted {
    /// The boot in which it was (`/proc/sys/kernel/random/boot_id`); in another one it says nothing.
    pub boot_id: String,
    /// The kernel's index of the interface: another one may have its name by the time it is read.
    pub ifindex: u32,
    /// What the node would have been asked.
    pub endpoint: EndpointAdd,
}

impl Admitted {
    /// Reads one, and checks it as a request is checked; gives what another version said in it that is not
    /// known here, and was left out.
    ///
    /// # Errors
    /// [`AdminError::Malformed`], [`AdminError::Invalid`]; never panics, whatever the bytes.
    pub fn decode(bytes: &[u8]) -> Result<(Self, Vec<String>), AdminError> {
        let malformed = |error| AdminError::malformed(&error);
        let mut value = serde_json::from_slice(bytes).map_err(malformed)?;
        let unknown = leave_unknown_out(&mut value, &ADMITTED_FIELDS);
        let admitted: Self = serde_json::from_value(value).map_err(malformed)?;
        admitted.endpoint.validate()?;
        if admitted.endpoint.attachment.is_none() {
            return Err(AdminError::invalid("attachment", "whoever admitted it must name it"));
        }
        Ok((admitted, unknown))
    }
}

fn validate_addresses(addresses: &[IpAddr]) -> Result<(), AdminError> {
    if addresses.is_empty() || addresses.len() > ENDPOINT_ADDRESSES_MAX {
        let detail = format!("give 1 to {ENDPOINT_ADDRESSES_MAX} addresses");
        return Err(AdminError::invalid("addresses", detail));
    }
    for (index, address) in addresses.iter().enumerate() {
        if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
            let detail = format!("{address} cannot be a pod's address");
            return Err(AdminError::invalid("addresses", detail));
        }
        if addresses[..index].contains(address) {
            return Err(AdminError::invalid("addresses", format!("{address} is given twice")));
        }
    }
    Ok(())
}

/// Whether `name` is a pod's `namespace/name`.
///
/// # Errors
/// [`AdminError::Invalid`].
pub fn validate_pod_name(name: &str) -> Result<(), AdminError> {
    let valid_part = |part: &str| {
        // RFC 1123 subdomain, the bound of Kubernetes object names.
        (1..=253).contains(&part.len())
            && part
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b))
    };
    match name.split_once('/') {
        Some((namespace, pod)) if valid_part(namespace) && valid_part(pod) => Ok(()),
        _ => {
            let shown = cut(name, DETAIL_BYTES_MAX / 2);
            Err(AdminError::invalid("name", format!("{shown:?}: write namespace/pod")))
        }
    }
}

/// What the CNI specification asks of container ids and names of networks: a letter or digit, then
/// letters, digits, `_`, `.` and `-`.
fn is_cni_name(text: &str, bytes_max: usize) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    (1..=bytes_max).contains(&text.len())
        && text.bytes().all(legal)
        && text.as_bytes()[0].is_ascii_alphanumeric()
}

/// Whether `id` can be a container's.
///
/// # Errors
/// [`AdminError::Invalid`].
pub fn validate_container_id(id: &str) -> Result<(), AdminError> {
    cni_name("attachment.container_id", id, CONTAINER_ID_BYTES_MAX)
}

/// Whether `name` can be a network's.
///
/// # Errors
/// [`AdminError::Invalid`].
pub fn validate_network(name: &str) -> Result<(), AdminError> {
    cni_name("attachment.network", name, NETWORK_BYTES_MAX)
}

fn cni_name(field: &str, text: &str, bytes_max: usize) -> Result<(), AdminError> {
    if is_cni_name(text, bytes_max) {
        return Ok(());
    }
    let shown = cut(text, DETAIL_BYTES_MAX / 2);
    let wanted = format!(
        "{shown:?}: 1 to {bytes_max} letters, digits, '_', '.' and '-', a letter or digit first"
    );
    Err(AdminError::invalid(field, wanted))
}

fn validate_pod_uid(uid: &str) -> Result<(), AdminError> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if (1..=POD_UID_BYTES_MAX).contains(&uid.len()) && uid.bytes().all(legal) {
        return Ok(());
    }
    let shown = cut(uid, DETAIL_BYTES_MAX / 2);
    let wanted = format!("{shown:?}: 1 to {POD_UID_BYTES_MAX} letters, digits and '-'");
    Err(AdminError::invalid("pod_uid", wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment() -> Attachment {
        Attachment {
            network: "pods".into(),
            container_id: "0123abc".into(),
            interface: "eth0".into(),
        }
    }

    fn endpoint() -> EndpointAdd {
        EndpointAdd {
            name: "shop/cart-0".into(),
            interface: "veth0".into(),
            netns: None,
            addresses: vec!["10.1.0.5".parse().unwrap()],
            mac: None,
            attachment: Some(attachment()),
            pod_uid: Some("7b1e4f7e-1d9c-4f0b-8f59-6b1c7d2a9e11".into()),
            bandwidth: None,
        }
    }

    #[test]
    fn what_names_an_attachment_is_bounded_and_of_few_characters() {
        endpoint().validate().unwrap();
        let with = |edit: &dyn Fn(&mut EndpointAdd, &mut Attachment)| {
            let (mut endpoint, mut attachment) = (endpoint(), attachment());
            edit(&mut endpoint, &mut attachment);
            endpoint.attachment = Some(attachment);
            endpoint.validate().map_err(|error| error.to_string())
        };
        for bad in ["", "-a", ".", "..", "a/b", "a@b", "a b", "a\n", "\u{e9}", &"a".repeat(129)] {
            let refused = with(&|_, attachment| attachment.container_id = bad.into());
            assert!(refused.unwrap_err().contains("container_id"), "{bad:?}");
        }
        assert!(with(&|_, a| a.network = "../x".into()).unwrap_err().contains("network"));
        assert!(with(&|_, a| a.interface = "a/b".into()).unwrap_err().contains("interface"));
        assert!(with(&|e, _| e.pod_uid = Some("x;y".into())).unwrap_err().contains("pod_uid"));
        with(&|_, attachment| attachment.container_id = "a".repeat(128)).unwrap();
        let limited = |rate| Some(Bandwidth { egress_rate: rate, ..Bandwidth::default() });
        assert!(with(&|e, _| e.bandwidth = limited(999)).unwrap_err().contains("egress_rate"));
        with(&|e, _| e.bandwidth = limited(1000)).unwrap();
    }

    #[test]
    fn a_hostile_name_does_not_bury_its_message() {
        let error = validate_container_id(&"\n".repeat(1 << 20)).unwrap_err().to_string();
        assert!(error.len() < 3000, "{}", error.len());
    }

    #[test]
    fn only_attachments_of_the_same_network_that_are_not_listed_go() {
        let listed = vec![("0123abc".into(), "eth0".into())];
        let retained = Retained { network: "pods".into(), attachments: listed };
        retained.validate().unwrap();
        let other = |edit: &dyn Fn(&mut Attachment)| {
            let mut other = attachment();
            edit(&mut other);
            other
        };
        assert!(retained.keeps(&attachment()));
        assert!(retained.keeps(&other(&|a| a.network = "storage".into())), "not its matter");
        assert!(!retained.keeps(&other(&|a| a.container_id = "0123abd".into())));
        assert!(!retained.keeps(&other(&|a| a.interface = "net1".into())));
        let none = Retained { network: "pods".into(), attachments: Vec::new() };
        assert!(!none.keeps(&attachment()));
    }

    #[test]
    fn what_was_admitted_is_read_back_and_checked_like_a_request() {
        let admitted = Admitted { boot_id: "boot".into(), ifindex: 7, endpoint: endpoint() };
        let text = serde_json::to_string(&admitted).unwrap();
        assert_eq!(Admitted::decode(text.as_bytes()).unwrap(), (admitted.clone(), Vec::new()));
        // Of another version.
        let newer = text.replace("\"ifindex\"", "\"of_tomorrow\":1,\"ifindex\"");
        let newer = newer.replace("\"interface\"", "\"of_next_week\":[],\"interface\"");
        let unknown = ["of_tomorrow", "of_next_week", "of_next_week"].map(String::from).to_vec();
        assert_eq!(Admitted::decode(newer.as_bytes()).unwrap(), (admitted.clone(), unknown));
        for (old, new, word) in [
            ("\"ifindex\"", "\"index\"", "index"),
            ("10.1.0.5", "224.0.0.1", "224.0.0.1"),
            ("0123abc", "../../x", "container_id"),
        ] {
            let error = Admitted::decode(text.replace(old, new).as_bytes()).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
        let mut nameless = admitted;
        nameless.endpoint.attachment = None;
        let text = serde_json::to_string(&nameless).unwrap();
        assert!(Admitted::decode(text.as_bytes()).is_err());
        assert_eq!(attachment().file_name(), "0123abc@eth0.json");
    }
}
