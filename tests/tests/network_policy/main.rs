//! NetworkPolicy as it is compiled, against a judge that reads the Kubernetes objects naively
//! ([`xskiff_tests::policy_model`]).
//!
//! Both see the same objects. The compiled side is what two nodes do: each compiles the cluster as it
//! sees it, and a packet takes the way it would take, from the source's port through
//! `decision::decide` on each node that it passes.
//!
//! Reading order: [`nodes`] (the compiled side), [`clusters`] and [`changes`] (what is generated),
//! [`property`], [`mutations`] (what the property must catch), [`golden`] (cases from the
//! documentation, with their verdicts written out), [`untold`] (pods that nobody has told of yet).
#![forbid(unsafe_code)]

mod changes;
mod clusters;
mod golden;
mod mutations;
mod nodes;
mod property;
mod spoilt_objects;
mod untold;
