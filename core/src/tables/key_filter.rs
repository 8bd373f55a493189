//! Converts filters to key ranges: values of the leading key columns, and an interval of the next one.
//!
//! The constraints on a column are combined as key bytes: value lists and intervals are intersected.
//!
//! Invariant: the ranges contain every row that all filters accept, and each filter reported `Exact` accepts
//! every row in them. The optimizer asks repeatedly about subsets of the filters and passes all pushed-down
//! filters to the scan together. So a filter that is `Exact` in one set must be `Exact` in every larger set:
//! a further constraint only removes values from a used column, and then the columns after it stay used.

use datafusion::common::ScalarValue;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator, TableProviderFilterPushDown};

use crate::error::ErrorKind;
use crate::failpoint::is_planted;
use crate::ids::ScopeId;
use crate::schema_registry::TableDefinition;
use crate::storage::keys::{KEY_BYTES_MAX, KeyEncoder, scope_prefix};
use crate::storage::{KeyRange, after_prefix};
use crate::types::ColumnType;

/// With more ranges than this, reading the keys between them is cheaper.
const RANGES_MAX: usize = 4_096;

/// The key ranges that filters select.
#[derive(Debug)]
pub(super) struct KeyFilter {
    /// Ascending and disjoint.
    pub(super) ranges: Vec<KeyRange>,
    /// How many leading key columns have the same value in all ranges.
    pub(super) pinned: usize,
    /// The pushdown of each filter, in the given order.
    pub(super) uses: Vec<TableProviderFilterPushDown>,
}

/// Converts as many of `filters`, which must all hold, to key ranges of `scope` as possible.
pub(super) fn key_filter(definition: &TableDefinition, scope: ScopeId, filters: &[&Expr]) -> KeyFilter {
    let prefix = scope_prefix(definition.id, scope);
    match KeyEncoder::new(&definition.key_types()) {
        Ok(encoder) if definition.has_key() => {
            let columns = KeyColumns {
                columns: definition.key_columns().map(|column| (&*column.name, column.ty)).collect(),
                encoder,
            };
            let plan = Plan::new(&columns, filters);
            KeyFilter { ranges: plan.ranges(&prefix), pinned: plan.pinned(), uses: plan.uses }
        }
        _ => KeyFilter {
            ranges: vec![KeyRange::prefix(prefix)],
            pinned: 0,
            uses: vec![TableProviderFilterPushDown::Unsupported; filters.len()],
        },
    }
}

/// The constraint of one filter on one key column.
#[derive(Clone, Debug)]
struct KeyConstraint {
    /// The position of the column in the key.
    column: usize,
    allowed: Allowed,
    /// Whether the filter requires nothing else.
    is_all: bool,
}

impl KeyConstraint {
    /// A constraint that no key satisfies.
    const NEVER: Self = Self { column: 0, allowed: Allowed::Values(Vec::new()), is_all: true };

    fn is_never(&self) -> bool {
        matches!(&self.allowed, Allowed::Values(values) if values.is_empty())
    }
}

/// Values of a key column, as their bytes in a key.
#[derive(Clone, Debug)]
enum Allowed {
    /// These values, ascending and distinct; empty when no value is allowed.
    Values(Vec<Vec<u8>>),
    /// The values in the range.
    Interval(KeyRange),
}

impl Allowed {
    /// Intersects two sets of values. The result needs at most as many ranges as either of them.
    fn intersect(self, other: &Self) -> Self {
        match (self, other) {
            (Self::Values(mut values), Self::Values(others)) => {
                values.retain(|value| others.binary_search(value).is_ok());
                Self::Values(values)
            }
            (Self::Values(mut values), Self::Interval(interval)) => {
                values.retain(|value| interval.contains(value));
                Self::Values(values)
            }
            (Self::Interval(interval), Self::Values(values)) => {
                Self::Values(values.iter().filter(|value| interval.contains(value)).cloned().collect())
            }
            (Self::Interval(interval), Self::Interval(other)) => Self::Interval(interval.intersect(other)),
        }
    }
}

