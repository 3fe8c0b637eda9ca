//! Edits of the node's CNI configuration as text: ours in as the last plugin, ours out again.
//!
//! Invariant: what another has written stays as it was, byte by byte, or field by field where plugins have no one place in
//! the text; a file that cannot be read is not changed. Places are the `chain`'s, reading and writing files the
//! `installer`'s.

use super::PLUGIN;
use super::chain::Chain;
use super::network::VERSIONS;
use serde_json::{Map, Value, json};
use std::path::Path;

/// The plugin's settings, as they are written into the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ours {
    /// Where the agent listens, as the host sees it.
    pub socket: String,
}

impl Ours {
    fn plugin(&self) -> Value {
        json!({ "type": PLUGIN, "socket": self.socket })
    }
}

/// What is to be done to have our plugin in a configuration.
#[derive(Clone, Debug, PartialEq)]
pub enum Insertion {
    /// It is there, last and with these settings.
    Nothing,
    /// Write this text into the same file.
    Rewrite(String),
    /// The file has a single plugin: write this text into a list of this name, which sorts before it.
    Wrap {
        /// Name of the file beside it.
        name: String,
        /// Its text.
        text: String,
    },
}

/// What is to be done to have it out again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    /// It is not there.
    Nothing,
    /// Write this text into the same file.
    Rewrite(String),
    /// The list was made around another's file: remove it.
    Delete,
}

