//! TPC-H: its data, generated in this process and loaded into the database, and its 22 queries.

use arrow::array::{RecordBatch, RecordBatchReader};
use arrow::datatypes::DataType;
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator, PartSuppGenerator,
    RegionGenerator, SupplierGenerator,
};
use tpchgen_arrow::{
    CustomerArrow, LineItemArrow, NationArrow, OrderArrow, PartArrow, PartSuppArrow, RegionArrow,
    SupplierArrow,
};

use crate::Result;
use crate::host::Kalam;
use crate::wire::{Wire, ingest, put_messages};

/// Rows per append, rounded up to whole batches.
const APPEND_ROWS: usize = 250_000;

/// The tables' namespace; sessions start in it, so queries need not name it.
pub(crate) const NAMESPACE: &str = "public";

/// The tables with their keys.
pub(crate) const TABLES: [(&str, &str); 8] = [
    ("region", "r_regionkey"),
    ("nation", "n_nationkey"),
    ("supplier", "s_suppkey"),
    ("customer", "c_custkey"),
    ("part", "p_partkey"),
    ("partsupp", "ps_partkey, ps_suppkey"),
    ("orders", "o_orderkey"),
    ("lineitem", "l_orderkey, l_linenumber"),
];

/// Returns the queries in the order of their numbers.
pub(crate) fn queries() -> impl Iterator<Item = &'static str> {
    include_str!("tpch.sql").split(';').map(str::trim).filter(|query| !query.is_empty())
}

fn data(table: &str, scale_factor: f64) -> Result<Box<dyn RecordBatchReader>> {
    Ok(match table {
        "region" => Box::new(RegionArrow::new(RegionGenerator::new(scale_factor, 1, 1))),
        "nation" => Box::new(NationArrow::new(NationGenerator::new(scale_factor, 1, 1))),
        "supplier" => Box::new(SupplierArrow::new(SupplierGenerator::new(scale_factor, 1, 1))),
        "customer" => Box::new(CustomerArrow::new(CustomerGenerator::new(scale_factor, 1, 1))),
        "part" => Box::new(PartArrow::new(PartGenerator::new(scale_factor, 1, 1))),
        "partsupp" => Box::new(PartSuppArrow::new(PartSuppGenerator::new(scale_factor, 1, 1))),
        "orders" => Box::new(OrderArrow::new(OrderGenerator::new(scale_factor, 1, 1))),
        "lineitem" => Box::new(LineItemArrow::new(LineItemGenerator::new(scale_factor, 1, 1))),
        other => return Err(format!("TPC-H has no table \"{other}\"").into()),
    })
}

/// Creates the tables, ingests their rows over Flight and flushes them, so that every row is cold.
pub(crate) async fn load(kalam: &Kalam, wire: &mut Wire, scale_factor: f64) -> Result<()> {
    for (table, key) in TABLES {
        let data = data(table, scale_factor)?;
        kalam.execute(&[&create(table, key, &*data)?]).await?;
        let mut waiting = Vec::new();
        let mut rows = 0;
        for batch in data {
            let batch = batch?;
            rows += batch.num_rows();
            waiting.push(batch);
            if rows >= APPEND_ROWS {
                append(wire, table, std::mem::take(&mut waiting)).await?;
                rows = 0;
            }
        }
        append(wire, table, waiting).await?;
        kalam.flush(NAMESPACE, table).await?;
    }
    Ok(())
}

/// Appends rows to one of the tables.
pub(crate) async fn append(wire: &mut Wire, table: &str, batches: Vec<RecordBatch>) -> Result<()> {
    if !batches.is_empty() {
        wire.update(put_messages(&ingest(NAMESPACE, table), batches)?).await?;
    }
    Ok(())
}

/// Writes the CREATE TABLE of a table that is not flushed automatically during a run.
fn create(table: &str, key: &str, data: &dyn RecordBatchReader) -> Result<String> {
    let schema = data.schema();
    let columns = schema
        .fields()
        .iter()
        .map(|field| {
            let ty = match field.data_type() {
                DataType::Int32 => "INTEGER".to_owned(),
                DataType::Int64 => "BIGINT".to_owned(),
                DataType::Date32 => "DATE".to_owned(),
                DataType::Utf8View => "TEXT".to_owned(),
                DataType::Decimal128(precision, scale) => format!("DECIMAL({precision}, {scale})"),
                other => return Err(format!("a TPC-H column of type {other}").into()),
            };
            Ok(format!("{} {ty} NOT NULL", field.name()))
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(format!(
        "CREATE TABLE {NAMESPACE}.{table} ({}, PRIMARY KEY ({key})) WITH (FLUSH_POLICY = 'interval:86400')",
        columns.join(", ")
    ))
}
