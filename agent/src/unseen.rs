//! Pods that answer what no program has seen: something leads packets around the programs at their devices.
//!
//! A program that redirects packets into a pod's namespace (`bpf_redirect_peer`) passes by the device's own programs. What
//! the pod sends back does not, so an answer without a question tells of it.

use reeve_flow::record::{FlowRecord, Side};
use reeve_policy::model::{Level, Problem};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Answers of one pod that are a problem: one may belong to a connection that began just before the programs stood.
const MANY: u64 = 3;
/// Over at least so long: a pod's two programs are attached one after the other, some hundredths of a second apart.
const SPREAD: Duration = Duration::from_secs(1);
/// For how long they are told after the last one, and count together.
const TOLD_FOR: Duration = Duration::from_mins(10);

/// What is known of them; clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unseen(Arc<Mutex<BTreeMap<String, Answers>>>);

#[derive(Debug)]
struct Answers {
    count: u64,
    first: Instant,
    last: Instant,
    warned: bool,
    /// Whom the pod answered last, and by which port.
    of: String,
}

impl Unseen {
    /// Takes note of a flow whose first packet was an answer of its source.
    pub(crate) fn note(&self, record: &FlowRecord, now: Instant) {
        let Side { namespace: Some(namespace), pod: Some(pod), port, .. } = &record.source else { return };
        let port = port.map_or_else(|| "?".to_owned(), |port| port.to_string());
        let client = record.destination.ip.map_or_else(|| "?".to_owned(), |ip| ip.to_string());
        let of = format!("by port {port} to {client}");
        let pod = format!("Pod/{namespace}/{pod}");
        let mut all = self.0.lock().expect("nobody panics while holding it");
        all.retain(|_, answers| now.duration_since(answers.last) < TOLD_FOR);
        let new = Answers { count: 0, first: now, last: now, warned: false, of: String::new() };
        let answers = all.entry(pod.clone()).or_insert(new);
        answers.count += 1;
        answers.last = now;
        answers.of = of;
        if answers.are_many() && !answers.warned {
            answers.warned = true;
            tracing::warn!(pod, last = answers.of, "{EFFECT}");
        }
    }

    /// One for each pod that does so again and again.
    pub(crate) fn problems(&self, now: Instant) -> Vec<Problem> {
        let all = self.0.lock().expect("nobody panics while holding it");
        let many = all.iter().filter(|(_, one)| one.are_many() && now.duration_since(one.last) < TOLD_FOR);
        let problem = |(pod, answers): (&String, &Answers)| Problem {
            level: Level::Warning,
            object: pod.clone(),
            field: "connections that it answers".to_owned(),
            value: answers.count.to_string(),
            what: format!("no program has seen their first packets; the last one was answered {}", answers.of),
            effect: EFFECT.to_owned(),
        };
        many.map(problem).collect()
    }
}

impl Answers {
    fn are_many(&self) -> bool {
        self.count >= MANY && self.last.duration_since(self.first) >= SPREAD
    }
}

const EFFECT: &str = "unless the pod makes such packets itself, something leads packets around the programs at its device, as \
                      bpf_redirect_peer does: what it receives so is not enforced";

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answer() -> FlowRecord {
        let side = |pod: &str, ip: &str, port: u16| json!({ "owner": "pod", "namespace": "shop", "pod": pod, "identity": "0000000000000000", "ip": ip, "port": port });
        serde_json::from_value(json!({
            "schema": 1, "time": "2026-01-01T00:00:00Z", "first": "2026-01-01T00:00:00Z", "last": "2026-01-01T00:00:00Z",
            "node": "one", "event": "opened", "reason": "newFlow", "direction": "egress", "verdict": "allow",
            "source": side("web", "10.0.0.1", 8080), "destination": side("client", "10.0.0.2", 40_000),
            "protocol": "TCP", "policyRevision": 1, "packets": { "forward": 1, "back": 0 }, "bytes": { "forward": 40, "back": 0 }, "decision": { "verdict": "allow", "default": "noPolicySelects" }, "flags": ["pickedUp", "beganUnseen"],
        }))
        .expect("a record")
    }

    #[test]
    fn a_pod_that_answers_unseen_packets_again_and_again_is_a_problem_for_a_while() {
        let (unseen, before) = (Unseen::default(), Instant::now());
        let begun = before + SPREAD;
        for _ in 0..MANY - 1 {
            unseen.note(&answer(), before);
        }
        assert_eq!(unseen.problems(begun), [], "they may have begun before the programs stood");
        unseen.note(&answer(), begun);
        let told = unseen.problems(begun + TOLD_FOR / 2);
        let problem = &told[0];
        assert_eq!((told.len(), problem.object.as_str(), problem.value.as_str()), (1, "Pod/shop/web", "3"));
        assert!(problem.what.ends_with("answered by port 8080 to 10.0.0.2"), "{}", problem.what);
        assert_eq!(unseen.problems(begun + TOLD_FOR), []);
        let crowd = Unseen::default();
        (0..10 * MANY).for_each(|_| crowd.note(&answer(), begun));
        assert_eq!(crowd.problems(begun), [], "all at the moment at which the programs came");
        unseen.note(&answer(), begun + TOLD_FOR);
        assert_eq!(unseen.problems(begun + TOLD_FOR), [], "it is counted anew");
    }
}
