use std::collections::BTreeSet;

use super::*;
use crate::client::{Access, Frontends};

/// Takes nothing.
struct Nobody;

impl Sink for Nobody {
    fn asks(&mut self, _: bool) {}
    fn granted(&mut self, _: bool) {}
    fn alive(&mut self) {}
    fn begin_list(&mut self) {}
    fn abort_list(&mut self) {}
    fn end_list(&mut self, _: Option<&str>, _: bool) -> Result<bool, String> {
        Ok(false)
    }
    fn put(&mut self, _: &RawValue, _: bool) {}
    fn gone(&mut self, _: &RawValue, _: bool) -> Result<(), String> {
        Ok(())
    }
    fn bookmark(&mut self, _: &str) -> Result<(), String> {
        Ok(())
    }
    fn flush(&mut self) {}
    fn quiet(&mut self, _: &ClientError) {}
    fn failed(&mut self, _: &ClientError, _: bool) {}
    fn is_abandoned(&self) -> bool {
        false
    }
}

fn follower(kind: Kind) -> Follower<Nobody> {
    let second = Duration::from_secs(1);
    let server = "http://127.0.0.1:1".to_owned();
    let access = Access::in_a_test([server], second, (second, 30 * second));
    let servers = Arc::new(Servers::new(access, Frontends::default()));
    let times = Times {
        answer: second,
        silence: second,
        watch: (second, second),
        list: second,
        stream_retry: second,
        absent_retry: 60 * second,
        backoff: (second, 30 * second),
        hold: second,
    };
    Follower { version: Some("7".to_owned()), ..Follower::new(servers, kind, times, Nobody) }
}

fn refusal(status: u16, message: &str) -> ClientError {
    ClientError::Http { server: "a".to_owned(), status, message: message.to_owned() }
}

#[tokio::test(start_paused = true)]
async fn two_followers_whose_server_fails_come_back_at_different_moments() {
    fastrand::seed(4);
    let pauses: BTreeSet<u128> = (0..50)
        .map(|_| {
            let mut own = follower(Kind::Pod);
            let error = refusal(500, "");
            let pause = own.failed(error.clone());
            assert!(pause >= Duration::from_millis(500) && pause <= Duration::from_secs(1));
            let next = own.failed(error);
            assert!(next >= Duration::from_secs(1) && next <= Duration::from_secs(2));
            assert_eq!(own.version.as_deref(), Some("7"), "it goes on where it was");
            pause.as_millis() / 10
        })
        .collect();
    assert!(pauses.len() > 20, "{} moments of 10 ms for 50 nodes", pauses.len());
}

#[tokio::test(start_paused = true)]
async fn a_follower_does_not_come_back_before_its_server_wants_it_to() {
    let mut own = follower(Kind::Pod);
    let error = refusal(429, "");
    let wanted = Duration::from_secs(20);
    own.servers.list()[0].failed(&error, Some(wanted));
    assert!(own.failed(error) >= wanted);
}

#[tokio::test(start_paused = true)]
async fn what_makes_a_version_useless_asks_for_a_list_and_what_does_not_keeps_it() {
    let too_large = "Too large resource version: 7, current: 3";
    for (status, message, is_kept) in [
        (410, "Expired", false),
        (404, "the server could not find the requested resource", false),
        (504, too_large, false),
        (504, "the request timed out", true),
        (500, too_large, true),
        (429, "", true),
    ] {
        let mut own = follower(Kind::NetworkPolicy);
        own.failed(refusal(status, message));
        assert_eq!(own.version.is_some(), is_kept, "{status} {message}");
    }
}

#[test]
fn versions_that_are_numbers_are_compared_as_such() {
    let is_back = |held, told| went_back(held, told, "a").is_err();
    assert!(is_back("100", Some("99")) && is_back("1000", Some("9")));
    assert!(!is_back("99", Some("100")) && !is_back("9", Some("9")) && !is_back("", Some("1")));
    assert!(!is_back("b", Some("a")) && !is_back("7", None));
    let error = went_back("100", Some("99"), "a").unwrap_err();
    assert_eq!(error.reason(), "expired");
}
