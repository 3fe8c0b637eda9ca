//! One kind's watch: a list of all, then what changes, for as long as the agent runs.
//!
//! Invariant: after whatever goes wrong the watch goes on where it was, or, where the server has forgotten that place,
//! begins again with a list. Lists come as streams from servers that have them (1.34 on by default), in pages from others.

use super::access::Access;
use super::inbox::{Failure, Listed};
use super::resources::{Resource, slim};
use super::{Heard, Shared, Told};
use crate::status;
use ::kube::api::{Api, DynamicObject, ListParams, VersionMatch, WatchEvent, WatchParams};
use futures_util::{StreamExt, TryStreamExt};
use reeve_flow::time::Timestamp;
use std::time::{Duration, Instant, SystemTime};

/// Objects in one page of a list.
const PAGE: u32 = 500;
/// Seconds after which a server ends a watch, at least; it is up to `WATCH_SPREAD` more, so that not all end together.
const WATCH_SECONDS: u32 = 240;
const WATCH_SPREAD: u32 = 50;
/// Between two attempts, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A watch that ends sooner was worth nothing: the next one waits as after a failure.
const STEADY: Duration = Duration::from_secs(1);

/// Annotation of the bookmark that ends a list in a stream.
const LIST_ENDS: &str = "k8s.io/initial-events-end";

/// Where a watch goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Position {
    /// Nothing is known; `last` is the newest version that was: no older list will do.
    Start { last: Option<String> },
    /// After this version.
    After(String),
}

/// How lists are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lists {
    Streamed,
    Paged,
}

/// Why a watch ended.
#[derive(Debug)]
enum Ended {
    /// As it does every few minutes.
    Regularly,
    /// The place is forgotten.
    Gone,
    /// The server does not know lists as streams.
    NoStreams,
    Failed(::kube::Error),
}

/// Watches a kind until the task is dropped.
pub(super) async fn watch(access: &Access, resource: &Resource, shared: &Shared) {
    let mut watch = Watch {
        resource,
        name: resource.name(),
        shared,
        position: Position::Start { last: None },
        lists: Lists::Streamed,
    };
    let mut pause = FIRST_PAUSE;
    loop {
        let api = Api::<DynamicObject>::all_with(access.client(), &resource.api);
        let begun = Instant::now();
        let ended = watch.once(&api, access.silence()).await;
        let steady = begun.elapsed() >= STEADY;
        if steady {
            pause = FIRST_PAUSE;
        }
        match ended {
            Ended::Regularly if steady => continue,
            Ended::Regularly => {}
            Ended::Gone => {
                if watch.forget() {
                    continue;
                }
            }
            Ended::NoStreams => {
                watch.lists = Lists::Paged;
                continue;
            }
            Ended::Failed(error) => {
                let failure = failure(&error);
                tracing::warn!(kind = watch.name, error = failure.what, "the watch failed");
                shared.hear(Heard::Fails { name: &watch.name, failure });
                access.renew_if_unknown(&error).await;
            }
        }
        // Half of it by chance: many agents lose the same server at the same moment.
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

struct Watch<'a> {
    resource: &'a Resource,
    name: String,
    shared: &'a Shared,
    position: Position,
    lists: Lists,
}

impl Watch<'_> {
    /// Begins the next time with a list, no older than what is known; whether it would not have done so anyway.
    fn forget(&mut self) -> bool {
        let Position::After(version) = &self.position else { return false };
        self.position = Position::Start { last: Some(version.clone()) };
        true
    }

    /// Until the server ends it, or says nothing for so long: servers send a bookmark every minute, so the next watch will
    /// tell whether the server is there.
    async fn once(&mut self, api: &Api<DynamicObject>, silence: Duration) -> Ended {
        let seconds = WATCH_SECONDS + fastrand::u32(..WATCH_SPREAD);
        let mut parameters = WatchParams::default().timeout(seconds);
        parameters.field_selector = self.resource.fields.map(str::to_owned);
        let version = match (&self.position, self.lists) {
            (Position::After(version), _) => version.clone(),
            (Position::Start { .. }, Lists::Streamed) => {
                parameters = parameters.initial_events();
                // No version: the list is of now, not of whenever a cache was last written.
                String::new()
            }
            (Position::Start { last }, Lists::Paged) => match self.pages(api, last.clone()).await {
                Ok(version) => {
                    self.position = Position::After(version.clone());
                    version
                }
                Err(error) => return ended(error, self.lists),
            },
        };
        let listing = matches!(self.position, Position::Start { .. });
        let mut events = match api.watch(&parameters, &version).await {
            Ok(events) => events.boxed(),
            Err(error) => return ended(error, self.lists),
        };
        if listing {
            self.shared.hear(Heard::ListBegins { name: &self.name });
        } else {
            self.shared.hear(Heard::Stands { name: &self.name });
        }
        loop {
            match tokio::time::timeout(silence, events.try_next()).await {
                Ok(Ok(Some(event))) => {
                    if let Some(ended) = self.take(event) {
                        return ended;
                    }
                }
                Ok(Err(error)) => return ended(error, self.lists),
                // The end of the stream, or of our patience.
                Ok(Ok(None)) | Err(_) => return Ended::Regularly,
            }
        }
    }

    fn take(&mut self, event: WatchEvent<DynamicObject>) -> Option<Ended> {
        let name = &self.name;
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                let listed = match &mut self.position {
                    Position::Start { .. } => Listed::InList,
                    Position::After(version) => {
                        advance(version, object.metadata.resource_version.as_ref());
                        Listed::Alone
                    }
                };
                self.shared.hear(Heard::Applied { name, object: told(object, self.resource), listed });
            }
            WatchEvent::Deleted(object) => {
                if let Position::After(version) = &mut self.position {
                    advance(version, object.metadata.resource_version.as_ref());
                }
                self.shared.hear(Heard::Deleted { name, value: slim(object, self.resource) });
            }
            WatchEvent::Bookmark(mark) => {
                let ends = mark.metadata.annotations.contains_key(LIST_ENDS);
                match &mut self.position {
                    Position::After(version) => *version = mark.metadata.resource_version,
                    start if ends => {
                        *start = Position::After(mark.metadata.resource_version);
                        self.shared.hear(Heard::ListEnds { name });
                    }
                    Position::Start { .. } => {}
                }
            }
            WatchEvent::Error(status) => return Some(ended(::kube::Error::Api(status.boxed()), self.lists)),
        }
        None
    }

    /// A list in pages; the version that it is of.
    async fn pages(&self, api: &Api<DynamicObject>, last: Option<String>) -> ::kube::Result<String> {
        let mut parameters = ListParams::default().limit(PAGE);
        parameters.field_selector = self.resource.fields.map(str::to_owned);
        // From the server's cache, which a whole fleet of agents can afford, but never back in time.
        parameters.version_match = Some(VersionMatch::NotOlderThan);
        parameters.resource_version = Some(last.unwrap_or_else(|| "0".to_owned()));
        self.shared.hear(Heard::ListBegins { name: &self.name });
        loop {
            let page = api.list(&parameters).await?;
            for object in page.items {
                let object = told(object, self.resource);
                self.shared.hear(Heard::Applied { name: &self.name, object, listed: Listed::InList });
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => {
                    parameters.continue_token = Some(token);
                    // The token says both.
                    parameters.version_match = None;
                    parameters.resource_version = None;
                }
                None => {
                    self.shared.hear(Heard::ListEnds { name: &self.name });
                    return Ok(page.metadata.resource_version.unwrap_or_default());
                }
            }
        }
    }
}

