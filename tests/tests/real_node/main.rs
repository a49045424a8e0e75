//! The `xskiff` binary over veth pairs and network namespaces, as a cluster would use it: what no
//! simulated node can show.
//!
//! Reading order: [`world`] (the demo's stage, in any MTU and XDP mode), [`followed`] (an API server in it),
//! [`clients`] (who holds connections in it), then what is shown.
//! Sizes are small by default; each module names the variable that makes them large.
#![forbid(unsafe_code)]

mod affinity;
mod api_server;
mod audit;
mod backends;
mod bad_objects;
mod bandwidth;
mod bare;
mod bpf_objects;
mod chaos;
mod churn;
mod claims;
mod clients;
mod configuration;
mod cycles;
mod egress_addresses;
mod endpoint_states;
mod endurance;
mod everything;
mod failing_threads;
mod floods;
mod followed;
mod forged_resets;
mod guards;
mod health;
mod held_connections;
mod host_backends;
mod label_flood;
mod large_cluster;
mod left_attached;
mod nat64;
mod outage;
mod pod_ends;
mod policies;
mod privileges;
mod refused_starts;
mod relayed;
mod relist;
mod resizing;
mod restart_gap;
mod restarts;
mod running_pods;
mod seccomp;
mod segments;
mod service_ranges;
mod services;
mod small_memory;
mod stalls;
mod supervised;
mod surviving_flows;
mod transfers;
mod tunnels;
mod unknown_pods;
mod unread_record;
mod ways_out;
mod world;
