//! SELECT and EXPLAIN.

use datafusion::common::ScalarValue;
use datafusion::sql::planner::PlannerContext;
use datafusion::sql::sqlparser::ast;

use crate::access::Role;
use crate::error::Result;
use crate::sql::effect::Effect;
use crate::sql::execution::{Execution, TableVisibility};
use crate::sql::plan::planner::{plan, plan_query};

pub(in crate::sql) async fn select(
    execution: &Execution,
    query: &ast::Query,
    visibility: TableVisibility,
    params: &[ScalarValue],
) -> Result<Effect> {
    let planned = plan_query(execution, query, visibility)?;
    Ok(Effect::Rows(planned.rows(execution, params).await?))
}

/// Returns the plan of a query. It needs the role dba, because a plan shows how rows are stored.
pub(in crate::sql) async fn explain(
    execution: &Execution,
    explain: &ast::Statement,
    visibility: TableVisibility,
    params: &[ScalarValue],
) -> Result<Effect> {
    execution.principal.require(Role::Dba, "EXPLAIN")?;
    let planned = plan(execution, explain.clone(), visibility, &mut PlannerContext::new())?;
    Ok(Effect::Rows(planned.rows(execution, params).await?))
}
