//! Windows as guests: what they collect and compute is charged to their statement, and their functions check
//! that it may go on.
//!
//! A window computes a whole batch, or all rows, in one step. At each row an aggregate like `median` works
//! through the frame again, one like `array_agg` makes a copy of it, and any function may repeat a long text.
//!
//! | entry | job |
//! |---|---|
//! | `aggregates` | guards in aggregates |
//! | `functions` | guards in other functions |
//!
//! Invariants: the values are those of the plain function, and so is everything that a plan knows about it. A
//! charge lasts until more rows are requested from the window.

mod aggregates;
mod functions;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use datafusion::arrow::array::RecordBatch;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::utils::memory::RecordBatchMemoryCounter;
use datafusion::common::{Result, ScalarValue};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::{Expr, LogicalPlan, WindowFunctionDefinition};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::windows::{BoundedWindowAggExec, WindowAggExec, WindowExpr};
use futures::{TryStreamExt, stream};
use parking_lot::Mutex;

use crate::error::Error;
use crate::types::heap_bytes;
use crate::workload::{Charge, StatementControl};

/// Rows of frames that are computed without a check.
const ROWS_UNCHECKED_MAX: usize = 8_192;
/// Bytes that are not charged yet.
const BYTES_UNCHARGED_MAX: usize = 64 << 10;

/// Returns an optimised plan with guards in the functions of its windows.
pub(in crate::sql) fn guard_windows(
    plan: LogicalPlan,
    control: &Arc<StatementControl>,
) -> Result<LogicalPlan> {
    let rewritten = plan.transform_up_with_subqueries(|node| match node {
        LogicalPlan::Window(_) => {
            node.map_expressions(|expr| expr.transform_up(|expr| guarded(expr, control)))
        }
        other => Ok(Transformed::no(other)),
    });
    Ok(rewritten?.data)
}

fn guarded(expr: Expr, control: &Arc<StatementControl>) -> Result<Transformed<Expr>> {
    let Expr::WindowFunction(mut call) = expr else { return Ok(Transformed::no(expr)) };
    let values = Values { control: Arc::clone(control), held: Held::nothing(control)?, unchecked: 0 };
    call.fun = match &call.fun {
        WindowFunctionDefinition::AggregateUDF(func) => {
            WindowFunctionDefinition::AggregateUDF(aggregates::guarded(func, &call.params, values))
        }
        WindowFunctionDefinition::WindowUDF(func) => {
            WindowFunctionDefinition::WindowUDF(functions::guarded(func, values))
        }
    };
    Ok(Transformed::yes(Expr::WindowFunction(call)))
}

/// Bytes that are charged to a statement until they are given back, a part of them a little later.
#[derive(Debug)]
struct Held {
    charge: Mutex<Charge>,
    uncharged: AtomicUsize,
    /// The rows that the window has collected.
    rows: AtomicUsize,
}

impl Held {
    fn nothing(control: &StatementControl) -> Result<Arc<Self>> {
        let charge = Mutex::new(control.memory().charge(0).map_err(Error::from)?);
        Ok(Arc::new(Self { charge, uncharged: AtomicUsize::new(0), rows: AtomicUsize::new(0) }))
    }

    fn add(&self, bytes: usize) -> Result<()> {
        let mut charged = bytes;
        if bytes < BYTES_UNCHARGED_MAX {
            if self.uncharged.fetch_add(bytes, Ordering::Relaxed) + bytes < BYTES_UNCHARGED_MAX {
                return Ok(());
            }
            charged = self.uncharged.swap(0, Ordering::Relaxed);
        }
        Ok(self.charge.lock().grow(charged).map_err(Error::from)?)
    }

    fn give_back(&self) {
        self.uncharged.store(0, Ordering::Relaxed);
        self.charge.lock().shrink(usize::MAX);
    }
}

/// The values of a window function, one after the other.
#[derive(Clone, Debug)]
struct Values {
    control: Arc<StatementControl>,
    held: Arc<Held>,
    /// Rows of frames since the last check.
    unchecked: usize,
}

