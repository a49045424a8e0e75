//! A network configuration as text, and our entry in it. What others wrote stays as it is, to the
//! byte, and taking the entry out gives back exactly what was there.

use std::ops::Range;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::PLUGIN;

/// Versions that the plugin speaks.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Plugins that work by rules of the host's stack, and what becomes of those for packets that do not
/// pass it.
const BYPASSED: [(&str, &str); 4] = [
    (
        "bandwidth",
        "the node keeps a pod's limits itself; those of the plugin's own configuration do not hold",
    ),
    (
        "portmap",
        "what comes by a mapped port comes from the node, which NetworkPolicy always lets in",
    ),
    ("firewall", "its rules about pods are not asked; NetworkPolicy is"),
    (
        "calico",
        "its iptables or nftables policy is not asked; of its policies NetworkPolicy alone is",
    ),
];

/// A configuration that our entry cannot be put into, or taken out of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConflistError {
    /// Not JSON, or not of the form; with line and column.
    #[error("it is no CNI configuration: {0}; it was left as it is")]
    Malformed(String),
    /// The plugin does not speak that version.
    #[error("its cniVersion is {0:?}, and {PLUGIN} speaks {spoken}", spoken = VERSIONS.join(", "))]
    Version(String),
    /// Nothing to stand behind.
    #[error("{0}: {PLUGIN} must stand behind a plugin that makes a veth pair")]
    NothingBefore(&'static str),
}

fn malformed(error: &serde_json::Error) -> ConflistError {
    // It ends in its line and column.
    ConflistError::Malformed(error.to_string())
}

/// How our entry is to be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entry {
    /// The node's socket, absent for the plugin's default.
    pub socket: Option<String>,
    /// `nodeAbsent`, `waitSeconds` and so on, where they are not the plugin's default.
    pub options: Vec<(&'static str, Value)>,
}

impl Entry {
    /// For a node at that socket; what is the plugin's default is left out.
    #[must_use]
    pub fn new(socket: &str, node_absent: &str, wait_seconds: u32) -> Self {
        let mut options = Vec::new();
        if node_absent != "wait" {
            options.push(("nodeAbsent", node_absent.into()));
        }
        if wait_seconds != 10 {
            options.push(("waitSeconds", wait_seconds.into()));
        }
        let is_default = socket == crate::cli::DEFAULT_SOCKET;
        Self { socket: (!is_default).then(|| socket.to_owned()), options }
    }

    /// As it is written.
    #[must_use]
    pub fn text(&self) -> String {
        // Limits are asked for, so that the plugin can refuse them.
        let mut entry = json!({ "type": PLUGIN, "capabilities": { "bandwidth": true } });
        if let Some(socket) = &self.socket {
            entry["socket"] = socket.clone().into();
        }
        for (key, value) in &self.options {
            entry[*key] = value.clone();
        }
        entry.to_string()
    }
}

#[derive(Debug, Deserialize)]
struct List<'a> {
    #[serde(rename = "cniVersion", default)]
    version: Option<String>,
    name: String,
    #[serde(borrow)]
    plugins: Vec<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
struct Single {
    #[serde(rename = "cniVersion", default)]
    version: Option<String>,
    name: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Debug, Deserialize)]
struct Plugin {
    #[serde(rename = "type")]
    kind: String,
}

/// A configuration that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflist {
    /// The network's name.
    pub name: String,
    /// Its version; empty when it names none.
    pub version: String,
    /// Types of its plugins, in order.
    pub plugins: Vec<String>,
    /// Where each stands in the text.
    places: Vec<Range<usize>>,
}

impl Conflist {
    /// Reads a conflist.
    ///
    /// # Errors
    /// [`ConflistError::Malformed`].
    pub fn parse(text: &str) -> Result<Self, ConflistError> {
        let list: List<'_> = serde_json::from_str(text).map_err(|error| malformed(&error))?;
        let (mut plugins, mut places) = (Vec::new(), Vec::new());
        for raw in &list.plugins {
            let place = place_of(text, raw.get()).ok_or_else(|| {
                ConflistError::Malformed("its plugins are not where they are".into())
            })?;
            let plugin: Plugin = serde_json::from_str(raw.get()).map_err(|error| {
                let line = 1 + text[..place.start].matches('\n').count();
                ConflistError::Malformed(format!("the plugin on line {line}: {error}"))
            })?;
            plugins.push(plugin.kind);
            places.push(place);
        }
        let version = list.version.unwrap_or_default();
        Ok(Self { name: list.name, version, plugins, places })
    }

    /// Where our entry stands among the plugins, counted from 0.
    #[must_use]
    pub fn position(&self) -> Option<usize> {
        self.plugins.iter().position(|kind| kind == PLUGIN)
    }

