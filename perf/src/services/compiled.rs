//! What many services cost the control thread: all of them at once, one endpoint that changes, and
//! memory. In memory, without a server or a packet.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use control::compile::{Compiled, NodeView};
use control::model::read::{self, UnknownFields};
use control::model::{Kind, Object};
use control::store::Change;
use serde_json::{Value, json};

use super::{BACKENDS, BENCH};
use crate::figure::Figure;
use crate::machine::resident_bytes;
use crate::report::Report;

/// Changes of one run.
const CHANGES: u32 = 100;
/// Where services and endpoints are (RFC 6598, RFC 1918).
const SERVICES: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);
const ENDPOINTS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// A node has this many endpoints, one of which is in each of as many services.
const ENDPOINTS_PER_NODE: u32 = 100;

/// Measures as often as `runs` says, with so many services of [`BACKENDS`] endpoints each.
///
/// # Errors
/// Tables that are not what the objects make them.
pub fn measure(services: u32, runs: u32, report: &mut Report) -> Result<()> {
    let node = NodeView { name: "node-0".into(), ..NodeView::default() };
    let (mut loads, mut changes, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..runs {
        report.progress(&format!("{services} services: compiling, {} of {runs}", run + 1));
        let before = resident_bytes()?;
        let objects = (0..services).flat_map(|number| [service(number), slice(number, true)]);
        let objects = objects.collect::<Result<Vec<Change>>>()?;
        let mut compiled = Compiled::default();
        let began = Instant::now();
        objects.into_iter().for_each(|change| compiled.take(change));
        compiled.compile(&node);
        loads.push(began.elapsed().as_secs_f64() * 1e3);
        // What the allocator keeps of the run before is used again: the first tells.
        if run == 0 {
            memory.push((resident_bytes()? - before) / f64::from(services));
        }
        ensure!(compiled.services.frontends.len() == services as usize, "services are missing");
        for turn in 0..CHANGES.min(services) {
            let number = turn * (services / CHANGES.min(services));
            let change = slice(number, false)?;
            // As workers hold it.
            let published = Arc::clone(&compiled.services);
            let began = Instant::now();
            compiled.take(change);
            compiled.compile(&node);
            changes.push(began.elapsed().as_secs_f64() * 1e6);
            ensure!(!Arc::ptr_eq(&published, &compiled.services), "nothing changed");
        }
    }
    let case = |name: &str| format!("{name}/{services}");
    report.add(Figure::of(BENCH, &case("load"), "xskiff", "ms", &loads))?;
    report.add(Figure::of(BENCH, &case("endpoint-change"), "xskiff", "us", &changes))?;
    Ok(report.add(Figure::of(BENCH, &case("memory"), "xskiff", "bytes/service", &memory))?)
}

fn name(number: u32) -> String {
    format!("s{number:06}")
}

fn object(kind: Kind, written: Value) -> Result<Change> {
    let read: Object = read::object(kind, written, UnknownFields::Refuse)
        .with_context(|| format!("a synthetic {}", kind.name()))?;
    Ok(Change::Set(read))
}

fn service(number: u32) -> Result<Change> {
    let address = Ipv4Addr::from_bits(SERVICES.to_bits() + number);
    object(
        Kind::Service,
        json!({
            "metadata": { "namespace": "shop", "name": name(number) },
            "spec": { "clusterIP": address, "ports": [{ "port": 80, "targetPort": 8080 }] },
        }),
    )
}

/// Its endpoints; the first is ready or not.
fn slice(number: u32, is_ready: bool) -> Result<Change> {
    let endpoints = (0..u32::from(BACKENDS)).map(|place| {
        let endpoint = number * u32::from(BACKENDS) + place;
        json!({
            "addresses": [Ipv4Addr::from_bits(ENDPOINTS.to_bits() + endpoint)],
            "conditions": { "ready": place > 0 || is_ready },
            "nodeName": format!("node-{}", endpoint / ENDPOINTS_PER_NODE),
        })
    });
    object(
        Kind::EndpointSlice,
        json!({
            "metadata": {
                "namespace": "shop",
                "name": name(number),
                "labels": { "kubernetes.io/service-name": name(number) },
            },
            "addressType": "IPv4",
            "endpoints": endpoints.collect::<Vec<_>>(),
            "ports": [{ "port": 8080 }],
        }),
    )
}
