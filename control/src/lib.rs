//! The control side, as values: configuration and manifests in, tables and explanations out.
//! Nothing here touches the kernel or a socket; the node process does.
//!
//! Reading order: [`text_file`] (what people write), [`config`] (the node's own file),
//! [`manifests`] (a folder of objects), [`model`] (what is kept of Kubernetes objects), [`store`]
//! (the cluster's state), [`compile`] (state to tables), [`admin`] (what people and programs may
//! ask the running node).
#![forbid(unsafe_code)]

pub mod admin;
pub mod audit;
pub mod compile;
pub mod config;
pub mod manifests;
pub mod model;
mod shown;
pub mod store;
pub mod text_file;
mod yaml;
