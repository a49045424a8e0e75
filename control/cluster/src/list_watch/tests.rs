use std::collections::BTreeSet;

use super::*;
use crate::client::{Access, Frontends};

/// Takes nothing, and holds what lists have lost.
#[derive(Default)]
struct Nobody {
    holds: bool,
    /// Which lists were second ones.
    lists: Vec<bool>,
}

impl Sink for Nobody {
    fn asks(&mut self, _: bool) {}
    fn granted(&mut self, _: bool) {}
    fn alive(&mut self) {}
    fn begin_list(&mut self) {}
    fn abort_list(&mut self) {}
    fn end_list(&mut self, list: &List<'_>) -> Result<bool, String> {
        self.lists.push(list.is_second);
        Ok(self.holds)
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
    Follower {
        version: Some("7".to_owned()),
        ..Follower::new(servers, kind, times, Nobody::default())
    }
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
            let pause = own.failed(error.clone(), false);
            assert!(pause >= Duration::from_millis(500) && pause <= Duration::from_secs(1));
            let next = own.failed(error, false);
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
    assert!(own.failed(error, false) >= wanted);
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
        own.failed(refusal(status, message), false);
        assert_eq!(own.version.is_some(), is_kept, "{status} {message}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_past_that_expires_again_and_again_is_listed_less_and_less_often() {
    fastrand::seed(4);
    let mut own = follower(Kind::Pod);
    let expire = |own: &mut Follower<Nobody>| {
        // The list between says something, which ends other failures.
        own.alive();
        own.failed(refusal(410, "Expired"), false)
    };
    let first = expire(&mut own);
    assert!(first >= Duration::from_millis(500) && first <= Duration::from_secs(1), "{first:?}");
    let later = (0..8).map(|_| expire(&mut own)).last().unwrap();
    assert!(later >= Duration::from_secs(15) && later <= Duration::from_secs(30), "{later:?}");
    tokio::time::advance(Duration::from_secs(121)).await;
    assert!(expire(&mut own) <= Duration::from_secs(1), "that was long ago");
}

#[tokio::test(start_paused = true)]
async fn a_list_before_its_time_is_no_second_opinion_and_puts_none_off() {
    let mut own = follower(Kind::Pod);
    own.times.hold = Duration::from_secs(20);
    own.sink.holds = true;
    let listed = |own: &mut Follower<Nobody>| own.listed(Some("9".to_owned()), true, "a").unwrap();
    listed(&mut own);
    let due = own.held_until.unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    own.failed(refusal(410, "Expired"), false);
    let early = own.turn().await;
    assert!(early.is_err() && !own.is_second, "nobody listens there");
    listed(&mut own);
    assert_eq!((own.held_until, own.sink.lists.as_slice()), (Some(due), &[false, false][..]));
    tokio::time::advance(due - Instant::now()).await;
    let second = own.turn().await;
    assert!(second.is_err() && own.is_second && own.version.is_none());
    own.sink.holds = false;
    listed(&mut own);
    assert_eq!((own.held_until, own.sink.lists.last()), (None, Some(&true)));
}

#[test]
fn what_is_no_list_is_not_an_empty_one() {
    let page = |text: &str| serde_json::from_str::<Page<'_>>(text).map(|page| page.items.is_some());
    assert!(page(r#"{"metadata":{},"items":[]}"#).unwrap());
    assert!(!page(r#"{"metadata":{},"items":null}"#).unwrap(), "servers say so for none");
    assert!(page(r#"{"kind":"Status","metadata":{},"status":"Success"}"#).is_err());
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
