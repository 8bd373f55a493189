//! What the server holds for clients between calls counts as their memory.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use kalamdb_core::{Config, Database};
use tonic::Code;

use crate::fixture::{Fixture, ROOT_PASSWORD, put_messages};
use crate::ingest::append_to;
use crate::prepared::{prepare, query};

/// Starts a server whose users have so much memory, and prepared statements half of it.
async fn start(user_memory_bytes: usize) -> Fixture {
    let root_password = Some(ROOT_PASSWORD.to_owned());
    let config = Config { root_password, user_memory_bytes, ..Config::in_memory() };
    Fixture::over(Database::open(config).await.unwrap(), &[]).await
}

#[tokio::test]
async fn prepared_statements_count_by_what_they_hold() {
    let fixture = start(8 << 20).await;
    let (mut root, mut ann) = (fixture.root().await, fixture.user("ann").await);
    let of_root = prepare(&mut root, "SELECT 1").await.unwrap();
    // A statement of 2 KB takes some hundred.
    let mut handles = Vec::new();
    for number in 0..40 {
        let sums: Vec<_> = (0..300).map(|n| format!("{number}+{n} c{n}")).collect();
        let prepared = prepare(&mut ann, &format!("SELECT {}", sums.join(","))).await.unwrap();
        handles.push(query(&prepared.prepared_statement_handle));
    }
    let gone = ann.info(&handles[0]).await.unwrap_err();
    assert!(gone.message().starts_with("[26000] "), "{gone:?}");
    ann.info(&handles[39]).await.unwrap();
    root.info(&query(&of_root.prepared_statement_handle)).await.unwrap();
    assert!(fixture.database.context().memory.users().all().used() < 9 << 20);

    let list = vec!["1"; 25_000].join(",");
    let refused = prepare(&mut ann, &format!("SELECT 1 WHERE 1 IN ({list})")).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    let message = refused.message();
    assert!(message.starts_with("[53200] the user has reached its limit of 4194304 bytes"), "{message}");
    fixture.shut_down().await;
}

#[tokio::test]
async fn rows_on_their_way_in_are_the_memory_of_their_user() {
    let fixture = start(300_000).await;
    let mut root = fixture.root().await;
    root.update("CREATE TABLE t (id BIGINT PRIMARY KEY)").await.unwrap();
    let append = append_to("t");
    let ids = |ids: std::ops::Range<i64>| {
        RecordBatch::try_from_iter([("id", Arc::new(Int64Array::from_iter_values(ids)) as ArrayRef)]).unwrap()
    };
    let refused = root.put(put_messages(&append, vec![ids(0..50_000)]).await).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert!(refused.message().contains("(user_memory_bytes)"), "{refused:?}");
    // The refused rows are no longer held.
    for start in [0, 10_000] {
        let messages = put_messages(&append, vec![ids(start..start + 10_000)]).await;
        assert_eq!(root.put(messages).await.unwrap().0, 10_000);
    }
    fixture.shut_down().await;
}
