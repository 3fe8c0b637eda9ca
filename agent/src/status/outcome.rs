//! Problems as people read them in the cluster: a sentence each, that names field and value.

use reeve_policy::model::Problem;

/// One problem: where, what was written, what is wrong with it, and what that means.
pub(super) fn sentence(problem: &Problem) -> String {
    let mut text = String::new();
    for part in [&problem.field, &problem.value] {
        if !part.is_empty() {
            text.push_str(part);
            text.push_str(": ");
        }
    }
    format!("{text}{}; {}.", problem.what, problem.effect)
}

/// The beginning of a text, of so many bytes at most, cut between two characters.
pub(super) fn cut(text: &str, longest: usize) -> &str {
    &text[..text.floor_char_boundary(longest)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use reeve_policy::model::Level;

    #[test]
    fn a_sentence_names_field_value_and_effect() {
        let problem = Problem {
            level: Level::Warning,
            object: "NetworkPolicy/shop/web".to_owned(),
            field: "spec.ingress[0].ports[1].port".to_owned(),
            value: "70000".to_owned(),
            what: "must be a port from 1 to 65535".to_owned(),
            effect: "this port matches nothing".to_owned(),
        };
        let whole = "spec.ingress[0].ports[1].port: 70000: must be a port from 1 to 65535; this port matches nothing.";
        assert_eq!(sentence(&problem), whole);
        let object = Problem { field: String::new(), value: String::new(), ..problem };
        assert_eq!(sentence(&object), "must be a port from 1 to 65535; this port matches nothing.");
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!((cut("aßc", 2), cut("aßc", 3), cut("abc", 9)), ("a", "aß", "abc"));
    }
}