/// The constraints in use: values of the leading columns, then at most one interval.
struct Plan {
    values: Vec<Vec<Vec<u8>>>,
    interval: Option<KeyRange>,
    /// Whether every key column has values, so that each range is one key.
    is_whole_key: bool,
    uses: Vec<TableProviderFilterPushDown>,
}

impl Plan {
    fn new(columns: &KeyColumns<'_>, filters: &[&Expr]) -> Self {
        let constraints: Vec<Option<KeyConstraint>> =
            filters.iter().map(|filter| columns.constraint(filter)).collect();
        let mut plan = Self {
            values: Vec::new(),
            interval: None,
            is_whole_key: false,
            uses: vec![TableProviderFilterPushDown::Unsupported; filters.len()],
        };
        let mut combinations = 1_usize;
        for (position, (_, ty)) in columns.columns.iter().enumerate() {
            let here = || constraints.iter().flatten().filter(|constraint| constraint.column == position);
            let Some(first) = here().next() else { return plan };
            let allowed = here()
                .skip(1)
                .fold(first.allowed.clone(), |all, constraint| all.intersect(&constraint.allowed));
            if let Allowed::Values(values) = &allowed {
                combinations = combinations.saturating_mul(values.len());
                if combinations > RANGES_MAX {
                    return plan;
                }
            }
            plan.mark(position, *ty, &constraints);
            match allowed {
                Allowed::Values(values) => plan.values.push(values),
                Allowed::Interval(interval) => {
                    plan.interval = Some(interval);
                    return plan;
                }
            }
        }
        plan.is_whole_key = true;
        plan
    }

    /// Marks all constraints on the column at `position` as used.
    fn mark(&mut self, position: usize, ty: ColumnType, constraints: &[Option<KeyConstraint>]) {
        for (used, constraint) in self.uses.iter_mut().zip(constraints) {
            let Some(constraint) = constraint.as_ref().filter(|constraint| constraint.column == position)
            else {
                continue;
            };
            // Stored order and comparison differ for NaN and the two zeros.
            *used = if constraint.is_all && !is_float(ty) {
                TableProviderFilterPushDown::Exact
            } else {
                TableProviderFilterPushDown::Inexact
            };
        }
    }

    fn pinned(&self) -> usize {
        self.values.iter().take_while(|values| values.len() == 1).count()
    }

    /// Returns the ranges in key order: the values are sorted, and none is a prefix of another.
    fn ranges(&self, scope: &[u8]) -> Vec<KeyRange> {
        let mut beginnings = vec![scope.to_vec()];
        for values in &self.values {
            beginnings = beginnings
                .iter()
                .flat_map(|beginning| values.iter().map(move |value| joined(beginning, value)))
                // No stored key is that long.
                .filter(|beginning| beginning.len() <= KEY_BYTES_MAX)
                .collect();
        }
        let range = |beginning: Vec<u8>| match &self.interval {
            _ if self.is_whole_key => KeyRange::point(beginning),
            None => KeyRange::prefix(beginning),
            Some(interval) => KeyRange {
                start: joined(&beginning, &interval.start),
                end: match &interval.end {
                    Some(end) => Some(joined(&beginning, end)),
                    None => after_prefix(&beginning),
                },
            },
        };
        beginnings.into_iter().map(range).filter(|range| !range.is_empty()).collect()
    }
}

fn joined(beginning: &[u8], value: &[u8]) -> Vec<u8> {
    [beginning, value].concat()
}

fn is_float(ty: ColumnType) -> bool {
    matches!(ty, ColumnType::Real | ColumnType::Double)
}

/// The columns that filters can constrain, in key order.
struct KeyColumns<'a> {
    columns: Vec<(&'a str, ColumnType)>,
    encoder: KeyEncoder,
}