/// Why a file is none that a runtime would use, or cannot be changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the sentence of each variant says it")]
pub enum ConflistError {
    #[error("it is no JSON: {0}")]
    Json(String),
    #[error("it is no configuration of a network: {0}")]
    Shape(&'static str),
    #[error("cniVersion is {0:?}; reeve-cni speaks {all}, and in this network each pod would fail", all = VERSIONS.join(", "))]
    Version(String),
}

/// Field of a list that was made around a file, with that file's name.
const AROUND: &str = "reeve.dev/around";

/// Reads a file as a runtime would; what a runtime passes over is an error.
pub fn parse(name: &str, text: &str) -> Result<Value, ConflistError> {
    let value: Value = serde_json::from_str(text).map_err(|error| ConflistError::Json(error.to_string()))?;
    if value.get("name").and_then(Value::as_str).is_none_or(str::is_empty) {
        return Err(ConflistError::Shape("it has no name"));
    }
    if is_list(name) {
        let plugins =
            value.get("plugins").and_then(Value::as_array).ok_or(ConflistError::Shape("it lists no plugins"))?;
        if plugins.is_empty() {
            return Err(ConflistError::Shape("its list of plugins is empty"));
        }
        if plugins.iter().any(|plugin| plugin.get("type").and_then(Value::as_str).is_none()) {
            return Err(ConflistError::Shape("a plugin has no type"));
        }
    } else if value.get("type").and_then(Value::as_str).is_none() {
        return Err(ConflistError::Shape("the plugin has no type"));
    }
    Ok(value)
}

/// Whether a file of this name is looked at by runtimes.
pub fn is_configuration(name: &str) -> bool {
    !name.starts_with('.') && matches!(extension(name), Some("conflist" | "conf" | "json"))
}

/// The file that a list was made around, if it was.
pub fn around(value: &Value) -> Option<&str> {
    value.get(AROUND).and_then(Value::as_str)
}

/// Whether our plugin is in the list.
pub fn has_ours(value: &Value) -> bool {
    value.get("plugins").and_then(Value::as_array).into_iter().flatten().any(is_ours)
}

/// Puts our plugin behind all others.
pub fn insert(name: &str, text: &str, ours: &Ours) -> Result<Insertion, ConflistError> {
    let mut value = parse(name, text)?;
    // None is 0.1.0 to a runtime.
    let version = value.get("cniVersion").and_then(Value::as_str).unwrap_or_default();
    if !VERSIONS.contains(&version) {
        return Err(ConflistError::Version(version.to_owned()));
    }
    if !is_list(name) {
        return wrap(name, &value, ours);
    }
    let plugin = ours.plugin();
    let Some(plugins) = value.get_mut("plugins").and_then(Value::as_array_mut) else {
        return Err(ConflistError::Shape("it lists no plugins"));
    };
    let count = plugins.iter().filter(|one| is_ours(one)).count();
    let last = plugins.last();
    // Settings that somebody has added to ours are theirs to keep.
    let fits = |last: &Value| is_ours(last) && last["socket"] == plugin["socket"];
    if count == 1 && last.is_some_and(fits) {
        return Ok(Insertion::Nothing);
    }
    let mut kept = plugins.iter().find(|one| is_ours(one)).cloned().unwrap_or_else(|| plugin.clone());
    kept["socket"] = plugin["socket"].clone();
    plugins.retain(|one| !is_ours(one));
    if plugins.is_empty() {
        return Err(ConflistError::Shape("no plugin in it makes a network"));
    }
    plugins.push(kept.clone());
    Ok(Insertion::Rewrite(edited(name, &value, last_in(text, &kept))))
}

/// A single plugin has no place for another: a list of an earlier name holds both.
fn wrap(name: &str, value: &Value, ours: &Ours) -> Result<Insertion, ConflistError> {
    let mut list = Map::new();
    for field in ["cniVersion", "name"] {
        list.extend(value.get(field).map(|found| (field.to_owned(), found.clone())));
    }
    let mut first = value.clone();
    if let Value::Object(fields) = &mut first {
        fields.remove("cniVersion");
        fields.remove("name");
    }
    list.insert("plugins".to_owned(), json!([first, ours.plugin()]));
    list.insert(AROUND.to_owned(), json!(name));
    let earlier = earlier(name).ok_or(ConflistError::Shape("no name for a list sorts before its own"))?;
    Ok(Insertion::Wrap { name: earlier, text: pretty(&Value::Object(list)) })
}

/// A name that sorts before another's.
fn earlier(name: &str) -> Option<String> {
    let stem = name.strip_suffix(extension(name).unwrap_or_default()).unwrap_or(name).trim_end_matches('.');
    ["00-reeve-", "+reeve-"].iter().map(|before| format!("{before}{stem}.conflist")).find(|earlier| **earlier < *name)
}

/// Takes our plugin out.
pub fn remove(name: &str, text: &str) -> Result<Removal, ConflistError> {
    let mut value = parse(name, text)?;
    if !is_list(name) || !has_ours(&value) {
        return Ok(Removal::Nothing);
    }
    if around(&value).is_some() {
        return Ok(Removal::Delete);
    }
    if let Some(plugins) = value.get_mut("plugins").and_then(Value::as_array_mut) {
        plugins.retain(|one| !is_ours(one));
        if plugins.is_empty() {
            return Err(ConflistError::Shape("no plugin in it makes a network"));
        }
    }
    let without = Chain::of(text).and_then(|chain| chain.without(is_ours_as_written));
    Ok(Removal::Rewrite(edited(name, &value, without)))
}

/// The list's text with our plugin behind all others and nowhere else, as it is written there already if it is.
fn last_in(text: &str, plugin: &Value) -> Option<String> {
    let chain = Chain::of(text)?;
    let written = chain.plugins().find(|written| read(written).as_ref() == Some(plugin));
    let new = written.map_or_else(|| plugin.to_string(), str::to_owned);
    Chain::of(&chain.without(is_ours_as_written)?)?.with_last(&new)
}

/// The text that was edited by position, unless it does not say what it should: that is written anew.
fn edited(name: &str, value: &Value, text: Option<String>) -> String {
    text.filter(|text| read(text).as_ref() == Some(value)).unwrap_or_else(|| {
        tracing::warn!(
            name,
            "a plugin's place in this CNI configuration could not be told: the whole file is written anew, with the same \
             fields in other white space"
        );
        pretty(value)
    })
}

fn read(text: &str) -> Option<Value> {
    serde_json::from_str(text).ok()
}

fn is_ours_as_written(plugin: &str) -> bool {
    read(plugin).as_ref().is_some_and(is_ours)
}

fn is_ours(plugin: &Value) -> bool {
    plugin["type"] == PLUGIN
}

fn is_list(name: &str) -> bool {
    extension(name) == Some("conflist")
}

fn extension(name: &str) -> Option<&str> {
    Path::new(name).extension().and_then(|extension| extension.to_str())
}

fn pretty(value: &Value) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("JSON can be written");
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLANNEL: &str = r#"{"name": "cbr0", "cniVersion": "0.3.1", "disableCheck": true, "own": {"z": 1, "a": [1.5, null]},
        "plugins": [{"type": "flannel", "delegate": {"hairpinMode": true}}, {"type": "portmap", "capabilities": {"portMappings": true}}]}"#;

    fn ours() -> Ours {
        Ours { socket: "/run/reeve/cni.sock".to_owned() }
    }

    fn rewritten(name: &str, text: &str) -> String {
        match insert(name, text, &ours()).expect("a list") {
            Insertion::Rewrite(text) => text,
            other => panic!("{other:?}"),
        }
    }

    fn types(text: &str) -> Vec<String> {
        let value: Value = serde_json::from_str(text).expect("JSON");
        let plugins = value["plugins"].as_array().cloned().unwrap_or_default();
        plugins.iter().map(|plugin| plugin["type"].as_str().unwrap_or_default().to_owned()).collect()
    }

    #[track_caller]
    fn comes_out_of(with: &str) -> String {
        match remove("10-flannel.conflist", with) {
            Ok(Removal::Rewrite(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    /// Puts ours in, twice, and takes it out.
    #[track_caller]
    fn there_and_back(text: &str) {
        let with = rewritten("10-flannel.conflist", text);
        let mut expected = types(text);
        expected.push(PLUGIN.to_owned());
        assert_eq!(types(&with), expected);
        assert_eq!(insert("10-flannel.conflist", &with, &ours()), Ok(Insertion::Nothing), "{with}");
        assert_eq!(comes_out_of(&with), text, "from {with}");
        assert_eq!(remove("10-flannel.conflist", text), Ok(Removal::Nothing));
        // Nothing else was touched in between: what came is in one place.
        let same = text.bytes().zip(with.bytes()).take_while(|(one, other)| one == other).count();
        let new = with.len() - text.len();
        assert!(
            (0..=same).any(|at| [&with.as_bytes()[..at], &with.as_bytes()[at + new..]].concat() == text.as_bytes())
        );
    }

    #[test]
    fn ours_goes_last_once_and_comes_out_without_a_trace() {
        let value: Value = serde_json::from_str(FLANNEL).expect("JSON");
        let indented = serde_json::to_string_pretty(&value).expect("JSON");
        for text in [
            FLANNEL.to_owned(),
            value.to_string(),
            indented.clone(),
            format!("{indented}\n\n \n"),
            format!("\n\n{}\r\n", indented.replace('\n', "\r\n")),
            indented.replace("  ", "\t"),
            indented.replace("    ", ""),
            indented.replace('\n', "\r"),
        ] {
            there_and_back(&text);
        }
    }

    #[test]
    fn ours_comes_out_without_a_trace_of_any_text() {
        for seed in 0..2000 {
            let mut random = fastrand::Rng::with_seed(seed);
            there_and_back(&anything(&mut random));
        }
    }

    /// Any list, in any white space.
    fn anything(random: &mut fastrand::Rng) -> String {
        const WORDS: [&str; 8] = [
            r#""]""#,
            r#""}, {""#,
            r#""\\\"""#,
            r#""\u0070lugins""#,
            r#""é€""#,
            "-1.50e+3",
            "null",
            r#"{"plugins":[{}]}"#,
        ];
        let word = |random: &mut fastrand::Rng| WORDS[random.usize(..WORDS.len())];
        let mut plugins = vec!["["];
        for _ in 0..random.usize(1..4) {
            let own = ["\"own\"", ":", "[", word(random), ",", word(random), "]", ","];
            plugins.push("{");
            plugins.extend(own.into_iter().take(if random.bool() { 8 } else { 0 }));
            plugins.extend(["\"type\"", ":", ["\"bridge\"", "\"portmap\""][random.usize(..2)], "}", ","]);
        }
        plugins.pop();
        plugins.push("]");
        let mut members = [
            vec!["\"cniVersion\"", ":", "\"1.0.0\""],
            vec!["\"name\"", ":", "\"n\""],
            vec![["\"plugins\"", r#""pl\u0075gins""#][random.usize(..2)], ":"].into_iter().chain(plugins).collect(),
            vec!["\"more\"", ":", word(random)],
            vec!["\"more\"", ":", word(random)],
        ];
        random.shuffle(&mut members);
        let mut text = String::new();
        for part in ["{"].into_iter().chain(members.join(&",")).chain(["}"]) {
            for _ in 0..random.usize(..4) {
                text.push_str(["\n", "\r\n", "\t", " ", "    "][random.usize(..5)]);
            }
            text.push_str(part);
        }
        text + ["", "\n", "\n\n\n", " \r\n"][random.usize(..4)]
    }

    #[test]
    fn ours_comes_out_alone_when_others_have_moved_or_changed_it() {
        let list =
            |plugins: &str| format!("{{\"name\": \"n\",\n \"cniVersion\":\"1.0.0\", \"plugins\": [ {plugins} ]}}\n");
        for (with, without) in [
            (r#"{"type":"reeve-cni"}  , {"type":"a"} , {"type":"b"}"#, r#"{"type":"a"} , {"type":"b"}"#),
            (
                "{\"type\":\"a\"},\n{\"x\": [1 ,2], \"type\" : \"reeve-cni\"} , {\"type\":\"b\"}",
                r#"{"type":"a"} , {"type":"b"}"#,
            ),
            (r#"{"type":"a"},{"type":"reeve-cni"},{"type": "reeve-cni", "y": 1}"#, r#"{"type":"a"}"#),
        ] {
            assert_eq!(comes_out_of(&list(with)), list(without));
        }
        assert!(remove("a.conflist", &list(r#"{"type":"reeve-cni"}"#)).is_err(), "no network would be left");
    }

    #[test]
    fn a_plugin_that_is_moved_keeps_how_it_is_written() {
        let list = |plugins: &str| format!("{{\"cniVersion\": \"1.0.0\", \"name\": \"n\", \"plugins\": [{plugins}]}}");
        let written = r#"{ "type" : "reeve-cni", "socket": "/run/reeve/cni.sock", "timeoutSeconds": 3 }"#;
        let before = list(&format!(r#"{written},{{"type": "a"}}, {{"type": "b"}}"#));
        let after = list(&format!(r#"{{"type": "a"}}, {{"type": "b"}}, {written}"#));
        assert_eq!(rewritten("a.conflist", &before), after);
    }

    #[test]
    fn a_list_whose_plugins_cannot_be_placed_is_written_anew() {
        // The last of two members of one name is the one that counts.
        let twice = r#"{"cniVersion":"1.0.0","plugins":[{"type":"a"}],"name":"n","plugins":[{"type":"b"}]}"#;
        let with = rewritten("a.conflist", twice);
        assert_eq!(types(&with), ["b", PLUGIN]);
        let without = comes_out_of(&with);
        assert_eq!((types(&without), read(&without)), (vec!["b".to_owned()], read(twice)));
    }

    #[test]
    fn what_stands_wrong_is_put_right_and_settings_of_others_stay() {
        for plugins in [
            json!([{"type": "reeve-cni", "timeoutSeconds": 3}, {"type": "bridge"}]),
            json!([{"type": "bridge"}, {"type": "reeve-cni", "timeoutSeconds": 3}, {"type": "reeve-cni"}]),
            json!([{"type": "bridge"}, {"type": "reeve-cni", "socket": "/old", "timeoutSeconds": 3}]),
        ] {
            let text =
                rewritten("a.conflist", &json!({"cniVersion": "1.0.0", "name": "n", "plugins": plugins}).to_string());
            assert_eq!(types(&text), ["bridge", "reeve-cni"]);
            let value: Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(
                value["plugins"][1],
                json!({"type": "reeve-cni", "socket": "/run/reeve/cni.sock", "timeoutSeconds": 3})
            );
        }
    }

    #[test]
    fn a_single_plugin_is_wrapped_by_a_list_that_sorts_before_it() {
        let single = json!({"cniVersion": "0.4.0", "name": "n", "type": "bridge", "ipam": {"type": "host-local"}});
        for name in ["10-bridge.conf", "00-a.json", "bridge.conf"] {
            let Ok(Insertion::Wrap { name: list, text }) = insert(name, &single.to_string(), &ours()) else {
                panic!("{name} is no list")
            };
            assert!(is_configuration(&list) && is_list(&list) && *list < *name, "{list}");
            let value = parse(&list, &text).expect("a list");
            assert_eq!(
                (&value["cniVersion"], &value["name"], around(&value)),
                (&json!("0.4.0"), &json!("n"), Some(name))
            );
            assert_eq!(value["plugins"][0], json!({"type": "bridge", "ipam": {"type": "host-local"}}));
            assert_eq!(insert(&list, &text, &ours()), Ok(Insertion::Nothing));
            assert_eq!(remove(&list, &text), Ok(Removal::Delete));
        }
    }

    #[test]
    fn a_network_whose_version_the_plugin_does_not_speak_is_not_touched() {
        let of = |version: Option<&str>| {
            let mut list = json!({"name": "n", "plugins": [{"type": "bridge"}]});
            let mut single = json!({"name": "n", "type": "bridge"});
            if let Some(version) = version {
                list["cniVersion"] = json!(version);
                single["cniVersion"] = json!(version);
            }
            [("a.conflist", list.to_string()), ("a.conf", single.to_string())]
        };
        for version in [None, Some("0.1.0"), Some("0.2.0"), Some("0.3.0"), Some("1.2.0"), Some("")] {
            for (name, text) in of(version) {
                let refused = insert(name, &text, &ours()).expect_err("a version that is not spoken");
                assert_eq!(refused, ConflistError::Version(version.unwrap_or_default().to_owned()), "{name}");
            }
        }
        for version in VERSIONS {
            for (name, text) in of(Some(version)) {
                assert!(insert(name, &text, &ours()).is_ok(), "{name}: {version}");
            }
        }
    }

    #[test]
    fn what_a_runtime_would_not_use_is_not_touched() {
        for (name, text) in [
            ("a.conflist", ""),
            ("a.conflist", "{\"name\": \"n\", \"plugins\": ["),
            ("a.conflist", "[]"),
            ("a.conflist", r#"{"plugins": [{"type": "bridge"}]}"#),
            ("a.conflist", r#"{"name": "n"}"#),
            ("a.conflist", r#"{"name": "n", "plugins": []}"#),
            ("a.conflist", r#"{"name": "n", "plugins": [{"typ": "bridge"}]}"#),
            ("a.conflist", r#"{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "reeve-cni"}]}"#),
            ("a.conf", r#"{"name": "n"}"#),
        ] {
            assert!(insert(name, text, &ours()).is_err(), "{name}: {text}");
        }
        for (name, looked_at) in [
            ("a.conflist", true),
            ("a.conf", true),
            ("a.json", true),
            (".a.conflist", false),
            ("a.conflist.new", false),
        ] {
            assert_eq!(is_configuration(name), looked_at, "{name}");
        }
    }
}
