//! Statement shapes that skip planning: SELECT by a whole primary key, INSERT of literals and parameters.
//!
//! A shape is recognised in the parsed statement and compiled once per table version. Invariant: it returns
//! exactly what the planned path returns. Doubtful cases (a value of another type family, an unknown name) go
//! to the planned path, errors included; a differential test compares the two.

use std::ops::Range;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Schema};
use datafusion::common::ScalarValue;
use datafusion::sql::sqlparser::ast::{self, BinaryOperator, Expr, SelectItem, SetExpr, TableFactor, Value};
use parking_lot::Mutex;

use super::cursor::{QualifiedName, fold, qualified};
use super::execution::Execution;
use super::handlers::Attempts;
use super::handlers::insert::{Target, parameter_type};
use super::handlers::rows::{Rows, writer};
use super::parameters::cast;
use super::result::{Affected, Outcome, ResultSchema, RowStream};
use super::session::Session;
use super::statement::{Parsed, Statement, insert_target};
use crate::casts::parse_decimal;
use crate::error::Result;
use crate::schema_registry::{TableDefinition, TableKind, TableSchemas};
use crate::tables::{PointReader, RowSchema, RowWriter};
use crate::types::ColumnType;

/// The most rows of literals; beyond this, planning no longer dominates the cost.
const INSERT_ROWS_MAX: usize = 1_000;

/// A value in the text, or a parameter's index.
#[derive(Clone, Debug)]
enum Operand {
    Literal(ScalarValue),
    /// A number with a decimal point, as written.
    Decimal(String),
    Parameter(usize),
    Default,
}

/// How a statement runs: by a plan, or as one of the two shapes.
pub(crate) enum Shape {
    Planned,
    Point(Box<Point>),
    Insert(Box<InsertValues>),
}

impl Shape {
    /// Recognises a shape from the parsed statement alone.
    pub(crate) fn of(parsed: &Parsed) -> Self {
        match &parsed.statement {
            Statement::Query(query) if !parsed.names_seq => {
                Point::of(query).map_or(Self::Planned, |point| Self::Point(Box::new(point)))
            }
            Statement::Insert(insert) if !parsed.names_seq => {
                InsertValues::of(insert).map_or(Self::Planned, |insert| Self::Insert(Box::new(insert)))
            }
            _ => Self::Planned,
        }
    }

    /// Runs the statement; `None` leaves it to the planned path.
    pub(crate) async fn try_run(&self, session: &Session, params: &[ScalarValue]) -> Result<Option<Outcome>> {
        match self {
            Self::Planned => Ok(None),
            Self::Point(point) => Ok(point.run(session, params).await?.map(Outcome::Rows)),
            Self::Insert(insert) => {
                let affected = insert.run(session, std::slice::from_ref(&params)).await?;
                Ok(affected.map(Outcome::Affected))
            }
        }
    }

    /// Runs the statement once per row of parameters, in one commit; `None` leaves it to the planned path.
    pub(crate) async fn try_run_batch(
        &self,
        session: &Session,
        rows: &[Vec<ScalarValue>],
    ) -> Result<Option<Affected>> {
        match self {
            Self::Insert(insert) => insert.run(session, rows).await,
            Self::Planned | Self::Point(_) => Ok(None),
        }
    }
}

/// `SELECT columns FROM table WHERE key = value AND ...`.
pub(crate) struct Point {
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
    fn of(query: &ast::Query) -> Option<Self> {
        let SetExpr::Select(select) = &*query.body else { return None };
        let bare = super::handlers::insert::is_bare(query)
            && select.distinct.is_none()
            && select.top.is_none()
            && select.into.is_none()
            && select.having.is_none()
            && select.qualify.is_none()
            && select.lateral_views.is_empty()
            && select.named_window.is_empty()
            && select.sort_by.is_empty()
            && select.cluster_by.is_empty()
            && select.distribute_by.is_empty()
            && select.connect_by.is_empty()
            && select.prewhere.is_none()
            && select.exclude.is_none()
            && matches!(&select.group_by, ast::GroupByExpr::Expressions(by, modifiers) if by.is_empty() && modifiers.is_empty());
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
        if !bare
            || !from.joins.is_empty()
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
        let mut compiled = self.compiled.lock();
        if let Some(compiled) = &*compiled
            && Arc::ptr_eq(&compiled.definition, definition)
        {
            return Some(Arc::clone(compiled));
        }
        let fresh = Arc::new(self.compile(execution, definition)?);
        *compiled = Some(Arc::clone(&fresh));
        Some(fresh)
    }

