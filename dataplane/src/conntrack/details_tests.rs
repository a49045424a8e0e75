use super::*;

fn line() -> [AtomicU64; 8] {
    std::array::from_fn(|_| AtomicU64::new(0))
}

const DIRECTION: FlowDirection = FlowDirection::Reply;

fn end(sent: u32, acknowledged: u32) -> End {
    let allowed = Some((acknowledged, acknowledged.wrapping_add(1 << 30)));
    End { sent: Some((sent, 65_535 << 14)), allowed, offer: Offer::Scale(14) }
}

#[test]
fn what_is_learnt_of_an_end_is_read_back_as_it_was() {
    let words = line();
    let details = Details::new(&words);
    assert_eq!(details.end(0, DIRECTION), End::default());
    for known in [
        end(u32::MAX, u32::MAX),
        End { allowed: None, offer: Offer::Refused, ..end(0, 0) },
        End { sent: Some((0, 0)), allowed: Some((0, 0)), offer: Offer::Unknown },
    ] {
        details.learn(7, DIRECTION, &known, true);
        assert_eq!(details.end(7, DIRECTION), known);
    }
    assert_eq!(details.end(7, DIRECTION.reversed()), End::default());
}

#[test]
fn the_furthest_of_two_workers_counts_unless_the_connection_begins() {
    let words = line();
    let details = Details::new(&words);
    details.learn(7, DIRECTION, &end(u32::MAX, 10), true);
    details.learn(7, DIRECTION, &end(5, 9), false);
    assert_eq!(details.end(7, DIRECTION), end(5, 10));
    details.learn(7, DIRECTION, &end(1, 1), true);
    assert_eq!(details.end(7, DIRECTION), end(1, 1));
}

#[test]
fn another_process_and_windows_that_nobody_looked_at_forget() {
    let words = line();
    let details = Details::new(&words);
    details.learn(7, DIRECTION, &end(5, 9), true);
    assert_eq!(details.end(8, DIRECTION), End::default());
    details.forget(DIRECTION);
    assert_eq!(details.end(7, DIRECTION), End::default());
    details.learn(8, DIRECTION, &end(1, 1), false);
    assert_eq!(details.end(8, DIRECTION), end(1, 1));
}

#[test]
fn run_of_any_number_is_told_from_none() {
    assert_eq!(unpack_run(0).0, None);
    for run in [0, u32::MAX] {
        for offer in [Offer::Unknown, Offer::Refused, Offer::Scale(0), Offer::Scale(14)] {
            assert_eq!(unpack_run(pack_run(run, offer)), (Some(run), offer));
        }
    }
}
