//! Refuses comparisons of types without an operator in PostgreSQL, before type coercion finds one.
//!
//! DataFusion compares a number with text as text, fails with an internal error for BYTES beside a number in
//! BETWEEN, and else returns whatever a cast yields. A string literal or NULL takes the other side's type.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::functions_nested::expr_fn::array_element;
use datafusion::logical_expr::expr::{BinaryExpr, InSubquery, Like, SetComparison};
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr, RawFieldAccessExpr};
use datafusion::logical_expr::{Expr, GetFieldAccess, LogicalPlan, Operator, Subquery, lit, when};
use datafusion::sql::sqlparser::ast::BinaryOperator;

use super::super::multisets::is_set_operation;
use super::super::walk::type_of;
use super::kinds::{UNIFORM, is_comparison};
use super::operands::{type_literal, type_operand};
use super::unification::unify_elements;
use crate::casts::{UUID, is_decimal, is_text};
use crate::error::{Error, ErrorKind, SqlState};

/// Types that have operators with one another.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Boolean,
    Number,
    Text,
    Bytes,
    /// Dates and both kinds of timestamps.
    Date,
    /// Intervals, and times of day, which are intervals since midnight.
    Interval,
    Uuid,
}

/// The family of a type; `None` for lists and other types that are not checked here.
fn family(ty: &DataType) -> Option<Family> {
    Some(match ty {
        DataType::Boolean => Family::Boolean,
        ty if ty.is_numeric() => Family::Number,
        ty if is_text(ty) => Family::Text,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => Family::Bytes,
        DataType::Date32 | DataType::Date64 | DataType::Timestamp(..) => Family::Date,
        DataType::Time32(_) | DataType::Time64(_) | DataType::Interval(_) | DataType::Duration(_) => {
            Family::Interval
        }
        ty if *ty == UUID => Family::Uuid,
        _ => return None,
    })
}

/// Returns the SQL name of a type.
pub(super) fn sql_name(ty: &DataType) -> &'static str {
    match ty {
        DataType::Boolean => "BOOLEAN",
        DataType::Int8 | DataType::UInt8 | DataType::Int16 => "SMALLINT",
        DataType::UInt16 | DataType::Int32 => "INTEGER",
        DataType::UInt32 | DataType::Int64 => "BIGINT",
        DataType::Float16 | DataType::Float32 => "REAL",
        DataType::Float64 => "DOUBLE",
        ty if is_decimal(ty) || *ty == DataType::UInt64 => "DECIMAL",
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "BYTES",
        DataType::Date32 | DataType::Date64 => "DATE",
        DataType::Time32(_) | DataType::Time64(_) => "TIME",
        DataType::Timestamp(_, None) => "TIMESTAMP",
        DataType::Timestamp(_, Some(_)) => "TIMESTAMPTZ",
        DataType::Interval(_) | DataType::Duration(_) => "INTERVAL",
        ty if *ty == UUID => "UUID",
        _ => "TEXT",
    }
}

/// Refuses comparisons without an operator while an operator is planned: the planner asks for the type of a
/// select list's column right then, and its own error does not name the types.
#[derive(Debug)]
pub(in crate::sql::workarounds) struct Operators;

impl ExprPlanner for Operators {
    fn plan_binary_op(
        &self,
        mut expr: RawBinaryExpr,
        schema: &DFSchema,
    ) -> Result<PlannerResult<RawBinaryExpr>> {
        let op = match expr.op {
            BinaryOperator::Eq => "=",
            BinaryOperator::NotEq => "<>",
            BinaryOperator::Lt => "<",
            BinaryOperator::LtEq => "<=",
            BinaryOperator::Gt => ">",
            BinaryOperator::GtEq => ">=",
            _ => {
                type_operand(&expr.op, &mut expr.left, &mut expr.right, schema)?;
                return Ok(PlannerResult::Original(expr));
            }
        };
        judge(known_type(&expr.left, schema), op, known_type(&expr.right, schema))?;
        type_literal(&mut expr.left, &mut expr.right, schema)?;
        Ok(PlannerResult::Original(expr))
    }

    fn plan_array_literal(
        &self,
        mut exprs: Vec<Expr>,
        schema: &DFSchema,
    ) -> Result<PlannerResult<Vec<Expr>>> {
        unify_elements(&mut exprs, schema)?;
        Ok(PlannerResult::Original(exprs))
    }

    /// Returns NULL for subscripts below 1; DataFusion counts from the end there.
    fn plan_field_access(
        &self,
        expr: RawFieldAccessExpr,
        schema: &DFSchema,
    ) -> Result<PlannerResult<RawFieldAccessExpr>> {
        if !type_of(&expr.expr, schema).is_some_and(|ty| ty.is_list()) {
            return Ok(PlannerResult::Original(expr));
        }
        let RawFieldAccessExpr { field_access: GetFieldAccess::ListIndex { key }, expr: array } = expr else {
            return Ok(PlannerResult::Original(expr));
        };
        let position = match *key {
            Expr::Literal(ScalarValue::Int64(Some(position)), _) => lit(position.max(0)),
            position => when(position.clone().gt_eq(lit(1_i64)), position).otherwise(lit(0_i64))?,
        };
        Ok(PlannerResult::Planned(array_element(array, position)))
    }
}

