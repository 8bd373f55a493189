//! An expression that is evaluated only while its statement may go on.
//!
//! A join evaluates its filter many times before it returns a batch. If the filter rejects all rows, it
//! returns nothing until its end.
//!
//! Invariant: the values are those of the inner expression.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use datafusion::arrow::array::{BooleanArray, RecordBatch};
use datafusion::arrow::datatypes::{DataType, FieldRef, Schema};
use datafusion::common::Result;
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;

use crate::error::Error;
use crate::workload::StatementControl;

/// An expression with the control of its statement.
#[derive(Debug)]
pub(super) struct CheckedExpr {
    inner: Arc<dyn PhysicalExpr>,
    control: Arc<StatementControl>,
}

impl CheckedExpr {
    /// Returns `inner` with a check before each evaluation.
    pub(super) fn of(
        inner: &Arc<dyn PhysicalExpr>,
        control: &Arc<StatementControl>,
    ) -> Arc<dyn PhysicalExpr> {
        Arc::new(Self { inner: Arc::clone(inner), control: Arc::clone(control) })
    }
}

impl fmt::Display for CheckedExpr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl PartialEq for CheckedExpr {
    fn eq(&self, other: &Self) -> bool {
        self.inner.eq(&other.inner)
    }
}

impl Eq for CheckedExpr {}

impl Hash for CheckedExpr {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.inner.hash(state);
    }
}

impl PhysicalExpr for CheckedExpr {
    fn data_type(&self, schema: &Schema) -> Result<DataType> {
        self.inner.data_type(schema)
    }

    fn nullable(&self, schema: &Schema) -> Result<bool> {
        self.inner.nullable(schema)
    }

    fn return_field(&self, schema: &Schema) -> Result<FieldRef> {
        self.inner.return_field(schema)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        self.control.check()?;
        self.inner.evaluate(batch)
    }

    fn evaluate_selection(&self, batch: &RecordBatch, selection: &BooleanArray) -> Result<ColumnarValue> {
        self.control.check()?;
        self.inner.evaluate_selection(batch, selection)
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.inner]
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn PhysicalExpr>>,
    ) -> Result<Arc<dyn PhysicalExpr>> {
        let inner = children.first().ok_or_else(|| Error::internal("an expression has no inner one"))?;
        Ok(Self::of(inner, &self.control))
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt_sql(f)
    }
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::{ArrayRef, Int64Array};
    use datafusion::physical_expr::expressions::Column;

    use super::*;
    use crate::config::Config;
    use crate::error::SqlState;
    use crate::workload::StopReason;

    #[test]
    fn a_stopped_statement_evaluates_nothing() {
        let column: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
        let batch = RecordBatch::try_from_iter([("n", column)]).unwrap();
        let inner: Arc<dyn PhysicalExpr> = Arc::new(Column::new("n", 0));
        let control = StatementControl::new(&Config::in_memory());
        let checked = CheckedExpr::of(&inner, &control);

        assert_eq!(checked.to_string(), inner.to_string());
        assert_eq!(
            checked.return_field(&batch.schema()).unwrap(),
            inner.return_field(&batch.schema()).unwrap()
        );
        assert_eq!(checked.evaluate(&batch).unwrap().into_array(2).unwrap().len(), 2);
        let same = Arc::clone(&checked).with_new_children(vec![Arc::clone(&inner)]).unwrap();
        assert!(*same == *checked && *same != *inner);

        control.stop(StopReason::ClientGone);
        for stopped in [&checked, &same] {
            let error = Error::from(stopped.evaluate(&batch).unwrap_err());
            assert_eq!(error.sqlstate(), SqlState::QUERY_CANCELED);
        }
    }
}
