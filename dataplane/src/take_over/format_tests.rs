use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::AtomicU64;

use super::*;
use crate::address::Protocol;
use crate::charge::Charge;
use crate::connections::Counted;
use crate::conntrack::{Life, Seen};
use crate::direct::Role;
use crate::flow::{FlowFamily as _, FlowRoute, Origin, write_above_counts};
use crate::flow_key::{FlowKey, FlowKey4, FlowKey6};
use crate::forwarding::NextHopId;
use crate::identity::PodTag;
use crate::lb::ServiceId;
use crate::mss::SegmentLimit;
use crate::policy::RuleId;
use crate::tables::Timeouts;
use crate::time::Nanos;

/// What this version writes of a flow must not change unseen: change the meaning or the place of anything,
/// and add a [`Format`], with how to read the one before.
#[test]
fn a_flows_words_are_those_of_the_current_format() {
    let key = |source: [u8; 4], source_port, destination: [u8; 4], destination_port| {
        let [source, destination] = [source, destination].map(|own| Ipv4Addr::from(own).to_bits());
        FlowKey4::new(Protocol::TCP, (source, source_port), (destination, destination_port))
    };
    let original = key([192, 0, 2, 1], 50_001, [203, 0, 113, 5], 443);
    let reply = key([10, 244, 0, 7], 8080, [192, 0, 2, 1], 50_001);
    let words = written::<_, 8>(&original, &reply);
    assert_eq!(
        words,
        [
            0xc000_0201_cb00_7105,
            0x0af4_0007_c000_0201,
            0xc351_01bb_1f90_c351,
            0x0102_0304_0506_0608,
            0x0000_0003_0004_0005,
            0x0000_0006_0000_0007,
            0x0009_0000_0000_0000,
            0x0008_0000_0000_0000,
        ],
        "{words:#018x?}"
    );
}

/// The same of longer addresses, of the bits of a life, and of hashes: a table with others is not found its
/// flows in.
#[test]
fn a_lifes_bits_longer_addresses_and_hashes_are_those_of_the_current_format() {
    let address = |last| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]);
    let key = |source, source_port, destination, destination_port| {
        let (source, destination) = (address(source), address(destination));
        let ends = ((source, source_port), (destination, destination_port));
        FlowKey6::from_generic(&FlowKey::new(Protocol::UDP, ends.0, ends.1).unwrap()).unwrap()
    };
    let (original, reply) = (key(1, 50_001, 2, 53), key(3, 53, 1, 50_001));
    let words = written::<_, 16>(&original, &reply);
    assert_eq!(
        words,
        [
            0x2001_0db8_0000_0000,
            0x0000_0000_0000_0001,
            0x2001_0db8_0000_0000,
            0x0000_0000_0000_0002,
            0x2001_0db8_0000_0000,
            0x0000_0000_0000_0003,
            0x2001_0db8_0000_0000,
            0x0000_0000_0000_0001,
            0xc351_0035_0035_c351,
            0x0102_0304_0506_0608,
            0x0000_0003_0004_0005,
            0x0000_0006_0000_0007,
            0x0009_0000_0000_0000,
            0x0008_0000_0000_0000,
            0,
            0,
        ],
        "{words:#018x?}"
    );

    let (now, timeouts) = (Nanos(77_000_000_000), Timeouts::default());
    let opened = Life::opened(Protocol::TCP, Seen::of(Seen::SYN), now, &timeouts);
    let limited = opened.with_segment_limit(SegmentLimit::of(1400), Seen::SYN);
    let answer = Seen::of(Seen::SYN | Seen::ACK);
    let answered = limited.advanced(FlowDirection::Reply, answer, now, &timeouts).unwrap();
    let lives = [
        opened,
        limited,
        answered,
        answered.with_counted(Counted::of(5)),
        answered.denied(),
        opened.with_role(Some(Role::Dispatches), now, &timeouts),
        opened.with_role(Some(Role::Answers), now, &timeouts),
    ];
    let lives = lives.map(|life| life.0);
    assert_eq!(
        lives,
        [
            0x0000_00c5_8200_0600,
            0x0000_00c5_c200_0600,
            0x0000_0089_c292_0600,
            0x0000_0089_c292_0650,
            0x0000_0089_c292_0680,
            0x0000_00c5_8200_0604,
            0x0000_00c5_8200_0608,
        ],
        "{lives:#018x?}"
    );

    let hasher = Hasher::portable([1, 2]);
    let short = FlowKey4::new(Protocol::TCP, (0xc000_0201, 50_001), (0xcb00_7105, 443));
    let hashes = [TableKey::<8>::hash(&short, &hasher), TableKey::<16>::hash(&original, &hasher)];
    assert_eq!(hashes, [0x2f62_fedd_4537_378d, 0x4146_1ed3_2be2_ab3d], "{hashes:#018x?}");
}

