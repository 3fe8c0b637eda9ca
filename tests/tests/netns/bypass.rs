//! Programs of others that lead packets around a pod's own: what is not enforced is told.

use std::os::fd::AsFd;
use std::time::Duration;

use reeve_tests::bench::bytecode::{self, Code, REDIRECT_PEER};
use reeve_tests::lab::{Mode, until};
use reeve_tests::stage::{Stage, WEB, get, shop};
use serde_json::Value;

/// Longest wait for the agent to tell.
const PATIENCE: Duration = Duration::from_secs(10);
/// `ETH_P_IP`, as a program sees it.
const IPV4: i32 = 0x0800_u16.to_be() as i32;
/// Offset of the protocol in what a program is given.
const PROTOCOL: i16 = 16;
/// To whoever comes next.
const NEXT: i32 = -1;

fn problem(stage: &mut Stage) -> Option<Value> {
    let told = stage.agent().request("GET", "/problems").and_then(|answer| answer.json()).expect("problems");
    let of_web = |problem: &&Value| problem["object"] == "Pod/shop/web";
    told.as_array().expect("a list").iter().find(of_web).cloned()
}

#[test]
fn packets_that_are_led_around_a_pods_programs_are_told_by_its_answers() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop("bypass", Mode::Routed);
    stage.denies(&guest, &web, WEB, "web-clients");
    stage.allows(&client, &web, WEB, "web-clients");
    let unseen = |stage: &mut Stage| stage.agent().metric("reeve_began_unseen_total", &[]).expect("a metric");
    assert_eq!((problem(&mut stage), unseen(&mut stage)), (None, 0.0));

    // What guest sends is put into web's namespace, past the device that web's programs are at.
    let around = Code::default()
        .load_word(3, 1, PROTOCOL)
        .set(0, NEXT)
        .skip_unless(3, IPV4, 3)
        .set(1, i32::try_from(web.host_index().expect("an interface")).expect("a small number"))
        .set(2, 0)
        .call(REDIRECT_PEER)
        .exit();
    let at = guest.host_index().expect("an interface");
    let attach =
        || -> anyhow::Result<_> { bytecode::attach(around.classifier()?.as_fd(), at, bytecode::Hook::Ingress) };
    let link = stage.node.netns().run(attach).expect("a namespace").expect("attached");
    let mut asked = 0_u32;
    let told = until("a problem", PATIENCE, || {
        asked += 1;
        assert_eq!(get(&guest, &web), Ok(()), "no program of ours stands there");
        Ok(problem(&mut stage))
    });
    let told = told.expect("it is told");
    let counted = until("all of them", PATIENCE, || Ok((unseen(&mut stage) == f64::from(asked)).then_some(())));
    counted.unwrap_or_else(|error| panic!("{error:#}: {} of {asked}", unseen(&mut stage)));
    assert!(asked >= 3, "{asked}");
    assert!(told["effect"].to_string().contains("is not enforced"), "{told}");
    assert!(told["what"].to_string().contains(&format!("by port 8080 to {}", guest.v4())), "{told}");
    let records = stage.agent().records().rest().expect("records");
    let flagged = |record: &&Value| record["flags"].to_string().contains("beganUnseen");
    let flagged: Vec<&Value> = records.iter().filter(flagged).collect();
    assert_eq!(flagged.len(), asked as usize, "{flagged:?}");
    assert!(
        flagged.iter().all(|record| record["source"]["pod"] == "web" && record["event"] == "opened"),
        "{flagged:?}"
    );
    drop(link);
    stage.denies(&guest, &web, WEB, "web-clients");
    stage.allows(&client, &web, WEB, "web-clients");
    assert_eq!(unseen(&mut stage), f64::from(asked), "the answer to a question that was seen is none of these");
}