/// Refuses an expression that compares types without an operator.
///
/// # Errors
/// 42883 with the operator and both types; 0A000 for LIKE over BYTES, which PostgreSQL supports.
pub(in crate::sql::workarounds) fn check(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let type_of = |expr: &Expr| known_type(expr, schema);
    match &expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) if is_comparison(*op) => {
            let op = if *op == Operator::NotEq { "<>" } else { &op.to_string() };
            judge(type_of(left), op, type_of(right))?;
        }
        Expr::Between(between) => {
            judge(type_of(&between.expr), ">=", type_of(&between.low))?;
            judge(type_of(&between.expr), "<=", type_of(&between.high))?;
        }
        Expr::InList(list) => {
            let first = type_of(&list.expr);
            list.list.iter().try_for_each(|item| judge(first.clone(), "=", type_of(item)))?;
        }
        Expr::Case(case) => {
            if let Some(operand) = &case.expr {
                let first = type_of(operand);
                case.when_then_expr
                    .iter()
                    .try_for_each(|(when, _)| judge(first.clone(), "=", type_of(when)))?;
            }
        }
        Expr::ScalarFunction(call) if call.func.name() == "nullif" => {
            if let [left, right] = call.args.as_slice() {
                judge(type_of(left), "=", type_of(right))?;
            }
        }
        Expr::InSubquery(InSubquery { expr, subquery, .. }) => {
            judge(type_of(expr), "=", first_column(subquery))?;
        }
        Expr::SetComparison(SetComparison { expr, subquery, op, .. }) => {
            judge(type_of(expr), &op.to_string(), first_column(subquery))?;
        }
        Expr::Like(like) => {
            let op = if like.case_insensitive { "ILIKE" } else { "LIKE" };
            if let Some(ty) = type_of(&like.expr)
                && !matches!(family(&ty), None | Some(Family::Text | Family::Bytes))
            {
                return Err(no_operator(&ty, op, &DataType::Utf8).into());
            }
            refuse_bytes(like, schema)?;
        }
        Expr::SimilarTo(like) => refuse_bytes(like, schema)?,
        _ => {}
    }
    Ok(Transformed::no(expr))
}

/// Refuses LIKE over BYTES; DataFusion would match the text form of the bytes.
fn refuse_bytes(like: &Like, schema: &DFSchema) -> Result<()> {
    let is_bytes = |part: &Expr| type_of(part, schema) == Some(DataType::Binary);
    if !is_bytes(&like.expr) && !is_bytes(&like.pattern) {
        return Ok(());
    }
    Err(Error::unsupported("LIKE over BYTES")
        .hint("compare with =, or decode the bytes to text first")
        .into())
}

/// Refuses a join whose keys cannot be compared.
///
/// # Errors
/// As [`check`].
pub(in crate::sql::workarounds) fn check_keys(node: &LogicalPlan) -> Result<()> {
    let LogicalPlan::Join(join) = node else { return Ok(()) };
    // INTERSECT and EXCEPT cast their columns to a common type, as UNION does.
    if is_set_operation(join) {
        return Ok(());
    }
    join.on.iter().try_for_each(|(left, right)| {
        judge(known_type(left, join.left.schema()), "=", known_type(right, join.right.schema()))
    })
}

fn first_column(subquery: &Subquery) -> Option<DataType> {
    subquery.subquery.schema().fields().first().map(|field| field.data_type().clone())
}

/// The type of an expression; `None` if it has none yet, or takes the type of the other side.
fn known_type(expr: &Expr, schema: &DFSchema) -> Option<DataType> {
    if takes_any_type(expr) { None } else { type_of(expr, schema) }
}

/// Whether an expression is a string literal or NULL, or a choice that includes one.
fn takes_any_type(expr: &Expr) -> bool {
    match expr {
        Expr::Literal(value, _) => value.is_null() || is_text(&value.data_type()),
        Expr::Alias(alias) => takes_any_type(&alias.expr),
        Expr::Case(case) => {
            let thens = case.when_then_expr.iter().map(|(_, then)| then);
            thens.chain(&case.else_expr).any(|branch| takes_any_type(branch))
        }
        Expr::ScalarFunction(call) if UNIFORM.contains(&call.func.name()) => {
            call.args.iter().any(takes_any_type)
        }
        _ => false,
    }
}

fn judge(left: Option<DataType>, op: &str, right: Option<DataType>) -> Result<()> {
    let (Some(left), Some(right)) = (left, right) else { return Ok(()) };
    match (family(&left), family(&right)) {
        (Some(one), Some(other)) if one != other => Err(no_operator(&left, op, &right).into()),
        _ => Ok(()),
    }
}

fn no_operator(left: &DataType, op: &str, right: &DataType) -> Error {
    let (left, right) = (sql_name(left), sql_name(right));
    Error::new(
        ErrorKind::InvalidSql,
        SqlState::UNDEFINED_FUNCTION,
        format!("operator does not exist: {left} {op} {right}"),
    )
    .hint("cast one side to the type of the other: CAST(... AS type)")
}
