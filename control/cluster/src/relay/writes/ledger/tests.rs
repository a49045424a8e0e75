use super::super::reason::{INVALID_POLICY, LIST_HELD, UNKNOWN_FIELD};
use super::*;

const RATES: Rates = Rates {
    object: Rate { burst: 3, every: Duration::from_secs(300) },
    all: Rate { burst: 1000, every: Duration::from_secs(1) },
    window: Duration::from_secs(600),
    remind: Duration::from_secs(1800),
};

/// A ledger, and the time.
struct World {
    ledger: Ledger,
    now: Instant,
}

fn world(rates: Rates) -> World {
    let now = Instant::now();
    World { ledger: Ledger::new(rates, now), now }
}

fn finding(name: &str, reason: Reason, note: &str, version: u64) -> Finding {
    let regarding = Regarding {
        kind: "NetworkPolicy",
        api_version: "networking.k8s.io/v1".into(),
        namespace: "shop".into(),
        name: name.into(),
        uid: None,
    };
    Finding { regarding, reason, about: "", note: note.into(), version }
}

impl World {
    fn note(&mut self, finding: Finding) {
        self.ledger.note(finding, self.now, Timestamp::UNIX_EPOCH);
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    /// Writes what there is to write; gives name, count, and whether it is a patch.
    fn write(&mut self) -> Vec<(String, u32, bool)> {
        self.write_as(Outcome::Done)
    }

    fn write_as(&mut self, outcome: Outcome) -> Vec<(String, u32, bool)> {
        let mut all = Vec::new();
        while let Next::Write(write) = self.ledger.next(self.now) {
            all.push((write.key.name.clone(), write.count, write.is_known));
            self.ledger.wrote(&write, outcome, self.now);
        }
        all
    }
}

fn created(name: &str) -> (String, u32, bool) {
    (name.to_owned(), 1, false)
}

fn raised(name: &str, count: u32) -> (String, u32, bool) {
    (name.to_owned(), count, true)
}

#[test]
fn what_is_seen_again_is_nothing_new_and_what_changes_raises_the_count() {
    let mut world = world(RATES);
    world.ledger.lead();
    for _ in 0..10 {
        world.note(finding("deny", UNKNOWN_FIELD, "x", 5));
    }
    assert_eq!(world.write(), [created("deny")]);
    world.note(finding("deny", UNKNOWN_FIELD, "y", 6));
    world.note(finding("deny", UNKNOWN_FIELD, "z", 7));
    world.note(finding("deny", INVALID_POLICY, "another reason", 7));
    assert_eq!(world.write(), [raised("deny", 3), created("deny")]);
    let EventCounts { written, merged, .. } = world.ledger.counts;
    assert_eq!((written, merged), (2, 2));
}

#[test]
fn after_its_window_another_note_is_another_event_and_the_same_one_is_not() {
    let mut world = world(RATES);
    world.ledger.lead();
    world.note(finding("deny", UNKNOWN_FIELD, "x", 5));
    world.write();
    world.pass(601);
    world.note(finding("deny", UNKNOWN_FIELD, "x", 6));
    assert_eq!(world.write(), [raised("deny", 2)]);
    world.note(finding("deny", UNKNOWN_FIELD, "y", 7));
    assert_eq!(world.write(), [created("deny")]);
}

#[test]
fn an_object_that_comes_again_and_again_has_so_many_writes_and_no_more() {
    let mut world = world(RATES);
    world.ledger.lead();
    let mut writes = 0;
    for version in 0..50 {
        world.note(finding("deny", UNKNOWN_FIELD, "x", version));
        writes += world.write().len();
    }
    assert_eq!((writes, world.ledger.counts.suppressed), (3, 47));
    world.note(finding("other", UNKNOWN_FIELD, "x", 1));
    assert_eq!(world.write(), [created("other")], "others have their own");
    world.pass(300);
    world.note(finding("deny", UNKNOWN_FIELD, "x", 51));
    assert_eq!(world.write(), [raised("deny", 4)]);
}

#[test]
fn all_together_wait_for_their_turn_and_a_full_table_is_counted() {
    let all = Rate { burst: 10, every: Duration::from_secs(2) };
    let mut world = world(Rates { all, ..RATES });
    world.ledger.lead();
    for number in 0..FINDINGS_MAX + 5 {
        world.note(finding(&format!("p{number}"), UNKNOWN_FIELD, "x", 1));
    }
    assert_eq!(world.write().len(), 10);
    assert_eq!(world.ledger.next(world.now), Next::Wait(Duration::from_secs(2)));
    assert_eq!(world.ledger.waiting(), FINDINGS_MAX - 10);
    assert_eq!(world.ledger.counts.suppressed, 5);
    world.pass(20);
    assert_eq!(world.write().len(), 10);
}

#[test]
fn only_who_leads_writes_and_who_comes_to_lead_says_what_is_so_once() {
    let mut world = world(RATES);
    world.note(finding("deny", UNKNOWN_FIELD, "x", 5));
    world.note(finding("relay", LIST_HELD, "another's list", 0));
    assert_eq!(world.write(), []);
    world.ledger.lead();
    // The one before said it, three times.
    assert_eq!(world.write_as(Outcome::Found(3)), [created("deny")]);
    assert_eq!((world.ledger.counts.found, world.ledger.counts.written), (1, 0));
    world.note(finding("deny", UNKNOWN_FIELD, "x", 6));
    assert_eq!(world.write(), [raised("deny", 4)]);
    world.note(finding("deny", UNKNOWN_FIELD, "x", 7));
    world.ledger.rest();
    assert_eq!(world.write(), []);
    world.ledger.lead();
    assert_eq!(world.write(), [created("deny")]);
}

#[test]
fn what_is_well_again_is_not_told_and_within_its_window_not_told_anew() {
    let mut world = world(RATES);
    world.ledger.lead();
    world.note(finding("deny", UNKNOWN_FIELD, "x", 5));
    world.ledger.settle("NetworkPolicy", "shop", "deny", |_| false);
    assert_eq!(world.write(), [], "it was over before anybody was told");
    world.note(finding("deny", UNKNOWN_FIELD, "x", 6));
    world.write();
    world.ledger.settle_missing("NetworkPolicy", |_, name| name != "deny");
    assert_eq!(world.ledger.standing("NetworkPolicy"), 0);
    world.note(finding("deny", UNKNOWN_FIELD, "x", 6));
    assert_eq!(world.write(), [raised("deny", 2)]);
    world.ledger.settle("NetworkPolicy", "shop", "deny", |_| false);
    world.pass(601);
    world.ledger.look_over(world.now);
    assert!(world.ledger.entries.is_empty());
}

#[test]
fn what_is_still_so_is_said_again_before_servers_forget_it() {
    let mut world = world(RATES);
    world.ledger.lead();
    world.note(finding("deny", UNKNOWN_FIELD, "x", 5));
    world.write();
    world.pass(1799);
    world.ledger.look_over(world.now);
    assert_eq!(world.write(), []);
    world.pass(1);
    world.ledger.look_over(world.now);
    assert_eq!(world.write(), [raised("deny", 2)]);
    // Forgotten all the same: it is made anew.
    world.pass(1800);
    world.ledger.look_over(world.now);
    let Next::Write(write) = world.ledger.next(world.now) else { panic!() };
    world.ledger.wrote(&write, Outcome::Forgotten, world.now);
    assert_eq!(world.write(), [created("deny")]);
}

#[test]
fn what_fails_rests_and_what_is_refused_for_good_does_not_come_back_soon() {
    let mut world = world(RATES);
    world.ledger.lead();
    world.note(finding("deny", UNKNOWN_FIELD, "x", 5));
    let rest = Duration::from_secs(4);
    assert_eq!(world.write_as(Outcome::Failed(rest)), [created("deny")]);
    world.note(finding("other", UNKNOWN_FIELD, "x", 5));
    assert_eq!(world.write_as(Outcome::Refused), [created("other")], "others do not wait for it");
    assert_eq!(world.ledger.next(world.now), Next::Wait(rest));
    world.pass(4);
    assert_eq!(world.write(), [created("deny")]);
    world.pass(100);
    world.ledger.look_over(world.now);
    assert_eq!(world.write(), []);
    assert_eq!(world.ledger.counts.failed, 2);
}
