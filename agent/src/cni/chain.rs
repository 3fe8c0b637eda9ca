//! The plugins of a CNI list where they stand in its text, so that one goes in or comes out and every other byte stays.
//!
//! Invariant: what was put in and is taken out again leaves the very text that was there. Which plugins are whose, and
//! whether the edited text says what it should, is the `conflist`'s.

use serde::Deserialize;
use serde_json::value::RawValue;
use std::ops::Range;

/// White space of JSON.
const WHITE: [char; 4] = [' ', '\t', '\r', '\n'];

/// A list's text, and where each of its plugins stands in it.
#[derive(Debug)]
pub(super) struct Chain<'a> {
    text: &'a str,
    plugins: Vec<Range<usize>>,
}

impl<'a> Chain<'a> {
    /// None, if the text is no list or lists its plugins more than once.
    pub(super) fn of(text: &'a str) -> Option<Self> {
        #[derive(Deserialize)]
        struct List<'a> {
            #[serde(borrow)]
            plugins: Vec<&'a RawValue>,
        }
        let list: List<'_> = serde_json::from_str(text).ok()?;
        let place = |plugin: &&RawValue| {
            // It is borrowed, so it lies in the text.
            let start = plugin.get().as_ptr().addr().checked_sub(text.as_ptr().addr())?;
            Some(start..start + plugin.get().len())
        };
        Some(Self { text, plugins: list.plugins.iter().map(place).collect::<Option<_>>()? })
    }

    /// The plugins as they are written.
    pub(super) fn plugins(&self) -> impl Iterator<Item = &'a str> {
        self.plugins.iter().map(|place| &self.text[place.clone()])
    }

    /// The text without the plugins that are `dropped`, each with one comma and the white space beside that; none, if no
    /// plugin would be left.
    pub(super) fn without(&self, dropped: impl Fn(&str) -> bool) -> Option<String> {
        let first = self.plugins().position(|plugin| !dropped(plugin))?;
        let mut text = String::with_capacity(self.text.len());
        let mut copied = 0;
        for (index, place) in self.plugins.iter().enumerate() {
            if !dropped(&self.text[place.clone()]) {
                continue;
            }
            let cut = if index < first {
                place.start..self.plugins[index + 1].start
            } else {
                self.plugins[index - 1].end..place.end
            };
            text.push_str(&self.text[copied..cut.start]);
            copied = cut.end;
        }
        text.push_str(&self.text[copied..]);
        Some(text)
    }

    /// The text with another plugin behind the last, as far from the comma as the last is from what stands before it; none,
    /// if there is no plugin.
    pub(super) fn with_last(&self, plugin: &str) -> Option<String> {
        let last = self.plugins.last()?;
        let (before, behind) = self.text.split_at(last.end);
        let space = &before[self.text[..last.start].trim_end_matches(WHITE).len()..last.start];
        Some([before, ",", space, plugin, behind].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = r#"{"type":"x"}"#;

    #[track_caller]
    fn check(before: &str, after: &str) {
        let chain = Chain::of(before).expect("a list");
        assert_eq!(chain.with_last(OURS).as_deref(), Some(after));
        let again = Chain::of(after).expect("a list");
        assert_eq!(again.plugins().last(), Some(OURS));
        assert_eq!(again.without(|plugin| plugin == OURS).as_deref(), Some(before));
        assert_eq!(chain.without(|plugin| plugin == OURS).as_deref(), Some(before), "nothing to take out");
    }

    #[test]
    fn a_plugin_goes_in_as_others_stand_and_comes_out_with_every_byte_of_its_own() {
        // On one line, without and with spaces
        check(r#"{"plugins":[{"a":1}],"name":"n"}"#, r#"{"plugins":[{"a":1},{"type":"x"}],"name":"n"}"#);
        check(r#"{"plugins": [ {"a":1} , {"b":2} ] } "#, r#"{"plugins": [ {"a":1} , {"b":2}, {"type":"x"} ] } "#);
        // With an indentation, with tabs and blank lines at the end
        check(
            "{\n  \"plugins\": [\n    {\n      \"a\": 1\n    }\n  ]\n}\n",
            "{\n  \"plugins\": [\n    {\n      \"a\": 1\n    },\n    {\"type\":\"x\"}\n  ]\n}\n",
        );
        check(
            "{\n\t\"plugins\": [\n\t\t{}\n\t]\n}\n\n\n",
            "{\n\t\"plugins\": [\n\t\t{},\n\t\t{\"type\":\"x\"}\n\t]\n}\n\n\n",
        );
        // Lines that end as elsewhere
        check(
            "{\r\n \"plugins\": [\r\n  {}\r\n ]\r\n}\r\n",
            "{\r\n \"plugins\": [\r\n  {},\r\n  {\"type\":\"x\"}\r\n ]\r\n}\r\n",
        );
        // Commas where a reader does not look for them
        check(
            "{\"plugins\":[\n {\"a\":1}\n,{\"b\":2}\n]}",
            "{\"plugins\":[\n {\"a\":1}\n,{\"b\":2},{\"type\":\"x\"}\n]}",
        );
        // What looks like the list's end or its name, in strings and further in
        check(
            r#"{"a":{"plugins":[1]},"b":"\"plugins\":[{","plugins":[{"c":"]}\\\"}, "}],"é":"]"}"#,
            r#"{"a":{"plugins":[1]},"b":"\"plugins\":[{","plugins":[{"c":"]}\\\"}, "},{"type":"x"}],"é":"]"}"#,
        );
        // A name in escapes
        check(r#"{"pl\u0075gins":[{}]}"#, r#"{"pl\u0075gins":[{},{"type":"x"}]}"#);
    }

    #[test]
    fn plugins_come_out_wherever_they_stand() {
        for (before, after) in [
            ("[ 1 ,\n 2 , 3 ]", Some("[ 2 , 3 ]")),
            ("[ 2 ,\n 1 , 3 ]", Some("[ 2 , 3 ]")),
            ("[ 2 , 3 ,\n 1 ]", Some("[ 2 , 3 ]")),
            ("[1,1, 2,1,1 , 3,1]", Some("[2 , 3]")),
            ("[ 2 ]", Some("[ 2 ]")),
            ("[ 1, 1 ]", None),
            ("[ ]", None),
        ] {
            let [before, after] =
                [Some(before), after].map(|list| list.map(|list| format!("{{\"plugins\": {list}}}\n")));
            let before = before.expect("given");
            let chain = Chain::of(&before).expect("a list");
            assert_eq!(chain.without(|plugin| plugin == "1"), after, "{before}");
        }
    }

    #[test]
    fn what_lists_nothing_or_twice_is_no_chain() {
        for text in
            ["", "[", "{}", "[]", r#"{"plugins":{}}"#, r#"{"plugins":[1],"plugins":[2]}"#, r#"{"plugins":[1]},"#]
        {
            assert!(Chain::of(text).is_none(), "{text}");
        }
        assert_eq!(Chain::of(r#"{"plugins":[ ]}"#).expect("a list").with_last("1"), None);
    }
}
