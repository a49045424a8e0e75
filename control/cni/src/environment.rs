//! The environment variables by which a container runtime says what it wants.
//!
//! Everything in them is untrusted: names go into requests and names of files, and are checked here.

use std::path::PathBuf;

use control::admin::endpoint::{Attachment, CONTAINER_ID_BYTES_MAX, validate_container_id};

use super::error::{CniError, Code};

/// Longest value that is read, in bytes.
const VALUE_BYTES_MAX: usize = 4096;
/// Pairs in `CNI_ARGS`, at most.
const ARGUMENTS_MAX: usize = 64;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// A pod has an interface.
    Add,
    /// Is it as it was?
    Check,
    /// It goes away.
    Delete,
    /// Whatever is not listed is gone.
    CollectGarbage,
    /// Can pods be added?
    Status,
    /// Which versions are spoken?
    Version,
}

impl Verb {
    fn parse(text: &str) -> Result<Self, CniError> {
        match text {
            "ADD" => Ok(Self::Add),
            "CHECK" => Ok(Self::Check),
            "DEL" => Ok(Self::Delete),
            "GC" => Ok(Self::CollectGarbage),
            "STATUS" => Ok(Self::Status),
            "VERSION" => Ok(Self::Version),
            other => Err(invalid("CNI_COMMAND", other, "ADD, CHECK, DEL, GC, STATUS or VERSION")),
        }
    }

    /// As the specification writes it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Check => "CHECK",
            Self::Delete => "DEL",
            Self::CollectGarbage => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }
}

/// The pod, as Kubernetes' runtimes name it in `CNI_ARGS`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pod {
    /// `K8S_POD_NAMESPACE`.
    pub namespace: Option<String>,
    /// `K8S_POD_NAME`.
    pub name: Option<String>,
    /// `K8S_POD_UID`.
    pub uid: Option<String>,
    /// `K8S_POD_INFRA_CONTAINER_ID`, which is the container's own id.
    pub sandbox: Option<String>,
}

/// What the variables say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// `CNI_COMMAND`.
    pub verb: Verb,
    /// `CNI_CONTAINERID`; empty where the verb needs none.
    pub container_id: String,
    /// `CNI_NETNS`; absent where it is empty.
    pub netns: Option<PathBuf>,
    /// `CNI_IFNAME`; empty where the verb needs none.
    pub interface: String,
    /// Of `CNI_ARGS`.
    pub pod: Pod,
}

impl Environment {
    /// Reads the variables through `variable`.
    ///
    /// # Errors
    /// Code 4, naming the variable that is missing or cannot be.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, CniError> {
        let value = |name: &str| -> Result<String, CniError> {
            let value = variable(name).unwrap_or_default();
            if value.len() > VALUE_BYTES_MAX || value.contains('\0') {
                return Err(invalid(name, "a value", &format!("at most {VALUE_BYTES_MAX} bytes")));
            }
            Ok(value)
        };
        let verb = Verb::parse(&value("CNI_COMMAND")?)?;
        let needs_container = matches!(verb, Verb::Add | Verb::Check | Verb::Delete);
        let (mut container_id, mut interface) = (String::new(), String::new());
        let (mut netns, mut pod) = (None, Pod::default());
        if needs_container {
            container_id = value("CNI_CONTAINERID")?;
            interface = value("CNI_IFNAME")?;
            check_names(&container_id, &interface)?;
            netns = read_netns(verb, value("CNI_NETNS")?)?;
            // Who goes away is named by the container; whatever stands in the arguments.
            if verb != Verb::Delete {
                pod = parse_arguments(&value("CNI_ARGS")?)?;
            }
        }
        Ok(Self { verb, container_id, netns, interface, pod })
    }

    /// The attachment, in the network of that name.
    #[must_use]
    pub fn attachment(&self, network: &str) -> Attachment {
        Attachment {
            network: network.to_owned(),
            container_id: self.container_id.clone(),
            interface: self.interface.clone(),
        }
    }

    /// `namespace/pod`.
    ///
    /// # Errors
    /// Code 4: the runtime does not say which pod it is.
    pub fn pod_name(&self) -> Result<String, CniError> {
        match (&self.pod.namespace, &self.pod.name) {
            (Some(namespace), Some(name)) => Ok(format!("{namespace}/{name}")),
            _ => Err(CniError::new(
                Code::InvalidEnvironment,
                "CNI_ARGS does not say which pod this is",
                "K8S_POD_NAMESPACE=NAMESPACE;K8S_POD_NAME=NAME must stand there, as Kubernetes' \
                 runtimes set them: policy is a pod's, not an address's",
            )),
        }
    }
}

fn invalid(variable: &str, value: &str, wanted: &str) -> CniError {
    CniError::new(
        Code::InvalidEnvironment,
        format!("{variable} is missing or invalid"),
        format!("{value:?}: it must be {wanted}"),
    )
}

