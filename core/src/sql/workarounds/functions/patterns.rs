//! `LIKE pattern ESCAPE character`: makes the escape a backslash, the only one that DataFusion knows.

use std::sync::Arc;

use datafusion::arrow::array::{Array, AsArray, StringBuilder};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use crate::error::{Error, ErrorKind, SqlState};

/// The name of the function.
pub(crate) const LIKE_PATTERN: &str = "like_pattern";

/// `like_pattern(pattern, escape)`.
pub(super) fn like_pattern() -> ScalarUDF {
    let signature = Signature::uniform(2, vec![DataType::Utf8], Volatility::Immutable);
    ScalarUDF::new_from_impl(LikePattern { signature })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct LikePattern {
    signature: Signature,
}

impl ScalarUDFImpl for LikePattern {
    fn name(&self) -> &str {
        LIKE_PATTERN
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let is_constant = args.args.iter().all(|value| matches!(value, ColumnarValue::Scalar(_)));
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let [patterns, escapes] = arrays.as_slice() else {
            return Err(Error::internal("a pattern needs an escape character").into());
        };
        let (patterns, escapes) = (cast(patterns, &DataType::Utf8)?, cast(escapes, &DataType::Utf8)?);
        let (patterns, escapes) = (patterns.as_string::<i32>(), escapes.as_string::<i32>());
        let mut builder = StringBuilder::new();
        for (pattern, escape) in patterns.iter().zip(escapes) {
            match (pattern, escape) {
                (Some(pattern), Some(escape)) => builder.append_value(with_backslash(pattern, escape)?),
                _ => builder.append_null(),
            }
        }
        let translated = builder.finish();
        if is_constant && translated.len() == 1 {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&translated, 0)?));
        }
        Ok(ColumnarValue::Array(Arc::new(translated)))
    }
}

fn with_backslash(pattern: &str, escape: &str) -> crate::error::Result<String> {
    let mut escapes = escape.chars();
    let (escape, None) = (escapes.next(), escapes.next()) else {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            SqlState::INVALID_ESCAPE,
            "the ESCAPE of LIKE has more than one character",
        ));
    };
    let mut translated = String::with_capacity(pattern.len() + 4);
    let mut chars = pattern.chars();
    while let Some(char) = chars.next() {
        if Some(char) == escape {
            let escaped = chars.next().ok_or_else(|| {
                Error::new(
                    ErrorKind::InvalidArgument,
                    SqlState::INVALID_ESCAPE_SEQUENCE,
                    "the pattern of LIKE ends with its escape character",
                )
            })?;
            if matches!(escaped, '%' | '_' | '\\') {
                translated.push('\\');
            }
            translated.push(escaped);
        } else {
            if char == '\\' {
                translated.push('\\');
            }
            translated.push(char);
        }
    }
    Ok(translated)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_character_can_escape() {
        for (pattern, escape, expected) in [
            ("a!_b", "!", "a\\_b"),
            ("a!!b", "!", "a!b"),
            ("a!xb", "!", "axb"),
            ("a\\b%", "!", "a\\\\b%"),
            ("a\\b", "", "a\\\\b"),
            ("a%", "", "a%"),
            ("a\\%", "\\", "a\\%"),
        ] {
            assert_eq!(with_backslash(pattern, escape).unwrap(), expected, "{pattern} {escape}");
        }
        assert_eq!(with_backslash("a!", "!").unwrap_err().sqlstate(), SqlState::INVALID_ESCAPE_SEQUENCE);
        assert_eq!(with_backslash("a", "ab").unwrap_err().sqlstate(), SqlState::INVALID_ESCAPE);
    }
}
