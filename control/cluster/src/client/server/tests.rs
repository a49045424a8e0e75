use std::collections::BTreeSet;

use super::*;

const REST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

fn server() -> Server {
    let access = Access::in_a_test([], Duration::from_secs(1), REST);
    // Nobody listens there.
    Server::new("http://127.0.0.1:1".parse().unwrap(), false, Arc::new(access))
}

fn busy() -> ClientError {
    ClientError::Http { server: "a".to_owned(), status: 429, message: String::new() }
}

/// How long it rests from now on.
fn rest(server: &Server) -> Duration {
    server.rests_until().map_or(Duration::ZERO, |until| until.duration_since(Instant::now()))
}

#[tokio::test(start_paused = true)]
async fn rest_grows_with_each_failure_up_to_its_bound_and_ends_with_an_answer() {
    fastrand::seed(4);
    let server = server();
    let mut longest = REST.0;
    for _ in 0..12 {
        server.failed(&busy(), None);
        let rest = rest(&server);
        assert!(rest >= longest / 2 && rest <= longest, "{rest:?} of {longest:?}");
        // Who fails at the same time adds nothing.
        server.failed(&busy(), Some(Duration::from_secs(20)));
        assert_eq!(self::rest(&server), rest);
        tokio::time::advance(rest - Duration::from_millis(1)).await;
        assert!(server.rests_until().is_some(), "not before its time");
        tokio::time::advance(Duration::from_millis(2)).await;
        assert_eq!(server.rests_until(), None);
        longest = (longest * 2).min(REST.1);
    }
    assert_eq!(longest, REST.1);
    server.failed(&busy(), None);
    server.answered();
    assert_eq!(server.rests_until(), None);
    server.failed(&busy(), None);
    assert!(rest(&server) <= REST.0, "from the beginning");
}

#[tokio::test(start_paused = true)]
async fn those_who_are_told_when_to_come_back_come_not_before_and_not_together() {
    fastrand::seed(4);
    let asked = Duration::from_secs(7);
    let rests: Vec<Duration> = (0..100)
        .map(|_| {
            let server = server();
            server.failed(&busy(), Some(asked));
            rest(&server)
        })
        .collect();
    assert!(rests.iter().all(|rest| *rest >= asked && *rest <= asked + REST.0), "{rests:?}");
    let moments: BTreeSet<u128> = rests.iter().map(|rest| rest.as_millis() / 10).collect();
    assert!(moments.len() > 30, "{} moments of 10 ms for 100 nodes", moments.len());
    // A server that asks for too much is believed as far as its longest rest.
    let server = server();
    server.failed(&busy(), Some(Duration::from_secs(3600)));
    assert!(rest(&server) <= REST.1 + REST.0);
}

#[tokio::test]
async fn a_server_that_failed_is_reached_by_a_client_made_anew_which_asks_for_its_name_again() {
    let server = server();
    server.check().await.unwrap();
    assert!(server.client.lock().await.is_some());
    let error = server.send(&Ask::get("/api/v1/pods")).await.unwrap_err();
    assert_eq!(error.reason(), "connection");
    assert!(server.client.lock().await.is_none());
}
