//! Parameters in a statement's tokens: `$1`, `?` and `:name` become `$1 .. $n`, and given values get the same
//! order.
//!
//! A `?` outside quotes is a parameter, numbered from left to right; the SQL parser would read an operator.

use datafusion::common::ScalarValue;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::sql::result::Params;

/// The parameters a statement names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ParameterNames {
    /// The number of values the statement takes.
    pub(crate) count: usize,
    /// The names of `:name` parameters, in the order of their numbers; empty for `$n` and `?`.
    pub(crate) names: Vec<String>,
}

/// Rewrites every parameter to `$n`.
///
/// # Errors
/// 42601 for mixed styles, or for a number that is not between 1 and `count_max`.
pub(crate) fn number(tokens: &mut Vec<TokenWithSpan>, count_max: usize) -> Result<ParameterNames> {
    let mut numbered = Numbering { count_max, ..Numbering::default() };
    let mut brackets = 0_usize;
    let mut out = Vec::with_capacity(tokens.len());
    let mut input = std::mem::take(tokens).into_iter().peekable();
    while let Some(mut token) = input.next() {
        match &token.token {
            Token::LBracket => brackets += 1,
            Token::RBracket => brackets = brackets.saturating_sub(1),
            Token::Question => token.token = Token::Placeholder(numbered.question()?),
            // `?|` and `?&` are operators elsewhere; here they are a parameter and an operator.
            Token::QuestionPipe | Token::QuestionAnd => {
                let operator =
                    if token.token == Token::QuestionPipe { Token::Pipe } else { Token::Ampersand };
                let span = token.span;
                out.push(TokenWithSpan { token: Token::Placeholder(numbered.question()?), span });
                token.token = operator;
            }
            Token::Placeholder(text) => {
                let text = text.clone();
                token.token = Token::Placeholder(numbered.placeholder(&text)?);
            }
            // Within brackets a colon is a slice.
            Token::Colon if brackets == 0 => {
                if let Some(TokenWithSpan { token: Token::Word(word), .. }) = input.peek() {
                    token.token = Token::Placeholder(numbered.name(&word.value)?);
                    input.next();
                }
            }
            _ => {}
        }
        out.push(token);
    }
    *tokens = out;
    Ok(numbered.finish())
}

#[derive(Default)]
struct Numbering {
    count_max: usize,
    style: Option<&'static str>,
    count: usize,
    names: Vec<String>,
}

impl Numbering {
    fn style(&mut self, style: &'static str) -> Result<()> {
        match self.style.replace(style) {
            Some(other) if other != style => {
                Err(Error::syntax(format!("a statement cannot mix parameters {other} and {style}"))
                    .hint("use only one of $1, ? and :name"))
            }
            _ => Ok(()),
        }
    }

    fn dollar(&self, number: usize) -> Result<String> {
        if number == 0 || number > self.count_max {
            return Err(Error::syntax(format!(
                "parameter ${number} is out of range: the first is $1, the last ${}",
                self.count_max
            )));
        }
        Ok(format!("${number}"))
    }

    fn question(&mut self) -> Result<String> {
        self.style("?")?;
        self.count += 1;
        self.dollar(self.count)
    }

    fn placeholder(&mut self, text: &str) -> Result<String> {
        if let Some(name) = text.strip_prefix(':') {
            return self.name(name);
        }
        self.style("$n")?;
        let number = text
            .strip_prefix('$')
            .and_then(|number| number.parse::<usize>().ok())
            .ok_or_else(|| Error::syntax(format!("{text} is not a parameter")).hint("use $1, ? or :name"))?;
        self.count = self.count.max(number);
        self.dollar(number)
    }

    fn name(&mut self, name: &str) -> Result<String> {
        self.style(":name")?;
        let index = self.names.iter().position(|other| other == name).unwrap_or_else(|| {
            self.names.push(name.to_owned());
            self.names.len() - 1
        });
        self.count = self.names.len();
        self.dollar(index + 1)
    }

    fn finish(self) -> ParameterNames {
        ParameterNames { count: self.count, names: self.names }
    }
}

impl ParameterNames {
    /// Returns the values in the order of their numbers.
    ///
    /// # Errors
    /// 42P02 unless exactly the statement's parameters have values.
    pub(crate) fn values(&self, params: Params) -> Result<Vec<ScalarValue>> {
        let given = match params {
            Params::None => Vec::new(),
            Params::Positional(values) => values,
            Params::Named(values) => return self.named(values),
        };
        if given.len() == self.count {
            return Ok(given);
        }
        Err(undefined(format!(
            "the statement has {} parameters, but {} values were given",
            self.count,
            given.len()
        )))
    }

    fn named(&self, values: Vec<(String, ScalarValue)>) -> Result<Vec<ScalarValue>> {
        if let Some((name, _)) = values.iter().find(|(name, _)| !self.names.contains(name)) {
            return Err(undefined(format!("the statement has no parameter \":{name}\"")));
        }
        self.names
            .iter()
            .map(|name| {
                let found = values.iter().find(|(other, _)| other == name);
                found
                    .map(|(_, value)| value.clone())
                    .ok_or_else(|| undefined(format!("parameter \":{name}\" has no value")))
            })
            .collect()
    }
}

fn undefined(message: String) -> Error {
    Error::new(ErrorKind::InvalidArgument, SqlState::UNDEFINED_PARAMETER, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::sql::text::guard;

    fn numbered(sql: &str) -> Result<(String, ParameterNames)> {
        let mut tokens = guard::tokenize(sql, &Config::default())?;
        let names = number(&mut tokens, 100)?;
        let text: Vec<_> = tokens.iter().map(|token| token.token.to_string()).collect();
        Ok((text.join(" "), names))
    }

    #[test]
    fn every_style_becomes_numbers() {
        let check = |sql: &str, expected: &str, count: usize| {
            let (text, names) = numbered(sql).unwrap();
            assert_eq!((text.as_str(), names.count), (expected, count), "{sql}");
        };
        check("SELECT ? WHERE a=? AND b='?'", "SELECT $1 WHERE a = $2 AND b = '?'", 2);
        check("SELECT $2, $1, $2", "SELECT $2 , $1 , $2", 2);
        check("SELECT :a, :b, :a", "SELECT $1 , $2 , $1", 2);
        check("SELECT a::int, x[1:n]", "SELECT a :: int , x [ 1 : n ]", 0);
        check("SELECT a -- ?\n", "SELECT a", 0);
    }

    #[test]
    fn mixtures_and_ranges_are_refused() {
        for sql in ["SELECT ?, $1", "SELECT :a, ?", "SELECT $0", "SELECT $101", "SELECT $x"] {
            assert_eq!(numbered(sql).unwrap_err().sqlstate(), SqlState::SYNTAX_ERROR, "{sql}");
        }
    }

    #[test]
    fn values_must_fit_the_statement() {
        let one = || ScalarValue::Int64(Some(1));
        let (_, names) = numbered("SELECT :a, :b").unwrap();
        let named =
            |list: &[&str]| Params::Named(list.iter().map(|name| ((*name).to_owned(), one())).collect());
        assert_eq!(names.values(named(&["b", "a"])).unwrap().len(), 2);
        assert!(names.values(named(&["a"])).is_err());
        assert!(names.values(named(&["a", "b", "c"])).is_err());
        assert!(names.values(Params::Positional(vec![one()])).is_err());
        assert!(names.values(Params::Positional(vec![one(), one()])).is_ok());
    }
}