impl KeyColumns<'_> {
    /// Returns the constraint of a filter on a key column, if any; it depends only on the filter itself.
    fn constraint(&self, filter: &Expr) -> Option<KeyConstraint> {
        match filter {
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => self.either(left, right),
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => self.both(left, right),
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => match (&**left, &**right) {
                (Expr::Column(_), Expr::Literal(value, _)) => self.compared(left, *op, value),
                (Expr::Literal(value, _), Expr::Column(_)) => self.compared(right, op.swap()?, value),
                _ => None,
            },
            // The optimizer may replace a part of a filter by a constant.
            Expr::Literal(ScalarValue::Boolean(None | Some(false)) | ScalarValue::Null, _) => {
                Some(KeyConstraint::NEVER)
            }
            Expr::InList(list) if !list.negated => {
                let (column, ty) = self.column(&list.expr)?;
                let mut values = Vec::with_capacity(list.list.len());
                for item in &list.list {
                    let Expr::Literal(value, _) = item else { return None };
                    // A comparison with NULL is never true.
                    if !value.is_null() {
                        values.push(key_value(ty, value)?);
                    }
                }
                self.values(column, &values)
            }
            Expr::Between(between) if !between.negated => {
                let (Expr::Literal(low, _), Expr::Literal(high, _)) = (&*between.low, &*between.high) else {
                    return None;
                };
                let low = self.compared(&between.expr, Operator::GtEq, low)?;
                let high = self.compared(&between.expr, Operator::LtEq, high)?;
                Some(KeyConstraint { allowed: low.allowed.intersect(&high.allowed), ..low })
            }
            Expr::Like(like) if !like.negated && !like.case_insensitive && like.escape_char.is_none() => {
                let Expr::Literal(pattern, _) = &*like.pattern else { return None };
                let (start, is_all) = pattern_start(pattern.try_as_str()??)?;
                self.starts_with(&like.expr, start, is_all)
            }
            Expr::ScalarFunction(call) if call.name() == "starts_with" => {
                let [text, Expr::Literal(start, _)] = call.args.as_slice() else { return None };
                self.starts_with(text, start.try_as_str()??, true)
            }
            Expr::Column(_) => self.boolean(filter, true),
            Expr::Not(column) => self.boolean(column, false),
            _ => None,
        }
    }

    fn either(&self, left: &Expr, right: &Expr) -> Option<KeyConstraint> {
        let (left, right) = (self.constraint(left)?, self.constraint(right)?);
        let is_all = left.is_all && right.is_all;
        if left.is_never() || right.is_never() {
            let other = if left.is_never() { right } else { left };
            return Some(KeyConstraint { is_all, ..other });
        }
        match (left.allowed, right.allowed) {
            (Allowed::Values(mut values), Allowed::Values(others)) if left.column == right.column => {
                values.extend(others);
                Some(KeyConstraint { column: left.column, allowed: sorted(values), is_all })
            }
            _ => None,
        }
    }

    fn both(&self, left: &Expr, right: &Expr) -> Option<KeyConstraint> {
        let is_true = |expr: &Expr| matches!(expr, Expr::Literal(ScalarValue::Boolean(Some(true)), _));
        if is_true(left) || is_true(right) {
            return self.constraint(if is_true(left) { right } else { left });
        }
        let (left, right) = (self.constraint(left)?, self.constraint(right)?);
        if left.is_never() || right.is_never() {
            return Some(KeyConstraint::NEVER);
        }
        let is_all = left.is_all && right.is_all;
        (left.column == right.column).then(|| KeyConstraint {
            column: left.column,
            allowed: left.allowed.intersect(&right.allowed),
            is_all,
        })
    }

    fn boolean(&self, column: &Expr, value: bool) -> Option<KeyConstraint> {
        let (column, ColumnType::Boolean) = self.column(column)? else { return None };
        self.values(column, &[ScalarValue::Boolean(Some(value))])
    }

    fn compared(&self, column: &Expr, op: Operator, value: &ScalarValue) -> Option<KeyConstraint> {
        let (column, ty) = self.column(column)?;
        let is_ordering = matches!(
            op,
            Operator::Eq | Operator::NotEq | Operator::Lt | Operator::LtEq | Operator::Gt | Operator::GtEq
        );
        if value.is_null() && is_ordering {
            return Some(KeyConstraint::NEVER);
        }
        let value = key_value(ty, value)?;
        if op == Operator::Eq {
            return self.values(column, &[value]);
        }
        if is_float(ty) {
            return None;
        }
        // A bound that is too long for a key stays a filter.
        let bytes = self.encoder.encode_column(column, &value).ok()?;
        let interval = match op {
            Operator::Gt => KeyRange { start: after_prefix(&bytes)?, end: None },
            Operator::GtEq if is_planted("key_bounds_are_open") => {
                KeyRange { start: after_prefix(&bytes)?, end: None }
            }
            Operator::GtEq => KeyRange { start: bytes, end: None },
            Operator::Lt => KeyRange { start: Vec::new(), end: Some(bytes) },
            Operator::LtEq => KeyRange { start: Vec::new(), end: Some(after_prefix(&bytes)?) },
            _ => return None,
        };
        Some(KeyConstraint { column, allowed: Allowed::Interval(interval), is_all: true })
    }

    fn starts_with(&self, column: &Expr, start: &str, is_all: bool) -> Option<KeyConstraint> {
        let (column, ColumnType::Text) = self.column(column)? else { return None };
        let start = self.encoder.encode_column_start(column, start.as_bytes()).ok()?;
        Some(KeyConstraint { column, allowed: Allowed::Interval(KeyRange::prefix(start)), is_all })
    }

    fn values(&self, column: usize, values: &[ScalarValue]) -> Option<KeyConstraint> {
        let mut encoded = Vec::with_capacity(values.len());
        for value in values {
            match self.encoder.encode_column(column, value) {
                Ok(bytes) => encoded.push(bytes),
                // No key contains a value that is too long.
                Err(error) if error.kind() == ErrorKind::ResourceExhausted => {}
                Err(_) => return None,
            }
        }
        Some(KeyConstraint { column, allowed: sorted(encoded), is_all: true })
    }

    fn column(&self, expr: &Expr) -> Option<(usize, ColumnType)> {
        let Expr::Column(column) = expr else { return None };
        self.columns
            .iter()
            .enumerate()
            .find(|(_, (name, _))| *name == column.name)
            .map(|(position, (_, ty))| (position, *ty))
    }
}

