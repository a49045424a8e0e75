//! Jumps of the wall clock. Nothing is decided by it, here as elsewhere; it stamps what people read: lines of
//! the log, errors, the age of a snapshot. Who compares those must know of a jump.

use std::time::{Duration, Instant, SystemTime};

use super::Node;

/// What jumps are told of.
const OBJECT: &str = "clock";
/// Less is what time synchronisation corrects in its course.
const JUMP: Duration = Duration::from_secs(5);
/// For so long a jump is told in `xskiff status`.
const TOLD_FOR: Duration = Duration::from_secs(600);

/// The wall clock beside the one that never jumps, when they were last looked at.
#[derive(Debug, Default)]
pub(super) struct Clock {
    last: Option<(Instant, SystemTime)>,
    jumped: Option<Instant>,
}

impl Clock {
    /// What the wall clock jumped by since the last look, for people.
    fn jump(&mut self, now: Instant, wall: SystemTime) -> Option<String> {
        let (then, wall_then) = self.last.replace((now, wall))?;
        let expected = wall_then + now.saturating_duration_since(then);
        let (by, direction) = match wall.duration_since(expected) {
            Ok(ahead) => (ahead, "ahead"),
            Err(behind) => (behind.duration(), "back"),
        };
        (by >= JUMP).then(|| {
            let seconds = by.as_secs();
            format!(
                "the wall clock jumped {direction} by {seconds} s, or the machine slept; times \
                     before and after do not compare, and nothing else follows from it"
            )
        })
    }
}

impl Node {
    /// Looks whether it jumped.
    pub(super) fn look_at_clock(&mut self) {
        let now = Instant::now();
        if let Some(jump) = self.clock.jump(now, SystemTime::now()) {
            self.clock.jumped = Some(now);
            self.errors.note(OBJECT, jump);
        }
        if self.clock.jumped.is_some_and(|at| now.saturating_duration_since(at) > TOLD_FOR) {
            self.clock.jumped = None;
            self.errors.clear(OBJECT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_is_told_once_and_neither_a_late_look_nor_a_correction_is_one() {
        let (mut clock, second) = (Clock::default(), Duration::from_secs(1));
        let (start, wall) = (Instant::now(), SystemTime::now());
        assert_eq!(clock.jump(start, wall), None);
        assert_eq!(clock.jump(start + 60 * second, wall + 60 * second), None, "a late look");
        assert_eq!(clock.jump(start + 61 * second, wall + 63 * second), None, "a correction");
        let told = clock.jump(start + 62 * second, wall + 3664 * second).expect("an hour");
        assert!(told.contains("ahead by 3600 s"), "{told}");
        assert_eq!(clock.jump(start + 63 * second, wall + 3665 * second), None, "told already");
        let told = clock.jump(start + 64 * second, wall).expect("and back");
        assert!(told.contains("back by 3666 s"), "{told}");
    }
}
