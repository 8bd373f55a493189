//! Appends of batches that are small in memory but large as rows of a table.

use std::sync::Arc;

use datafusion::arrow::array::{
    ArrayRef, DictionaryArray, Int64Array, NullArray, RecordBatch, StringArray, StringViewArray,
};
use datafusion::arrow::datatypes::Int32Type;
use kalamdb_core::{Config, Database, ErrorKind, Result, ScalarValue, Session, SqlState};

const MIB: usize = 1 << 20;

async fn with_table(columns: &str, config: Config) -> (Database, Session) {
    let database = Database::open(config).await.unwrap();
    let root = database.session_for("root").unwrap();
    root.execute(&format!("CREATE TABLE t ({columns})"), ()).await.unwrap();
    (database, root)
}

fn ids(count: i64) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(0..count))
}

async fn append(session: &Session, columns: Vec<(&str, ArrayRef)>) -> Result<u64> {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    Ok(session.append(None, "t", vec![batch]).await?.rows)
}

async fn count(session: &Session) -> i64 {
    let rows = session.execute("SELECT count(*) FROM t", ()).await.unwrap().rows().unwrap();
    let batches = rows.collect().await.unwrap();
    let ScalarValue::Int64(Some(count)) = ScalarValue::try_from_array(batches[0].column(0), 0).unwrap()
    else {
        panic!("a count")
    };
    count
}

/// All 40,000 rows at once would have 5 GiB of NULL slots, far more than a statement may write; a stored row
/// takes a few bytes.
#[tokio::test(flavor = "multi_thread")]
async fn wide_columns_that_are_left_out_or_null_take_no_room() {
    let columns =
        "id BIGINT PRIMARY KEY, a EMBEDDING(8192), b EMBEDDING(8192), c EMBEDDING(8192), d EMBEDDING(8192)";
    let (database, root) = with_table(columns, Config::in_memory()).await;
    let nulls: ArrayRef = Arc::new(NullArray::new(40_000));
    assert_eq!(append(&root, vec![("id", ids(40_000)), ("a", nulls)]).await.unwrap(), 40_000);

    let insert = root.prepare("INSERT INTO t (id, b) VALUES ($1, $2)").await.unwrap();
    let rows = (40_000..80_000).map(|id| vec![ScalarValue::from(id as i64), ScalarValue::Null]).collect();
    assert_eq!(insert.execute_batch(rows).await.unwrap().rows, 40_000);
    let select = "INSERT INTO t (id) SELECT value FROM generate_series(80000, 119999)";
    assert_eq!(root.execute(select, ()).await.unwrap().affected().unwrap().rows, 40_000);
    assert_eq!(count(&root).await, 120_000);
    database.shutdown().await.unwrap();
}

/// All rows share one long text: 4 GiB in total, of which 32 MiB may be written.
#[tokio::test(flavor = "multi_thread")]
async fn dictionaries_and_views_are_counted_by_what_they_stand_for() {
    let config = Config { statement_bytes_max: 32 * MIB, ..Config::in_memory() };
    let (database, root) = with_table("id BIGINT PRIMARY KEY, text TEXT", config).await;
    let long = "x".repeat(MIB);
    let names = vec![Some(long.as_str()); 4_096];
    let dictionary: DictionaryArray<Int32Type> = names.iter().copied().collect();
    let block = StringViewArray::from(vec![long.as_str()]);
    let views = block.views().iter().copied().cycle().take(names.len()).collect();
    let views = StringViewArray::new(views, block.data_buffers().to_vec(), None);
    for texts in [Arc::new(dictionary) as ArrayRef, Arc::new(views)] {
        let error = append(&root, vec![("id", ids(4_096)), ("text", texts)]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
        assert_eq!(error.sqlstate(), SqlState::PROGRAM_LIMIT_EXCEEDED, "{error}");
        assert_eq!(count(&root).await, 0);
    }
    database.shutdown().await.unwrap();
}

/// Counts written bytes, not the buffers that a row shares: otherwise each row would count all of them.
#[tokio::test(flavor = "multi_thread")]
async fn parts_of_a_large_batch_are_not_counted_as_the_whole() {
    let config = Config { statement_bytes_max: 32 * MIB, batch_rows: 64, ..Config::in_memory() };
    let (database, root) = with_table("id BIGINT PRIMARY KEY, text TEXT", config).await;
    let texts: StringArray = (0..10_000).map(|id| Some(format!("{id:01000}"))).collect();
    let columns: Vec<(&str, ArrayRef)> = vec![("id", ids(10_000)), ("text", Arc::new(texts))];
    assert_eq!(append(&root, columns.clone()).await.unwrap(), 10_000);
    // A key that repeats in a later part is found too.
    let error =
        append(&root, vec![("id", Arc::new(Int64Array::from_iter_values((20_000..20_100).chain([20_000]))))])
            .await
            .unwrap_err();
    assert_eq!(error.sqlstate(), SqlState::UNIQUE_VIOLATION, "{error}");
    assert_eq!(count(&root).await, 10_000);
    database.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_right_to_append_can_be_asked_before() {
    let (database, root) = with_table("id BIGINT PRIMARY KEY", Config::in_memory()).await;
    root.begin_append(None, "t").unwrap();
    root.begin_append(Some("public"), "t").unwrap();
    assert_eq!(root.begin_append(None, "u").unwrap_err().sqlstate(), SqlState::UNDEFINED_TABLE);
    assert_eq!(root.begin_append(Some("u"), "t").unwrap_err().sqlstate(), SqlState::INVALID_SCHEMA_NAME);
    root.execute("CREATE USER guest WITH PASSWORD 'a password' ROLE user", ()).await.unwrap();
    let guest = database.session_for("guest").unwrap();
    assert_eq!(guest.begin_append(None, "t").unwrap_err().kind(), ErrorKind::PermissionDenied);
    database.shutdown().await.unwrap();
}
