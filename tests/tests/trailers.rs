//! Bytes behind the IP packet of a frame: what pads a short one stays, and nothing else goes on.
#![forbid(unsafe_code)]

use xskiff_tests::packet_builder::{FrameBuilder, ping, read, tcp, udp};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{UPLINK, World, address, pod_port};

/// Ethernet's shortest frame, without its check sequence.
const SHORTEST: usize = 60;

fn packets() -> Vec<FrameBuilder> {
    let from_six = "[fd01::1]:9";
    vec![
        udp("10.1.0.1:9", "192.0.2.7:53").payload(b"x"),
        tcp("10.1.0.1:9", "192.0.2.7:53", "S"),
        udp("10.1.0.1:9", "192.0.2.7:53").payload(&[5; 80]),
        tcp(from_six, "[2001:db8::7]:53", "S"),
        udp(from_six, "[2001:db8::7]:53").payload(&[5; 80]),
        ping(address("10.1.0.1"), address("192.0.2.7"), 7).payload(b"x"),
        udp("10.1.0.1:9", "192.0.2.7:53").payload(&[5; 80]).fragment(7, 0, true),
    ]
}

/// A frame of 30 KB whose IP header said 100 bytes left by an uplink at 30 KB.
#[test]
fn what_lies_behind_the_packet_is_cut_off_and_padding_stays() {
    for packet in packets() {
        let mut node = Simulation::single(&World::with_pods(1).tables());
        let frame = packet.build();
        let whole = frame.len();
        // The first opens a flow, and those after it go along it.
        for behind in [0, 1, 46, 1000, 30_000, 4, 0] {
            let mut longer = frame.clone();
            longer.resize(whole + behind, 0xee);
            let (port, out) = node.forward(pod_port(1), &longer);
            assert_eq!(port, UPLINK);
            let expected = longer.len().min(whole.max(SHORTEST));
            assert_eq!(out.len(), expected, "{behind} behind {whole}");
            assert_eq!(read(&out).err().filter(|_| !is_fragment(&out)), None);
        }
        let mut padded = frame.clone();
        padded.resize(whole.max(SHORTEST), 0);
        assert_eq!(node.forward(pod_port(1), &padded).1.len(), padded.len());
    }
}

fn is_fragment(frame: &[u8]) -> bool {
    frame[12] == 8 && frame[20] & 0x20 != 0
}