/// Equal values have equal bytes.
fn sorted(mut values: Vec<Vec<u8>>) -> Allowed {
    values.sort_unstable();
    values.dedup();
    Allowed::Values(values)
}

/// Returns a literal in the column's own type; `None` for a comparison in another type or with NULL or NaN.
fn key_value(ty: ColumnType, value: &ScalarValue) -> Option<ScalarValue> {
    if value.is_null() {
        return None;
    }
    match (ty, value) {
        (ColumnType::Text, value) => Some(ScalarValue::Utf8(Some(value.try_as_str()??.to_owned()))),
        (
            ColumnType::Bytes,
            ScalarValue::Binary(bytes) | ScalarValue::LargeBinary(bytes) | ScalarValue::BinaryView(bytes),
        ) => Some(ScalarValue::Binary(bytes.clone())),
        // An instant does not depend on the zone in which it is shown.
        (ColumnType::TimestampTz, ScalarValue::TimestampMicrosecond(Some(instant), Some(_))) => {
            Some(ScalarValue::TimestampMicrosecond(Some(*instant), Some("UTC".into())))
        }
        (_, ScalarValue::Float32(Some(number))) if number.is_nan() => None,
        (_, ScalarValue::Float64(Some(number))) if number.is_nan() => None,
        (_, value) if value.data_type() == ty.arrow() => Some(value.clone()),
        _ => None,
    }
}

/// Returns the literal prefix of a LIKE pattern, and whether the pattern requires nothing more.
fn pattern_start(pattern: &str) -> Option<(&str, bool)> {
    let end = pattern.find(['%', '_', '\\'])?;
    let (start, rest) = pattern.split_at_checked(end)?;
    if start.is_empty() { None } else { Some((start, rest == "%")) }
}

#[cfg(test)]
mod tests;
