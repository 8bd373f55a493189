//! Parameters: `$1`, `?` and `:name` in the tokens become `$1 .. $n`, and given values become bound values.
//!
//! A `?` outside quotes is a parameter, numbered from left to right; the SQL parser would read an operator.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, FieldRef, TimeUnit};
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::expr::{BinaryExpr, Placeholder};
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

use super::result::Params;
use crate::casts;
use crate::error::{Error, ErrorKind, Result, SqlState};

/// The parameters a statement names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ParameterNames {
    /// The number of values the statement takes.
    pub(crate) count: usize,
    /// The names of `:name` parameters, in the order of their numbers; empty for `$n` and `?`.
    pub(crate) names: Vec<String>,
}

/// The types of a plan's parameters; `None` where the plan does not determine one.
pub(crate) type ParameterTypes = HashMap<String, Option<DataType>>;

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
                Err(Error::syntax(format!("parameters {other} and {style} in one statement"))
                    .hint("use $1, ? or :name, and only one of them"))
            }
            _ => Ok(()),
        }
    }

    fn dollar(&self, number: usize) -> Result<String> {
        if number == 0 || number > self.count_max {
            return Err(Error::syntax(format!(
                "parameter ${number} is out of range, the first is $1 and the last ${}",
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
            "the statement has {} parameters, {} values were given",
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

/// Returns the type to announce a parameter with, one that every driver can set: JDBC writes milliseconds
/// into any declared time type, and knows no views, dictionaries, unsigned or half-width numbers.
pub(crate) fn announced(name: String, planned: Option<&DataType>) -> FieldRef {
    let announced = match planned {
        Some(DataType::Boolean) => DataType::Boolean,
        Some(
            DataType::Int8
            | DataType::Int16
            | DataType::Int32
            | DataType::Int64
            | DataType::UInt8
            | DataType::UInt16
            | DataType::UInt32
            | DataType::UInt64,
        ) => DataType::Int64,
        Some(DataType::Float16 | DataType::Float32 | DataType::Float64) => DataType::Float64,
        Some(DataType::Decimal32(precision, scale) | DataType::Decimal64(precision, scale)) => {
            DataType::Decimal128(*precision, *scale)
        }
        Some(decimal @ DataType::Decimal128(..)) => decimal.clone(),
        Some(DataType::Date32 | DataType::Date64) => DataType::Date32,
        Some(DataType::Time32(_) | DataType::Time64(_)) => DataType::Time32(TimeUnit::Millisecond),
        Some(DataType::Timestamp(..)) => DataType::Timestamp(TimeUnit::Millisecond, None),
        Some(DataType::Binary | DataType::LargeBinary | DataType::BinaryView) => DataType::Binary,
        Some(DataType::List(item) | DataType::FixedSizeList(item, _)) => DataType::List(Arc::clone(item)),
        _ => DataType::Utf8,
    };
    Arc::new(Field::new(name, announced, true))
}

/// Casts a value to a type, rounded as an assignment does.
///
/// # Errors
/// 22P02, 22007 or 22003 when the value does not fit the type.
pub(crate) fn cast(value: &ScalarValue, to: &DataType) -> Result<ScalarValue> {
    let from = value.data_type();
    if from == *to {
        return Ok(value.clone());
    }
    if value.is_null() {
        return Ok(ScalarValue::try_from(to)?);
    }
    let array = casts::cast(&value.to_array()?, to)?;
    Ok(ScalarValue::try_from_array(&array, 0)?)
}

/// The use of a parameter, where it is more than a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// It is assigned to a column, and rounded to the column's type.
    Assigned,
    /// It is an operand of arithmetic: 1 / 2 differs from 1 / 2.0.
    Computed,
}

/// Returns the parameters that are operands of arithmetic.
///
/// # Errors
/// Only those of the walk over the plan.
pub(crate) fn computed(plan: &LogicalPlan) -> Result<HashMap<String, Use>> {
    let mut uses = HashMap::new();
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|part| {
                if let Expr::BinaryExpr(BinaryExpr { left, op, right }) = part
                    && op.is_numerical_operators()
                {
                    for side in [left, right] {
                        if let Expr::Placeholder(parameter) = &**side {
                            uses.insert(parameter.id.clone(), Use::Computed);
                        }
                    }
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(uses)
}

/// Returns the types of a plan's parameters, each from the first place that has one; `None` where none has.
pub(crate) fn types(plan: &LogicalPlan) -> Result<ParameterTypes> {
    let mut types = ParameterTypes::new();
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|part| {
                if let Expr::Placeholder(Placeholder { id, field }) = part {
                    let known = types.entry(id.clone()).or_default();
                    *known = known.take().or_else(|| field.as_ref().map(|field| field.data_type().clone()));
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(types)
}

/// Converts a value to the type that a plan expects, if it stays the same value; `None` when only a wider
/// type has it, such as 1.5 beside an integer. Text is parsed as that type, and an assigned value is rounded.
///
/// # Errors
/// Those of [`cast`], for text and assigned values.
pub(crate) fn fitting(value: &ScalarValue, to: &DataType, used: Option<Use>) -> Result<Option<ScalarValue>> {
    if used == Some(Use::Assigned) {
        return cast(value, to).map(Some);
    }
    let from = value.data_type();
    if value.is_null() || casts::is_text(&from) || casts::is_text(to) {
        return cast(value, to).map(Some);
    }
    if used == Some(Use::Computed) && to.is_integer() && !from.is_integer() {
        return Ok(None);
    }
    let Ok(there) = cast(value, to) else { return Ok(None) };
    // The REAL nearest to 0.1 is not 0.1. Both are compared as DOUBLE, as comparisons in a statement are.
    let exact = if *to == DataType::Float32 && casts::is_decimal(&from) { &DataType::Float64 } else { &from };
    let is_same = cast(&there, exact).is_ok_and(|back| cast(value, exact).is_ok_and(|value| value == back));
    Ok(is_same.then_some(there))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::sql::guard;

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
    fn a_value_fits_a_type_that_has_the_same_value() {
        let fits = |value: ScalarValue, to: DataType| fitting(&value, &to, None).unwrap().is_some();
        assert!(fits(ScalarValue::Float64(Some(2.0)), DataType::Int32));
        assert!(!fits(ScalarValue::Float64(Some(2.7)), DataType::Int32));
        assert!(!fits(ScalarValue::Decimal128(Some(1), 2, 1), DataType::Float32));
        assert!(fits(ScalarValue::Decimal128(Some(5), 2, 1), DataType::Float32));
        assert!(fits(ScalarValue::Decimal128(Some(1), 2, 1), DataType::Float64));
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
