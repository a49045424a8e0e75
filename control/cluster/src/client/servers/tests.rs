use futures_util::future::join_all;

use super::*;

/// A relay and an API server, at neither of which anybody listens.
fn servers() -> Servers {
    let second = Duration::from_secs(1);
    let api_server = "http://127.0.0.1:2".to_owned();
    let access = Access {
        relays: vec!["http://127.0.0.1:1".parse().unwrap()],
        ..Access::in_a_test([api_server], 10 * second, (10 * second, 10 * second))
    };
    Servers::new(access, Frontends::default())
}

#[tokio::test]
async fn those_who_lose_a_relay_come_to_the_next_server_later_and_not_together() {
    let all: Vec<Servers> = (0..8).map(|_| servers()).collect();
    for servers in &all {
        // Reading certificates takes its time.
        servers.check().await.unwrap();
    }
    let turns = all.iter().map(|servers| async {
        let began = std::time::Instant::now();
        let error = servers
            .get("/api/v1/pods", Duration::from_secs(10), &Spoilers::default())
            .await
            .err()
            .unwrap();
        assert!(error.to_string().starts_with("http://127.0.0.1:2"), "{error}");
        assert!(servers.list().iter().all(|server| server.rests_until().is_some()));
        began.elapsed()
    });
    let turns = join_all(turns).await;
    let (least, most) = (turns.iter().min().unwrap(), turns.iter().max().unwrap());
    assert!(*least >= TURN / 2, "{turns:?}");
    assert!(*most - *least >= Duration::from_millis(15), "{turns:?}");
}
