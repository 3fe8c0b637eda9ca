//! Cuts a selector's text into words.

use super::SelectorError;
use std::fmt;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Word(String),
    Text(String),
    Has(String),
    All,
    Global,
    Equal,
    NotEqual,
    In,
    NotIn,
    Contains,
    StartsWith,
    EndsWith,
    Not,
    And,
    Or,
    Open,
    Close,
    OpenSet,
    CloseSet,
    Comma,
    End,
}

pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) position: usize,
}

const SIGNS: [(&str, Kind); 10] = [
    ("==", Kind::Equal),
    ("!=", Kind::NotEqual),
    ("&&", Kind::And),
    ("||", Kind::Or),
    ("!", Kind::Not),
    ("(", Kind::Open),
    (")", Kind::Close),
    ("{", Kind::OpenSet),
    ("}", Kind::CloseSet),
    (",", Kind::Comma),
];

fn is_key(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '-')
}

/// All words, and `End` as the last one.
pub(super) fn split(text: &str) -> Result<Vec<Token>, SelectorError> {
    let mut tokens = Vec::new();
    let mut cutter = Cutter { text, at: 0 };
    loop {
        cutter.skip_space();
        let position = cutter.at;
        let kind = cutter.next(tokens.last().map(|token: &Token| &token.kind))?;
        let ended = kind == Kind::End;
        tokens.push(Token { kind, position });
        if ended {
            return Ok(tokens);
        }
    }
}

struct Cutter<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cutter<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip_space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start_matches([' ', '\t', '\n', '\r']).len();
    }

    fn key(&mut self) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c| !is_key(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    /// Goes past a word if it is the next one.
    fn word(&mut self, wanted: &str) -> bool {
        let start = self.at;
        self.skip_space();
        if self.key() == wanted {
            return true;
        }
        self.at = start;
        false
    }

    fn sign(&mut self, wanted: &str) -> bool {
        let start = self.at;
        self.skip_space();
        if self.rest().starts_with(wanted) {
            self.at += wanted.len();
            return true;
        }
        self.at = start;
        false
    }

    fn error(&self, position: usize, expected: &'static str) -> SelectorError {
        let found = self.text[position..].chars().next().map_or_else(|| "the end".to_owned(), |c| format!("`{c}`"));
        SelectorError { position, expected, found }
    }

    fn next(&mut self, before: Option<&Kind>) -> Result<Kind, SelectorError> {
        let position = self.at;
        let Some(first) = self.rest().chars().next() else { return Ok(Kind::End) };
        if matches!(first, '"' | '\'') {
            let inner = &self.rest()[1..];
            let end = inner.find(first).ok_or_else(|| SelectorError {
                position: self.text.len(),
                expected: "the closing quote",
                found: "the end".to_owned(),
            })?;
            self.at += end + 2;
            return Ok(Kind::Text(inner[..end].to_owned()));
        }
        for (sign, kind) in &SIGNS {
            if self.sign(sign) {
                return Ok(kind.clone());
            }
        }
        if !is_key(first) {
            return Err(self.error(position, "a label key, text in quotes or an operator"));
        }
        let word = self.key();
        // After a key an operator must follow, so that keys may be called `in` or `has`.
        if matches!(before, Some(Kind::Word(_))) {
            return self.operator(word, position);
        }
        Ok(match word {
            "has" if self.sign("(") => {
                self.skip_space();
                let place = self.at;
                let key = self.key();
                if key.is_empty() {
                    return Err(self.error(place, "a label key"));
                }
                if !self.sign(")") {
                    self.skip_space();
                    return Err(self.error(self.at, "`)`"));
                }
                Kind::Has(key.to_owned())
            }
            "all" | "global" if self.sign("(") => {
                if !self.sign(")") {
                    self.skip_space();
                    return Err(self.error(self.at, "`)`"));
                }
                if word == "all" { Kind::All } else { Kind::Global }
            }
            key => Kind::Word(key.to_owned()),
        })
    }

    fn operator(&mut self, word: &str, position: usize) -> Result<Kind, SelectorError> {
        match word {
            "in" => Ok(Kind::In),
            "not" if self.word("in") => Ok(Kind::NotIn),
            "contains" => Ok(Kind::Contains),
            "starts" if self.word("with") => Ok(Kind::StartsWith),
            "ends" if self.word("with") => Ok(Kind::EndsWith),
            other => Err(SelectorError {
                position,
                expected: "`==`, `!=`, `in`, `not in`, `contains`, `starts with` or `ends with`",
                found: format!("`{other}`"),
            }),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = SIGNS.iter().find(|(_, kind)| kind == self).map(|(sign, _)| *sign);
        match (self, sign) {
            (_, Some(sign)) => write!(f, "`{sign}`"),
            (Self::Word(word), _) => write!(f, "`{word}`"),
            (Self::Text(text), _) => write!(f, "text {text:?}"),
            (Self::Has(key), _) => write!(f, "`has({key})`"),
            (Self::All, _) => f.write_str("`all()`"),
            (Self::Global, _) => f.write_str("`global()`"),
            (Self::In, _) => f.write_str("`in`"),
            (Self::NotIn, _) => f.write_str("`not in`"),
            (Self::Contains, _) => f.write_str("`contains`"),
            (Self::StartsWith, _) => f.write_str("`starts with`"),
            (Self::EndsWith, _) => f.write_str("`ends with`"),
            _ => f.write_str("the end"),
        }
    }
}
