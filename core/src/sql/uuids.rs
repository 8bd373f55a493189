//! UUIDs: 16 bytes in columns, text in SQL. Comparisons, casts and IN lists between the two are rewritten before DataFusion's
//! type coercion, which knows no such pair.

use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, BinaryArray, FixedSizeBinaryArray, FixedSizeBinaryBuilder, StringArray, StringBuilder,
};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, Result as DataFusionResult, ScalarValue};
use datafusion::logical_expr::expr::{Between, BinaryExpr, Cast, InList, ScalarFunction};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ExprSchemable, LogicalPlan, Operator, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl,
    Signature, Volatility,
};
use datafusion::optimizer::AnalyzerRule;

use crate::error::{Error, ErrorKind, Result, SqlState};

pub(crate) const UUID: DataType = DataType::FixedSizeBinary(16);

/// Text or 16 bytes as a UUID.
pub(crate) fn scalar(value: &ScalarValue) -> Result<ScalarValue> {
    let array = parse(&value.to_array()?)?;
    Ok(ScalarValue::try_from_array(&array, 0)?)
}

/// A column of text or 16 bytes as UUIDs.
pub(crate) fn parse(array: &ArrayRef) -> Result<ArrayRef> {
    match array.data_type() {
        DataType::FixedSizeBinary(16) => Ok(Arc::clone(array)),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => {
            let array = cast(array, &DataType::Binary)?;
            let bytes = downcast::<BinaryArray>(&array)?;
            build(bytes.len(), bytes.iter().map(|value| value.map(from_bytes).transpose()))
        }
        DataType::Null => Ok(datafusion::arrow::array::new_null_array(&UUID, array.len())),
        _ => {
            let array = cast(array, &DataType::Utf8)?;
            let text = downcast::<StringArray>(&array)?;
            build(text.len(), text.iter().map(|value| value.map(from_text).transpose()))
        }
    }
}

/// UUIDs as their 36 characters.
fn format(array: &ArrayRef) -> Result<ArrayRef> {
    let uuids = downcast::<FixedSizeBinaryArray>(array)?;
    let mut builder = StringBuilder::with_capacity(uuids.len(), uuids.len() * 36);
    for value in uuids.iter() {
        builder
            .append_option(value.map(|bytes| uuid::Uuid::from_slice(bytes).unwrap_or_default().to_string()));
    }
    Ok(Arc::new(builder.finish()))
}

fn build(len: usize, values: impl Iterator<Item = Result<Option<uuid::Uuid>>>) -> Result<ArrayRef> {
    let mut builder = FixedSizeBinaryBuilder::with_capacity(len, 16);
    for value in values {
        match value? {
            Some(uuid) => builder.append_value(uuid.as_bytes())?,
            None => builder.append_null(),
        }
    }
    Ok(Arc::new(builder.finish()))
}

fn from_text(text: &str) -> Result<uuid::Uuid> {
    uuid::Uuid::parse_str(text.trim()).map_err(|_| {
        let shown: String = text.chars().take(64).collect();
        invalid(format!("\"{shown}\" is not a value of type UUID"))
    })
}

fn from_bytes(bytes: &[u8]) -> Result<uuid::Uuid> {
    uuid::Uuid::from_slice(bytes)
        .map_err(|_| invalid(format!("{} bytes are not a value of type UUID", bytes.len())))
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidArgument, SqlState::INVALID_TEXT_REPRESENTATION, message)
}

fn downcast<T: 'static>(array: &ArrayRef) -> Result<&T> {
    array
        .as_any()
        .downcast_ref::<T>()
        .ok_or_else(|| Error::internal(format!("a column has the unexpected type {}", array.data_type())))
}

/// `uuid(x)`: text or bytes to a UUID; `uuid_text(x)`: a UUID to text.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Convert {
    name: &'static str,
    to_text: bool,
    signature: Signature,
}

impl ScalarUDFImpl for Convert {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> DataFusionResult<DataType> {
        Ok(if self.to_text { DataType::Utf8 } else { UUID })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> DataFusionResult<ColumnarValue> {
        let convert = if self.to_text { format } else { parse };
        match args.args.first() {
            Some(ColumnarValue::Scalar(value)) => {
                let array = convert(&value.to_array()?)?;
                Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&array, 0)?))
            }
            Some(ColumnarValue::Array(array)) => Ok(ColumnarValue::Array(convert(array)?)),
            None => Err(Error::invalid(format!("{}() needs a value", self.name)).into()),
        }
    }
}

/// The function from text to UUID.
pub(crate) fn uuid_function() -> Arc<ScalarUDF> {
    convert("uuid", false)
}

