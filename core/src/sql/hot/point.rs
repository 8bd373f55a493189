//! SELECT of one row by its whole primary key.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use datafusion::arrow::datatypes::{Field, FieldRef, Schema};
use datafusion::common::ScalarValue;
use datafusion::sql::sqlparser::ast::{self, BinaryOperator, Expr, SelectItem, SetExpr, TableFactor};
use parking_lot::Mutex;

use super::{Operand, operand};
use crate::error::Result;
use crate::schema_registry::{TableDefinition, TableKind};
use crate::sql::execution::Execution;
use crate::sql::handlers::insert::is_bare;
use crate::sql::plan::parameter_types::cast;
use crate::sql::result::{ResultSchema, RowStream};
use crate::sql::syntax_tree::fold;
use crate::sql::text::cursor::{QualifiedName, qualified};
use crate::tables::{PointReader, RowSchema};
use crate::types::ColumnType;

/// `SELECT columns FROM table WHERE key = value AND ...`.
pub(in crate::sql) struct Point {
    table: QualifiedName,
    /// `None` for `*`.
    columns: Option<Vec<String>>,
    conditions: Vec<(String, Operand)>,
    compiled: Mutex<Option<Arc<CompiledPoint>>>,
}

struct CompiledPoint {
    definition: Arc<TableDefinition>,
    reader: Arc<PointReader>,
    /// The type and the operand of each key column, in key order.
    key: Vec<(ColumnType, Operand)>,
    /// Positions of the result's columns; `None` for all.
    projection: Option<Vec<usize>>,
    schema: ResultSchema,
}

impl Point {
    pub(super) fn of(query: &ast::Query) -> Option<Self> {
        let SetExpr::Select(select) = &*query.body else { return None };
        if !is_bare(query) || !has_only_a_condition(select) {
            return None;
        }
        let [from] = select.from.as_slice() else { return None };
        let TableFactor::Table {
            name,
            alias: None,
            args: None,
            version: None,
            with_ordinality: false,
            sample: None,
            json_path: None,
            with_hints,
            partitions,
            index_hints,
        } = &from.relation
        else {
            return None;
        };
        if !from.joins.is_empty()
            || !with_hints.is_empty()
            || !partitions.is_empty()
            || !index_hints.is_empty()
        {
            return None;
        }
        let mut conditions = Vec::new();
        conjunction(select.selection.as_ref()?, &mut conditions)?;
        let columns = columns_of(&select.projection)?;
        Some(Self { table: qualified(name, "table").ok()?, columns, conditions, compiled: Mutex::default() })
    }

    /// Returns the memory that the shape takes without what is compiled, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let columns = self.columns.iter().flatten().map(|name| size_of::<String>() + name.capacity());
        let conditions = self.conditions.iter();
        let conditions = conditions.map(|(name, value)| size_of::<String>() + name.capacity() + value.size());
        size_of::<Self>() + columns.sum::<usize>() + conditions.sum::<usize>()
    }

    fn compile(&self, execution: &Execution, definition: &Arc<TableDefinition>) -> Option<CompiledPoint> {
        if definition.kind == TableKind::System || self.conditions.len() != definition.primary_key.len() {
            return None;
        }
        let key = definition
            .key_columns()
            .map(|column| {
                let (_, operand) = self.conditions.iter().find(|(name, _)| **name == *column.name)?;
                Some((column.ty, operand.clone()))
            })
            .collect::<Option<Vec<_>>>()?;
        let schemas = execution.schemas(definition);
        let projection = match &self.columns {
            None => None,
            Some(names) => {
                let positions = names
                    .iter()
                    .map(|name| definition.columns.iter().position(|column| *column.name == **name))
                    .collect::<Option<Vec<_>>>()?;
                // The planned path handles columns that are selected twice.
                let distinct: std::collections::HashSet<_> = positions.iter().collect();
                if distinct.len() != positions.len() {
                    return None;
                }
                (!positions.iter().copied().eq(0..definition.columns.len())).then_some(positions)
            }
        };
        let schema = match &projection {
            None => ResultSchema { schema: Arc::clone(&schemas.visible), ipc: Some(schemas.visible_ipc()) },
            Some(positions) => {
                // The planned path announces selected columns as nullable.
                let nullable = |field: &FieldRef| Arc::new(Field::clone(field).with_nullable(true));
                let fields =
                    positions.iter().map(|position| schemas.visible.fields().get(*position).map(nullable));
                ResultSchema { schema: Arc::new(Schema::new(fields.collect::<Option<Vec<_>>>()?)), ipc: None }
            }
        };
        let reader = Arc::new(PointReader::new(schemas, RowSchema::Visible).ok()?);
        Some(CompiledPoint { definition: Arc::clone(definition), reader, key, projection, schema })
    }

    fn compiled(
        &self,
        execution: &Execution,
        definition: &Arc<TableDefinition>,
    ) -> Option<Arc<CompiledPoint>> {
        let known = self.compiled.lock().as_ref().map(Arc::clone);
        if let Some(compiled) = known
            && Arc::ptr_eq(&compiled.definition, definition)
        {
            return Some(compiled);
        }
        let fresh = Arc::new(self.compile(execution, definition)?);
        *self.compiled.lock() = Some(Arc::clone(&fresh));
        Some(fresh)
    }

    pub(super) async fn read(
        &self,
        execution: &Execution,
        params: &[ScalarValue],
    ) -> Result<Option<RowStream>> {
        // The planned path reports missing tables and rights.
        let Ok(definition) = execution.readable(&self.table) else { return Ok(None) };
        let Some(compiled) = self.compiled(execution, definition) else { return Ok(None) };
        let key = compiled
            .key
            .iter()
            .map(|(ty, operand)| key_value(*ty, operand, params))
            .collect::<Option<Vec<_>>>();
        let Some(key) = key else { return Ok(None) };
        let scope = definition.scope_for(execution.principal.user_id);
        let batch = compiled.reader.read(&execution.snapshot, None, scope, &key, execution.now_us).await?;
        let batch = match &compiled.projection {
            None => batch,
            Some(positions) => {
                let columns: Option<Vec<ArrayRef>> =
                    positions.iter().map(|position| batch.columns().get(*position).map(Arc::clone)).collect();
                let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
                let schema = Arc::clone(&compiled.schema.schema);
                RecordBatch::try_new_with_options(schema, columns.unwrap_or_default(), &options)?
            }
        };
        Ok(Some(RowStream::of(compiled.schema.clone(), execution.snapshot.seq, batch)))
    }
}