    /// What is worth a word beside: plugins whose work the packets of pods go past from now on.
    #[must_use]
    pub fn cautions(&self) -> Vec<String> {
        let said = |kind: &String| {
            let known = BYPASSED.iter().find(|(bypassed, _)| bypassed == kind);
            known.map(|(_, caution)| format!("{kind}: {caution}"))
        };
        self.plugins.iter().filter_map(said).collect()
    }
}

/// Where `part`, which is borrowed from `text`, stands in it.
fn place_of(text: &str, part: &str) -> Option<Range<usize>> {
    let start = (part.as_ptr() as usize).checked_sub(text.as_ptr() as usize)?;
    let place = start..start.checked_add(part.len())?;
    (text.get(place.clone()) == Some(part)).then_some(place)
}

fn check_version(version: &str) -> Result<(), ConflistError> {
    if VERSIONS.contains(&version) {
        return Ok(());
    }
    Err(ConflistError::Version(version.to_owned()))
}

/// The conflist with `entry` in it; `None` when it is there, just so.
///
/// # Errors
/// [`ConflistError`].
pub fn chain(text: &str, entry: &Entry) -> Result<Option<String>, ConflistError> {
    let list = Conflist::parse(text)?;
    check_version(&list.version)?;
    let entry = entry.text();
    let Some(last) = list.places.last() else {
        return Err(ConflistError::NothingBefore("it has no plugin"));
    };
    let Some(position) = list.position() else {
        let (before, after) = text.split_at(last.end);
        return Ok(Some(format!("{before},\n    {entry}{after}")));
    };
    if position == 0 {
        return Err(ConflistError::NothingBefore("its first plugin is ours"));
    }
    let place = list.places[position].clone();
    let same = |one: &str, other: &str| {
        let read = |text: &str| serde_json::from_str::<Value>(text).ok();
        read(one) == read(other)
    };
    if same(&text[place.clone()], &entry) {
        return Ok(None);
    }
    Ok(Some(format!("{}{entry}{}", &text[..place.start], &text[place.end..])))
}

/// The conflist without our entry; `None` when it is not there.
///
/// # Errors
/// [`ConflistError`].
pub fn unchain(text: &str) -> Result<Option<String>, ConflistError> {
    let list = Conflist::parse(text)?;
    let Some(position) = list.position() else { return Ok(None) };
    let own = list.places[position].clone();
    let gone = match (position.checked_sub(1), list.places.get(position + 1)) {
        // With the comma before, as it was put in.
        (Some(before), _) => list.places[before].end..own.end,
        (None, Some(after)) => own.start..after.start,
        (None, None) => own,
    };
    let rest = format!("{}{}", &text[..gone.start], &text[gone.end..]);
    // Somebody may have put it there twice.
    Ok(Some(unchain(&rest)?.unwrap_or(rest)))
}

/// A conflist of the one plugin that `text` configures, which stays as it is, and `entry`.
///
/// # Errors
/// [`ConflistError`].
pub fn from_single(text: &str, entry: &Entry) -> Result<String, ConflistError> {
    let single: Single = serde_json::from_str(text).map_err(|error| malformed(&error))?;
    let version = single.version.unwrap_or_default();
    check_version(&version)?;
    if single.kind == PLUGIN {
        return Err(ConflistError::NothingBefore("its only plugin is ours"));
    }
    let (name, version) = (Value::from(single.name), Value::from(version));
    Ok(format!(
        "{{\n  \"cniVersion\": {version},\n  \"name\": {name},\n  \"plugins\": [\n    {},\n    {}\n  ]\n}}\n",
        text.trim(),
        entry.text()
    ))
}

