//! Many users with a few rows each: they share segments, and a query of one user reads no other user's pages.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use kalamdb_core::commit::{TableWrite, WriteSet};
use kalamdb_core::ids::ScopeId;
use kalamdb_core::schema_registry::{CatalogChange, UserRecord};
use kalamdb_core::tables::{RowLimits, RowWriter};
use kalamdb_core::{Database, Role, UserId};

use crate::cold::flush;
use crate::session::{rows, run};

/// Enough for two row groups.
const USERS: u64 = 7_000;
const ROWS_EACH: i64 = 20;

/// Creates users without passwords, which saves hashing them.
async fn create_users(database: &Database) {
    let snapshot = database.context().committer.snapshot();
    let mut set = WriteSet::new(UserId::SYSTEM, snapshot.seq);
    for number in 0..USERS {
        set.catalog.push(CatalogChange::PutUser(UserRecord {
            id: UserId(snapshot.catalog.header().next_user_id.0 + number),
            username: Arc::from(format!("user{number}")),
            revision: 1,
            password_hash: None,
            // This role may see plans.
            role: Role::Dba,
            email: None,
            created_at: 0,
            updated_at: 0,
            last_login_at: None,
            auth_generation: 1,
            settings: Default::default(),
        }));
    }
    database.context().committer.commit(set).await.unwrap();
}

/// Writes all users' rows of `t` in one commit.
async fn fill(database: &Database) {
    let context = database.context();
    let snapshot = context.committer.snapshot();
    let table = Arc::clone(snapshot.catalog.table("public", "t").unwrap());
    let schemas = context.schema_registry.schemas(&table);
    let writer = RowWriter::new(Arc::clone(&schemas), RowLimits { row_bytes_max: 1 << 20 }).unwrap();
    let mut set = WriteSet::new(UserId::SYSTEM, snapshot.seq);
    for number in 0..USERS {
        let scope = ScopeId(snapshot.catalog.user_by_name(&format!("user{number}")).unwrap().id.0);
        let bodies = (0..ROWS_EACH).map(|id| format!("note {id} of user {number}, {}", number * 7_919));
        let columns: [ArrayRef; 2] = [
            Arc::new(Int64Array::from_iter_values(0..ROWS_EACH)),
            Arc::new(StringArray::from_iter_values(bodies)),
        ];
        let batch = RecordBatch::try_new(Arc::clone(&schemas.visible), columns.to_vec()).unwrap();
        let rows = writer.inserts(scope, &batch, 0).unwrap();
        set.tables.push(TableWrite { table: Arc::clone(&table), scope, rows });
    }
    context.committer.commit(set).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_many_users_reads_one_row_group_of_a_shared_segment() {
    let database = Database::open_in_memory().await.unwrap();
    let root = database.session_for("root").unwrap();
    run(&root, "CREATE USER TABLE t (id BIGINT PRIMARY KEY, body TEXT)").await;
    create_users(&database).await;
    fill(&database).await;
    flush(&database, "t").await;
    let manifest = rows(&root, "SHOW MANIFEST FOR t", ()).await;
    println!("{manifest:?}");
    let [segment] = manifest.as_slice() else { panic!("{manifest:?}") };
    let segment_bytes: f64 = segment.split('|').nth(4).unwrap().parse().unwrap();
    for number in [0, 1_234, USERS - 1] {
        let user = database.session_for(&format!("user{number}")).unwrap();
        let counted = rows(&user, "SELECT count(*), count(DISTINCT id), min(body) FROM t", ()).await;
        assert_eq!(counted, [format!("20|20|note 0 of user {number}, {}", number * 7_919)]);
        let plan = rows(&user, "EXPLAIN ANALYZE SELECT * FROM t", ()).await.join("\n");
        assert!(plan.contains("row_groups_pruned_statistics=1 total → 1 matched"), "{plan}");
        assert!(plan.contains("output_rows=20"), "{plan}");
        let scanned = bytes_scanned(&plan);
        println!("user {number}: {scanned} of {segment_bytes} bytes");
        assert!(
            scanned > 0.0 && scanned * 10.0 < segment_bytes,
            "{scanned} of {segment_bytes} bytes: {plan}"
        );
    }
    database.shutdown().await.unwrap();
}

/// Returns about how many bytes the plan's only source read. Metrics are printed with a unit.
fn bytes_scanned(plan: &str) -> f64 {
    let (_, text) = plan.split_once("bytes_scanned=").unwrap();
    let text = &text[..text.find([',', ']']).unwrap()];
    let (number, unit) = text.split_once(' ').unwrap_or((text, ""));
    let unit = match unit.chars().next() {
        Some('K') => 1e3,
        Some('M') => 1e6,
        _ => 1.0,
    };
    number.parse::<f64>().unwrap() * unit
}
