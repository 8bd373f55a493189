//! From filters to ranges of keys: equality on the first key columns, then on the next one values, a range or a beginning.
//!
//! Invariant: the ranges hold every row that all the filters accept. A filter reported `Exact` accepts every row in them, so
//! that nobody evaluates it again.

use std::collections::BTreeSet;

use datafusion::common::ScalarValue;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator, TableProviderFilterPushDown};

use crate::error::Result;
use crate::ids::{ScopeId, TableId};
use crate::schema_registry::TableDefinition;
use crate::storage::keys::{KeyEncoder, scope_prefix};
use crate::storage::{KeyRange, after_prefix};
use crate::types::ColumnType;

/// More ranges than this cost more than reading what lies between them.
const RANGES_MAX: usize = 4_096;

/// What filters say about keys.
#[derive(Debug)]
pub(super) struct KeyFilter {
    /// Ascending, without overlaps.
    pub(super) ranges: Vec<KeyRange>,
    /// How many of the first key columns have the same value in all ranges.
    pub(super) pinned: usize,
    /// For each filter, in the order given, what became of it.
    pub(super) uses: Vec<TableProviderFilterPushDown>,
}

/// Turns as many of `filters`, which all must hold, into key ranges of `scope` as possible.
pub(super) fn key_filter(definition: &TableDefinition, scope: ScopeId, filters: &[&Expr]) -> KeyFilter {
    let whole = || KeyFilter {
        ranges: vec![KeyRange::prefix(scope_prefix(definition.id, scope))],
        pinned: 0,
        uses: vec![TableProviderFilterPushDown::Unsupported; filters.len()],
    };
    let Ok(encoder) = KeyEncoder::new(&definition.key_types()) else {
        return whole();
    };
    if !definition.has_key() {
        return whole();
    }
    let plan = plan(definition, filters);
    // A literal longer than any key can be makes encoding fail; the filters then decide alone.
    match plan.ranges(&encoder, definition.id, scope) {
        Ok(ranges) => KeyFilter { ranges, pinned: plan.pinned(), uses: plan.uses },
        Err(_) => whole(),
    }
}

/// What one filter demands of one key column.
#[derive(Clone, Debug, PartialEq)]
enum Demand {
    /// One of these values; empty when no value will do.
    Values(Vec<ScalarValue>),
    /// At least, or more than when `false`.
    Low(ScalarValue, bool),
    /// At most, or less than when `false`.
    High(ScalarValue, bool),
    /// Both ends.
    Between(ScalarValue, ScalarValue),
    /// Text that begins so; whether that is all the filter demands.
    StartsWith(String, bool),
}

/// The demands chosen: values for the first columns, then at most one of the others.
struct Plan {
    values: Vec<Vec<ScalarValue>>,
    /// Whether there are values for every key column, so that each range is one key.
    is_whole_key: bool,
    last: Option<Last>,
    uses: Vec<TableProviderFilterPushDown>,
}

enum Last {
    Range { low: Option<(ScalarValue, bool)>, high: Option<(ScalarValue, bool)> },
    StartsWith(String),
}

fn plan(definition: &TableDefinition, filters: &[&Expr]) -> Plan {
    let keys: Vec<(&str, ColumnType)> =
        definition.key_columns().map(|column| (&*column.name, column.ty)).collect();
    let demands: Vec<Option<(usize, Demand)>> = filters.iter().map(|filter| demand(&keys, filter)).collect();
    let mut plan = Plan {
        values: Vec::new(),
        is_whole_key: false,
        last: None,
        uses: vec![TableProviderFilterPushDown::Unsupported; filters.len()],
    };
    let mut combinations = 1_usize;
    for (position, (_, ty)) in keys.iter().enumerate() {
        let of_column = || {
            let here = demands.iter().enumerate();
            here.filter_map(move |(filter, demand)| match demand {
                Some((column, demand)) if *column == position => Some((filter, demand)),
                _ => None,
            })
        };
        let values = of_column().find_map(|(filter, demand)| match demand {
            Demand::Values(values) => Some((filter, values)),
            _ => None,
        });
        if let Some((filter, values)) = values {
            combinations = combinations.saturating_mul(values.len());
            if combinations > RANGES_MAX {
                return plan;
            }
            plan.values.push(values.clone());
            plan.mark(filter, if is_float(*ty) { Exactness::Inexact } else { Exactness::Exact });
            continue;
        }
        // Stored order and comparison differ for NaN and for the two zeros.
        if !is_float(*ty) {
            plan.choose_last(of_column());
        }
        return plan;
    }
    plan.is_whole_key = true;
    plan
}

