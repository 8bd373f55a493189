//! Live queries, started by `SUBSCRIBE TO` or by an embedding call.

use datafusion::common::ScalarValue;
use datafusion::sql::sqlparser::ast;

use crate::error::{Error, Result};
use crate::live_query::{LiveQueryPlan, SubscribeRequest, Subscription};
use crate::sql::planner::{View, plan_live_query};
use crate::sql::result::{Outcome, Params};
use crate::sql::session::Session;
use crate::sql::statement::{Statement, Subscribe, parse};

pub(in crate::sql) async fn statement(
    session: &Session,
    subscribe: &Subscribe,
    view: View,
    params: Vec<ScalarValue>,
) -> Result<Outcome> {
    start(session, &subscribe.query, view, &params, &subscribe.request).map(Outcome::Subscription)
}

pub(in crate::sql) async fn subscribe(session: &Session, request: SubscribeRequest) -> Result<Subscription> {
    let parsed = parse(&request.sql, &session.ctx().config)?;
    let params = parsed.parameters.values(Params::Positional(request.params.clone()))?;
    match &parsed.statement {
        Statement::Query(query) => {
            let view = View { names_seq: parsed.names_seq, target: None };
            start(session, query, view, &params, &request)
        }
        _ => Err(Error::unsupported("a live query of anything but a SELECT")),
    }
}

fn start(
    session: &Session,
    query: &ast::Query,
    view: View,
    params: &[ScalarValue],
    request: &SubscribeRequest,
) -> Result<Subscription> {
    let execution = session.begin()?;
    let planned = plan_live_query(&execution, query, view)?;
    let (types, _) = planned.resolve(params.len())?;
    let plan = LiveQueryPlan::extract(&planned.bind(&types, params)?.plan, &planned.planning())?;
    session.ctx().live_queries.subscribe(&execution.principal, plan, request)
}
