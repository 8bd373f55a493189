//! A1-A4: what does it cost to look up a table's schema, and how often is the schema built or encoded?
//!
//! A1 looks up a memoized schema of 50 columns and compares that with building it. A2 counts builds over
//! repeated SELECTs. A3 counts the bytes that memoization adds for many tables. A4 counts schema encodings
//! over GetFlightInfo and DoGet of a plain table SELECT. Only A1 is a time; the counts are exact.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kalamdb_core::schema_registry::{SchemaRegistry, TableDefinition};

use crate::host::Kalam;
use crate::report::{Report, Row, show};
use crate::wire::ad_hoc;
use crate::{Result, Scale};

const WIDE_COLUMNS: usize = 50;
const TABLE_COLUMNS: usize = 20;
const BYTES_MAX: usize = 2_000_000;

pub(crate) async fn run(kalam: &Kalam, scale: Scale, report: &mut Report) -> Result<()> {
    kalam
        .execute(&[
            "CREATE NAMESPACE schemas",
            &create("schemas.wide", WIDE_COLUMNS),
            "CREATE TABLE schemas.plain (id BIGINT PRIMARY KEY, name TEXT, score DOUBLE)",
            "INSERT INTO schemas.plain VALUES (1, 'one', 1.5)",
        ])
        .await?;
    lookup(kalam, scale, report)?;
    builds(kalam, scale, report).await?;
    encodings(kalam, scale, report).await?;
    memory(kalam, scale, report).await
}

fn create(table: &str, columns: usize) -> String {
    let types = ["BIGINT", "TEXT", "DOUBLE", "TIMESTAMP", "BOOLEAN"];
    let columns: Vec<String> = (1..columns)
        .map(|column| {
            format!("column_{column} {}", types.get(column % types.len()).copied().unwrap_or("TEXT"))
        })
        .collect();
    format!("CREATE TABLE {table} (id BIGINT PRIMARY KEY, {})", columns.join(", "))
}

fn definition(kalam: &Kalam, table: &str) -> Result<Arc<TableDefinition>> {
    let tables = kalam.database().session_for("root")?.tables()?;
    let found = tables.into_iter().find(|info| &*info.namespace == "schemas" && &*info.name == table);
    Ok(found.ok_or("the table does not exist")?.definition)
}

fn lookup(kalam: &Kalam, scale: Scale, report: &mut Report) -> Result<()> {
    let definition = definition(kalam, "wide")?;
    let registry = SchemaRegistry::new();
    let built = per_call(scale.repeats, || {
        registry.invalidate(definition.id);
        black_box(registry.schemas(&definition).visible_ipc());
    });
    black_box(registry.schemas(&definition).visible_ipc());
    let known = per_call(scale.repeats * 1_000, || {
        black_box(registry.schemas(black_box(&definition)));
    });
    let faster = built.as_secs_f64() / known.as_secs_f64().max(1e-12);
    report.add(Row {
        id: "A1",
        what: format!("memoized schema lookup, {WIDE_COLUMNS} columns"),
        measured: show(known),
        floor: format!("building and encoding it: {}", show(built)),
        ratio: Some(faster),
        target: "<= 100 ns and >= 500x faster than building",
        met: Some(known <= Duration::from_nanos(100) && faster >= 500.0),
    });
    Ok(())
}

fn per_call(calls: usize, mut call: impl FnMut()) -> Duration {
    let start = Instant::now();
    for _ in 0..calls {
        call();
    }
    start.elapsed().div_f64(calls.max(1) as f64)
}

async fn builds(kalam: &Kalam, scale: Scale, report: &mut Report) -> Result<()> {
    let session = kalam.database().session_for("root")?;
    kalam.execute(&["CREATE TABLE schemas.repeated (id BIGINT PRIMARY KEY, name TEXT)"]).await?;
    let before = kalam.database().registry_counters();
    for _ in 0..scale.repeats {
        session.execute("SELECT * FROM schemas.repeated", ()).await?.rows()?.collect().await?;
    }
    let after = kalam.database().registry_counters();
    let built = after.builds - before.builds;
    let (hits, misses) = (after.hits - before.hits, after.misses - before.misses);
    let hit_rate = hits as f64 / ((hits + misses) as f64).max(1.0);
    report.add(Row {
        id: "A2",
        what: format!("schema builds over {} SELECTs of one table", scale.repeats),
        measured: format!("{built}, hit rate {:.2}%", hit_rate * 100.0),
        floor: String::new(),
        ratio: None,
        target: "<= 1 build for the version; hit rate >= 99.9%",
        met: Some(built <= 1 && hit_rate >= 0.999),
    });
    Ok(())
}

async fn encodings(kalam: &Kalam, scale: Scale, report: &mut Report) -> Result<()> {
    let mut wire = kalam.connect().await?;
    let command = ad_hoc("SELECT * FROM schemas.plain");
    wire.query(&command).await?;
    let before = kalam.database().registry_counters();
    for _ in 0..scale.repeats {
        wire.query(&command).await?;
    }
    let after = kalam.database().registry_counters();
    let encoded = after.encodings - before.encodings;
    report.add(Row {
        id: "A4",
        what: format!(
            "schema encodings by the registry over {} GetFlightInfo + DoGet of a plain SELECT",
            scale.repeats
        ),
        measured: encoded.to_string(),
        floor: String::new(),
        ratio: None,
        target: "0",
        met: Some(encoded == 0),
    });
    Ok(())
}

async fn memory(kalam: &Kalam, scale: Scale, report: &mut Report) -> Result<()> {
    let session = kalam.database().session_for("root")?;
    kalam.execute(&["CREATE NAMESPACE many"]).await?;
    for table in 0..scale.tables {
        session.execute(&create(&format!("many.t{table}"), TABLE_COLUMNS), ()).await?;
    }
    let before = kalam.database().registry_counters();
    for table in 0..scale.tables {
        let prepared = session.prepare(&format!("SELECT * FROM many.t{table}")).await?;
        black_box(prepared.schema());
    }
    let after = kalam.database().registry_counters();
    let added = after.bytes.saturating_sub(before.bytes);
    report.add(Row {
        id: "A3",
        what: format!("memory memoization adds for {} tables of {TABLE_COLUMNS} columns", scale.tables),
        measured: format!(
            "{:.2} MB more for {} entries; registry in all {:.2} MB",
            added as f64 / 1e6,
            after.entries.saturating_sub(before.entries),
            after.bytes as f64 / 1e6
        ),
        floor: String::new(),
        ratio: None,
        target: "<= 2 MB for 1,000",
        met: Some(added <= BYTES_MAX),
    });
    Ok(())
}