/// Whether the conflist, our entry aside, is the one plugin that `single` configures.
#[must_use]
pub fn is_from_single(text: &str, single: &str) -> bool {
    let list = serde_json::from_str::<List<'_>>(text).ok();
    let others: Vec<Value> = list
        .iter()
        .flat_map(|list| &list.plugins)
        .filter_map(|raw| serde_json::from_str::<Value>(raw.get()).ok())
        .filter(|plugin| plugin["type"] != PLUGIN)
        .collect();
    serde_json::from_str::<Value>(single).is_ok_and(|single| others == [single])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Flannel's DaemonSet writes it.
    const FLANNEL: &str = r#"{
  "name": "cbr0",
  "cniVersion": "0.3.1",
  "plugins": [
    {
      "type": "flannel",
      "delegate": {
        "hairpinMode": true,
        "isDefaultGateway": true
      }
    },
    {
      "type": "portmap",
      "capabilities": {
        "portMappings": true
      }
    }
  ]
}
"#;

    fn entry() -> Entry {
        Entry { socket: Some("/run/xskiff/admin.sock".into()), options: Vec::new() }
    }

    #[test]
    fn our_entry_comes_last_and_what_others_wrote_stays_to_the_byte() {
        let chained = chain(FLANNEL, &entry()).unwrap().unwrap();
        let list = Conflist::parse(&chained).unwrap();
        assert_eq!(list.plugins, ["flannel", "portmap", PLUGIN]);
        assert_eq!((list.name.as_str(), list.position()), ("cbr0", Some(2)));
        assert_eq!(chain(&chained, &entry()).unwrap(), None, "once is enough");
        assert_eq!(unchain(&chained).unwrap().as_deref(), Some(FLANNEL));
        assert_eq!(unchain(FLANNEL).unwrap(), None);
        let own = entry().text();
        let twice = chained.replace(&own, &format!("{own},{own}"));
        assert_eq!(unchain(&twice).unwrap().as_deref(), Some(FLANNEL));
    }

    #[test]
    fn others_edits_outlive_our_entry() {
        let chained = chain(FLANNEL, &entry()).unwrap().unwrap();
        let edited = chained
            .replace("\"hairpinMode\": true", "\"hairpinMode\": false")
            .replace("\n  ]\n}", ",{\"type\":\"tuning\"}\n  ]\n}");
        let back = unchain(&edited).unwrap().unwrap();
        let list = Conflist::parse(&back).unwrap();
        assert_eq!(list.plugins, ["flannel", "portmap", "tuning"]);
        assert!(back.contains("\"hairpinMode\": false"));
    }

    #[test]
    fn other_options_replace_our_entry_where_it_stands() {
        let first = chain(FLANNEL, &entry()).unwrap().unwrap();
        let other = Entry { options: vec![("nodeAbsent", "admit".into())], ..entry() };
        let second = chain(&first, &other).unwrap().unwrap();
        assert_eq!(second.matches(PLUGIN).count(), 1);
        assert!(second.contains("\"nodeAbsent\":\"admit\""), "{second}");
        assert_eq!(unchain(&second).unwrap().as_deref(), Some(FLANNEL));
    }

    #[test]
    fn a_single_plugin_becomes_a_list_of_two_and_is_known_again() {
        let single = "{ \"cniVersion\": \"1.0.0\",\n \"name\": \"mynet\", \"type\": \"bridge\" }\n";
        let list = from_single(single, &entry()).unwrap();
        let parsed = Conflist::parse(&list).unwrap();
        assert_eq!(
            (parsed.plugins, parsed.version),
            (vec!["bridge".into(), PLUGIN.into()], "1.0.0".into())
        );
        assert!(is_from_single(&list, single));
        assert!(!is_from_single(&list.replace("bridge", "ptp"), single));
        assert!(!is_from_single(FLANNEL, single));
    }

    #[test]
    fn what_cannot_be_chained_is_refused_and_says_where_and_why() {
        for (text, word) in [
            ("{\n  \"name\": \"x\",\n  \"plugins\": [,]\n}", "line 3 column 15"),
            ("{\"name\":\"x\",\"cniVersion\":\"1.0.0\"}", "missing field `plugins`"),
            ("[]", "line 1"),
            ("", "EOF"),
            (
                "{\"name\":\"x\",\"cniVersion\":\"1.0.0\",\n\"plugins\":[\n{}]}",
                "line 3: missing field",
            ),
            (
                "{\"name\":\"x\",\"cniVersion\":\"0.2.0\",\"plugins\":[{\"type\":\"ptp\"}]}",
                "\"0.2.0\"",
            ),
            ("{\"name\":\"x\",\"plugins\":[{\"type\":\"ptp\"}]}", "cniVersion is \"\""),
            ("{\"name\":\"x\",\"cniVersion\":\"1.0.0\",\"plugins\":[]}", "no plugin"),
            (
                "{\"name\":\"x\",\"cniVersion\":\"1.0.0\",\"plugins\":[{\"type\":\"xskiff-cni\"}]}",
                "first plugin is ours",
            ),
        ] {
            let error = chain(text, &entry()).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
        let ours = "{\"name\":\"x\",\"cniVersion\":\"1.0.0\",\"type\":\"xskiff-cni\"}";
        assert!(from_single(ours, &entry()).is_err());
    }

    #[test]
    fn plugins_whose_work_is_gone_past_are_named() {
        let named = |list: &str| Conflist::parse(list).unwrap().cautions();
        assert_eq!(named(FLANNEL).len(), 1, "portmap");
        let limited = named(&FLANNEL.replace("flannel", "bandwidth"));
        assert!(limited[0].starts_with("bandwidth: ") && limited[1].starts_with("portmap: "));
        assert!(named(&FLANNEL.replace("portmap", "tuning")).is_empty());
    }
}