/// Whether a SELECT has no clause but FROM and WHERE.
fn has_only_a_condition(select: &ast::Select) -> bool {
    let ast::Select {
        select_token: _,
        optimizer_hints: _, // Hints are comments.
        distinct,
        select_modifiers,
        top,
        top_before_distinct: _,
        projection: _,
        exclude,
        into,
        from: _,
        lateral_views,
        prewhere,
        selection: _,
        connect_by,
        group_by,
        cluster_by,
        distribute_by,
        sort_by,
        having,
        named_window,
        qualify,
        window_before_qualify: _,
        value_table_mode,
        flavor: _,
    } = select;
    let is_grouped = !matches!(group_by, ast::GroupByExpr::Expressions(by, modifiers)
        if by.is_empty() && modifiers.is_empty());
    let has_lists = !lateral_views.is_empty()
        || !connect_by.is_empty()
        || !cluster_by.is_empty()
        || !distribute_by.is_empty()
        || !sort_by.is_empty()
        || !named_window.is_empty();
    distinct.is_none()
        && select_modifiers.is_none()
        && top.is_none()
        && exclude.is_none()
        && into.is_none()
        && prewhere.is_none()
        && having.is_none()
        && qualify.is_none()
        && value_table_mode.is_none()
        && !is_grouped
        && !has_lists
}

/// Collects the conditions of `a = 1 AND b = $1 AND ...`; `None` for any other form or a repeated column.
fn conjunction(expr: &Expr, conditions: &mut Vec<(String, Operand)>) -> Option<()> {
    match expr {
        Expr::Nested(inner) => conjunction(inner, conditions),
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
            conjunction(left, conditions)?;
            conjunction(right, conditions)
        }
        Expr::BinaryOp { left, op: BinaryOperator::Eq, right } => {
            let (column, operand) = match (&**left, &**right) {
                (Expr::Identifier(column), value) | (value, Expr::Identifier(column)) => {
                    (column, operand(value)?)
                }
                _ => return None,
            };
            let column = fold(column);
            if conditions.iter().any(|(other, _)| *other == column) {
                return None;
            }
            conditions.push((column, operand));
            Some(())
        }
        _ => None,
    }
}

/// Returns the selected columns. The outer `None` means no shape, the inner one `*`.
fn columns_of(projection: &[SelectItem]) -> Option<Option<Vec<String>>> {
    if let [SelectItem::Wildcard(options)] = projection {
        return (*options == ast::WildcardAdditionalOptions::default()).then_some(None);
    }
    let name = |item: &SelectItem| match item {
        SelectItem::UnnamedExpr(Expr::Identifier(ident)) => Some(fold(ident)),
        _ => None,
    };
    projection.iter().map(name).collect::<Option<Vec<_>>>().map(Some)
}

/// Returns the value to compare a key column with, in its type; `None` where a plan would compare otherwise.
fn key_value(ty: ColumnType, operand: &Operand, params: &[ScalarValue]) -> Option<ScalarValue> {
    let value = match operand {
        Operand::Literal(value) => value,
        Operand::Parameter(index) => params.get(*index)?,
        Operand::Decimal(_) | Operand::Default => return None,
    };
    if value.is_null() {
        return None;
    }
    let whole = || match value {
        ScalarValue::Int64(value) => *value,
        ScalarValue::Int32(value) => value.map(i64::from),
        ScalarValue::Int16(value) => value.map(i64::from),
        _ => None,
    };
    match ty {
        ColumnType::BigInt => whole().map(|value| ScalarValue::Int64(Some(value))),
        ColumnType::Integer => Some(ScalarValue::Int32(Some(i32::try_from(whole()?).ok()?))),
        ColumnType::SmallInt => Some(ScalarValue::Int16(Some(i16::try_from(whole()?).ok()?))),
        ColumnType::Text => matches!(value, ScalarValue::Utf8(_)).then(|| value.clone()),
        ColumnType::Uuid => match value {
            ScalarValue::Utf8(_) | ScalarValue::FixedSizeBinary(16, _) => cast(value, &ty.arrow()).ok(),
            _ => None,
        },
        _ => (value.data_type() == ty.arrow()).then(|| value.clone()),
    }
}
