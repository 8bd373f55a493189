//! The input and output of statements: parameters in, rows or a count out.
//!
//! Invariant: a result's schema is known before its first batch, and every batch has exactly that schema. One
//! table's visible schema is the registry's own `Arc`, so the wire layer does not encode it again.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::ScalarValue;
use futures::future::{self, BoxFuture};
use futures::stream::{self, BoxStream};
use futures::{FutureExt, Stream, StreamExt, TryStreamExt};

use super::pump::{Query, Reader};
use crate::error::{Error, Result};
use crate::ids::Seq;
use crate::live_query::Subscription;
use crate::workload::Slot;

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

/// The result of a statement.
pub enum Outcome {
    /// The rows of a query.
    Rows(RowStream),
    /// The count of a write, or 0 rows for DDL.
    Affected(Affected),
    /// The frames of `SUBSCRIBE TO`.
    Subscription(Subscription),
}

impl Outcome {
    /// Returns the rows of a query.
    ///
    /// # Errors
    /// 22023 for any other statement.
    pub fn rows(self) -> Result<RowStream> {
        match self {
            Self::Rows(rows) => Ok(rows),
            Self::Affected(_) | Self::Subscription(_) => Err(Error::invalid("the statement returns no rows")),
        }
    }

    /// Returns the count of a write or DDL.
    ///
    /// # Errors
    /// 22023 for any other statement.
    pub fn affected(self) -> Result<Affected> {
        match self {
            Self::Affected(affected) => Ok(affected),
            Self::Rows(_) | Self::Subscription(_) => {
                Err(Error::invalid("the statement returns rows, not a count"))
            }
        }
    }

