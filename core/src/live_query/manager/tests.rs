//! What can happen between joining a group and registering, which no client can time.

use std::time::Duration;

use datafusion::prelude::SessionContext;
use futures::StreamExt;

use super::*;
use crate::database::Database;
use crate::ids::ScopeId;
use crate::live_query::{FrameBody, SubscribeStart};
use crate::sql::Session;
use crate::tables::{KalamTable, RowSchema};

async fn with_table() -> (Database, Session) {
    let database = Database::open_in_memory().await.unwrap();
    let root = database.session_for("root").unwrap();
    for sql in ["CREATE NAMESPACE app", "CREATE SHARED TABLE app.t (id BIGINT PRIMARY KEY, a INT)"] {
        root.execute(sql, ()).await.unwrap();
    }
    (database, root)
}

async fn plan_of(database: &Database, sql: &str) -> LiveQueryPlan {
    let ctx = database.context();
    let snapshot = ctx.committer.snapshot();
    let schemas = ctx.schema_registry.schemas(snapshot.catalog.table("app", "t").unwrap());
    let table = KalamTable::stored(snapshot, schemas, RowSchema::Full, ScopeId::SHARED, i64::MIN);
    let context = SessionContext::new();
    context.register_table("t", Arc::new(table)).unwrap();
    let plan = context.sql(sql).await.unwrap().into_unoptimized_plan();
    let (state, renamed) = (context.state(), std::collections::HashMap::new());
    let planning = super::super::plan::Planning {
        state: &state,
        simplify: |expr, _, _| Ok(expr),
        guard: Ok,
        renamed: &renamed,
    };
    LiveQueryPlan::extract(&plan, &planning).unwrap()
}

fn join(database: &Database, root: &Session, plan: LiveQueryPlan, request: &SubscribeRequest) -> Membership {
    let state = &database.context().live_queries.state;
    let principal = root.principal().clone();
    let group = state.join(&principal, plan, frame_limits(request)).unwrap();
    Membership { state: Arc::clone(state), user: principal.user_id, group, id: None, session: None }
}

fn subscriber(database: &Database, session: &Session) -> Subscriber {
    Subscriber::as_of(session.principal(), &database.context().committer.snapshot().catalog)
}

async fn matched(database: &Database) {
    let seq = database.seq();
    let mut frontier = database.context().live_queries.state.frontier.subscribe();
    tokio::time::timeout(Duration::from_secs(20), frontier.wait_for(|frontier| *frontier >= seq))
        .await
        .expect("in time")
        .unwrap();
}

#[tokio::test]
async fn a_table_dropped_before_registration_refuses_the_live_query() {
    let (database, root) = with_table().await;
    let request = SubscribeRequest::new("SELECT id FROM t");
    let membership = join(&database, &root, plan_of(&database, &request.sql).await, &request);
    root.execute("DROP TABLE app.t", ()).await.unwrap();
    matched(&database).await;
    let live = &database.context().live_queries;
    let refused = live.state.register(subscriber(&database, &root), &request, membership);
    assert!(refused.is_err_and(|error| error.kind() == ErrorKind::Conflict));
    assert_eq!((live.counters().subscriptions, live.counters().groups, live.list().len()), (0, 0, 0));
}

#[tokio::test]
async fn who_was_not_registered_when_its_group_failed_fails_too() {
    let (database, root) = with_table().await;
    let mut request = SubscribeRequest::new("SELECT 1 / a AS one FROM t");
    let snapshot = database.context().committer.snapshot();
    request.start = SubscribeStart::AfterSeq(snapshot.seq);
    let membership = join(&database, &root, plan_of(&database, &request.sql).await, &request);
    root.execute("INSERT INTO app.t VALUES (1, 0)", ()).await.unwrap();
    matched(&database).await;
    let state = &database.context().live_queries.state;
    let (registered, membership) =
        state.register(subscriber(&database, &root), &request, membership).unwrap();
    let start = Start::After { seq: snapshot.seq, resumed: false };
    let mut stream = Subscription::new(Arc::clone(state), registered, membership, start, snapshot, &request);
    let mut reasons = Vec::new();
    let drain = async {
        while let Some(item) = stream.next().await {
            match item {
                Ok(frame) => {
                    if let FrameBody::Closed { reason, .. } = &frame.body {
                        reasons.push(*reason);
                    }
                }
                Err(error) => assert_eq!(error.sqlstate(), SqlState::DIVISION_BY_ZERO),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), drain).await.expect("the stream ends");
    assert_eq!(reasons, [CloseReason::Failed]);
}
