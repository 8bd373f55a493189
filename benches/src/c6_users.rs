//! C6: many users' rows share a few segments; how much does one user's query read?
//!
//! Users who never log in get 20 rows each in one USER table, which is then flushed. One user selects its
//! rows; EXPLAIN ANALYZE shows the row groups and bytes that were read.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use kalamdb_core::commit::{TableWrite, WriteSet};
use kalamdb_core::ids::ScopeId;
use kalamdb_core::schema_registry::{CatalogChange, UserRecord};
use kalamdb_core::tables::{RowLimits, RowWriter};
use kalamdb_core::{Role, UserId};

use crate::host::Kalam;
use crate::report::{Report, Row, Samples, show};
use crate::{Result, Scale};

const ROWS_EACH: i64 = 20;
/// Users whose rows one commit writes.
const USERS_AT_ONCE: u64 = 2_000;

pub(crate) async fn run(kalam: &Kalam, scale: Scale, report: &mut Report) -> Result<()> {
    kalam
        .execute(&[
            "CREATE NAMESPACE shared",
            "CREATE USER TABLE shared.notes (id BIGINT PRIMARY KEY, body TEXT) \
             WITH (FLUSH_POLICY = 'interval:86400')",
        ])
        .await?;
    let mut written = 0;
    while written < scale.users {
        let users = USERS_AT_ONCE.min(scale.users - written);
        write(kalam, written, users).await?;
        written += users;
    }
    let begin = Instant::now();
    kalam.flush("shared", "notes").await?;
    let flushed = begin.elapsed();
    let snapshot = kalam.database().context().committer.snapshot();
    let table = snapshot.catalog.table("shared", "notes").ok_or("the table does not exist")?.id;
    let segments = snapshot.cold.segments(table);
    let bytes: u64 = segments.iter().map(|segment| segment.bytes).sum();
    let manifest = published_bytes(&kalam.segments("shared", "notes")?).await?;

    let session = kalam.database().session_for(&name(scale.users / 2))?;
    let mut samples = Samples::default();
    for _ in 0..scale.repeats {
        let begin = Instant::now();
        let rows = session.execute("SELECT * FROM shared.notes", ()).await?.rows()?.collect().await?;
        samples.push(begin.elapsed());
        let rows: usize = rows.iter().map(RecordBatch::num_rows).sum();
        if i64::try_from(rows) != Ok(ROWS_EACH) {
            return Err(format!("a user has {rows} rows").into());
        }
    }
    let plan =
        session.execute("EXPLAIN ANALYZE SELECT * FROM shared.notes", ()).await?.rows()?.collect().await?;
    let metrics = metrics(&plan)?;
    report.add(Row {
        id: "C6",
        what: format!(
            "{} users with {ROWS_EACH} rows each; one of them selects theirs, embedded",
            scale.users
        ),
        measured: format!(
            "{} segments of {:.1} MB in all, published manifest {manifest} bytes; flushed in {}; {}; \
             {metrics}",
            segments.len(),
            bytes as f64 / 1e6,
            show(flushed),
            samples.summary()
        ),
        floor: String::new(),
        ratio: None,
        target: "one row group",
        met: None,
    });
    Ok(())
}

fn name(number: u64) -> String {
    format!("reader{number}")
}

/// Creates users and their rows.
async fn write(kalam: &Kalam, first: u64, count: u64) -> Result<()> {
    let context = kalam.database().context();
    let snapshot = context.committer.snapshot();
    let first_id = snapshot.catalog.header().next_user_id.0;
    let mut users = WriteSet::new(UserId::SYSTEM, snapshot.seq);
    for number in 0..count {
        users.catalog.push(CatalogChange::PutUser(UserRecord {
            id: UserId(first_id + number),
            username: Arc::from(name(first + number)),
            revision: 1,
            password_hash: None,
            // EXPLAIN ANALYZE needs this role.
            role: Role::Dba,
            email: None,
            created_at: 0,
            updated_at: 0,
            last_login_at: None,
            auth_generation: 1,
            settings: Default::default(),
        }));
    }
    context.committer.commit(users).await?;
    let snapshot = context.committer.snapshot();
    let table = snapshot.catalog.table("shared", "notes").ok_or("the table does not exist")?;
    let schemas = context.schema_registry.schemas(table);
    let writer = RowWriter::new(Arc::clone(&schemas), RowLimits { row_bytes_max: 1 << 20 })?;
    let mut rows = WriteSet::new(UserId::SYSTEM, snapshot.seq);
    for number in 0..count {
        let bodies = (0..ROWS_EACH).map(|id| format!("note {id}, {}", (first + number) * 7_919));
        let columns: [ArrayRef; 2] = [
            Arc::new(Int64Array::from_iter_values(0..ROWS_EACH)),
            Arc::new(StringArray::from_iter_values(bodies)),
        ];
        let batch = RecordBatch::try_new(Arc::clone(&schemas.visible), columns.to_vec())?;
        let scope = ScopeId(first_id + number);
        let writes = writer.inserts(scope, &batch, 0)?;
        rows.tables.push(TableWrite { table: Arc::clone(table), scope, rows: writes });
    }
    context.committer.commit(rows).await?;
    Ok(())
}

/// Waits for the manifest that is published beside the segments and returns its length in bytes.
async fn published_bytes(segments: &[PathBuf]) -> Result<u64> {
    let folder = segments.first().and_then(|path| path.parent()).ok_or("there are no segments")?;
    loop {
        for file in std::fs::read_dir(folder)? {
            let file = file?;
            if file.path().extension().is_some_and(|extension| extension == "json") {
                return Ok(file.metadata()?.len());
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Extracts row groups and bytes from the output of EXPLAIN ANALYZE.
fn metrics(plan: &[RecordBatch]) -> Result<String> {
    let text = plan
        .first()
        .and_then(|batch| batch.columns().last())
        .and_then(|column| column.as_string_opt::<i32>())
        .map(|text| text.iter().flatten().collect::<String>())
        .ok_or("EXPLAIN ANALYZE returned no text")?;
    let wanted = ["row_groups_pruned_statistics=", "page_index_rows_pruned=", "bytes_scanned="];
    let found = wanted.iter().filter_map(|name| {
        let start = text.find(name)?;
        let rest = text.get(start..)?;
        let end = rest.find([',', ']'])?;
        rest.get(..end)
    });
    Ok(found.collect::<Vec<_>>().join(", "))
}