fn check_names(container_id: &str, interface: &str) -> Result<(), CniError> {
    if validate_container_id(container_id).is_err() {
        let wanted = format!(
            "1 to {CONTAINER_ID_BYTES_MAX} letters, digits, '_', '.' and '-', a letter or digit first"
        );
        return Err(invalid("CNI_CONTAINERID", container_id, &wanted));
    }
    let attachment = Attachment {
        network: "any".into(),
        container_id: container_id.into(),
        interface: interface.into(),
    };
    if attachment.validate().is_err() {
        let wanted = "an interface's name: 1 to 15 characters, no space, '/' or ':'";
        return Err(invalid("CNI_IFNAME", interface, wanted));
    }
    Ok(())
}

fn read_netns(verb: Verb, path: String) -> Result<Option<PathBuf>, CniError> {
    if path.is_empty() {
        // A namespace that is gone is no obstacle to taking its pod away.
        if verb == Verb::Delete {
            return Ok(None);
        }
        return Err(invalid("CNI_NETNS", "", "the path of the container's network namespace"));
    }
    if !path.starts_with('/') && verb != Verb::Delete {
        return Err(invalid("CNI_NETNS", &path, "an absolute path"));
    }
    Ok(Some(PathBuf::from(path)))
}

/// Reads `KEY=VALUE;KEY=VALUE`. Keys that are not known are another plugin's.
///
/// # Errors
/// Code 4.
pub fn parse_arguments(text: &str) -> Result<Pod, CniError> {
    let mut pod = Pod::default();
    for (index, pair) in text.split(';').filter(|pair| !pair.is_empty()).enumerate() {
        let Some((key, value)) = pair.split_once('=').filter(|_| index < ARGUMENTS_MAX) else {
            let wanted = format!("at most {ARGUMENTS_MAX} times KEY=VALUE, separated by ';'");
            return Err(invalid("CNI_ARGS", pair, &wanted));
        };
        let place = match key {
            "K8S_POD_NAMESPACE" => &mut pod.namespace,
            "K8S_POD_NAME" => &mut pod.name,
            "K8S_POD_UID" => &mut pod.uid,
            "K8S_POD_INFRA_CONTAINER_ID" => &mut pod.sandbox,
            _ => continue,
        };
        if place.is_some() {
            return Err(invalid("CNI_ARGS", pair, "each key once"));
        }
        // Runtimes write an empty value where they know none.
        *place = Some(value.to_owned()).filter(|value| !value.is_empty());
    }
    Ok(pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(changes: &[(&str, &str)]) -> Result<Environment, CniError> {
        let honest = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "0123abc"),
            ("CNI_NETNS", "/run/netns/pod"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0;K8S_POD_UID="),
        ];
        Environment::read(|name| {
            let changed = changes.iter().find(|(changed, _)| *changed == name);
            let value = changed.or(honest.iter().find(|(honest, _)| *honest == name))?;
            Some(value.1.to_owned())
        })
    }

    #[test]
    fn a_pod_is_named_by_the_arguments_and_its_attachment_by_the_container() {
        let environment = read(&[]).unwrap();
        assert_eq!(environment.pod_name().unwrap(), "shop/cart-0");
        assert_eq!(environment.pod.uid, None);
        let attachment = environment.attachment("pods");
        assert_eq!(attachment.file_name(), "0123abc@eth0.json");
        let error = read(&[("CNI_ARGS", "")]).unwrap().pod_name().unwrap_err();
        assert!(error.code() == 4 && error.to_string().contains("CNI_ARGS"), "{error}");
    }

    #[test]
    fn every_variable_that_cannot_be_is_named_with_code_4() {
        let long = "a".repeat(5000);
        for (variable, value) in [
            ("CNI_COMMAND", "ATTACH"),
            ("CNI_COMMAND", ""),
            ("CNI_CONTAINERID", ""),
            ("CNI_CONTAINERID", "../etc"),
            ("CNI_CONTAINERID", &long),
            ("CNI_IFNAME", ""),
            ("CNI_IFNAME", "a/b"),
            ("CNI_IFNAME", "longer-than-fifteen"),
            ("CNI_NETNS", ""),
            ("CNI_NETNS", "run/netns/pod"),
            ("CNI_ARGS", "K8S_POD_NAME"),
            ("CNI_ARGS", "K8S_POD_NAME=a;K8S_POD_NAME=b"),
        ] {
            let error = read(&[(variable, value)]).unwrap_err();
            assert_eq!(error.code(), 4, "{error}");
            assert!(error.to_string().contains(variable), "{error}");
        }
        let many = "A=b;".repeat(100);
        assert_eq!(read(&[("CNI_ARGS", &many)]).unwrap_err().code(), 4);
    }

    #[test]
    fn what_goes_away_needs_no_namespace_and_no_pod() {
        let gone = [("CNI_COMMAND", "DEL"), ("CNI_NETNS", ""), ("CNI_ARGS", "nonsense")];
        assert_eq!(read(&gone).unwrap().netns, None);
        assert!(read(&[gone[0], ("CNI_CONTAINERID", "")]).is_err());
        for verb in ["GC", "STATUS", "VERSION"] {
            let bare = [("CNI_COMMAND", verb), ("CNI_CONTAINERID", ""), ("CNI_IFNAME", "")];
            assert_eq!(read(&bare).unwrap().verb.label(), verb);
        }
    }
}
