//! The configuration in force: the file the node was started with, and what newer contents of it
//! changed live. What a newer content wants beside waits for a restart, and is known by name.

use control::config::{Change, Config, ConfigError};

use super::cluster_source::Overrides;

/// What the node runs by, whatever its file says by now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InForce {
    config: Config,
    /// What the command line says, which outranks any file.
    overrides: Overrides,
    waiting: Vec<String>,
}

impl InForce {
    /// A node that was started with `config`, and with `overrides` on the command line.
    #[must_use]
    pub fn new(config: &Config, overrides: Overrides) -> Self {
        let mut in_force = Self { config: config.clone(), overrides, waiting: Vec::new() };
        in_force.config = in_force.overruled(config);
        in_force
    }

    /// What `read` says in a process that was started with this command line.
    fn overruled(&self, read: &Config) -> Config {
        let mut config = read.clone();
        self.overrides.apply(&mut config);
        config
    }

    /// Takes over from a new content of the file what comes into force without a restart; the flow
    /// tables' sizes only if they could be put in force, else they wait for a restart.
    pub fn take_live(&mut self, read: &Config, sizes: bool) {
        let wanted = self.overruled(read);
        let flow_table = self.config.flow_table.clone();
        self.config.take_live(&wanted);
        if !sizes {
            self.config.flow_table = flow_table;
        }
        self.waiting = self.config.diff(&wanted).into_iter().map(|change| change.field).collect();
    }

    /// Fields of the file that differ from what is in force, and will until a restart.
    #[must_use]
    pub fn waiting(&self) -> &[String] {
        &self.waiting
    }

    /// As a YAML document with every field.
    ///
    /// # Errors
    /// As [`Config::print`].
    pub fn print(&self) -> Result<String, ConfigError> {
        self.config.print()
    }

    /// What the node would do on being given `candidate`.
    #[must_use]
    pub fn diff(&self, candidate: &Config) -> Vec<Change> {
        self.config.diff(&self.overruled(candidate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(text).unwrap()
    }

    /// What was printed was the file as last read: a node with one worker said that it had two.
    #[test]
    fn what_needs_a_restart_is_not_in_force_but_waits_by_name() {
        let mut in_force = InForce::new(&config("workers: {count: 1}"), Overrides::default());
        let edited = config("workers: {count: 2}\ntimeouts: {udp_seconds: 77}");
        in_force.take_live(&edited, true);
        let printed = config(&in_force.print().unwrap());
        assert_eq!((printed.workers.count, printed.timeouts.udp_seconds), (1, 77));
        assert_eq!(in_force.waiting(), ["workers.count"]);
        let changed: Vec<_> = in_force.diff(&edited).into_iter().map(|c| c.field).collect();
        assert_eq!(changed, ["workers.count"]);
        in_force.take_live(&config("timeouts: {udp_seconds: 78}"), true);
        assert!(in_force.waiting().is_empty(), "the file says again what is in force");
    }

    #[test]
    fn sizes_that_could_not_be_put_in_force_wait_while_the_rest_is_taken() {
        let first = config("flow_table: {ipv4_flows_max: 4096}");
        let mut in_force = InForce::new(&first, Overrides::default());
        let edited = config("flow_table: {ipv4_flows_max: 128}\ntimeouts: {udp_seconds: 77}");
        in_force.take_live(&edited, false);
        assert_eq!(in_force.waiting(), ["flow_table.ipv4_flows_max"]);
        let printed = config(&in_force.print().unwrap());
        assert_eq!(printed.flow_table.ipv4_flows_max, Some(4096));
        assert_eq!(printed.timeouts.udp_seconds, 77);
        in_force.take_live(&edited, true);
        assert!(in_force.waiting().is_empty());
    }

    #[test]
    fn a_folder_of_the_command_line_outranks_the_file_now_and_later() {
        let own = std::path::PathBuf::from("/srv/manifests");
        let overrides = Overrides { manifests: Some(own.clone()), ..Overrides::default() };
        let mut in_force = InForce::new(&config("manifests: /etc/a"), overrides);
        let other = config("manifests: /etc/b");
        assert_eq!(config(&in_force.print().unwrap()).manifests, Some(own));
        assert_eq!(in_force.diff(&other), []);
        in_force.take_live(&other, true);
        assert!(in_force.waiting().is_empty());
        let mut in_force = InForce::new(&config("manifests: /etc/a"), Overrides::default());
        in_force.take_live(&other, true);
        assert_eq!(in_force.waiting(), ["manifests"]);
    }
}
