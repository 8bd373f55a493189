//! What statements take and give: parameters in, rows or a count out.
//!
//! Invariant: a result's schema is known before its first batch, and every batch has exactly that schema. When the result is one
//! table's visible schema, the schema is the registry's own `Arc`, so nothing on the way to the wire encodes it again.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::ScalarValue;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt};

use crate::error::{Error, Result};
use crate::ids::Seq;
use crate::live_query::Subscription;

/// The values of a statement's parameters.
#[derive(Clone, Debug, Default)]
pub enum Params {
    /// The statement has no parameters.
    #[default]
    None,
    /// For `$1 .. $n` and `?`, in order.
    Positional(Vec<ScalarValue>),
    /// For `:name`, without the colon.
    Named(Vec<(String, ScalarValue)>),
}

impl From<()> for Params {
    fn from((): ()) -> Self {
        Self::None
    }
}

impl From<Vec<ScalarValue>> for Params {
    fn from(values: Vec<ScalarValue>) -> Self {
        Self::Positional(values)
    }
}

impl From<Vec<(String, ScalarValue)>> for Params {
    fn from(values: Vec<(String, ScalarValue)>) -> Self {
        Self::Named(values)
    }
}

/// What a statement gave.
pub enum Outcome {
    /// The rows of a query.
    Rows(RowStream),
    /// The count of a write, or 0 rows for DDL.
    Affected(Affected),
    /// The frames of `SUBSCRIBE TO`.
    Subscription(Subscription),
}

impl Outcome {
    /// The rows, where the statement was a query.
    ///
    /// # Errors
    /// 22023 for any other statement.
    pub fn rows(self) -> Result<RowStream> {
        match self {
            Self::Rows(rows) => Ok(rows),
            Self::Affected(_) | Self::Subscription(_) => Err(Error::invalid("the statement gives no rows")),
        }
    }

    /// The count, where the statement was a write or DDL.
    ///
    /// # Errors
    /// 22023 for any other statement.
    pub fn affected(self) -> Result<Affected> {
        match self {
            Self::Affected(affected) => Ok(affected),
            Self::Rows(_) | Self::Subscription(_) => {
                Err(Error::invalid("the statement gives rows, not a count"))
            }
        }
    }

    /// The live query, where the statement was `SUBSCRIBE TO`.
    ///
    /// # Errors
    /// 22023 for any other statement.
    pub fn subscription(self) -> Result<Subscription> {
        match self {
            Self::Subscription(subscription) => Ok(subscription),
            Self::Rows(_) | Self::Affected(_) => Err(Error::invalid("the statement is no live query")),
        }
    }
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rows(rows) => rows.fmt(f),
            Self::Affected(affected) => affected.fmt(f),
            Self::Subscription(_) => f.write_str("Subscription"),
        }
    }
}

/// The effect of a write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Affected {
    /// Rows inserted, updated or deleted; 0 for DDL.
    pub rows: u64,
    /// The commit that holds the effect; the installed seq when nothing had to be committed.
    pub seq: Seq,
}

/// The schema of a result.
#[derive(Clone, Debug)]
pub struct ResultSchema {
    /// The registry's own `Arc` when the result is one table's visible schema.
    pub schema: SchemaRef,
    /// The registry's memoized IPC schema message, in exactly that case.
    pub ipc: Option<Bytes>,
}

/// The rows of a query: a stream of batches that all have `schema`. Dropping it cancels the query.
pub struct RowStream {
    /// The schema of every batch.
    pub schema: SchemaRef,
    /// The registry's memoized IPC schema message when the result is one table's visible schema.
    pub schema_ipc: Option<Bytes>,
    /// The snapshot that was read.
    pub seq: Seq,
    batches: BoxStream<'static, Result<RecordBatch>>,
}

impl RowStream {
    pub(crate) fn new(
        schema: ResultSchema,
        seq: Seq,
        batches: impl Stream<Item = Result<RecordBatch>> + Send + 'static,
    ) -> Self {
        Self { schema: schema.schema, schema_ipc: schema.ipc, seq, batches: batches.boxed() }
    }

    /// One batch that is there already.
    pub(crate) fn of(schema: ResultSchema, seq: Seq, batch: RecordBatch) -> Self {
        Self::new(schema, seq, futures::stream::iter([Ok(batch)]))
    }

    /// All batches.
    ///
    /// # Errors
    /// The first failure.
    pub async fn collect(self) -> Result<Vec<RecordBatch>> {
        self.batches.try_collect().await
    }
}

impl Stream for RowStream {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.batches.poll_next_unpin(cx)
    }
}

impl fmt::Debug for RowStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RowStream")
            .field("schema", &self.schema)
            .field("seq", &self.seq)
            .finish_non_exhaustive()
    }
}
