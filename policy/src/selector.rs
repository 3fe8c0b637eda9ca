//! The selector language of Calico: text to [`Selector`] and back.
//!
//! `key == "value"`, `!=`, `in {..}`, `not in {..}`, `has(key)`, `contains`, `starts with`, `ends with`, `&&`, `||`,
//! `!`, parentheses, `all()` and `global()`. `!=` and `not in` hold where the key is absent.

mod token;

use crate::model::Selector;
use std::collections::BTreeSet;
use std::fmt;
use token::{Kind, Token};

/// Deepest nesting of parentheses and `!`.
const DEPTH: usize = 100;

/// Why a text is no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at byte {position}: expected {expected}, found {found}")]
pub struct SelectorError {
    /// Where, in bytes from the start of the text.
    pub position: usize,
    /// What could stand there.
    pub expected: &'static str,
    /// What stands there.
    pub found: String,
}

/// A selector as written. `global()` selects objects that are in no namespace; what that means is for the reader of the
/// field, so it is told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// `global()`.
    Global,
    /// Anything else.
    Labels(Selector),
}

/// Reads a selector; an empty text selects everything. `global()` is refused.
pub fn parse(text: &str) -> Result<Selector, SelectorError> {
    match parse_namespaces(text)? {
        Written::Labels(selector) => Ok(selector),
        Written::Global => Err(SelectorError {
            position: text.find('g').unwrap_or_default(),
            expected: "a selector by label (global() is for namespaceSelector only)",
            found: "`global()`".to_owned(),
        }),
    }
}

/// Reads a selector of namespaces, where `global()` may stand alone.
pub fn parse_namespaces(text: &str) -> Result<Written, SelectorError> {
    let tokens = token::split(text)?;
    if let [Token { kind: Kind::Global, .. }, Token { kind: Kind::End, .. }] = tokens.as_slice() {
        return Ok(Written::Global);
    }
    if tokens.len() == 1 {
        return Ok(Written::Labels(Selector::Everything));
    }
    let mut parser = Parser { tokens, at: 0, depth: 0 };
    let selector = parser.any()?;
    match parser.peek() {
        Kind::End => Ok(Written::Labels(selector)),
        _ => Err(parser.error("`&&`, `||` or the end")),
    }
}

struct Parser {
    /// The last one is always `End`.
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn peek(&self) -> &Kind {
        &self.tokens[self.at].kind
    }

    fn next(&mut self) -> Kind {
        let kind = self.peek().clone();
        if self.at + 1 < self.tokens.len() {
            self.at += 1;
        }
        kind
    }

    fn error(&self, expected: &'static str) -> SelectorError {
        let token = &self.tokens[self.at];
        SelectorError { position: token.position, expected, found: token.kind.to_string() }
    }

    fn expect(&mut self, kind: &Kind, expected: &'static str) -> Result<(), SelectorError> {
        if self.peek() == kind {
            self.next();
            Ok(())
        } else {
            Err(self.error(expected))
        }
    }

    fn list(
        &mut self,
        separator: &Kind,
        item: fn(&mut Self) -> Result<Selector, SelectorError>,
    ) -> Result<Vec<Selector>, SelectorError> {
        let mut list = vec![item(self)?];
        while self.peek() == separator {
            self.next();
            list.push(item(self)?);
        }
        Ok(list)
    }

    fn any(&mut self) -> Result<Selector, SelectorError> {
        let mut list = self.list(&Kind::Or, Self::all)?;
        Ok(if list.len() == 1 { list.remove(0) } else { Selector::Or(list) })
    }

    fn all(&mut self) -> Result<Selector, SelectorError> {
        let mut list = self.list(&Kind::And, Self::term)?;
        Ok(if list.len() == 1 { list.remove(0) } else { Selector::And(list) })
    }

