//! The peer of queries: DataFusion in this process with the database's number of partitions. It reads the
//! Parquet files of a table's segments.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::TryStreamExt;

use crate::Result;
use crate::host::Kalam;

/// The database's default.
const PARTITIONS: usize = 2;

pub(crate) struct Peer {
    context: SessionContext,
}

impl Peer {
    pub(crate) fn new() -> Self {
        let config = SessionConfig::new().with_target_partitions(PARTITIONS);
        Self { context: SessionContext::new_with_config(config) }
    }

    /// Registers a table's segments as a table of the same name; all rows of the table must be cold and
    /// alive.
    pub(crate) async fn register_segments(&self, kalam: &Kalam, namespace: &str, table: &str) -> Result<()> {
        let files = kalam.segments(namespace, table)?;
        let urls = files
            .iter()
            .map(|file| ListingTableUrl::parse(file.to_string_lossy()))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let options = ListingOptions::new(Arc::new(ParquetFormat::default())).with_file_extension(".parquet");
        let config = ListingTableConfig::new_with_multi_paths(urls)
            .with_listing_options(options)
            .infer_schema(&self.context.state())
            .await?;
        self.context.register_table(table, Arc::new(ListingTable::try_new(config)?))?;
        Ok(())
    }

    /// Returns the rows of a query.
    pub(crate) async fn rows(&self, sql: &str) -> Result<Vec<RecordBatch>> {
        Ok(self.context.sql(sql).await?.collect().await?)
    }

    /// Reads the rows of a query batch by batch without keeping them; returns their number.
    pub(crate) async fn count(&self, sql: &str) -> Result<usize> {
        let mut stream = self.context.sql(sql).await?.execute_stream().await?;
        let mut rows = 0;
        while let Some(batch) = stream.try_next().await? {
            rows += batch.num_rows();
        }
        Ok(rows)
    }
}

/// Fails unless two answers have the same rows in any order. Floats may differ by rounding; quotients and
/// averages of decimals by one unit in the peer's last digit, because the peer cuts off more digits.
pub(crate) fn same_rows(what: &str, ours: &[RecordBatch], theirs: &[RecordBatch]) -> Result<()> {
    let (ours, theirs) = (cells(ours)?, cells(theirs)?);
    let same_row = |left: &Vec<String>, right: &Vec<String>| {
        left.len() == right.len() && left.iter().zip(right).all(|(left, right)| close(left, right))
    };
    if ours.len() == theirs.len() && ours.iter().zip(&theirs).all(|(left, right)| same_row(left, right)) {
        return Ok(());
    }
    Err(format!("{what}: {} rows differ from the {} rows of the peer", ours.len(), theirs.len()).into())
}

/// Whether two cells, as text, are equal or are numbers within the tolerance of their computation.
fn close(left: &str, right: &str) -> bool {
    if left == right {
        return true;
    }
    let (Ok(left_number), Ok(right_number)) = (left.parse::<f64>(), right.parse::<f64>()) else {
        return false;
    };
    let (left_digits, right_digits) = (fraction_digits(left), fraction_digits(right));
    let last_digit = match left_digits == right_digits {
        true => 0.0,
        false => 10f64.powi(-left_digits.min(right_digits)),
    };
    let rounding = 1e-9 * left_number.abs().max(right_number.abs());
    (left_number - right_number).abs() <= rounding.max(last_digit)
}

/// Counts the digits after the decimal point.
fn fraction_digits(number: &str) -> i32 {
    number.split_once('.').map_or(0, |(_, fraction)| fraction.len().min(40) as i32)
}

/// Returns the rows as text, sorted.
fn cells(batches: &[RecordBatch]) -> Result<Vec<Vec<String>>> {
    let options = FormatOptions::default();
    let mut rows = Vec::new();
    for batch in batches {
        let columns = batch
            .columns()
            .iter()
            .map(|column| ArrayFormatter::try_new(column, &options))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        for row in 0..batch.num_rows() {
            rows.push(columns.iter().map(|column| column.value(row).to_string()).collect());
        }
    }
    rows.sort_unstable();
    Ok(rows)
}
