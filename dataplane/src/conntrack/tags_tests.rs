use super::super::sctp::chunk_bits::{ABORT, COOKIE_ACK, COOKIE_ECHO, INIT, INIT_ACK};
use super::*;

const DATA: u8 = 0;

/// An association: the words of its two ends, and whether it stands.
#[derive(Default)]
struct Association([AtomicU64; 2], bool);

impl Association {
    fn passes(&self, from: usize, shown: u8, tag: u32, initiate_tag: Option<u32>) -> bool {
        let chunks = Chunks { tag, shown, initiate_tag, is_reflected: false };
        check(&self.0[from], &self.0[1 - from], self.1, &chunks).is_ok()
    }

    fn reflects(&self, from: usize, tag: u32) -> bool {
        let chunks = Chunks { tag, shown: ABORT, initiate_tag: None, is_reflected: true };
        check(&self.0[from], &self.0[1 - from], self.1, &chunks).is_ok()
    }

    /// The four packets of a handshake in which the first end asks for `tags.0`.
    fn opens(&self, tags: (u32, u32)) -> bool {
        self.passes(0, INIT, 0, Some(tags.0))
            && self.passes(1, INIT_ACK, tags.0, Some(tags.1))
            && self.passes(0, COOKIE_ECHO, tags.1, None)
            && self.passes(1, COOKIE_ACK, tags.0, None)
    }

    fn stands_with(tags: (u32, u32)) -> Self {
        let mut association = Self::default();
        assert!(association.opens(tags));
        association.1 = true;
        association
    }
}

#[test]
fn packets_pass_with_the_tag_their_receiver_chose_and_no_other() {
    let association = Association::stands_with((7, 9));
    assert!(association.passes(0, DATA, 9, None) && association.passes(1, DATA, 7, None));
    for (from, tag) in [(0, 7), (1, 9), (0, 8), (1, 1)] {
        assert!(!association.passes(from, DATA, tag, None));
        assert!(!association.passes(from, ABORT, tag, None));
    }
    assert!(association.passes(1, ABORT, 7, None));
}

#[test]
fn abort_for_want_of_a_tag_sends_the_senders_own_back() {
    let association = Association::stands_with((7, 9));
    assert!(association.reflects(0, 7) && association.reflects(1, 9));
    assert!(!association.reflects(0, 9) && !association.reflects(1, 8));
}

#[test]
fn forged_init_changes_no_tag_and_a_restart_changes_both() {
    let association = Association::stands_with((7, 9));
    assert!(association.passes(0, INIT, 0, Some(100)));
    assert!(association.passes(1, INIT_ACK, 100, Some(200)), "the honest end's answer");
    assert!(association.passes(0, DATA, 9, None) && association.passes(1, DATA, 7, None));
    assert!(!association.passes(0, DATA, 200, None) && !association.passes(1, DATA, 100, None));

    assert!(association.opens((101, 201)));
    assert!(association.passes(0, DATA, 201, None) && association.passes(1, DATA, 101, None));
    assert!(!association.passes(0, DATA, 9, None) && !association.passes(1, DATA, 7, None));
}

#[test]
fn init_that_is_sent_again_with_another_tag_opens_as_well() {
    let association = Association::default();
    assert!(association.passes(0, INIT, 0, Some(6)));
    assert!(association.opens((7, 9)));
    assert!(association.passes(1, DATA, 7, None) && !association.passes(1, DATA, 6, None));
}

#[test]
fn both_ends_may_open_at_once() {
    let association = Association::default();
    assert!(association.passes(0, INIT, 0, Some(7)) && association.passes(1, INIT, 0, Some(9)));
    assert!(association.passes(0, INIT_ACK, 9, Some(7)));
    assert!(association.passes(1, INIT_ACK, 7, Some(9)));
    assert!(association.passes(0, COOKIE_ECHO, 9, None));
    assert!(association.passes(1, COOKIE_ACK, 7, None));
    assert!(association.passes(0, DATA, 9, None) && association.passes(1, DATA, 7, None));
}

#[test]
fn tags_of_an_association_met_midway_are_learnt_and_not_from_an_init_or_abort() {
    let association = Association([AtomicU64::new(0), AtomicU64::new(0)], true);
    assert!(association.passes(0, INIT, 0, Some(100)) && association.passes(0, ABORT, 55, None));
    assert!(association.passes(0, DATA, 9, None) && association.passes(1, DATA, 7, None));
    assert!(!association.passes(0, DATA, 8, None) && !association.passes(1, DATA, 100, None));
}