    fn term(&mut self) -> Result<Selector, SelectorError> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(SelectorError {
                found: "deeper nesting".to_owned(),
                ..self.error("at most 100 levels of nesting")
            });
        }
        let term = match self.peek() {
            Kind::Not => {
                self.next();
                Selector::Not(Box::new(self.term()?))
            }
            Kind::Open => {
                self.next();
                let inner = self.any()?;
                self.expect(&Kind::Close, "`&&`, `||` or `)`")?;
                inner
            }
            Kind::All => {
                self.next();
                Selector::Everything
            }
            Kind::Has(key) => {
                let key = key.clone();
                self.next();
                Selector::Has(key)
            }
            Kind::Word(key) => {
                let key = key.clone();
                self.next();
                self.comparison(key)?
            }
            _ => return Err(self.error("a label key, `has(`, `all()`, `!` or `(`")),
        };
        self.depth -= 1;
        Ok(term)
    }

    fn comparison(&mut self, key: String) -> Result<Selector, SelectorError> {
        let not = |selector| Selector::Not(Box::new(selector));
        let operator = self.peek().clone();
        let known = matches!(
            operator,
            Kind::Equal | Kind::NotEqual | Kind::In | Kind::NotIn | Kind::Contains | Kind::StartsWith | Kind::EndsWith
        );
        if !known {
            return Err(self.error("`==`, `!=`, `in`, `not in`, `contains`, `starts with` or `ends with`"));
        }
        self.next();
        Ok(match operator {
            Kind::NotEqual => not(Selector::Equals(key, self.literal()?)),
            Kind::In => Selector::In(key, self.set()?),
            Kind::NotIn => not(Selector::In(key, self.set()?)),
            Kind::Contains => Selector::Contains(key, self.literal()?),
            Kind::StartsWith => Selector::StartsWith(key, self.literal()?),
            Kind::EndsWith => Selector::EndsWith(key, self.literal()?),
            _ => Selector::Equals(key, self.literal()?),
        })
    }

    fn literal(&mut self) -> Result<String, SelectorError> {
        if let Kind::Text(text) = self.peek() {
            let text = text.clone();
            self.next();
            return Ok(text);
        }
        Err(self.error("text in quotes"))
    }

    /// `{"a", "b"}`, maybe empty.
    fn set(&mut self) -> Result<BTreeSet<String>, SelectorError> {
        self.expect(&Kind::OpenSet, "`{`")?;
        let mut set = BTreeSet::new();
        if *self.peek() == Kind::CloseSet {
            self.next();
            return Ok(set);
        }
        loop {
            set.insert(self.literal()?);
            if *self.peek() == Kind::Comma {
                self.next();
                continue;
            }
            self.expect(&Kind::CloseSet, "`,` or `}`")?;
            return Ok(set);
        }
    }
}

/// Prints the selector in the language it is read from; what is read back is equal.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everything => f.write_str("all()"),
            // The language has no word for it.
            Self::Nothing => f.write_str("!all()"),
            Self::Has(key) => write!(f, "has({key})"),
            Self::Equals(key, value) => write!(f, "{key} == {}", quoted(value)),
            Self::In(key, values) => write!(f, "{key} in {{{}}}", set(values)),
            Self::Contains(key, text) => write!(f, "{key} contains {}", quoted(text)),
            Self::StartsWith(key, text) => write!(f, "{key} starts with {}", quoted(text)),
            Self::EndsWith(key, text) => write!(f, "{key} ends with {}", quoted(text)),
            Self::Not(inner) => match &**inner {
                Self::Equals(key, value) => write!(f, "{key} != {}", quoted(value)),
                Self::In(key, values) => write!(f, "{key} not in {{{}}}", set(values)),
                inner => write!(f, "!{}", Inner(inner, Binds::Most)),
            },
            Self::And(list) => joined(f, list, " && ", Binds::And),
            Self::Or(list) => joined(f, list, " || ", Binds::Or),
        }
    }
}

/// How tightly the surroundings of a part hold it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Binds {
    Or,
    And,
    Most,
}

/// A part of a selector, in parentheses only where it could not be read back without: they count as nesting.
struct Inner<'a>(&'a Selector, Binds);

impl fmt::Display for Inner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(selector, around) = self;
        let apart = match selector {
            Selector::Or(_) => true,
            Selector::And(_) => *around > Binds::Or,
            _ => false,
        };
        if apart { write!(f, "({selector})") } else { write!(f, "{selector}") }
    }
}

fn joined(f: &mut fmt::Formatter<'_>, list: &[Selector], separator: &str, around: Binds) -> fmt::Result {
    for (index, inner) in list.iter().enumerate() {
        write!(f, "{}{}", if index == 0 { "" } else { separator }, Inner(inner, around))?;
    }
    Ok(())
}

fn set(values: &BTreeSet<String>) -> String {
    values.iter().map(|value| quoted(value)).collect::<Vec<_>>().join(", ")
}

fn quoted(text: &str) -> String {
    let quote = if text.contains('"') { '\'' } else { '"' };
    format!("{quote}{text}{quote}")
}

#[cfg(test)]
mod tests;
