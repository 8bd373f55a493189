//! Live queries, started by `SUBSCRIBE TO` or by an embedding call.

use datafusion::common::ScalarValue;
use datafusion::sql::sqlparser::ast;

use crate::error::Result;
use crate::live_query::{LiveQueryPlan, SubscribeRequest, Subscription};
use crate::sql::effect::Effect;
use crate::sql::execution::{Execution, TableVisibility};
use crate::sql::plan::planner::plan_live_query;
use crate::sql::text::statement::Subscribe;

pub(in crate::sql) fn statement(
    execution: &Execution,
    subscribe: &Subscribe,
    visibility: TableVisibility,
    params: &[ScalarValue],
) -> Result<Effect> {
    start(execution, &subscribe.query, visibility, params, &subscribe.request).map(Effect::Subscription)
}

/// Starts a live query.
pub(in crate::sql) fn start(
    execution: &Execution,
    query: &ast::Query,
    visibility: TableVisibility,
    params: &[ScalarValue],
    request: &SubscribeRequest,
) -> Result<Subscription> {
    let planned = plan_live_query(execution, query, visibility)?;
    let (types, _) = planned.resolve(params.len())?;
    let plan = LiveQueryPlan::extract(&planned.bind(&types, params)?.plan, &planned.planning())?;
    execution.ctx().live_queries.subscribe(&execution.principal, execution.session(), plan, request)
}
