use flow_table::{Memory, Quiescence};

use super::*;

const LIMIT: Duration = Duration::from_secs(60);

/// What `run` becomes as worker 0: a thread beside a node that has started.
fn workers(run: impl FnOnce(Arc<Shared>) + Send + 'static) -> Workers {
    let poll = mio::Poll::new().unwrap();
    let shared = Arc::new(Shared::new(mio::Waker::new(poll.registry(), thread::WAKE).unwrap()));
    let capacities = dataplane::flows::Capacities::fixed(64, 64);
    let memory = (Memory::Heap, Memory::Heap);
    let (flows, mut holds) = FlowTables::new(capacities, memory, 1, [1, 2]).unwrap();
    let census = Census::of(&flows, monotonic_now());
    let growing = || Arc::new(pinning::growing::map_growing(4096).unwrap().1);
    let growing = [growing(), growing()];
    let growth = FlowGrowth::new(&flows, &growing, &FlowCapacities::fixed(64, 64));
    let own = Arc::clone(&shared);
    let hold = holds.pop().unwrap();
    let handle = Handle {
        core: CpuId(3),
        shared,
        counters: Arc::default(),
        mailbox: Arc::default(),
        reports: Arc::default(),
        paced_frames: 0,
        thread: Some(std::thread::spawn(move || {
            run(own);
            hold
        })),
        behind: false,
        given: 0,
        restarts: 0,
    };
    Workers {
        handles: vec![handle],
        ports: Vec::new(),
        flows,
        beginnings: Vec::new(),
        census,
        growth,
        inboxes: Inboxes::new(1),
        latest: Arc::default(),
        published: Instant::now(),
        idle: Idle::Spin,
    }
}

fn wait_for(what: impl Fn() -> bool) {
    for _ in 0..1000 {
        if what() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("did not come to pass in 5 seconds");
}

#[test]
fn a_worker_that_panics_is_named_at_once_also_when_it_had_said_that_it_sleeps() {
    let workers = workers(|shared| {
        let quiescence = Quiescence::new(1).unwrap();
        let _ending = Ending { shared: Arc::clone(&shared), quiescence, worker: 0 };
        shared.note_tick(monotonic_now().after(LIMIT));
        panic!("of this test");
    });
    wait_for(|| workers.gone().is_some());
    let gone = workers.gone().unwrap();
    assert_eq!(gone, WorkerGone { worker: 0, core: CpuId(3) });
    assert!(gone.to_string().starts_with("worker 0 on CPU 3 panicked"), "{gone}");
    // The probes need not wait for the limit to pass.
    assert!(!workers.is_alive(0, LIMIT));
    assert_eq!(workers.stalled()(LIMIT), [0]);
}

#[test]
fn a_worker_that_stands_still_is_stalled_and_not_gone() {
    let mut workers = workers(|shared| {
        while !shared.stop.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(workers.gone(), None);
    assert!(workers.is_alive(0, LIMIT));
    assert_eq!(workers.stalled()(Duration::from_millis(10)), [0]);
    workers.stop();
    assert_eq!(workers.gone(), None);
}

/// It counted as alive for ever, and sleeping is what an idle node does.
#[test]
fn a_worker_that_does_not_wake_when_its_sleep_is_over_is_stalled() {
    let workers = workers(|_| {});
    let shared = &workers.handles[0].shared;
    let limit = Duration::from_millis(10);
    let until = monotonic_now().after(Duration::from_millis(50));
    shared.asleep.store(true, Ordering::SeqCst);
    shared.note_tick(until);
    let alive = workers.is_alive(0, limit);
    assert!(alive || monotonic_now() > until.after(limit), "it may be silent for as long");
    wait_for(|| workers.stalled()(limit) == [0]);
    assert!(monotonic_now() > until.after(limit));
}

#[test]
fn what_a_stall_and_a_sleep_take_together_is_within_half_a_second() {
    let limit = Duration::from_millis(control::config::Config::default().stall.after_ms.into());
    assert!(limit + thread::SLEEP_MAX <= Duration::from_millis(500));
}

#[test]
fn a_worker_that_ends_by_order_is_not_gone() {
    let workers = workers(|shared| {
        while !shared.stop.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    workers.handles[0].shared.stop.store(true, Ordering::SeqCst);
    wait_for(|| workers.handles[0].thread.as_ref().is_some_and(JoinHandle::is_finished));
    assert_eq!(workers.gone(), None);
}

#[test]
fn a_worker_that_does_not_adopt_what_is_published_is_behind_once_it_has_had_time() {
    let mut workers = workers(|_| {});
    workers.publish(&Arc::default());
    workers.publish(&Arc::default());
    assert_eq!(workers.behind(LIMIT), [None], "it may still");
    assert_eq!(workers.behind(Duration::ZERO), [Some(2)]);
    workers.handles[0].counters.tables_adopted.add(2);
    assert_eq!(workers.behind(Duration::ZERO), [None]);
}