fn text_function() -> Arc<ScalarUDF> {
    convert("uuid_text", true)
}

fn convert(name: &'static str, to_text: bool) -> Arc<ScalarUDF> {
    let signature = Signature::any(1, Volatility::Immutable);
    Arc::new(ScalarUDF::new_from_impl(Convert { name, to_text, signature }))
}

/// Both functions, to be registered.
pub(crate) fn functions() -> [Arc<ScalarUDF>; 2] {
    [uuid_function(), text_function()]
}

/// `expr` as a UUID, from text or already one.
pub(crate) fn to_uuid(expr: Expr) -> Expr {
    Expr::ScalarFunction(ScalarFunction::new_udf(uuid_function(), vec![expr]))
}

fn to_text(expr: Expr) -> Expr {
    Expr::ScalarFunction(ScalarFunction::new_udf(text_function(), vec![expr]))
}

/// The rewrite; it must run before type coercion.
#[derive(Debug)]
pub(crate) struct UuidRule;

impl AnalyzerRule for UuidRule {
    fn name(&self) -> &str {
        "kalam_uuid"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> DataFusionResult<LogicalPlan> {
        plan.transform_up_with_subqueries(|node| {
            let mut schema = DFSchema::empty();
            for input in node.inputs() {
                schema.merge(input.schema());
            }
            if let LogicalPlan::TableScan(scan) = &node {
                let full =
                    DFSchema::try_from_qualified_schema(scan.table_name.clone(), &scan.source.schema())?;
                schema.merge(&full);
            }
            if node.inputs().is_empty() && !matches!(node, LogicalPlan::TableScan(_) | LogicalPlan::Values(_))
            {
                return Ok(Transformed::no(node));
            }
            let names = NamePreserver::new(&node);
            node.map_expressions(|expr| {
                let name = names.save(&expr);
                let rewritten = expr.transform_up(|expr| Ok(rewrite(expr, &schema)))?;
                Ok(rewritten.update_data(|expr| name.restore(expr)))
            })
        })
        .map(|rewritten| rewritten.data)?
        .recompute_schema()
    }
}

fn rewrite(expr: Expr, schema: &DFSchema) -> Transformed<Expr> {
    let ty = |expr: &Expr| expr.get_type(schema).ok();
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) if is_comparison(op) => {
            let (left_ty, right_ty) = (ty(&left), ty(&right));
            if left_ty == Some(UUID) && is_text(right_ty.as_ref()) {
                return Transformed::yes(Expr::BinaryExpr(BinaryExpr::new(
                    left,
                    op,
                    Box::new(to_uuid(*right)),
                )));
            }
            if right_ty == Some(UUID) && is_text(left_ty.as_ref()) {
                return Transformed::yes(Expr::BinaryExpr(BinaryExpr::new(
                    Box::new(to_uuid(*left)),
                    op,
                    right,
                )));
            }
            Transformed::no(Expr::BinaryExpr(BinaryExpr { left, op, right }))
        }
        Expr::InList(InList { expr, list, negated }) if ty(&expr) == Some(UUID) => {
            let list =
                list.into_iter().map(|item| if is_text(ty(&item).as_ref()) { to_uuid(item) } else { item });
            Transformed::yes(Expr::InList(InList::new(expr, list.collect(), negated)))
        }
        Expr::Between(Between { expr, negated, low, high }) if ty(&expr) == Some(UUID) => {
            let bound = |bound: Box<Expr>| {
                if is_text(ty(&bound).as_ref()) { Box::new(to_uuid(*bound)) } else { bound }
            };
            let between = Between::new(expr, negated, bound(low), bound(high));
            Transformed::yes(Expr::Between(between))
        }
        Expr::Cast(Cast { expr, field }) => {
            let from = ty(&expr);
            if *field.data_type() == UUID && is_text(from.as_ref()) {
                return Transformed::yes(to_uuid(*expr));
            }
            if is_text(Some(field.data_type())) && from == Some(UUID) {
                return Transformed::yes(to_text(*expr));
            }
            Transformed::no(Expr::Cast(Cast { expr, field }))
        }
        other => Transformed::no(other),
    }
}

fn is_comparison(op: Operator) -> bool {
    matches!(
        op,
        Operator::Eq
            | Operator::NotEq
            | Operator::Lt
            | Operator::LtEq
            | Operator::Gt
            | Operator::GtEq
            | Operator::IsDistinctFrom
            | Operator::IsNotDistinctFrom
    )
}

fn is_text(ty: Option<&DataType>) -> bool {
    matches!(ty, Some(DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View))
}
