//! The agent is killed at random moments, under traffic and in the middle of changes.

use crate::check_nothing_leaked;
use fastrand::Rng;
use reeve_tests::require::number;
use reeve_tests::stage::counts::{Traffic, counted};
use reeve_tests::stage::{WEB, get};
use reeve_tests::traffic::NoAnswer;
use serde_json::json;

#[test]
fn kills_at_random_moments_let_nothing_through_and_lose_no_count() {
    if crate::skipped() {
        return;
    }
    let (kills, seed) = (number("REEVE_KILLS", || 5), number("REEVE_SEED", || fastrand::u64(..)));
    println!("{kills} kills, REEVE_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let (mut stage, web, client, guest) = counted("f-kill", 1, "");
    let other = stage.pod("other", &[]);
    stage.settled();
    let before = stage.node.objects().expect("what is held");
    let traffic = Traffic::start(&web, &client, &guest);
    let mut attempts = 0;
    for _ in 0..kills {
        // Changes that are on their way when the agent is killed.
        let is_client = rng.bool();
        other.set_labels(if is_client { &[("role", "client")] } else { &[] }).expect("relabelled");
        let port = rng.u16(1..100);
        let noise = json!({
            "podSelector": { "matchLabels": { "app": "web" } },
            "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "role": "nobody" } } }], "ports": [{ "port": port }] }]
        });
        stage.policy("noise", &noise);
        traffic.denied.wait_for(rng.u64(1..60));
        stage.agent().kill9().expect("killed");
        assert_eq!(get(&guest, &web), Err(NoAnswer::TimedOut), "denied stays denied without an agent");
        assert_eq!(get(&client, &web), Ok(()), "allowed stays allowed without an agent");
        if rng.u8(..3) == 0 {
            // And another one while it starts.
            stage.agent().spawn_again().expect("spawned");
            traffic.denied.wait_for(rng.u64(1..300));
            stage.agent().kill9().expect("killed");
        }
        stage.agent().start_again().expect("started again");
        stage.settled();
        // Each of these is a connection that socket, records and oracle agree about.
        stage.allows(&client, &web, WEB, "web-clients");
        stage.denies(&guest, &web, WEB, "web-clients");
        if is_client {
            stage.allows(&other, &web, WEB, "web-clients");
        } else {
            stage.denies(&other, &web, WEB, "web-clients");
        }
        attempts += 5;
    }
    let account = traffic.stop();
    println!("{attempts} connections, {account:?}");
    account.check_exact(&mut stage);
    check_nothing_leaked(&stage.node, &before);
}