fn written<K: TableKey<W>, const W: usize>(original: &K, reply: &K) -> [u64; W] {
    let route = FlowRoute { generation: 3, hop: NextHopId(4), reverse_hop: NextHopId(5) };
    let origin = Origin { service: Some(ServiceId(6)), rule: RuleId(7) };
    let mut words = [0; W];
    write_flow(original, reply, Life(0x0102_0304_0506_0608), route, origin, &mut words);
    write_above_counts::<K>(Charge(8), PodTag::Of(9), &mut words);
    words
}

fn tuples<K: TableKey<W>, const W: usize>(words: [u64; W]) -> [FlowKey; 2] {
    let atomic = words.map(AtomicU64::new);
    let view = FlowView::<K>::new(&atomic);
    [FlowDirection::Original, FlowDirection::Reply].map(|way| view.tuple(way).generic())
}

/// A mapping of the former format names its address, by which flows of its end point find it; all else stays.
fn is_found_by_its_address<K: TableKey<W>, const W: usize>(
    nobody: IpAddr,
    inside: IpAddr,
    outside: IpAddr,
) {
    let hasher = Hasher::new([1, 2]);
    let key = |source, destination| {
        K::from_generic(&FlowKey::new(Protocol::TCP, source, destination).unwrap()).unwrap()
    };
    let protocol = (nobody, u16::from(Protocol::UDP.0));
    let (original, reply) = (key((inside, 5000), protocol), key(protocol, (outside, 61_000)));
    let former = written::<K, W>(&original, &reply);
    let now = Format::OneMapping.translate::<K, W>(&hasher, former);
    let [of_inside, of_outside] = tuples::<K, W>(now);
    let flow = FlowKey::new(Protocol::UDP, (inside, 5000), (outside, 9)).unwrap();
    assert_eq!(Some(of_inside), endpoint::inside(&hasher, &flow, outside));
    assert_eq!(of_outside.source_port(), of_inside.destination_port());
    assert_eq!((of_outside.destination(), of_outside.destination_port()), (outside, 61_000));
    assert_ne!(now, former);
    let (ports, after) = (K::AFTER_ADDRESSES, K::AFTER_ADDRESSES + 1);
    assert_eq!((&now[..ports], &now[after..]), (&former[..ports], &former[after..]));
    assert_eq!(Format::CURRENT.translate::<K, W>(&hasher, former), former);
    // What is no mapping is a flow as ever.
    let flow =
        written::<K, W>(&key((inside, 5000), (outside, 53)), &key((outside, 53), (inside, 9)));
    assert_eq!(Format::OneMapping.translate::<K, W>(&hasher, flow), flow);
}

#[test]
fn mappings_of_one_for_each_protocol_become_those_of_their_address() {
    let v4 = |last| IpAddr::from([192, 0, 2, last]);
    let v6 = |last| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]);
    is_found_by_its_address::<FlowKey4, 8>(Ipv4Addr::UNSPECIFIED.into(), v4(1), v4(2));
    is_found_by_its_address::<FlowKey6, 16>(Ipv6Addr::UNSPECIFIED.into(), v6(1), v6(2));
}

#[test]
fn formats_are_known_by_their_numbers() {
    for format in [Format::OneMapping, Format::MappingByAddress] {
        assert_eq!(Format::of(format.number()), Some(format));
    }
    for number in [0, 1, Format::CURRENT.number() + 1, u64::MAX] {
        assert_eq!(Format::of(number), None);
    }
}