    /// Returns the live query of `SUBSCRIBE TO`.
    ///
    /// # Errors
    /// 22023 for any other statement.
    pub fn subscription(self) -> Result<Subscription> {
        match self {
            Self::Subscription(subscription) => Ok(subscription),
            Self::Rows(_) | Self::Affected(_) => Err(Error::invalid("the statement is not a live query")),
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
    /// The commit that holds the effect; the installed seq when there was nothing to commit.
    pub seq: Seq,
}

/// The schema of a result.
#[derive(Clone, Debug)]
pub struct ResultSchema {
    /// The registry's own `Arc` when the result is one table's visible schema.
    pub schema: SchemaRef,
    /// The registry's memoized IPC schema message in that case, else `None`.
    pub ipc: Option<Bytes>,
}

/// The rows of a query: a stream of batches that all have `schema`. Dropping it cancels the query.
///
/// The query runs on the threads of the database, at most two batches ahead of the reader.
///
/// # Examples
/// ```
/// use futures::TryStreamExt;
/// use kalamdb_core::Database;
///
/// # #[tokio::main]
/// # async fn main() -> kalamdb_core::Result<()> {
/// # let database = Database::open_in_memory().await?;
/// # let session = database.session_for("root")?;
/// let mut rows = session.execute("SELECT value FROM generate_series(1, 20000)", ()).await?.rows()?;
/// let mut count = 0;
/// while let Some(batch) = rows.try_next().await? {
///     count += batch.num_rows();
/// }
/// assert_eq!(count, 20_000);
/// # database.shutdown().await
/// # }
/// ```
pub struct RowStream {
    /// The schema of every batch.
    pub schema: SchemaRef,
    /// The registry's memoized IPC schema message when the result is one table's visible schema.
    pub schema_ipc: Option<Bytes>,
    /// The commit of the snapshot that was read.
    pub seq: Seq,
    source: Source,
}

/// Where batches come from.
enum Source {
    /// From memory. `None` once it was taken.
    Ready(Option<RecordBatch>),
    /// From a query that begins with the first request.
    Planned(Query),
    Running(Reader<RecordBatch>),
}

impl RowStream {
    fn new(schema: ResultSchema, seq: Seq, source: Source) -> Self {
        Self { schema: schema.schema, schema_ipc: schema.ipc, seq, source }
    }

    /// Returns a stream of one batch that already exists.
    pub(crate) fn of(schema: ResultSchema, seq: Seq, batch: RecordBatch) -> Self {
        Self::new(schema, seq, Source::Ready(Some(batch)))
    }

    /// Returns the batches of a query.
    pub(crate) fn planned(schema: ResultSchema, seq: Seq, query: Query) -> Self {
        Self::new(schema, seq, Source::Planned(query))
    }

    /// Returns the rows with the slot that their query runs in.
    pub(super) fn in_slot(self, slot: Option<Slot>) -> Self {
        let source = match (self.source, slot) {
            (Source::Planned(query), Some(slot)) => Source::Planned(query.in_slot(slot)),
            (source, _) => source,
        };
        Self { source, ..self }
    }

    /// Whether the rows are still to be made by a query.
    pub(crate) fn are_to_be_made(&self) -> bool {
        !matches!(self.source, Source::Ready(_))
    }

    /// Waits until the query must end before its last row, and returns its error. A reader that does not read
    /// learns so that it need not wait.
    pub fn stopped(&self) -> BoxFuture<'static, Error> {
        let control = match &self.source {
            Source::Ready(_) => None,
            Source::Planned(query) => Some(query.control()),
            Source::Running(reader) => reader.control(),
        };
        control.map_or_else(|| future::pending().boxed(), |control| control.stop_error().boxed())
    }

    /// Returns what `encode` makes of each batch, in order. A query ends with its first error. If it has not
    /// begun, it begins now, and its batches are encoded where it runs, not by the reader.
    ///
    /// # Examples
    /// ```
    /// use futures::TryStreamExt;
    /// use kalamdb_core::Database;
    ///
    /// # #[tokio::main]
    /// # async fn main() -> kalamdb_core::Result<()> {
    /// # let database = Database::open_in_memory().await?;
    /// # let session = database.session_for("root")?;
    /// let rows = session.execute("SELECT value FROM generate_series(1, 20000)", ()).await?.rows()?;
    /// let counts: Vec<usize> = rows.encoded(|batch| Ok(vec![batch.num_rows()])).try_collect().await?;
    /// assert_eq!(counts.iter().sum::<usize>(), 20_000);
    /// # database.shutdown().await
    /// # }
    /// ```
    pub fn encoded<T: Send + 'static>(
        self,
        mut encode: impl FnMut(RecordBatch) -> Result<Vec<T>> + Send + 'static,
    ) -> BoxStream<'static, Result<T>> {
        match self.source {
            Source::Ready(batch) => {
                stream::iter(batch.into_iter().flat_map(move |batch| each(encode(batch)))).boxed()
            }
            Source::Planned(query) => query.start(encode).boxed(),
            Source::Running(batches) => {
                batches.flat_map(move |batch| stream::iter(each(batch.and_then(&mut encode)))).boxed()
            }
        }
    }

    /// Collects all batches.
    ///
    /// # Errors
    /// The first error of the stream.
    pub async fn collect(self) -> Result<Vec<RecordBatch>> {
        self.try_collect().await
    }
}

impl Stream for RowStream {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let source = &mut self.source;
        loop {
            match source {
                Source::Ready(batch) => return Poll::Ready(batch.take().map(Ok)),
                Source::Running(batches) => return batches.poll_next_unpin(cx),
                Source::Planned(_) => {
                    if let Source::Planned(query) = std::mem::replace(source, Source::Ready(None)) {
                        *source = Source::Running(query.start(|batch| Ok(vec![batch])));
                    }
                }
            }
        }
    }
}

/// Returns the items of a result, or its error.
fn each<T>(encoded: Result<Vec<T>>) -> impl Iterator<Item = Result<T>> {
    let (items, error) = match encoded {
        Ok(items) => (items, None),
        Err(error) => (Vec::new(), Some(Err(error))),
    };
    items.into_iter().map(Ok).chain(error)
}

impl fmt::Debug for RowStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RowStream")
            .field("schema", &self.schema)
            .field("seq", &self.seq)
            .finish_non_exhaustive()
    }
}
