//! Which bandwidth limits are in force: those that a pod's annotations say now, and in a direction
//! of which they say nothing (or nothing that can be read) what the container runtime told when it
//! added the pod.
//!
//! Workers share a limit that lasts for as long as its rate: a change elsewhere gives no pod a burst.

use std::collections::BTreeMap;
use std::sync::Arc;

use control::admin::Bandwidth;
use control::admin::status::LimitInfo;
use control::model::{AnnotatedRate, PodBandwidth};
use dataplane::counters::WorkerCounters;
use dataplane::pacing::{Limit, Limits, PortLimits, Rate};
use dataplane::policy::Direction;
use dataplane::port::PortId;

use super::Node;

/// A port's two rates: ingress, egress.
type Rates = [Option<Rate>; 2];

/// The limits in force.
#[derive(Debug, Default)]
pub struct LimitsInForce {
    rates: BTreeMap<PortId, Rates>,
    ports: BTreeMap<PortId, PortLimits>,
    table: Option<Arc<Limits>>,
}

impl LimitsInForce {
    /// The table for these rates: the same one as long as nothing changes.
    fn follow(&mut self, rates: BTreeMap<PortId, Rates>) -> Option<Arc<Limits>> {
        if rates != self.rates {
            let before = std::mem::take(&mut self.ports);
            let keep = |limit: Option<&Arc<Limit>>, rate: Option<Rate>| {
                let rate = rate?;
                let same = limit.filter(|limit| limit.rate() == rate);
                Some(same.map_or_else(|| Arc::new(Limit::new(rate)), Arc::clone))
            };
            for (port, [ingress, egress]) in &rates {
                let old = before.get(port);
                let limits = PortLimits {
                    ingress: keep(old.and_then(|old| old.ingress.as_ref()), *ingress),
                    egress: keep(old.and_then(|old| old.egress.as_ref()), *egress),
                };
                self.ports.insert(*port, limits);
            }
            self.rates = rates;
            let ports = self.ports.iter().map(|(port, limits)| (*port, limits.clone()));
            self.table = Limits::of(ports).map(Arc::new);
        }
        self.table.clone()
    }
}

/// What holds for a pod.
fn rates(told: Option<&Bandwidth>, annotated: Option<&PodBandwidth>) -> Rates {
    let told = told.copied().unwrap_or_default();
    let rate = |annotation: Option<&AnnotatedRate>, rate: u64, burst: u64| {
        let told = Some(rate).filter(|rate| *rate > 0);
        let bits = annotation.and_then(AnnotatedRate::bits).or(told)?;
        Some(Rate::of(bits).with_burst(burst))
    };
    [
        rate(annotated.and_then(|a| a.ingress.as_ref()), told.ingress_rate, told.ingress_burst),
        rate(annotated.and_then(|a| a.egress.as_ref()), told.egress_rate, told.egress_burst),
    ]
}

impl Node {
    /// The limits of all pods that are here.
    pub(super) fn limits(&mut self) -> Option<Arc<Limits>> {
        let pods = &self.publisher.cluster().pods;
        let of = |endpoint: &super::endpoints::Endpoint| {
            let pod = pods.get(&endpoint.spec.name);
            let annotated = pod.and_then(|pod| pod.bandwidth.as_deref());
            let rates = rates(endpoint.spec.bandwidth.as_ref(), annotated);
            (rates != [None, None]).then_some((endpoint.port, rates))
        };
        let rates = self.endpoints.iter().filter_map(of).collect();
        self.limits_in_force.follow(rates)
    }

    /// A port's limits and what they did.
    pub(super) fn limit_infos(&self, port: PortId) -> Vec<LimitInfo> {
        let limits = self.publisher.tables().limits.as_deref();
        let of = |(direction, label): (Direction, &str)| {
            let rate = limits?.get(port, direction)?.rate();
            let sum = |value: fn(&dataplane::counters::LimitCounters) -> u64| {
                let of = |counters: &Arc<WorkerCounters>| {
                    counters.port(port).map_or(0, |port| value(port.limit(direction)))
                };
                let workers = (0..self.workers.count()).filter_map(|n| self.workers.counters(n));
                workers.map(of).sum()
            };
            Some(LimitInfo {
                direction: label.into(),
                bits_per_second: rate.bits_per_second,
                burst_bits: rate.burst_bits,
                delayed_packets: sum(|limit| limit.delayed_packets.get()),
                dropped_packets: sum(|limit| limit.dropped_packets.get()),
            })
        };
        let directions = [(Direction::Ingress, "ingress"), (Direction::Egress, "egress")];
        directions.into_iter().filter_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_annotation_outranks_what_the_runtime_told_direction_by_direction() {
        let told = Bandwidth {
            ingress_rate: 5_000_000,
            ingress_burst: 80_000,
            egress_rate: 7_000_000,
            egress_burst: u64::from(u32::MAX),
        };
        let annotated = |ingress, egress| PodBandwidth { ingress, egress };
        let [ingress, egress] = rates(Some(&told), None);
        assert_eq!(ingress, Some(Rate::of(5_000_000).with_burst(80_000)));
        assert_eq!(egress, Some(Rate::of(7_000_000)), "a burst that means none");
        let unreadable = AnnotatedRate::Unreadable("ten".into());
        let pod = annotated(Some(AnnotatedRate::Bits(2_000)), Some(unreadable));
        let [ingress, egress] = rates(Some(&told), Some(&pod));
        assert_eq!(ingress, Some(Rate::of(2_000).with_burst(80_000)));
        assert_eq!(egress, Some(Rate::of(7_000_000)));
        assert_eq!(rates(None, Some(&pod)), [Some(Rate::of(2_000)), None]);
        assert_eq!(rates(None, None), [None, None]);
    }

    #[test]
    fn a_limit_stays_the_same_one_until_its_rate_changes_and_no_table_stays_without() {
        let mut in_force = LimitsInForce::default();
        let (one, two) = (PortId(3), PortId(4));
        let rate = |bits| Some(Rate::of(bits));
        assert!(in_force.follow(BTreeMap::new()).is_none());
        let first = in_force.follow([(one, [rate(1000), rate(2000)])].into()).unwrap();
        let again = in_force.follow([(one, [rate(1000), rate(2000)])].into()).unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        let second = [(one, [rate(1000), rate(3000)]), (two, [None, rate(5000)])];
        let second = in_force.follow(second.into()).unwrap();
        let same = |direction| {
            std::ptr::eq(first.get(one, direction).unwrap(), second.get(one, direction).unwrap())
        };
        assert!(same(Direction::Ingress) && !same(Direction::Egress));
        assert!(second.get(two, Direction::Ingress).is_none());
        assert!(in_force.follow(BTreeMap::new()).is_none());
    }
}
