//! What packets meet, and not what the node says that they would: connections of a pod whose labels and
//! policies change all the time.

use std::net::IpAddr;
use std::time::Duration;

use xskiff::demo::scene::{HTTP, STRANGER, WEB_1, to};
use xskiff::demo::traffic::fetch;
use xskiff_tests::policy_model::Transport;

use crate::world::World;

use super::objects::{History, Question};

/// Shorter than a lost SYN takes to be sent again: an attempt that fails says nothing by itself.
const BRIEFLY: Duration = Duration::from_millis(250);
/// Long enough for several.
const SURELY: Duration = Duration::from_secs(8);

/// What was tried, and came of it.
#[derive(Debug, Default)]
pub struct Attempts {
    pub answered: u64,
    pub refused: u64,
}

/// The same connection by both families.
fn questions() -> [Question; 2] {
    let address = |text: &str| -> IpAddr { text.parse().expect("an address") };
    [0, 1].map(|family| Question {
        from: address(STRANGER.addresses[family]),
        to: address(WEB_1.addresses[family]),
        transport: Transport::Tcp(HTTP[2]),
    })
}

fn is_answered(world: &World, question: Question, within: Duration) -> bool {
    let timeout = format!("--timeout-ms={}", within.as_millis());
    let to = to(&question.to.to_string(), HTTP[2]);
    let answers = fetch(world.scene.pod(STRANGER), &to, 1, &[&timeout]);
    answers.expect("an answer or none").iter().all(|answer| answer.error.is_none())
}

impl Attempts {
    fn note(&mut self, is_answered: bool) {
        *if is_answered { &mut self.answered } else { &mut self.refused } += 1;
    }

    /// Tries it while things change: what passes must be allowed by something that may be in force.
    pub fn meanwhile(&mut self, world: &World, history: &History) {
        for question in questions() {
            let is_answered = is_answered(world, question, BRIEFLY);
            self.note(is_answered);
            assert!(!is_answered || history.may_say(question, true), "{question:?} is answered");
        }
    }

    /// Tries it when all is in force: what happens is what the model says.
    pub fn in_step(&mut self, world: &World, history: &History) {
        let model = history.now();
        for question in questions() {
            let wanted = model(question);
            let within = if wanted { SURELY } else { BRIEFLY };
            let is_answered = is_answered(world, question, within);
            self.note(is_answered);
            assert_eq!(is_answered, wanted, "{question:?}");
        }
    }
}
