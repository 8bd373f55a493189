//! INSERT of literals and parameters.

use std::ops::Range;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::ScalarValue;
use datafusion::sql::sqlparser::ast::SetExpr;
use parking_lot::Mutex;

use super::{Operand, operand};
use crate::casts::parse_decimal;
use crate::error::Result;
use crate::schema_registry::{TableDefinition, TableSchemas};
use crate::sql::effect::Change;
use crate::sql::execution::Execution;
use crate::sql::handlers::insert::{is_bare, parameter_type};
use crate::sql::handlers::rows::{Rows, writer};
use crate::sql::handlers::target::Target;
use crate::sql::plan::parameter_types::cast;
use crate::sql::text::cursor::QualifiedName;
use crate::sql::text::statement::Insert;
use crate::tables::RowWriter;
use crate::types::ColumnType;

/// The most rows of literals; beyond this, planning no longer dominates the cost.
const INSERT_ROWS_MAX: usize = 1_000;
/// The most bytes of values that are written without a thread of the engine.
const SMALL_BYTES_MAX: usize = 256 << 10;

/// `INSERT INTO table (columns) VALUES (...), ...` of literals and parameters.
pub(in crate::sql) struct InsertValues {
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
    pub(super) fn of(insert: &Insert) -> Option<Self> {
        // Every field is named, so that no new clause is ignored here.
        let Insert { table, columns, source } = insert;
        let source = source.as_ref()?;
        let SetExpr::Values(values) = &*source.body else { return None };
        if !is_bare(source) || values.rows.len() > INSERT_ROWS_MAX {
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
        let (table, columns) = (table.clone(), columns.clone());
        Some(Self { table, columns, rows, compiled: Mutex::default() })
    }

    /// Returns the memory that the shape takes without what is compiled, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let columns = self.columns.iter().map(|name| size_of::<String>() + name.capacity());
        let rows = self.rows.len() * size_of::<Vec<Operand>>();
        let values = self.rows.iter().flatten().map(Operand::size);
        size_of::<Self>() + columns.sum::<usize>() + rows + values.sum::<usize>()
    }

    fn compiled(
        &self,
        execution: &Execution,
        definition: &Arc<TableDefinition>,
    ) -> Option<Arc<CompiledInsert>> {
        let known = self.compiled.lock().as_ref().map(Arc::clone);
        if let Some(compiled) = known
            && Arc::ptr_eq(&compiled.definition, definition)
        {
            return Some(compiled);
        }
        let schemas = execution.schemas(definition);
        let target =
            Target::new(Arc::clone(&schemas), &self.columns, self.rows.first().map(Vec::len)).ok()?;
        let types = target.columns().iter().map(|column| (column.name.to_string(), column.ty)).collect();
        let writer = Arc::new(writer(execution, &schemas).ok()?);
        let fresh =
            Arc::new(CompiledInsert { definition: Arc::clone(definition), schemas, target, writer, types });
        *self.compiled.lock() = Some(Arc::clone(&fresh));
        Some(fresh)
    }

    /// Whether few rows of few bytes are inserted.
    pub(super) fn is_small(&self, params: &[Vec<ScalarValue>]) -> bool {
        if self.rows.len().saturating_mul(params.len()) > INSERT_ROWS_MAX {
            return false;
        }
        let values = params
            .iter()
            .flat_map(|given| self.rows.iter().flatten().map(move |operand| operand.bytes(given)));
        values.fold(0, usize::saturating_add) <= SMALL_BYTES_MAX
    }

    pub(super) async fn change(
        &self,
        execution: &Execution,
        params: &[Vec<ScalarValue>],
    ) -> Result<Option<Change>> {
        let Ok(definition) = execution.writable(&self.table) else { return Ok(None) };
        let Some(compiled) = self.compiled(execution, definition) else { return Ok(None) };
        let mut rows =
            Rows::with_writer(execution, Arc::clone(&compiled.schemas), Arc::clone(&compiled.writer));
        // A few at a time: NULLs may be far larger in arrays than as values.
        let (count, step) = (self.rows.len() * params.len(), rows.pieces().rows_max());
        for start in (0..count).step_by(step) {
            let part = start..count.min(start + step);
            let Some(batch) = self.batch(&compiled, params, part)? else { return Ok(None) };
            rows.insert(&compiled.target, &batch)?;
        }
        rows.change().await.map(Some)
    }

    /// Returns the rows of `part`; `None` when the values of a column are not of one type.
    fn batch(
        &self,
        compiled: &CompiledInsert,
        params: &[Vec<ScalarValue>],
        part: Range<usize>,
    ) -> Result<Option<RecordBatch>> {
        let mut columns = Vec::with_capacity(compiled.types.len());
        let mut fields = Vec::with_capacity(compiled.types.len());
        for (place, (name, ty)) in compiled.types.iter().enumerate() {
            let mut values = Vec::with_capacity(part.len());
            for number in part.clone() {
                let given = params.get(number / self.rows.len()).map(Vec::as_slice).unwrap_or_default();
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
