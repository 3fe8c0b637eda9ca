//! A policy that `kubectl` applies is enforced and named, and ends with its deletion.

use reeve_tests::stage::get;

use crate::town::{Company, Town, skipped};

#[test]
fn policy_that_kubectl_applies_is_enforced_and_ends_when_it_is_deleted() {
    if skipped() {
        return;
    }
    let mut town = Town::new("enforcement", Company::Shared);
    let (web, front, client) = (town.pod("web"), town.pod("front"), town.pod("client"));
    town.start();
    assert_eq!(get(&client, &web), Ok(()));
    town.close("web", "nobody-to-web");
    town.becomes_denied(&client, &web, "nobody-to-web");
    assert_eq!(get(&client, &front), Ok(()), "another pod is as open as before");
    town.open("nobody-to-web");
    town.becomes_allowed(&client, &web);
}

#[test]
fn pod_that_is_made_later_falls_under_the_policy_and_a_deleted_one_leaves_it() {
    if skipped() {
        return;
    }
    let mut town = Town::new("latecomer", Company::Shared);
    let client = town.pod("client");
    town.start();
    town.close("web", "nobody-to-web");
    let (web, front) = (town.pod("web"), town.pod("front"));
    town.becomes_denied(&client, &web, "nobody-to-web");
    town.becomes_allowed(&client, &front);
    let uid = web.uid().to_owned();
    town.cluster.remove_pod(&web).expect("removed");
    let gone = reeve_tests::lab::until("the pod to be forgotten", crate::town::LONG, || {
        let endpoints = town.agent().request("GET", "/endpoints")?.json()?;
        Ok((!endpoints.to_string().contains(&uid)).then_some(()))
    });
    gone.expect("no endpoint");
}
