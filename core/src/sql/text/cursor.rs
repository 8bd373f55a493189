//! A position in a statement's tokens, for the database's own grammar.
//!
//! Unquoted names fold to lower case, quoted names keep their case; keywords are never quoted.

use datafusion::sql::sqlparser::ast::ObjectName;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

use crate::error::{Error, Result};
use crate::schema_registry::validate_name;
use crate::sql::CATALOG;
use crate::sql::syntax_tree::fold;

/// A name with an optional namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct QualifiedName {
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
}

/// Reads tokens from front to back.
pub(crate) struct Cursor<'a> {
    tokens: &'a [TokenWithSpan],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(tokens: &'a [TokenWithSpan]) -> Self {
        Self { tokens, at: 0 }
    }

    pub(crate) fn peek(&self) -> Option<&'a Token> {
        self.tokens.get(self.at).map(|token| &token.token)
    }

    /// Returns the tokens that are not read yet.
    pub(crate) fn rest(&self) -> &'a [TokenWithSpan] {
        self.tokens.get(self.at..).unwrap_or_default()
    }

    /// Skips `count` tokens.
    pub(crate) fn skip(&mut self, count: usize) {
        self.at += count;
    }

    pub(crate) fn is_at_end(&self) -> bool {
        self.at >= self.tokens.len()
    }

    /// Takes a keyword if it comes next.
    pub(crate) fn keyword(&mut self, keyword: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Word(word))
            if word.quote_style.is_none() && word.value.eq_ignore_ascii_case(keyword));
        self.at += usize::from(found);
        found
    }

    /// Takes all keywords if they come next in this order, else none.
    pub(crate) fn keywords(&mut self, keywords: &[&str]) -> bool {
        let start = self.at;
        let found = keywords.iter().all(|keyword| self.keyword(keyword));
        if !found {
            self.at = start;
        }
        found
    }

    pub(crate) fn expect_keyword(&mut self, keyword: &str) -> Result<()> {
        if self.keyword(keyword) { Ok(()) } else { Err(self.unexpected(keyword)) }
    }

    pub(crate) fn token(&mut self, token: &Token) -> bool {
        let found = self.peek() == Some(token);
        self.at += usize::from(found);
        found
    }

    pub(crate) fn expect_token(&mut self, token: &Token) -> Result<()> {
        if self.token(token) { Ok(()) } else { Err(self.unexpected(&token.to_string())) }
    }

    pub(crate) fn expect_end(&self) -> Result<()> {
        if self.is_at_end() { Ok(()) } else { Err(self.unexpected("the end of the statement")) }
    }

    /// Takes a name: a word, folded to lower case unless quoted.
    pub(crate) fn name(&mut self, kind: &str) -> Result<String> {
        let Some(Token::Word(word)) = self.peek() else {
            return Err(self.unexpected(&format!("the name of a {kind}")));
        };
        let name = if word.quote_style.is_some() { word.value.clone() } else { word.value.to_lowercase() };
        validate_name(kind, &name)?;
        self.at += 1;
        Ok(name)
    }

    /// Takes `name`, `namespace.name` or `kalam.namespace.name`.
    pub(crate) fn qualified_name(&mut self, kind: &str) -> Result<QualifiedName> {
        let mut parts = vec![self.name(kind)?];
        while self.token(&Token::Period) {
            parts.push(self.name(kind)?);
        }
        qualify(parts, kind)
    }

    /// Takes a string literal: in single quotes, escaped or dollar-quoted.
    pub(crate) fn string(&mut self, what: &str) -> Result<String> {
        match self.peek() {
            Some(Token::SingleQuotedString(text) | Token::EscapedStringLiteral(text)) => {
                self.at += 1;
                Ok(text.clone())
            }
            Some(Token::DollarQuotedString(text)) => {
                self.at += 1;
                Ok(text.value.clone())
            }
            _ => Err(self.unexpected(&format!("{what} in single quotes"))),
        }
    }

    /// Takes a string literal or a name.
    pub(crate) fn string_or_name(&mut self, what: &str) -> Result<String> {
        if matches!(self.peek(), Some(Token::Word(_))) { self.name(what) } else { self.string(what) }
    }

    /// Takes the value of an option: a string, a number or a word, as text.
    pub(crate) fn value(&mut self, what: &str) -> Result<String> {
        match self.peek() {
            Some(Token::Number(text, _)) => {
                self.at += 1;
                Ok(text.clone())
            }
            Some(Token::Word(word)) => {
                self.at += 1;
                Ok(word.value.clone())
            }
            _ => self.string(what),
        }
    }

    /// Takes `( name = value, ... )`, names in lower case unless quoted.
    pub(crate) fn options(&mut self) -> Result<Vec<(String, String)>> {
        self.expect_token(&Token::LParen)?;
        let mut options: Vec<(String, String)> = Vec::new();
        loop {
            let name = self.name("option")?;
            self.expect_token(&Token::Eq)?;
            let value = self.value(&format!("the value of option \"{name}\""))?;
            if options.iter().any(|(other, _)| *other == name) {
                return Err(Error::syntax(format!("option \"{name}\" is set twice")));
            }
            options.push((name, value));
            if !self.token(&Token::Comma) {
                self.expect_token(&Token::RParen)?;
                return Ok(options);
            }
        }
    }

    /// Takes `( name, ... )`, in lower case unless quoted.
    pub(crate) fn names(&mut self, kind: &str) -> Result<Vec<String>> {
        self.expect_token(&Token::LParen)?;
        let mut names = vec![self.name(kind)?];
        while self.token(&Token::Comma) {
            names.push(self.name(kind)?);
        }
        self.expect_token(&Token::RParen)?;
        Ok(names)
    }

    /// Returns the number of tokens in the parenthesised group that starts here, parentheses included.
    pub(crate) fn group_len(&self) -> Option<usize> {
        let mut depth = 0_usize;
        for (index, token) in self.rest().iter().enumerate() {
            match token.token {
                Token::LParen => depth += 1,
                Token::RParen => depth = depth.checked_sub(1)?,
                _ => {}
            }
            if depth == 0 {
                return (index > 0).then_some(index + 1);
            }
        }
        None
    }

    pub(crate) fn unexpected(&self, expected: &str) -> Error {
        match self.tokens.get(self.at) {
            Some(found) => Error::syntax(format!(
                "expected {expected}, found {} at line {}, column {}",
                found.token, found.span.start.line, found.span.start.column
            )),
            None => Error::syntax(format!("expected {expected}, found the end of the statement")),
        }
    }
}

fn qualify(mut parts: Vec<String>, kind: &str) -> Result<QualifiedName> {
    if parts.len() == 3 && parts.first().is_some_and(|catalog| catalog == CATALOG) {
        parts.remove(0);
    }
    let too_long = || Error::syntax(format!("{kind} name \"{}\" has too many parts", parts.join(".")));
    match parts.as_slice() {
        [name] => Ok(QualifiedName { namespace: None, name: name.clone() }),
        [namespace, name] => Ok(QualifiedName { namespace: Some(namespace.clone()), name: name.clone() }),
        _ => Err(too_long()),
    }
}

/// Converts a name in a parsed statement.
pub(crate) fn qualified(name: &ObjectName, kind: &str) -> Result<QualifiedName> {
    let parts = name
        .0
        .iter()
        .map(|part| match part.as_ident() {
            Some(ident) => Ok(fold(ident)),
            None => Err(Error::syntax(format!("{name} is not a {kind} name"))),
        })
        .collect::<Result<Vec<_>>>()?;
    qualify(parts, kind)
}