enum Exactness {
    Exact,
    Inexact,
}

impl Plan {
    fn mark(&mut self, filter: usize, exactness: Exactness) {
        if let Some(place) = self.uses.get_mut(filter) {
            *place = match exactness {
                Exactness::Exact => TableProviderFilterPushDown::Exact,
                Exactness::Inexact => TableProviderFilterPushDown::Inexact,
            };
        }
    }

    /// Of several demands of a kind the first is taken; the others stay filters.
    fn choose_last<'a>(&mut self, demands: impl Iterator<Item = (usize, &'a Demand)>) {
        let (mut low, mut high, mut start) = (None, None, None);
        for (filter, demand) in demands {
            match demand {
                Demand::Low(value, inclusive) if low.is_none() => low = Some((value.clone(), *inclusive)),
                Demand::High(value, inclusive) if high.is_none() => high = Some((value.clone(), *inclusive)),
                Demand::Between(from, to) if low.is_none() && high.is_none() => {
                    low = Some((from.clone(), true));
                    high = Some((to.clone(), true));
                }
                Demand::StartsWith(text, is_all) if start.is_none() && low.is_none() && high.is_none() => {
                    start = Some((filter, text.clone(), *is_all));
                    continue;
                }
                _ => continue,
            }
            self.mark(filter, Exactness::Exact);
        }
        // A beginning is only used where there is no range: one of the two is enough to narrow the scan.
        self.last = match (low, high, start) {
            (None, None, None) => None,
            (None, None, Some((filter, text, is_all))) => {
                self.mark(filter, if is_all { Exactness::Exact } else { Exactness::Inexact });
                Some(Last::StartsWith(text))
            }
            (low, high, _) => Some(Last::Range { low, high }),
        };
    }

    fn pinned(&self) -> usize {
        self.values.iter().take_while(|values| values.len() == 1).count()
    }

    fn ranges(&self, encoder: &KeyEncoder, table: TableId, scope: ScopeId) -> Result<Vec<KeyRange>> {
        let mut beginnings: Vec<Vec<ScalarValue>> = vec![Vec::new()];
        for values in &self.values {
            beginnings = beginnings
                .iter()
                .flat_map(|beginning| {
                    values.iter().map(move |value| beginning.iter().cloned().chain([value.clone()]).collect())
                })
                .collect();
        }
        // Equal keys have equal bytes: the set drops values named twice and brings the ranges into key order.
        let mut ranges = BTreeSet::new();
        for beginning in &beginnings {
            let prefix = encoder.encode_values(table, scope, beginning)?;
            if self.is_whole_key {
                let point = KeyRange::point(prefix);
                ranges.insert((point.start, point.end));
                continue;
            }
            let encode = |value: &ScalarValue| {
                let values: Vec<ScalarValue> = beginning.iter().cloned().chain([value.clone()]).collect();
                encoder.encode_values(table, scope, &values)
            };
            let (start, end) = match &self.last {
                None => {
                    let end = after_prefix(&prefix);
                    (prefix, end)
                }
                Some(Last::StartsWith(text)) => {
                    let start = encoder.encode_starts_with(table, scope, beginning, text.as_bytes())?;
                    let end = after_prefix(&start);
                    (start, end)
                }
                Some(Last::Range { low, high }) => {
                    let start = match low {
                        None => Some(prefix.clone()),
                        Some((value, true)) => Some(encode(value)?),
                        Some((value, false)) => after_prefix(&encode(value)?),
                    };
                    let end = match high {
                        None => after_prefix(&prefix),
                        Some((value, true)) => after_prefix(&encode(value)?),
                        Some((value, false)) => Some(encode(value)?),
                    };
                    // Nothing lies behind a prefix of 0xFF bytes only.
                    let Some(start) = start else { continue };
                    (start, end)
                }
            };
            if end.as_ref().is_none_or(|end| start < *end) {
                ranges.insert((start, end));
            }
        }
        Ok(ranges.into_iter().map(|(start, end)| KeyRange { start, end }).collect())
    }
}

fn is_float(ty: ColumnType) -> bool {
    matches!(ty, ColumnType::Real | ColumnType::Double)
}