    async fn run(&self, session: &Session, params: &[ScalarValue]) -> Result<Option<RowStream>> {
        let execution = session.begin()?;
        // The planned path reports missing tables and rights.
        let Ok(definition) = execution.readable(&self.table) else { return Ok(None) };
        let Some(compiled) = self.compiled(&execution, definition) else { return Ok(None) };
        let key = compiled
            .key
            .iter()
            .map(|(ty, operand)| key_value(*ty, operand, params))
            .collect::<Option<Vec<_>>>();
        let Some(key) = key else { return Ok(None) };
        let scope = definition.scope_for(execution.principal.user_id);
        let batch = compiled.reader.read(&execution.snapshot, scope, &key, execution.now_us).await?;
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

fn operand(expr: &Expr) -> Option<Operand> {
    let literal = |value: ScalarValue| Some(Operand::Literal(value));
    match expr {
        Expr::Value(value) => match &value.value {
            Value::Placeholder(name) => {
                Some(Operand::Parameter(name.strip_prefix('$')?.parse::<usize>().ok()?.checked_sub(1)?))
            }
            Value::Number(text, false) => number(text, ""),
            Value::SingleQuotedString(text) => literal(ScalarValue::Utf8(Some(text.clone()))),
            Value::Boolean(value) => literal(ScalarValue::Boolean(Some(*value))),
            Value::Null => literal(ScalarValue::Null),
            _ => None,
        },
        Expr::UnaryOp { op: ast::UnaryOperator::Minus, expr } => match &**expr {
            Expr::Value(value) => match &value.value {
                Value::Number(text, false) => number(text, "-"),
                _ => None,
            },
            _ => None,
        },
        Expr::Identifier(ident)
            if ident.quote_style.is_none() && ident.value.eq_ignore_ascii_case("default") =>
        {
            Some(Operand::Default)
        }
        _ => None,
    }
}

fn number(text: &str, sign: &str) -> Option<Operand> {
    let text = format!("{sign}{text}");
    if let Ok(whole) = text.parse::<i64>() {
        return Some(Operand::Literal(ScalarValue::Int64(Some(whole))));
    }
    let is_decimal = text.contains('.') && text.bytes().all(|byte| b"0123456789.-".contains(&byte));
    is_decimal.then_some(Operand::Decimal(text))
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

/// `INSERT INTO table (columns) VALUES (...), ...` of literals and parameters.
pub(crate) struct InsertValues {
    table: QualifiedName,
    columns: Vec<String>,
    rows: Vec<Vec<Operand>>,
    compiled: Mutex<Option<Arc<CompiledInsert>>>,
}

struct CompiledInsert {
    definition: Arc<TableDefinition>,
    schemas: Arc<TableSchemas>,
    target: Target,
    writer: Arc<RowWriter>,
    /// The target's columns, in the order of the values.
    types: Vec<(String, ColumnType)>,
}

impl InsertValues {
    fn of(insert: &ast::Insert) -> Option<Self> {
        let source = insert.source.as_ref()?;
        let SetExpr::Values(values) = &*source.body else { return None };
        if !super::handlers::insert::is_bare(source) || values.rows.len() > INSERT_ROWS_MAX {
            return None;
        }
        let mut rows = Vec::with_capacity(values.rows.len());
        for row in &values.rows {
            let row = row.content.iter().map(operand).collect::<Option<Vec<_>>>()?;
            if row.is_empty() || row.iter().any(|operand| matches!(operand, Operand::Default)) {
                return None;
            }
            rows.push(row);
        }
        let width = rows.first()?.len();
        if rows.iter().any(|row| row.len() != width) {
            return None;
        }
        let names = insert.columns.iter().map(|column| qualified(column, "column").map(|name| name.name));
        let columns = names.collect::<Result<Vec<_>>>().ok()?;
        Some(Self { table: insert_target(insert).ok()?, columns, rows, compiled: Mutex::default() })
    }

    fn compiled(
        &self,
        execution: &Execution,
        definition: &Arc<TableDefinition>,
    ) -> Option<Arc<CompiledInsert>> {
        let mut compiled = self.compiled.lock();
        if let Some(compiled) = &*compiled
            && Arc::ptr_eq(&compiled.definition, definition)
        {
            return Some(Arc::clone(compiled));
        }
        let schemas = execution.schemas(definition);
        let target =
            Target::new(Arc::clone(&schemas), &self.columns, self.rows.first().map(Vec::len)).ok()?;
        let types = target.columns().iter().map(|column| (column.name.to_string(), column.ty)).collect();
        let writer = Arc::new(writer(execution, &schemas).ok()?);
        let fresh =
            Arc::new(CompiledInsert { definition: Arc::clone(definition), schemas, target, writer, types });
        *compiled = Some(Arc::clone(&fresh));
        Some(fresh)
    }

    async fn run<P: AsRef<[ScalarValue]>>(
        &self,
        session: &Session,
        params: &[P],
    ) -> Result<Option<Affected>> {
        let mut attempts = Attempts::new(session);
        loop {
            let execution = session.begin()?;
            let Ok(definition) = execution.writable(&self.table) else { return Ok(None) };
            let Some(compiled) = self.compiled(&execution, definition) else { return Ok(None) };
            let mut rows =
                Rows::with_writer(&execution, Arc::clone(&compiled.schemas), Arc::clone(&compiled.writer));
            // In parts: NULLs may take far more memory as arrays than as values.
            let (count, step) = (self.rows.len() * params.len(), rows.pieces().rows_max());
            for start in (0..count).step_by(step) {
                let part = start..count.min(start + step);
                let Some(batch) = self.batch(&compiled, params, part)? else { return Ok(None) };
                rows.insert(&compiled.target, &batch)?;
            }
            if let Some(affected) = rows.commit(&mut attempts).await? {
                return Ok(Some(affected));
            }
        }
    }

    /// Returns the rows of `part`; `None` when the values of a column are not of one type.
    fn batch<P: AsRef<[ScalarValue]>>(
        &self,
        compiled: &CompiledInsert,
        params: &[P],
        part: Range<usize>,
    ) -> Result<Option<RecordBatch>> {
        let mut columns = Vec::with_capacity(compiled.types.len());
        let mut fields = Vec::with_capacity(compiled.types.len());
        for (place, (name, ty)) in compiled.types.iter().enumerate() {
            let mut values = Vec::with_capacity(part.len());
            for number in part.clone() {
                let given = params.get(number / self.rows.len()).map(AsRef::as_ref).unwrap_or_default();
                match self.rows.get(number % self.rows.len()).and_then(|row| row.get(place)) {
                    Some(Operand::Literal(value)) => values.push(value.clone()),
                    Some(Operand::Decimal(text)) => match decimal_for(*ty, text) {
                        Some(value) => values.push(value),
                        None => return Ok(None),
                    },
                    Some(Operand::Parameter(index)) => match given.get(*index) {
                        Some(value) => values.push(cast(value, &parameter_type(*ty))?),
                        None => return Ok(None),
                    },
                    Some(Operand::Default) | None => return Ok(None),
                }
            }
            let Some(array) = array_of(*ty, values)? else { return Ok(None) };
            fields.push(Field::new(name, array.data_type().clone(), true));
            columns.push(array);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(part.len()));
        Ok(Some(RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)?))
    }
}

/// Converts a decimal literal to a column's type; `None` where the planned path must round or refuse it.
fn decimal_for(ty: ColumnType, text: &str) -> Option<ScalarValue> {
    match ty {
        ColumnType::Real | ColumnType::Double => Some(ScalarValue::Float64(Some(text.parse().ok()?))),
        ColumnType::Decimal { precision, scale } => {
            Some(ScalarValue::Decimal128(Some(parse_decimal(text, precision, scale)?), precision, scale))
        }
        _ => None,
    }
}

/// Returns the values as an array; `None` unless all but NULLs have one type that suits the column.
fn array_of(ty: ColumnType, mut values: Vec<ScalarValue>) -> Result<Option<ArrayRef>> {
    let Some(first) = values.iter().find(|value| !value.is_null()).map(ScalarValue::data_type) else {
        return Ok(Some(datafusion::arrow::array::new_null_array(&ty.arrow(), values.len())));
    };
    // Plans have their own casts between families, such as from numbers to text columns.
    let same_family = match ty {
        ColumnType::Text | ColumnType::Json | ColumnType::File => first == DataType::Utf8,
        ColumnType::Boolean => matches!(first, DataType::Boolean | DataType::Utf8),
        ColumnType::Bytes => first == DataType::Utf8 || first == DataType::Binary,
        ColumnType::Decimal { .. } => {
            matches!(first, DataType::Utf8 | DataType::Int64) || first == ty.arrow()
        }
        _ => true,
    };
    if !same_family {
        return Ok(None);
    }
    for value in &mut values {
        if value.is_null() {
            *value = ScalarValue::try_from(&first)?;
        } else if value.data_type() != first {
            return Ok(None);
        }
    }
    Ok(Some(ScalarValue::iter_to_array(values)?))
}
