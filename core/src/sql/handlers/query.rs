//! SELECT and EXPLAIN.

use datafusion::common::ScalarValue;
use datafusion::sql::planner::PlannerContext;
use datafusion::sql::sqlparser::ast;

use crate::access::Role;
use crate::error::Result;
use crate::sql::planner::{View, plan, plan_query};
use crate::sql::result::Outcome;
use crate::sql::session::Session;

pub(in crate::sql) async fn select(
    session: &Session,
    query: &ast::Query,
    view: View,
    params: &[ScalarValue],
) -> Result<Outcome> {
    let execution = session.begin()?;
    let planned = plan_query(&execution, query, view)?;
    Ok(Outcome::Rows(planned.rows(&execution, params).await?))
}

/// Returns the plan of a query. It needs the role dba, because a plan shows how rows are stored.
pub(in crate::sql) async fn explain(
    session: &Session,
    explain: &ast::Statement,
    view: View,
    params: &[ScalarValue],
) -> Result<Outcome> {
    let execution = session.begin()?;
    execution.principal.require(Role::Dba, "EXPLAIN")?;
    let planned = plan(&execution, explain.clone(), view, &mut PlannerContext::new())?;
    Ok(Outcome::Rows(planned.rows(&execution, params).await?))
}
