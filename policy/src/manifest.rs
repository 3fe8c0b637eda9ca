//! Manifest text, as people write it, to objects: YAML or JSON, several documents, `List`s.
//!
//! A key that is written twice is an error here, since taking either one could be wider than what was meant. Reading
//! files is not here.

use crate::model::{Level, Problem};
use crate::store::{Object, objects_of};
use serde::Deserialize;
use serde_json::{Map, Number, Value};
use serde_norway::Value as Tree;

/// Reads all objects of a manifest. `origin` names it for people, mostly the file's path; each object's own origin says
/// which document it came from. Empty documents are skipped, `List`s are flattened.
///
/// One unreadable document makes the whole text unreadable: the problem names the origin, the document's number (from
/// 1), line and column.
pub fn parse(text: &str, origin: &str) -> Result<Vec<Object>, Problem> {
    let trees = if text.trim_start().starts_with('{') {
        // Indented with tabs, JSON is no YAML; and flow-style YAML is no JSON.
        let json = json_documents(text);
        if json.is_ok() || is_json(origin) { json } else { yaml_documents(text) }
    } else {
        yaml_documents(text)
    };
    let mut objects = Vec::new();
    let trees = trees.map_err(|fault| fault.problem(origin))?;
    for (index, tree) in trees.into_iter().enumerate() {
        let document = index + 1;
        let value = json_of(tree).map_err(|what| Fault { document, what }.problem(origin))?;
        let place = format!("{origin}, document {document}");
        let items = objects_of(value);
        // Each has a place of its own, so that what is said of one is not taken back by another.
        let several = items.len() > 1;
        let place = |item| if several { format!("{place}, item {item}") } else { place.clone() };
        objects.extend((1..).zip(items).map(|(item, value)| Object { value, origin: place(item) }));
    }
    Ok(objects)
}

/// Why a document cannot be read.
struct Fault {
    document: usize,
    what: String,
}

impl Fault {
    fn problem(self, origin: &str) -> Problem {
        Problem {
            level: Level::Warning,
            object: origin.to_owned(),
            field: String::new(),
            value: format!("document {}", self.document),
            what: format!("cannot be read: {}", self.what),
            effect: "nothing of this text is taken; what it said before, if anything, goes on to hold".to_owned(),
        }
    }
}

fn is_json(origin: &str) -> bool {
    std::path::Path::new(origin).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"))
}

fn yaml_documents(text: &str) -> Result<Vec<Tree>, Fault> {
    let mut trees = Vec::new();
    for document in serde_norway::Deserializer::from_str(text) {
        // The error's text says line and column in the whole file.
        let tree = Tree::deserialize(document)
            .map_err(|error| Fault { document: trees.len() + 1, what: error.to_string() })?;
        trees.push(tree);
    }
    Ok(trees)
}

fn json_documents(text: &str) -> Result<Vec<Tree>, Fault> {
    let mut trees = Vec::new();
    for document in serde_json::Deserializer::from_str(text).into_iter::<Tree>() {
        let tree = document.map_err(|error| Fault { document: trees.len() + 1, what: error.to_string() })?;
        trees.push(tree);
    }
    Ok(trees)
}

/// Kubernetes objects are JSON: keys that YAML reads as numbers or truth values become text, as they do for kubectl.
fn json_of(tree: Tree) -> Result<Value, String> {
    Ok(match tree {
        Tree::Null => Value::Null,
        Tree::Bool(truth) => Value::Bool(truth),
        Tree::String(text) => Value::String(text),
        Tree::Number(number) => Value::Number(json_number(&number)?),
        Tree::Sequence(items) => Value::Array(items.into_iter().map(json_of).collect::<Result<_, _>>()?),
        Tree::Mapping(entries) => {
            let mut object = Map::new();
            for (key, value) in entries {
                let key = match key {
                    Tree::String(text) => text,
                    Tree::Number(number) => number.to_string(),
                    Tree::Bool(truth) => truth.to_string(),
                    other => return Err(format!("a key must be text, found {other:?}")),
                };
                if object.contains_key(&key) {
                    return Err(format!("duplicate entry with key {key:?}"));
                }
                object.insert(key, json_of(value)?);
            }
            Value::Object(object)
        }
        Tree::Tagged(tagged) => return Err(format!("the tag {} has no meaning in a manifest", tagged.tag)),
    })
}

fn json_number(number: &serde_norway::Number) -> Result<Number, String> {
    if let Some(whole) = number.as_u64() {
        return Ok(whole.into());
    }
    if let Some(whole) = number.as_i64() {
        return Ok(whole.into());
    }
    number.as_f64().and_then(Number::from_f64).ok_or_else(|| format!("the number {number} has no JSON form"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn read(text: &str, want: &[(Value, &str)]) {
        let found = parse(text, "pods.yaml").expect("it can be read");
        let want: Vec<Object> =
            want.iter().map(|(value, origin)| Object { value: value.clone(), origin: (*origin).to_owned() }).collect();
        assert_eq!(found, want);
    }

    #[track_caller]
    fn refused(text: &str, origin: &str, document: &str, what: &str) {
        let problem = parse(text, origin).expect_err("it cannot be read");
        assert_eq!((problem.object.as_str(), problem.value.as_str()), (origin, document));
        assert!(problem.what.contains(what), "{}", problem.what);
    }

    #[test]
    fn documents_are_numbered_and_empty_ones_skipped() {
        read("", &[]);
        read("# only words\n---\n", &[]);
        let (a, b) =
            (json!({"kind": "A", "n": 1, "labels": {"1": "x", "true": "y"}}), json!({"kind": "B", "f": 0.5, "i": -3}));
        read(
            "kind: A\nn: 1\nlabels: {1: x, true: y}\n---\n---\nkind: B\nf: 0.5\ni: -3\n",
            &[(a, "pods.yaml, document 1"), (b, "pods.yaml, document 3")],
        );
    }

    #[test]
    fn lists_are_flattened_and_json_may_be_indented_with_tabs() {
        let one = "pods.yaml, document 1";
        read(
            "kind: List\napiVersion: v1\nitems: [{kind: A}, {kind: B}]",
            &[(json!({"kind": "A"}), &format!("{one}, item 1")), (json!({"kind": "B"}), &format!("{one}, item 2"))],
        );
        read(
            "{\n\t\"kind\": \"A\"\n}\n{\"kind\": \"B\"}",
            &[(json!({"kind": "A"}), one), (json!({"kind": "B"}), "pods.yaml, document 2")],
        );
        read("{kind: A}", &[(json!({"kind": "A"}), one)]);
    }

    #[test]
    fn what_cannot_be_read_names_file_document_line_and_column() {
        refused("kind: A\n---\nkind: [", "a/p.yaml", "document 2", "line 4 column 1");
        refused("kind: A\nkind: B\n", "p.yaml", "document 1", "duplicate entry with key \"kind\"");
        refused("spec: {1: a, '1': b}", "p.yaml", "document 1", "duplicate entry with key \"1\"");
        refused(
            "{\"kind\": \"A\",\n \"kind\": \"B\"}",
            "p.json",
            "document 1",
            "duplicate entry with key \"kind\" at line 2",
        );
        refused("{\"kind\": \"A\"", "p.json", "document 1", "line 1 column 12");
        refused("spec: !!float .inf", "p.yaml", "document 1", "no JSON form");
        refused("spec: !Custom 3", "p.yaml", "document 1", "tag");
    }
}
