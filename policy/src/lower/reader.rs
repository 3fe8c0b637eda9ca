//! Reads JSON values while it keeps track of the field's path, of which fields were consumed, and of what it means for
//! enforcement when a value cannot be read.

use crate::model::{Level, Problem};
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::collections::BTreeSet;

/// Longest value that a problem quotes, in characters.
const QUOTED: usize = 120;

/// Something could not be read, and the problem has been noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unreadable;

/// Collects the problems of one object.
pub(super) struct Sink {
    object: String,
    problems: RefCell<Vec<Problem>>,
}

impl Sink {
    pub(super) fn new(object: String) -> Self {
        Self { object, problems: RefCell::new(Vec::new()) }
    }

    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems.into_inner()
    }
}

/// A value with its place and with the effect that it has if it cannot be read.
#[derive(Clone)]
pub(super) struct Field<'a> {
    sink: &'a Sink,
    path: String,
    value: &'a Value,
    effect: &'static str,
}

impl<'a> Field<'a> {
    /// The whole object.
    pub(super) fn root(sink: &'a Sink, value: &'a Value) -> Self {
        Self { sink, path: String::new(), value, effect: "ignored" }
    }

    /// The same value, whose problems (and those of what it holds) have this effect.
    pub(super) fn with(&self, effect: &'static str) -> Self {
        Self { effect, ..self.clone() }
    }

    /// The same place with another value in it.
    pub(super) fn holding(&self, value: &'a Value) -> Self {
        Self { value, ..self.clone() }
    }

    /// Whether it is empty text or an empty list: as good as absent, where the API says so.
    pub(super) fn is_empty(&self) -> bool {
        self.value.as_str().is_some_and(str::is_empty) || self.value.as_array().is_some_and(Vec::is_empty)
    }

    fn child(&self, name: &str, value: &'a Value) -> Self {
        let path = if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) };
        Self { path, value, ..self.clone() }
    }

    /// A member, absent included, to speak of it in a problem.
    pub(super) fn at(&self, name: &str) -> Self {
        self.child(name, self.value.get(name).unwrap_or(&Value::Null))
    }

    /// A member of a value of which not every field is read. Null counts as absent.
    pub(super) fn find(&self, name: &str) -> Option<Self> {
        self.value.get(name).filter(|value| !value.is_null()).map(|value| self.child(name, value))
    }

    /// Notes a problem with this value.
    pub(super) fn problem(&self, level: Level, what: impl Into<String>) -> Unreadable {
        let value = match self.value {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let value =
            if value.chars().count() > QUOTED { value.chars().take(QUOTED).chain(['…']).collect() } else { value };
        self.sink.problems.borrow_mut().push(Problem {
            level,
            object: self.sink.object.clone(),
            field: self.path.clone(),
            value,
            what: what.into(),
            effect: self.effect.to_owned(),
        });
        Unreadable
    }

    /// Notes that this value is not honoured.
    pub(super) fn bad(&self, what: impl Into<String>) -> Unreadable {
        self.problem(Level::Warning, what)
    }

    pub(super) fn text(&self) -> Result<&'a str, Unreadable> {
        self.value.as_str().ok_or_else(|| self.bad("must be text"))
    }

    pub(super) fn boolean(&self) -> Result<bool, Unreadable> {
        self.value.as_bool().ok_or_else(|| self.bad("must be true or false"))
    }

    pub(super) fn integer(&self) -> Result<i64, Unreadable> {
        self.value.as_i64().ok_or_else(|| self.bad("must be a whole number"))
    }

    /// A whole number from 0 to `most`.
    pub(super) fn number<T: TryFrom<i64>>(&self, most: i64) -> Result<T, Unreadable> {
        let number = self.integer()?;
        // reported below
        let in_range = T::try_from(number).ok().filter(|_| (0..=most).contains(&number));
        in_range.ok_or_else(|| self.bad(format!("must be a whole number from 0 to {most}")))
    }

    /// A finite number.
    pub(super) fn float(&self) -> Result<f64, Unreadable> {
        self.value.as_f64().filter(|number| number.is_finite()).ok_or_else(|| self.bad("must be a number"))
    }

    pub(super) fn is_text(&self) -> bool {
        self.value.is_string()
    }

    /// Whether it is this text.
    pub(super) fn is(&self, text: &str) -> bool {
        self.value.as_str() == Some(text)
    }

    /// The items of a list.
    pub(super) fn list(&self) -> Result<Vec<Self>, Unreadable> {
        let items = self.value.as_array().ok_or_else(|| self.bad("must be a list"))?;
        let item = |(index, value)| Self { path: format!("{}[{index}]", self.path), value, ..self.clone() };
        Ok(items.iter().enumerate().map(item).collect())
    }

    /// All texts of a list; every item that is none is reported.
    pub(super) fn texts(&self) -> Result<Vec<&'a str>, Unreadable> {
        let read: Vec<_> = self.list()?.iter().map(Self::text).collect();
        read.into_iter().collect()
    }

    /// The members, to be consumed one by one.
    pub(super) fn fields(&self) -> Result<Fields<'a>, Unreadable> {
        let map = self.value.as_object().ok_or_else(|| self.bad("must be an object"))?;
        Ok(Fields { this: self.clone(), map, taken: BTreeSet::new() })
    }

    /// All members as texts.
    pub(super) fn text_map(&self) -> Result<Vec<(&'a str, &'a str)>, Unreadable> {
        let map = self.value.as_object().ok_or_else(|| self.bad("must be an object"))?;
        let read: Vec<_> =
            map.iter().map(|(name, value)| Ok((name.as_str(), self.child(name, value).text()?))).collect();
        read.into_iter().collect()
    }
}

/// The members of an object; what is not taken is unknown.
pub(super) struct Fields<'a> {
    this: Field<'a>,
    map: &'a Map<String, Value>,
    taken: BTreeSet<&'static str>,
}

impl<'a> Fields<'a> {
    /// Consumes a member. Null counts as absent.
    pub(super) fn take(&mut self, name: &'static str) -> Option<Field<'a>> {
        self.taken.insert(name);
        self.this.find(name)
    }

    /// Consumes members that make no difference here.
    pub(super) fn ignore(&mut self, names: &[&'static str]) {
        self.taken.extend(names);
    }

    /// Tells of every member that was not taken, of an object that is a fact and no policy: a later version may add
    /// some, and what is read still holds.
    pub(super) fn finish_noting(self) {
        Self { this: self.this.with("not looked at"), ..self }.finish_with(Level::Note, "this field is not known");
    }

    /// Reports every member that was not taken, with these words.
    pub(super) fn finish_with(self, level: Level, what: &str) {
        for (name, value) in self.map {
            if !self.taken.contains(name.as_str()) && !value.is_null() {
                self.this.child(name, value).problem(level, what);
            }
        }
    }

    /// Reports every member that was not taken.
    pub(super) fn finish(self) -> Result<(), Unreadable> {
        let mut result = Ok(());
        for (name, value) in self.map {
            if !self.taken.contains(name.as_str()) && !value.is_null() {
                result = Err(self.this.child(name, value).bad("this field is not known"));
            }
        }
        result
    }
}
