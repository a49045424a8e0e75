//! What an operator does around a node: checks a machine before, cleans up after others, deploys by
//! manifests, and reads the documents. Commands run as an operator runs them, over
//! network namespaces of their own.
#![forbid(unsafe_code)]

mod documents;
mod kube_proxy;
mod preflight;
mod systemd;

use std::process::Output;

use serde_json::Value;
use xskiff::lab::{Laboratory, Namespace};
use xskiff_tests::xskiff_binary::path;

/// A network namespace and nothing else.
pub struct Machine {
    /// Its network.
    pub namespace: Namespace,
    /// Has a directory for its files.
    pub laboratory: Laboratory,
}

impl Machine {
    /// Makes it.
    pub fn new(label: &str) -> Self {
        let laboratory = Laboratory::new(label, path()).expect("a laboratory");
        let namespace = laboratory.namespace("machine").expect("a namespace");
        Self { namespace, laboratory }
    }

    /// Runs `xskiff` in it, behind words of another command line.
    pub fn xskiff_behind(&self, before: &[&str], words: &[&str]) -> Output {
        let program = path().to_string_lossy();
        let all = [before, &[&*program], words].concat();
        self.namespace.command(all[0], &all[1..]).output().expect("it runs")
    }

    /// Runs `xskiff` in it.
    pub fn xskiff(&self, words: &[&str]) -> Output {
        self.xskiff_behind(&[], words)
    }

    /// Runs a tool that must succeed.
    pub fn run(&self, program: &str, words: &[&str]) -> String {
        self.namespace.run(program, words).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Runs lines of a shell that must succeed.
    pub fn shell(&self, script: &str) -> String {
        self.run("sh", &["-ec", script])
    }
}

/// What it wrote.
pub fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What it complained of.
pub fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What it wrote, read.
pub fn json(output: &Output) -> Value {
    serde_json::from_str(&out(output)).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}
