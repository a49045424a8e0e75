//! How long nothing is answered while one node process follows another, seen by a client that asks
//! a thousand times a second through a service.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use xskiff::demo::scene::{BALANCER, ECHO};
use xskiff::lab::wait_until;
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::world::{PATIENCE, Shape, World, within};

const EVERY: Duration = Duration::from_millis(1);
/// What a restart may take on a machine that does much else.
const GAP_MAX: Duration = Duration::from_secs(20);

/// When answers came, while `work` went on, which can see how many there were.
fn answers_during(world: &World, target: &str, work: impl FnOnce(&AtomicUsize)) -> Vec<Instant> {
    let socket = within(&world.scene.client, || {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).expect("a socket");
        socket.connect(target).expect("an address");
        socket
    });
    socket.set_read_timeout(Some(EVERY)).expect("set");
    let (is_over, count) = (&AtomicBool::new(false), &AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let asking = scope.spawn(move || {
            let (mut answers, mut buffer) = (Vec::new(), [0; 64]);
            while !is_over.load(Ordering::Relaxed) {
                let next = Instant::now() + EVERY;
                // One that cannot be sent for a moment is as one that is lost.
                let _ = socket.send(b"still there?");
                match socket.recv(&mut buffer) {
                    Ok(_) => {
                        answers.push(Instant::now());
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => {
                        let silent = [ErrorKind::WouldBlock, ErrorKind::TimedOut];
                        assert!(silent.contains(&error.kind()), "refused: {error}");
                    }
                }
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            answers
        });
        work(count);
        is_over.store(true, Ordering::Relaxed);
        asking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn longest_gap(answers: &[Instant]) -> Duration {
    let gaps = answers.windows(2).map(|pair| pair[1] - pair[0]);
    gaps.max().expect("answers")
}

#[test]
fn the_gap_between_two_processes_is_told_and_ends() {
    if !root_or_skip("restart gap") {
        return;
    }
    let shape = Shape { label: "gap", mtu: 1500, xdp_mode: "native" };
    let world = World::start_edited(shape, |text| text + "\nstall: {on_exit: drop}\n");
    let target = format!("{}:{ECHO}", BALANCER[0]);
    let pause = || std::thread::sleep(Duration::from_millis(500));
    let mut running = None;
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGKILL] {
        let mut next = None;
        let answers = answers_during(&world, &target, |count| {
            pause();
            match running.take() {
                None => world.kill(),
                Some(process) => {
                    let process: xskiff::lab::Process = process;
                    process.signal(signal).expect("told");
                    process.wait(PATIENCE).expect("ended");
                }
            }
            let before = count.load(Ordering::Relaxed);
            next = Some(world.start_again());
            let goes_on = || count.load(Ordering::Relaxed) > before + 100;
            assert!(wait_until(PATIENCE, goes_on).is_some(), "{:#?}", world.status());
        });
        running = next;
        let gap = longest_gap(&answers);
        println!("after {signal}: {} ms without an answer", gap.as_millis());
        assert!(gap < GAP_MAX, "after {signal}: {gap:?}");
    }
}