fn told(object: DynamicObject, resource: &Resource) -> Told {
    let condition = status::own(&resource.api.group, &object.data);
    Told { value: slim(object, resource), condition }
}

/// Goes on after this version. An event without one counts as well; what comes after it may be told twice.
fn advance(position: &mut String, version: Option<&String>) {
    if let Some(version) = version {
        position.clone_from(version);
    }
}

fn ended(error: ::kube::Error, lists: Lists) -> Ended {
    match &error {
        ::kube::Error::Api(status) if status.code == 410 => Ended::Gone,
        // A server that does not know `sendInitialEvents` calls it invalid.
        ::kube::Error::Api(status) if lists == Lists::Streamed && matches!(status.code, 400 | 422) => Ended::NoStreams,
        _ => Ended::Failed(error),
    }
}

fn failure(error: &::kube::Error) -> Failure {
    let (what, code) = match error {
        ::kube::Error::Api(status) => (status.message.clone(), status.code),
        other => (words(other), 0),
    };
    let since = Timestamp::from_system(SystemTime::now()).to_string();
    Failure { what, since, forbidden: code == 403 }
}

/// An error with what is behind it; where one repeats the other, once.
pub(crate) fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::kube::core::Status;

    fn answered(code: u16) -> ::kube::Error {
        ::kube::Error::Api(Status { code, message: format!("code {code}"), ..Status::default() }.boxed())
    }

    #[test]
    fn a_forgotten_place_begins_anew_and_a_server_without_streams_is_asked_for_pages() {
        assert!(matches!(ended(answered(410), Lists::Streamed), Ended::Gone));
        for code in [400, 422] {
            assert!(matches!(ended(answered(code), Lists::Streamed), Ended::NoStreams), "{code}");
            assert!(matches!(ended(answered(code), Lists::Paged), Ended::Failed(_)), "{code}");
        }
        for code in [401, 403, 404, 429, 500, 503] {
            assert!(matches!(ended(answered(code), Lists::Streamed), Ended::Failed(_)), "{code}");
        }
    }

    #[test]
    fn a_refusal_is_told_from_other_failures_and_in_the_servers_words() {
        let refused = failure(&answered(403));
        assert_eq!((refused.what.as_str(), refused.forbidden), ("code 403", true));
        assert!(!failure(&answered(401)).forbidden);
    }
}
