//! Lowering is total: of each field that an API has, either the model or a problem tells.
//!
//! The tables in `fields/` say which fields there are. `object` is what a field is set in; `path type = value`, with
//! `& path = value` for what the API wants beside it; `a|b` clears the other members of `a`; `path <- table` takes in
//! another table, in which `^` leads back to where it was taken in; `selector` is a Kubernetes label selector.

use reeve_policy::model::{Problem, World};
use reeve_policy::store::{Change, Object, Store};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Tables of objects; all others are taken in by one of them.
const OBJECTS: [&str; 12] = [
    "cluster-network-policy",
    "network-policy",
    "global-network-policy",
    "calico-network-policy",
    "staged-global-network-policy",
    "staged-network-policy",
    "staged-kubernetes-network-policy",
    "tier",
    "network-set",
    "global-network-set",
    "service",
    "endpoint-slice",
];

/// One field.
#[derive(Clone, Debug)]
struct Row {
    path: String,
    kind: String,
    value: Value,
    beside: Vec<(String, Value)>,
    /// It makes no difference, and nothing is told of it.
    ignored: bool,
}

fn table(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fields").join(name).with_extension("txt");
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn under(prefix: &str, path: &str) -> String {
    if let Some(path) = path.strip_prefix('^') {
        return under(prefix.rsplit_once('.').map_or("", |(parent, _)| parent), path);
    }
    if prefix.is_empty() || path.starts_with('|') { format!("{prefix}{path}") } else { format!("{prefix}.{path}") }
}

/// The rows of a table, with what it takes in.
fn rows(name: &str, prefix: &str) -> Vec<Row> {
    let text = table(name);
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.starts_with("object "));
    lines
        .flat_map(|line| {
            if let Some((path, table)) = line.split_once(" <- ") {
                return rows(table, &under(prefix, path));
            }
            let mut parts = line.split(" & ");
            let first = parts.next().expect("a line has a part");
            let beside: Vec<_> = parts
                .map(|part| part.split_once(" = ").unwrap_or_else(|| panic!("{name}: {line}")))
                .map(|(path, value)| (under(prefix, path), json(value)))
                .collect();
            let (names, value) = first.split_once(" = ").map_or((first, Value::Null), |(names, v)| (names, json(v)));
            let mut words = names.split(' ');
            let path = under(prefix, words.next().expect("a path"));
            let kind = words.next().unwrap_or_else(|| panic!("{name}: no type in {line}")).to_owned();
            let row = Row { path, kind, value, beside, ignored: words.next() == Some("ignored") };
            if row.kind == "selector" { selector(&row) } else { vec![row] }
        })
        .collect()
}

/// The fields of a label selector.
fn selector(row: &Row) -> Vec<Row> {
    let expression = format!("{}.matchExpressions[]", row.path);
    let at = |field: &str, value: Value, beside: Value| {
        let others = beside.as_object().expect("an object").iter();
        let others = others.map(|(name, value)| (format!("{expression}.{name}").replace('|', "."), value.clone()));
        let path =
            if field == "labels" { format!("{}.matchLabels.a", row.path) } else { format!("{expression}.{field}") };
        Row {
            path,
            kind: "string".to_owned(),
            value,
            beside: row.beside.iter().cloned().chain(others).collect(),
            ignored: false,
        }
    };
    let (key, operator, values) = (json!("a"), json!("In"), json!(["b"]));
    vec![
        at("labels", json!("b"), json!({})),
        at("key", key.clone(), json!({ "operator": operator, "values": values })),
        at("operator", operator.clone(), json!({ "key": key, "values": values })),
        at("values[]", json!("b"), json!({ "key": key, "operator": operator })),
    ]
}

