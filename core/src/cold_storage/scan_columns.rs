//! The columns that DataFusion's scans read from a segment.
//!
//! DataFusion rewrites the filters and the projection of a scan for each file. Here the names of wanted
//! columns become columns of the segment with the same ids, so filters, projection and pruning agree with all
//! other readers.
//!
//! Invariant: an expression over a segment names its columns through its [`SegmentLayout`].

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::Result as DataFusionResult;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{CastExpr, Column, lit};
use datafusion::physical_expr_adapter::{PhysicalExprAdapter, PhysicalExprAdapterFactory};

use super::layout::{FileColumn, FileColumns, ReadSchema, SegmentLayout, id_of};
use crate::error::Error;

/// Rewrites the expressions of a scan for each segment. The Arrow schema of a file has the ids of its
/// columns, or it is the wanted one; see [`SegmentLayout::scan_schema`].
#[derive(Debug)]
pub struct SegmentColumns {
    wanted: Arc<ReadSchema>,
}

impl SegmentColumns {
    /// Returns the rewriter of a scan that wants these columns.
    pub fn new(wanted: Arc<ReadSchema>) -> Self {
        Self { wanted }
    }
}

impl PhysicalExprAdapterFactory for SegmentColumns {
    fn create(&self, _: SchemaRef, file_schema: SchemaRef) -> DataFusionResult<Arc<dyn PhysicalExprAdapter>> {
        let layout = layout(&self.wanted, &file_schema)?;
        Ok(Arc::new(FileExpressions { wanted: Arc::clone(&self.wanted), file_schema, layout }))
    }
}

/// Returns the layout of a file; `None` if it has exactly the wanted columns. Columns that the reader itself
/// adds follow those of the file.
fn layout(wanted: &Arc<ReadSchema>, file_schema: &SchemaRef) -> Result<Option<SegmentLayout>, Error> {
    let stored = file_schema.fields().iter().take_while(|field| id_of(field).is_some()).count();
    let stored = file_schema.fields().get(..stored).unwrap_or_default();
    let layout = match stored {
        [] if file_schema.fields().starts_with(wanted.schema().fields()) => return Ok(None),
        [] => Err("has columns without ids".to_owned()),
        stored => FileColumns::of(stored).and_then(|file| SegmentLayout::new(&file, wanted)),
    };
    layout.map(Some).map_err(|problem| Error::corruption(format!("a segment {problem}")))
}

/// Rewrites expressions for one segment.
#[derive(Debug)]
struct FileExpressions {
    wanted: Arc<ReadSchema>,
    file_schema: SchemaRef,
    layout: Option<SegmentLayout>,
}

impl FileExpressions {
    fn column(&self, column: &Column) -> DataFusionResult<Arc<dyn PhysicalExpr>> {
        let Ok(position) = self.wanted.schema().index_of(column.name()) else {
            // The reader adds it.
            let position = self.file_schema.index_of(column.name())?;
            return Ok(Arc::new(Column::new(column.name(), position)));
        };
        let Some(layout) = &self.layout else {
            return Ok(Arc::new(Column::new(column.name(), position)));
        };
        match layout.column(position) {
            Some(FileColumn::Absent(value)) => Ok(lit(value.clone())),
            Some(FileColumn::Stored { position: stored, is_cast }) => {
                let name = self.file_schema.field(*stored).name();
                let stored: Arc<dyn PhysicalExpr> = Arc::new(Column::new(name, *stored));
                if !is_cast {
                    return Ok(stored);
                }
                let ty = self.wanted.schema().field(position).data_type().clone();
                Ok(Arc::new(CastExpr::new(stored, ty, None)))
            }
            None => Err(Error::internal(format!("a scan has no column \"{}\"", column.name())).into()),
        }
    }
}

impl PhysicalExprAdapter for FileExpressions {
    fn rewrite(&self, expr: Arc<dyn PhysicalExpr>) -> DataFusionResult<Arc<dyn PhysicalExpr>> {
        expr.transform_up(|expr| {
            if let Some(column) = expr.downcast_ref::<Column>() {
                return self.column(column).map(Transformed::yes);
            }
            Ok(Transformed::no(expr))
        })
        .data()
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field, Schema};
    use datafusion::common::ScalarValue;
    use datafusion::logical_expr::Operator;
    use datafusion::physical_expr::expressions::binary;

    use super::super::layout::{AbsentColumn, ReadColumn};
    use super::*;
    use crate::ids::{ColumnId, SchemaVersion};

    fn wanted(columns: &[(&str, DataType, u32, Option<ScalarValue>)]) -> Arc<ReadSchema> {
        let fields: Vec<Field> =
            columns.iter().map(|(name, ty, ..)| Field::new(*name, ty.clone(), true)).collect();
        let ids = columns.iter().map(|(_, _, id, absent)| {
            let absent = absent.clone().map(|value| AbsentColumn { since: SchemaVersion(2), value });
            ReadColumn { id: ColumnId(*id), absent }
        });
        Arc::new(ReadSchema::new(Arc::new(Schema::new(fields)), ids.collect()).unwrap())
    }

    fn column(name: &str, schema: &ReadSchema) -> Arc<dyn PhysicalExpr> {
        Arc::new(Column::new_with_schema(name, schema.schema()).unwrap())
    }

    fn rewritten(from: &ReadSchema, to: &Arc<ReadSchema>, name: &str) -> String {
        let adapter = SegmentColumns::new(Arc::clone(to));
        let adapter = adapter.create(Arc::clone(to.schema()), from.file_schema()).unwrap();
        let filter = binary(column(name, to), Operator::Eq, column(name, to), to.schema()).unwrap();
        adapter.rewrite(filter).unwrap().to_string()
    }

    #[test]
    fn columns_are_found_by_their_ids() {
        let null = || Some(ScalarValue::Int64(None));
        let file = wanted(&[("a", DataType::Int32, 1, None), ("b", DataType::Int64, 2, None)]);
        let now = wanted(&[
            ("b", DataType::Int64, 1, null()),
            ("c", DataType::Int64, 2, null()),
            ("a", DataType::Int64, 3, Some(ScalarValue::Int64(Some(7)))),
        ]);
        assert_eq!(rewritten(&file, &now, "b"), "CAST(a@0 AS Int64) = CAST(a@0 AS Int64)");
        assert_eq!(rewritten(&file, &now, "c"), "b@1 = b@1");
        assert_eq!(rewritten(&file, &now, "a"), "7 = 7");
        assert_eq!(rewritten(&file, &file, "b"), "b@1 = b@1");
    }

    #[test]
    fn a_file_without_ids_is_refused() {
        let now = wanted(&[("a", DataType::Int64, 1, None)]);
        let adapter = SegmentColumns::new(Arc::clone(&now));
        let other = Arc::new(Schema::new(vec![Field::new("a", DataType::Int32, true)]));
        assert!(adapter.create(Arc::clone(now.schema()), other).is_err());
        assert!(adapter.create(Arc::clone(now.schema()), Arc::clone(now.schema())).is_ok());
    }
}