impl Values {
    /// Checks that the statement may go on, before a value is computed from so many rows.
    fn check(&mut self, rows: usize) -> Result<()> {
        self.unchecked = self.unchecked.saturating_add(rows.max(1));
        if self.unchecked < ROWS_UNCHECKED_MAX {
            return Ok(());
        }
        self.unchecked = 0;
        Ok(self.control.check()?)
    }

    /// Charges a value, and the same value in so many rows of a column.
    fn charge(&self, value: &ScalarValue, rows: usize) -> Result<()> {
        self.held.add(value.size().saturating_add(heap_bytes(value).saturating_mul(rows)))
    }

    /// Checks that the statement may hold a value in a column of all rows.
    fn check_room(&self, value: &ScalarValue) -> Result<()> {
        let rows = self.held.rows.load(Ordering::Relaxed);
        let room = self.control.memory().charge(heap_bytes(value).saturating_mul(rows));
        Ok(room.map(drop).map_err(Error::from)?)
    }
}

/// What a window holds.
#[derive(Debug)]
pub(super) struct WindowMemory {
    /// The rows of each partition, for a window that collects all of them.
    rows: Vec<Arc<Held>>,
    /// The values of each function.
    values: Vec<Arc<Held>>,
}

impl WindowMemory {
    /// Returns what a node holds; `None` unless it is a window.
    pub(super) fn of(node: &Arc<dyn ExecutionPlan>, control: &StatementControl) -> Result<Option<Arc<Self>>> {
        let (windows, collecting) = if let Some(window) = node.downcast_ref::<WindowAggExec>() {
            (window.window_expr(), window.properties().output_partitioning().partition_count())
        } else if let Some(window) = node.downcast_ref::<BoundedWindowAggExec>() {
            (window.window_expr(), 0)
        } else {
            return Ok(None);
        };
        let rows = (0..collecting).map(|_| Held::nothing(control)).collect::<Result<_>>()?;
        let values = windows.iter().filter_map(values_of).collect();
        Ok(Some(Arc::new(Self { rows, values })))
    }

    /// Whether the window holds all rows of its input.
    pub(super) fn collects(&self) -> bool {
        !self.rows.is_empty()
    }

    /// Returns the rows that the window collects, and charges them: the window makes one batch of them, and
    /// keeps the others meanwhile.
    pub(super) fn collected(
        self: &Arc<Self>,
        partition: usize,
        input: SendableRecordBatchStream,
    ) -> SendableRecordBatchStream {
        let (schema, memory) = (input.schema(), Arc::clone(self));
        let mut counter = RecordBatchMemoryCounter::new();
        let rows = input.and_then(move |batch| {
            let bytes = counter.count_batch(&batch).saturating_mul(2);
            for held in &memory.values {
                held.rows.fetch_add(batch.num_rows(), Ordering::Relaxed);
            }
            let charged = memory.rows.get(partition).map_or(Ok(()), |held| held.add(bytes));
            std::future::ready(charged.map(|()| batch))
        });
        Box::pin(RecordBatchStreamAdapter::new(schema, rows))
    }

    /// Returns the rows of the window. Whoever requests more has no need of the earlier ones.
    pub(super) fn computed(
        self: &Arc<Self>,
        partition: usize,
        window: SendableRecordBatchStream,
    ) -> SendableRecordBatchStream {
        let (schema, memory) = (window.schema(), Arc::clone(self));
        let rows = stream::try_unfold(window, move |window| next(Arc::clone(&memory), partition, window));
        Box::pin(RecordBatchStreamAdapter::new(schema, rows))
    }
}

async fn next(
    memory: Arc<WindowMemory>,
    partition: usize,
    mut window: SendableRecordBatchStream,
) -> Result<Option<(RecordBatch, SendableRecordBatchStream)>> {
    memory.values.iter().chain(memory.rows.get(partition)).for_each(|held| held.give_back());
    let batch = window.try_next().await?;
    Ok(batch.map(|batch| (batch, window)))
}

/// Returns what the values of a guarded function hold.
fn values_of(window: &Arc<dyn WindowExpr>) -> Option<Arc<Held>> {
    let values = aggregates::values_of(&**window).or_else(|| functions::values_of(&**window))?;
    Some(Arc::clone(&values.held))
}

#[cfg(test)]
mod tests;
