//! The canonical text that equal live queries share.
//!
//! Invariant: two queries with the same text deliver the same. So client input can never end early in the
//! text and continue as another part of it: values are written with their type and length.

use std::fmt::Write as _;

use datafusion::arrow::row::{RowConverter, SortField};
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::expr::Placeholder;

use crate::error::{Error, Result};
use crate::ids::ScopeId;
use crate::schema_registry::TableSchemas;

/// Returns the text of everything that decides what is delivered, except the table's version.
pub(super) fn canonical_text(
    table: &TableSchemas,
    scope: ScopeId,
    filter: Option<&Expr>,
    outputs: &[(Expr, String)],
) -> Result<String> {
    let mut text = format!("{} scope {scope}", table.definition.qualified_name());
    if let Some(filter) = filter {
        write_expression(&mut text, filter, "where")?;
    }
    for (expr, name) in outputs {
        write_expression(&mut text, expr, name)?;
    }
    Ok(text)
}

/// Writes an expression. Its debug form escapes names but not values, so the values follow it.
fn write_expression(text: &mut String, expr: &Expr, name: &str) -> Result<()> {
    let mut values = Vec::new();
    let shape = expr.clone().transform_up(|node| match node {
        Expr::Literal(value, _) => {
            values.push(value);
            Ok(Transformed::yes(Expr::Placeholder(Placeholder::new_with_field(String::new(), None))))
        }
        node => Ok(Transformed::no(node)),
    })?;
    let failed = |error| Error::internal("formatting failed").source(error);
    write!(text, "\n{name:?} = {:?}", shape.data).map_err(failed)?;
    for value in &values {
        let bytes = value_bytes(value)?;
        write!(text, " {:?} {}:", value.data_type(), bytes.len()).map_err(failed)?;
        bytes.iter().try_for_each(|byte| write!(text, "{byte:02x}")).map_err(failed)?;
    }
    Ok(())
}

/// Returns bytes that no other value of the type has.
fn value_bytes(value: &ScalarValue) -> Result<Vec<u8>> {
    let fields = vec![SortField::new(value.data_type())];
    if !RowConverter::supports_fields(&fields) {
        return Ok(format!("{value:?}").into_bytes());
    }
    let rows = RowConverter::new(fields)?.convert_columns(&[value.to_array()?])?;
    Ok(rows.iter().flat_map(|row| row.as_ref().to_vec()).collect())
}

#[cfg(test)]
mod tests {
    use datafusion::prelude::{col, lit};

    use super::*;

    fn text(expr: &Expr) -> String {
        let mut text = String::new();
        write_expression(&mut text, expr, "where").unwrap();
        text
    }

    #[test]
    fn no_value_can_pass_for_an_expression() {
        let first = col("a").eq(lit("x")).and(col("b").eq(lit("y")));
        let ScalarValue::Utf8(_) = ScalarValue::from("x") else { panic!() };
        // Forges a value that contains the debug form of the second condition.
        let written = format!("{first:?}");
        let (start, end) = (written.find("\"x").unwrap() + 1, written.rfind("y\"").unwrap() + 1);
        let forged = col("a").eq(lit(&written[start..end]));
        assert_ne!(text(&first), text(&forged));
        let pairs = [
            (col("a").eq(lit("1")), col("a").eq(lit(1_i64))),
            (col("a").eq(lit("")), col("a").eq(lit(ScalarValue::Utf8(None)))),
            (col("a").eq(lit("x\") y(\"")), col("a").eq(lit("x")).and(col("y").eq(lit("")))),
            (col("a").in_list(vec![lit("a"), lit("b")], false), col("a").in_list(vec![lit("a, b")], false)),
            (
                col("a").eq(lit("a")).or(col("a").eq(lit("bc"))),
                col("a").eq(lit("ab")).or(col("a").eq(lit("c"))),
            ),
            (col("a\" = b").eq(lit("c")), col("a").eq(lit("b\" = c"))),
        ];
        for (one, other) in pairs {
            assert_ne!(text(&one), text(&other), "{one} {other}");
            assert_eq!(text(&one), text(&one.clone()));
        }
    }

    #[test]
    fn lists_and_structs_are_told_apart() {
        let list = |texts: &[&str]| {
            let values: Vec<ScalarValue> = texts.iter().map(|text| ScalarValue::from(*text)).collect();
            let ty = datafusion::arrow::datatypes::DataType::Utf8;
            lit(ScalarValue::List(ScalarValue::new_list(&values, &ty, true)))
        };
        let texts = [list(&["a", "b"]), list(&["a, b"]), list(&["a\", \"b"]), list(&["b", "a"]), list(&[])];
        for (position, one) in texts.iter().enumerate() {
            for (other_position, other) in texts.iter().enumerate() {
                assert_eq!(position == other_position, text(one) == text(other), "{one} {other}");
            }
        }
    }
}
