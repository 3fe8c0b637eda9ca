//! Rows of selectors: what they read as, how they print, and where they fail.

use super::*;

fn equals(key: &str, value: &str) -> Selector {
    Selector::Equals(key.to_owned(), value.to_owned())
}

fn not(selector: Selector) -> Selector {
    Selector::Not(Box::new(selector))
}

fn within(key: &str, values: &[&str]) -> Selector {
    Selector::In(key.to_owned(), values.iter().map(|value| (*value).to_owned()).collect())
}

#[track_caller]
fn check(text: &str, want: &Selector) {
    assert_eq!(parse(text).as_ref(), Ok(want), "{text}");
    assert_eq!(parse(&want.to_string()).as_ref(), Ok(want), "printed as {want}");
}

#[test]
fn every_form_is_read_and_printed_back() {
    let has = |key: &str| Selector::Has(key.to_owned());
    let two = |key: &str, text: &str| (key.to_owned(), text.to_owned());
    check("", &Selector::Everything);
    check("all()", &Selector::Everything);
    check(" all ( ) ", &Selector::Everything);
    check("!all()", &not(Selector::Everything));
    check("PCI == \"true\"", &equals("PCI", "true"));
    check("PCI=='true'", &equals("PCI", "true"));
    check("a.b/c-d_e == 'it is \"so\"'", &equals("a.b/c-d_e", "it is \"so\""));
    check("a != 'b'", &not(equals("a", "b")));
    check("a in {'b', \"c\"}", &within("a", &["b", "c"]));
    check("a in {}", &within("a", &[]));
    check("a not in { 'b' }", &not(within("a", &["b"])));
    check("has(a/b)", &has("a/b"));
    check("!has( a )", &not(has("a")));
    check("a contains 'b'", &Selector::Contains(two("a", "b").0, two("a", "b").1));
    check("a starts with 'b'", &Selector::StartsWith("a".to_owned(), "b".to_owned()));
    check("a ends   with ''", &Selector::EndsWith("a".to_owned(), String::new()));
    check("!a starts with 'b'", &not(Selector::StartsWith("a".to_owned(), "b".to_owned())));
    check("!!has(a)", &not(not(has("a"))));
    check(
        "a == 'ü' && has(b) || has(c)",
        &Selector::Or(vec![Selector::And(vec![equals("a", "ü"), has("b")]), has("c")]),
    );
    check(
        "a == 'b' && (has(b) || has(c))",
        &Selector::And(vec![equals("a", "b"), Selector::Or(vec![has("b"), has("c")])]),
    );
    check("!(has(a) && has(b))", &not(Selector::And(vec![has("a"), has("b")])));
    check(
        "has == 'x' && all == 'y' && in in {'z'}",
        &Selector::And(vec![equals("has", "x"), equals("all", "y"), within("in", &["z"])]),
    );
}

#[test]
fn global_stands_alone_and_only_for_namespaces() {
    assert_eq!(parse_namespaces(" global() "), Ok(Written::Global));
    assert_eq!(parse_namespaces("global == 'a'"), Ok(Written::Labels(equals("global", "a"))));
    assert_eq!(parse("global()").map_err(|error| error.position), Err(0));
    assert_eq!(
        parse_namespaces("has(a) || global()").map_err(|error| (error.position, error.found)),
        Err((10, "`global()`".to_owned()))
    );
}

#[track_caller]
fn fails(text: &str, want: &str) {
    assert_eq!(parse(text).map_err(|error| error.to_string()), Err(want.to_owned()), "{text}");
}

#[test]
fn errors_name_the_place_what_was_expected_and_what_was_found() {
    let operators = "`==`, `!=`, `in`, `not in`, `contains`, `starts with` or `ends with`";
    fails("PCI = 'true'", "at byte 4: expected a label key, text in quotes or an operator, found `=`");
    fails("PCI == true", "at byte 7: expected text in quotes, found `true`");
    fails("PCI == 'true", "at byte 12: expected the closing quote, found the end");
    fails("PCI", &format!("at byte 3: expected {operators}, found the end"));
    fails("PCI like 'x'", &format!("at byte 4: expected {operators}, found `like`"));
    fails("PCI not 'x'", &format!("at byte 4: expected {operators}, found `not`"));
    fails("a in 'b'", "at byte 5: expected `{`, found text \"b\"");
    fails("a in {'b' 'c'}", "at byte 10: expected `,` or `}`, found text \"c\"");
    fails("a in {'b',}", "at byte 10: expected text in quotes, found `}`");
    fails("has()", "at byte 4: expected a label key, found `)`");
    fails("has(a", "at byte 5: expected `)`, found the end");
    fails("(has(a)", "at byte 7: expected `&&`, `||` or `)`, found the end");
    fails("has(a))", "at byte 6: expected `&&`, `||` or the end, found `)`");
    fails("has(a) has(b)", "at byte 7: expected `&&`, `||` or the end, found `has(b)`");
    fails("has(a) &&", "at byte 9: expected a label key, `has(`, `all()`, `!` or `(`, found the end");
    fails("has(a) & has(b)", "at byte 7: expected a label key, text in quotes or an operator, found `&`");
    fails("ü == 'a'", "at byte 0: expected a label key, text in quotes or an operator, found `ü`");
    let deep = format!("{}has(a){}", "(".repeat(5_000), ")".repeat(5_000));
    fails(&deep, "at byte 100: expected at most 100 levels of nesting, found deeper nesting");
    let nots = format!("{}has(a)", "!".repeat(200));
    fails(&nots, "at byte 100: expected at most 100 levels of nesting, found deeper nesting");
}

#[test]
fn what_may_be_nested_as_deep_as_it_may_is_printed_no_deeper() {
    for text in [
        format!("{}a starts with 'b'", "!".repeat(99)),
        format!("{}(a == 'b' || has(c) && has(d))", "!".repeat(98)),
        format!("has(a) && {}has(b) || {}has(c)", "!".repeat(99), "!".repeat(99)),
        format!("{}has(a){}", "!(has(b) && ".repeat(49), ")".repeat(49)),
    ] {
        let read = parse(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let printed = read.to_string();
        assert_eq!(parse(&printed), Ok(read), "{text} as {printed}");
    }
}
