//! A container runtime as far as plugins see it: calls them in order with what the specification
//! says, hands each result on, and undoes in the opposite order. Of its own, so that 1.1.0 can be
//! spoken and every byte between plugins seen.

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Map, Value, json};
use xskiff::lab::Namespace;
use xskiff_tests::xskiff_binary::plugin;

/// Where Debian keeps the reference plugins.
pub const PLUGINS: &str = "/usr/lib/cni";

/// A network: name, version and plugins in order.
#[derive(Debug, Clone)]
pub struct Network {
    pub version: &'static str,
    pub name: &'static str,
    pub plugins: Vec<Value>,
}

/// One container's interface, as a runtime names it.
#[derive(Debug, Clone)]
pub struct Container {
    pub id: String,
    pub netns: String,
    pub interface: &'static str,
    /// `CNI_ARGS`.
    pub arguments: String,
    /// `runtimeConfig`, of which each plugin gets what it is capable of.
    pub runtime: Map<String, Value>,
}

impl Container {
    pub fn of_pod(id: &str, namespace: &Namespace, pod: &str) -> Self {
        let (space, name) = pod.split_once('/').expect("namespace/pod");
        let arguments = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={space};K8S_POD_NAME={name};\
             K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID=uid-{id}"
        );
        let netns = format!("/run/netns/{}", namespace.system_name());
        Self { id: id.into(), netns, interface: "eth0", arguments, runtime: Map::new() }
    }
}

/// What a plugin said when it failed.
#[derive(Debug, Clone)]
pub struct Refusal {
    pub plugin: String,
    pub code: u64,
    pub text: String,
}

/// A call of one plugin.
pub struct Call<'a> {
    pub host: &'a Namespace,
    pub verb: &'a str,
    pub program: &'a Path,
    pub variables: Vec<(&'a str, String)>,
    pub input: String,
}

impl Call<'_> {
    pub fn start(&self) -> Child {
        let program = self.program.to_string_lossy();
        let mut command: Command = self.host.command(&program, &[]);
        command.env("CNI_COMMAND", self.verb).env("CNI_PATH", PLUGINS);
        for (name, value) in &self.variables {
            command.env(name, value);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("a plugin can be run");
        let mut input = child.stdin.take().expect("its standard input");
        // One that refuses before it has read hangs up.
        let _ = input.write_all(self.input.as_bytes());
        child
    }

    pub fn run(&self) -> Output {
        self.start().wait_with_output().expect("a plugin ends")
    }

    /// Starts it, and kills it by SIGKILL after so long; whether it was in the middle of its work.
    pub fn kill_after(&self, after: Duration) -> bool {
        let mut child = self.start();
        std::thread::sleep(after);
        // It may have ended by itself.
        let _ = child.kill();
        let status = child.wait().expect("it ends");
        status.signal() == Some(Signal::SIGKILL as i32)
    }

    /// Its standard output when it succeeds, its error otherwise.
    pub fn answer(&self) -> Result<String, Refusal> {
        let output = self.run();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(said);
        }
        let error: Value = serde_json::from_str(&said).unwrap_or_default();
        let errors = String::from_utf8_lossy(&output.stderr);
        Err(Refusal {
            plugin: self.program.display().to_string(),
            code: error["code"].as_u64().unwrap_or_default(),
            text: format!("{said} {errors}"),
        })
    }
}

/// The variables that name a container.
pub fn variables(container: &Container) -> Vec<(&'static str, String)> {
    vec![
        ("CNI_CONTAINERID", container.id.clone()),
        ("CNI_NETNS", container.netns.clone()),
        ("CNI_IFNAME", container.interface.into()),
        ("CNI_ARGS", container.arguments.clone()),
    ]
}

impl Network {
    /// The chain without its last plugin, which is ours.
    pub fn without_ours(&self) -> Self {
        let plugins = self.plugins[..self.plugins.len() - 1].to_vec();
        Self { plugins, ..self.clone() }
    }

    /// What a plugin is given.
    pub fn input(&self, own: &Value, container: &Container, previous: Option<&Value>) -> Value {
        let mut input = own.clone();
        input["cniVersion"] = self.version.into();
        input["name"] = self.name.into();
        let capabilities = own["capabilities"].as_object().cloned().unwrap_or_default();
        let asked = container.runtime.iter().filter(|(key, _)| capabilities.contains_key(*key));
        let runtime: Map<String, Value> =
            asked.map(|(key, value)| (key.clone(), value.clone())).collect();
        input.as_object_mut().expect("an object").remove("capabilities");
        if !runtime.is_empty() {
            input["runtimeConfig"] = runtime.into();
        }
        if let Some(previous) = previous {
            input["prevResult"] = previous.clone();
        }
        input
    }

    fn call(
        &self,
        host: &Namespace,
        verb: &str,
        own: &Value,
        container: &Container,
        previous: Option<&Value>,
    ) -> Result<String, Refusal> {
        let kind = own["type"].as_str().expect("a type");
        let reference = Path::new(PLUGINS).join(kind);
        let call = Call {
            host,
            verb,
            program: if kind == "xskiff-cni" { plugin() } else { &reference },
            variables: variables(container),
            input: self.input(own, container, previous).to_string(),
        };
        call.answer()
    }

    /// ADD: the last plugin's result. What was done stays when one refuses, as runtimes leave it.
    pub fn add(&self, host: &Namespace, container: &Container) -> Result<Value, Refusal> {
        let mut result: Option<Value> = None;
        for own in &self.plugins {
            let said = self.call(host, "ADD", own, container, result.as_ref())?;
            let next: Value = serde_json::from_str(&said).expect("a result is JSON");
            if own["type"] == "xskiff-cni" {
                assert_eq!(Some(&next), result.as_ref(), "the result goes on as it came");
            }
            result = Some(next);
        }
        Ok(result.expect("a network has plugins"))
    }

    pub fn check(
        &self,
        host: &Namespace,
        container: &Container,
        result: &Value,
    ) -> Result<(), Refusal> {
        self.plugins.iter().try_for_each(|own| {
            let said = self.call(host, "CHECK", own, container, Some(result))?;
            assert_eq!(said, "");
            Ok(())
        })
    }

    /// DEL, with the result that ADD had, if the runtime still knows it.
    pub fn delete(
        &self,
        host: &Namespace,
        container: &Container,
        result: Option<&Value>,
    ) -> Result<(), Refusal> {
        self.plugins
            .iter()
            .rev()
            .try_for_each(|own| self.call(host, "DEL", own, container, result).map(drop))
    }

    /// One verb of our own plugin, with more keys in its configuration.
    pub fn ours(
        &self,
        host: &Namespace,
        verb: &str,
        container: Option<&Container>,
        more: Value,
    ) -> Result<String, Refusal> {
        self.our_call(host, verb, container, more).answer()
    }

    /// The call of [`Network::ours`], not made yet.
    pub fn our_call<'a>(
        &self,
        host: &'a Namespace,
        verb: &'a str,
        container: Option<&Container>,
        more: Value,
    ) -> Call<'a> {
        let own = self.plugins.iter().find(|own| own["type"] == "xskiff-cni").expect("ours");
        let mut input = own.clone();
        let all = json!({ "cniVersion": self.version, "name": self.name });
        for (key, value) in all.as_object().into_iter().chain(more.as_object()).flatten() {
            input[key] = value.clone();
        }
        let variables = container.map(variables).unwrap_or_default();
        Call { host, verb, program: plugin(), variables, input: input.to_string() }
    }
}