/// Which key column a filter speaks about and what it demands; `None` for any other filter.
fn demand(keys: &[(&str, ColumnType)], filter: &Expr) -> Option<(usize, Demand)> {
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
            let (column, left) = demand(keys, left)?;
            let (other, right) = demand(keys, right)?;
            match (left, right) {
                (Demand::Values(left), Demand::Values(right)) if column == other => {
                    Some((column, Demand::Values(left.into_iter().chain(right).collect())))
                }
                _ => None,
            }
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
            let (column, left) = demand(keys, left)?;
            let (other, right) = demand(keys, right)?;
            match (left, right) {
                (Demand::Low(low, true), Demand::High(high, true))
                | (Demand::High(high, true), Demand::Low(low, true))
                    if column == other =>
                {
                    Some((column, Demand::Between(low, high)))
                }
                _ => None,
            }
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => match (&**left, &**right) {
            (Expr::Column(_), Expr::Literal(value, _)) => compared(key_column(keys, left)?, *op, value),
            (Expr::Literal(value, _), Expr::Column(_)) => {
                compared(key_column(keys, right)?, op.swap()?, value)
            }
            _ => None,
        },
        Expr::InList(list) if !list.negated => {
            let (position, ty) = key_column(keys, &list.expr)?;
            let mut values = Vec::with_capacity(list.list.len());
            for item in &list.list {
                let Expr::Literal(value, _) = item else { return None };
                // A comparison with NULL is never true.
                if !value.is_null() {
                    values.push(key_value(ty, value)?);
                }
            }
            Some((position, Demand::Values(values)))
        }
        Expr::Between(between) if !between.negated => {
            let (position, ty) = key_column(keys, &between.expr)?;
            let (Expr::Literal(low, _), Expr::Literal(high, _)) = (&*between.low, &*between.high) else {
                return None;
            };
            Some((position, Demand::Between(key_value(ty, low)?, key_value(ty, high)?)))
        }
        Expr::Like(like) if !like.negated && !like.case_insensitive && like.escape_char.is_none() => {
            let (position, ColumnType::Text) = key_column(keys, &like.expr)? else { return None };
            let Expr::Literal(pattern, _) = &*like.pattern else { return None };
            let (start, is_all) = pattern_start(pattern.try_as_str()??)?;
            Some((position, Demand::StartsWith(start.to_owned(), is_all)))
        }
        Expr::ScalarFunction(call) if call.name() == "starts_with" => {
            let [text, Expr::Literal(start, _)] = call.args.as_slice() else { return None };
            let (position, ColumnType::Text) = key_column(keys, text)? else { return None };
            Some((position, Demand::StartsWith(start.try_as_str()??.to_owned(), true)))
        }
        Expr::Column(_) => boolean(keys, filter, true),
        Expr::Not(column) => boolean(keys, column, false),
        _ => None,
    }
}

fn boolean(keys: &[(&str, ColumnType)], column: &Expr, value: bool) -> Option<(usize, Demand)> {
    let (position, ColumnType::Boolean) = key_column(keys, column)? else { return None };
    Some((position, Demand::Values(vec![ScalarValue::Boolean(Some(value))])))
}

fn compared(
    (position, ty): (usize, ColumnType),
    op: Operator,
    value: &ScalarValue,
) -> Option<(usize, Demand)> {
    let value = key_value(ty, value)?;
    let demand = match op {
        Operator::Eq => Demand::Values(vec![value]),
        Operator::Gt => Demand::Low(value, false),
        Operator::GtEq => Demand::Low(value, true),
        Operator::Lt => Demand::High(value, false),
        Operator::LtEq => Demand::High(value, true),
        _ => return None,
    };
    Some((position, demand))
}

fn key_column(keys: &[(&str, ColumnType)], expr: &Expr) -> Option<(usize, ColumnType)> {
    let Expr::Column(column) = expr else { return None };
    keys.iter()
        .enumerate()
        .find(|(_, (name, _))| *name == column.name)
        .map(|(position, (_, ty))| (position, *ty))
}

/// A literal in the column's own type; `None` when the comparison is one of another type, or with NULL or NaN.
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
        // Instants are instants, whatever zone they are shown in.
        (ColumnType::TimestampTz, ScalarValue::TimestampMicrosecond(Some(instant), Some(_))) => {
            Some(ScalarValue::TimestampMicrosecond(Some(*instant), Some("UTC".into())))
        }
        (_, ScalarValue::Float32(Some(number))) if number.is_nan() => None,
        (_, ScalarValue::Float64(Some(number))) if number.is_nan() => None,
        (_, value) if value.data_type() == ty.arrow() => Some(value.clone()),
        _ => None,
    }
}

/// The literal beginning of a LIKE pattern, and whether the pattern demands nothing more.
fn pattern_start(pattern: &str) -> Option<(&str, bool)> {
    let end = pattern.find(['%', '_', '\\'])?;
    let (start, rest) = pattern.split_at_checked(end)?;
    if start.is_empty() { None } else { Some((start, rest == "%")) }
}

#[cfg(test)]
#[path = "key_filter_tests.rs"]
mod tests;