/// Sets a field; containers on the way are made, and where the path has `|` the other members are cleared.
fn set(at: &mut Value, path: &str, value: Value) {
    let end = path.find(['.', '|']).unwrap_or(path.len());
    let (step, rest) = path.split_at(end);
    let place = match step.strip_suffix("[]") {
        None if step.is_empty() => at,
        None => &mut at[step],
        Some(name) => {
            if at[name].as_array().is_none_or(Vec::is_empty) {
                at[name] = json!([Value::Null]);
            }
            &mut at[name][0]
        }
    };
    if rest.is_empty() {
        *place = value;
        return;
    }
    let (separator, rest) = rest.split_at(1);
    if separator == "|" {
        let member = rest.split(['.', '[', '|']).next().expect("a name");
        let kept = place.get(member).cloned();
        *place = Value::Object(kept.map(|kept| (member.to_owned(), kept)).into_iter().collect::<Map<_, _>>());
    }
    set(place, rest, value);
}

fn lowered(object: &Value) -> (World, Vec<Problem>) {
    let mut store = Store::new("node-1");
    store.apply(Change::Apply(Object { value: object.clone(), origin: "table".to_owned() }));
    (store.world().clone(), store.problems())
}

/// Whether a problem is about a field, or about what it is a part of (but not about the whole object).
fn names(problems: &[Problem], path: &str) -> bool {
    let path = path.replace('|', ".");
    problems.iter().any(|problem| {
        let field = problem.field.replace("[0]", "[]");
        field.starts_with(&path) || path.starts_with(&field) && field.len() > "spec".len()
    })
}

/// A value of no field's type.
fn wrong(kind: &str) -> Value {
    match kind {
        "integer" | "number" | "boolean" => json!("wrong"),
        _ => json!({ "wrong": true }),
    }
}

fn each_field(check: impl Fn(&str, &Value, &Row)) {
    for name in OBJECTS {
        let text = table(name);
        let object = text.lines().find_map(|line| line.strip_prefix("object ")).expect("an object");
        let rows = rows(name, "");
        assert!(!rows.is_empty(), "{name} has no fields");
        for row in rows {
            let mut base = json(object);
            for (path, value) in &row.beside {
                set(&mut base, path, value.clone());
            }
            check(name, &base, &row);
        }
    }
}

#[test]
fn every_object_of_a_table_is_honoured_as_it_stands() {
    for name in OBJECTS {
        let text = table(name);
        let object = text.lines().find_map(|line| line.strip_prefix("object ")).expect("an object");
        assert_eq!(lowered(&json(object)).1, [], "{name}");
    }
}

#[test]
fn every_field_changes_the_model_or_is_reported() {
    each_field(|name, base, row| {
        let mut object = base.clone();
        set(&mut object, &row.path, row.value.clone());
        assert_ne!(object, *base, "{name}: {} is not set", row.path);
        let ((before, _), (after, problems)) = (lowered(base), lowered(&object));
        let told = before != after || names(&problems, &row.path);
        assert_eq!(told, !row.ignored, "{name}: {} = {}", row.path, row.value);
    });
}

#[test]
fn every_field_of_a_wrong_type_is_reported_by_its_path() {
    each_field(|name, base, row| {
        if row.ignored {
            return;
        }
        let mut object = base.clone();
        set(&mut object, &row.path, wrong(&row.kind));
        let (_, problems) = lowered(&object);
        assert!(names(&problems, &row.path), "{name}: {} = {}: {problems:?}", row.path, wrong(&row.kind));
    });
}

#[test]
fn a_field_that_no_table_has_is_reported_wherever_it_stands() {
    each_field(|name, base, row| {
        if row.ignored {
            return;
        }
        let mut object = base.clone();
        set(&mut object, &row.path, row.value.clone());
        // Beside the field itself, in whatever holds it.
        let held = row.path.rsplit_once(['.', '|']).map_or("", |(holder, _)| holder);
        if held.ends_with("matchLabels") {
            return;
        }
        let beside = under(held, "tomorrow");
        set(&mut object, &beside, json!(1));
        let (_, problems) = lowered(&object);
        assert!(names(&problems, &beside), "{name}: {beside}: {problems:?}");
    });
}
