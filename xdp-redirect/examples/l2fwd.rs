//! Forwards between two interfaces and looks at nothing.
//!
//! `l2fwd IF1 IF2 [--seconds N] [--generic] [--jumbo] [--busy-poll] [--spin] [--core N]`
//!
//! Prints packets per second each second. Interfaces need one queue for each `--queues N` (1).

use std::error::Error;
use std::time::{Duration, Instant};

use dataplane::port::{PortId, PortKind};
use xdp_redirect::forward::Forwarder;
use xdp_redirect::loader::Mode;
use xdp_redirect::rules::PortRule;
use xdp_redirect::socket::{BusyPoll, SocketConfig};
use xdp_redirect::umem::UmemConfig;
use xdp_redirect::{Redirect, Socket, Umem};

struct Options {
    interfaces: [String; 2],
    seconds: u64,
    queues: u32,
    core: Option<usize>,
    flags: Vec<String>,
}

impl Options {
    fn parse() -> Result<Self, Box<dyn Error>> {
        let mut arguments = std::env::args().skip(1);
        let usage = "usage: l2fwd IF1 IF2 [--seconds N] [--queues N] [--core N] [--generic] \
                     [--jumbo] [--busy-poll] [--spin]";
        let interfaces = [arguments.next().ok_or(usage)?, arguments.next().ok_or(usage)?];
        let mut options =
            Self { interfaces, seconds: u64::MAX, queues: 1, core: None, flags: Vec::new() };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--seconds" => options.seconds = arguments.next().ok_or(usage)?.parse()?,
                "--queues" => options.queues = arguments.next().ok_or(usage)?.parse()?,
                "--core" => options.core = Some(arguments.next().ok_or(usage)?.parse()?),
                "--generic" | "--jumbo" | "--busy-poll" | "--spin" => options.flags.push(argument),
                _ => return Err(usage.into()),
            }
        }
        Ok(options)
    }

    fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|given| given == flag)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse()?;
    if let Some(id) = options.core
        && !core_affinity::set_for_current(core_affinity::CoreId { id })
    {
        return Err(format!("cannot run on core {id}").into());
    }
    let mut redirect = Redirect::load(options.has("--jumbo"))?;
    redirect.heartbeat(0)?.beat_for_ever();
    let umem = Umem::new(UmemConfig {
        frames: 8192,
        multi_buffer: redirect.multi_buffer(),
        ..UmemConfig::default()
    })?;
    let busy_poll = BusyPoll { micros: 20, budget: 64 };
    let busy_poll = options.has("--busy-poll").then_some(busy_poll);
    let config = SocketConfig { busy_poll, ..SocketConfig::default() };
    let (mut pairs, mut monitors) = (Vec::new(), Vec::new());
    for queue in 0..options.queues {
        let mut bind = |port: u16, interface: &str| -> Result<Socket, Box<dyn Error>> {
            let socket = Socket::bind(&umem, interface, queue, &config)?;
            redirect.set_socket(PortId(port), queue, 0, socket.fd())?;
            Ok(socket)
        };
        let pair = [bind(0, &options.interfaces[0])?, bind(1, &options.interfaces[1])?];
        monitors.extend(pair.iter().map(Socket::monitor));
        pairs.push(pair);
    }
    let mode = if options.has("--generic") { Mode::Generic } else { Mode::Auto };
    for (port, interface) in (0..).zip(&options.interfaces) {
        let rule = PortRule {
            port: PortId(port),
            kind: PortKind::Pod,
            queues: options.queues,
            everything: true,
        };
        println!("{interface}: {:?}", redirect.attach(interface, &rule, mode)?);
    }
    println!("{umem:?}");
    let mut forwarder = Forwarder::new(&umem, pairs);
    run(&options, &mut forwarder);
    println!("{:?}", forwarder.forwarded());
    for monitor in monitors {
        let (interface, queue) = (&monitor.interface, monitor.queue);
        println!("{interface} queue {queue}: {:?}", monitor.statistics());
        println!("{interface} queue {queue}: {:?}", monitor.kernel_statistics()?);
    }
    println!("{:?}", redirect.counters()?);
    Ok(())
}

fn run(options: &Options, forwarder: &mut Forwarder) {
    let spin = options.has("--spin");
    let started = Instant::now();
    let (mut last, mut received) = (started, 0);
    loop {
        let mut idle = 0;
        for _ in 0..256 {
            if forwarder.turn() == 0 {
                idle += 1;
                if !spin {
                    forwarder.wait(Duration::from_millis(100));
                    break;
                }
            }
        }
        let now = Instant::now();
        let elapsed = now.duration_since(last);
        if elapsed >= Duration::from_secs(1) {
            let total = forwarder.forwarded();
            let mpps = (total.received - received) as f64 / elapsed.as_secs_f64() / 1e6;
            println!("{mpps:.4} Mpps, {} dropped, idle turns {idle}", total.dropped);
            (last, received) = (now, total.received);
        }
        if now.duration_since(started).as_secs() >= options.seconds {
            return;
        }
    }
}
