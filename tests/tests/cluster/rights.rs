//! Rights and tokens of the agent's service account: what is refused is named, and what is granted later is enough.

use reeve_tests::lab::until;
use reeve_tests::stage::get;

use crate::town::{Company, LONG, POLICIES, Town, skipped};

#[test]
fn agent_that_may_not_list_policies_names_them_and_is_ready_once_it_may() {
    if skipped() {
        return;
    }
    let mut town = Town::new("refused", Company::Shared);
    let (web, front, client) = (town.pod("web"), town.pod("front"), town.pod("client"));
    town.close("web", "nobody-to-web");
    town.grant_all_but_policies();
    town.spawn();
    town.becomes_unready(&format!("{POLICIES} cannot be listed: "));
    let problem = until("the problem to be told", LONG, || {
        let all = town.agent().request("GET", "/problems")?.json()?;
        Ok(all.as_array().into_iter().flatten().find(|problem| problem["object"] == POLICIES).cloned())
    });
    let problem = problem.expect("a problem that names the kind").to_string();
    assert!(problem.contains("forbidden") && problem.contains(&town.name), "{problem}");
    assert_eq!(get(&client, &web), Ok(()), "nothing is changed in the kernel before everything was read");

    town.cluster.grant(&town.name, &town.name).expect("all rights");
    town.agent().wait_ready().expect("ready without a restart");
    town.becomes_denied(&client, &web, "nobody-to-web");
    assert_eq!(get(&client, &front), Ok(()));
    let all = town.agent().request("GET", "/problems").expect("an answer").body;
    assert!(!all.contains(POLICIES), "{all}");
}

#[test]
fn token_that_is_replaced_in_the_file_after_the_old_one_ended_is_used() {
    if skipped() {
        return;
    }
    let mut town = Town::new("tokens", Company::Alone);
    let (web, front, client) = (town.pod("web"), town.pod("front"), town.pod("client"));
    town.start();
    assert_eq!(get(&client, &web), Ok(()));

    // Another account under the same name: it has the rights, and tokens of the first are nobody's.
    town.cluster.delete(&["serviceaccount", &town.name, "-n", &town.name]).expect("deleted");
    town.cluster.grant(&town.name, &town.name).expect("another account");
    // A watch that stands is not asked for its token again.
    town.cluster.kill_api_server().expect("killed");
    town.cluster.start_api_server().expect("an API server");
    town.becomes_unready("Unauthorized");

    town.kubeconfig();
    town.close("web", "nobody-to-web");
    town.becomes_denied(&client, &web, "nobody-to-web");
    town.agent().wait_ready().expect("ready again");
    assert_eq!(get(&client, &front), Ok(()));
}
