//! An echo client: numbered datagrams, each of whose echoes is counted once.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::Instant;

use super::report::{Echoed, Report};
use super::{Stop, payload};

/// Most datagrams one run may send.
const COUNT_MAX: u32 = 1_000_000;

/// Bytes of the number that opens every datagram.
const NUMBER_BYTES: usize = 4;

/// Send datagrams and count their echoes.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Address and port of the echo server
    #[arg(long)]
    to: SocketAddr,
    /// Datagrams to send, one after another
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=i64::from(COUNT_MAX)))]
    count: u32,
    /// Payload of each, in bytes
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(4..=65_000))]
    bytes: u16,
    /// How long to wait for an echo, in milliseconds
    #[arg(long, default_value_t = 500)]
    timeout_ms: u64,
    /// Use a new socket, and so a new source port, for every datagram
    #[arg(long)]
    new_socket_each: bool,
    /// Do so by as many sockets at the same time; counts are of all together
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    sockets: u32,
    /// Pause between an echo and the next datagram, in milliseconds
    #[arg(long, default_value_t = 0)]
    interval_ms: u64,
}

pub(super) async fn run(arguments: &Arguments, stop: Stop) -> anyhow::Result<()> {
    let exchanges = (0..arguments.sockets).map(|_| exchange(arguments, stop.clone()));
    let mut all = Echoed::default();
    let mut medians = Vec::new();
    for echoed in futures_util::future::join_all(exchanges).await {
        let Echoed { sent, received, wrong, median_us } = echoed?;
        all.sent += sent;
        all.received += received;
        all.wrong += wrong;
        medians.push(median_us);
    }
    medians.sort_unstable();
    all.median_us = medians.get(medians.len() / 2).copied().unwrap_or(0);
    Report::Echoed(all).say();
    Ok(())
}

/// Ends early when told to stop, but not before the last datagram's echo is there or late.
async fn exchange(arguments: &Arguments, stop: Stop) -> anyhow::Result<Echoed> {
    let mut echoed = Echoed::default();
    let mut times_us = Vec::new();
    let mut socket = socket_to(arguments.to).await?;
    for number in 0..arguments.count {
        if number > 0 && arguments.interval_ms > 0 {
            tokio::time::sleep(Duration::from_millis(arguments.interval_ms)).await;
        }
        if *stop.borrow() {
            break;
        }
        if arguments.new_socket_each && number > 0 {
            socket = socket_to(arguments.to).await?;
        }
        let datagram = datagram(number, usize::from(arguments.bytes));
        let begin = Instant::now();
        echoed.sent += 1;
        // A refusal is the ICMP answer to an earlier datagram; this one counts as lost.
        if socket.send(&datagram).await.is_err() {
            continue;
        }
        let deadline = begin + Duration::from_millis(arguments.timeout_ms);
        if await_echo(&socket, &datagram, deadline, &mut echoed.wrong).await {
            echoed.received += 1;
            times_us.push(u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX));
        }
    }
    times_us.sort_unstable();
    echoed.median_us = times_us.get(times_us.len() / 2).copied().unwrap_or(0);
    Ok(echoed)
}

async fn socket_to(to: SocketAddr) -> std::io::Result<UdpSocket> {
    let any: SocketAddr = if to.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    // Connected, so that the kernel delivers answers from that very address and port alone.
    socket.connect(to).await?;
    Ok(socket)
}

fn datagram(number: u32, length: usize) -> Vec<u8> {
    let mut bytes = vec![0u8; length.max(NUMBER_BYTES)];
    payload::fill(u64::from(number), 0, &mut bytes);
    bytes[..NUMBER_BYTES].copy_from_slice(&number.to_be_bytes());
    bytes
}

async fn await_echo(socket: &UdpSocket, sent: &[u8], deadline: Instant, wrong: &mut u64) -> bool {
    let mut received = vec![0u8; sent.len() + 1];
    loop {
        match tokio::time::timeout_at(deadline, socket.recv(&mut received)).await {
            Ok(Ok(length)) if received[..length] == *sent => return true,
            Ok(Ok(_)) => *wrong += 1,
            Ok(Err(_)) | Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::datagram;

    #[test]
    fn datagrams_differ_by_number_and_have_the_length_asked_for() {
        assert_eq!(datagram(7, 64).len(), 64);
        assert_ne!(datagram(7, 64), datagram(8, 64));
    }
}
