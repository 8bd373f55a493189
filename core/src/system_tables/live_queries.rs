//! `system.live_queries`: the live queries running on this node.

use datafusion::arrow::array::RecordBatch;
use serde_json::json;

use super::columns::{self, counts, optional_text, text, times};
use crate::error::Result;
use crate::ids::NodeId;
use crate::live_query::LiveQueryInfo;
use crate::schema_registry::TableSchemas;

pub(super) fn batch(queries: &[LiveQueryInfo], node: &NodeId, table: &TableSchemas) -> Result<RecordBatch> {
    columns::batch(
        table,
        vec![
            text("live_id", queries.iter().map(|query| query.id.to_string())),
            text("connection_id", queries.iter().map(|query| &query.label)),
            text("subscription_id", queries.iter().map(|query| query.id.to_string())),
            text("namespace_id", queries.iter().map(|query| &*query.namespace)),
            text("table_name", queries.iter().map(|query| &*query.table)),
            text("query_id", queries.iter().map(|query| &query.query_id)),
            text("user_id", queries.iter().map(|query| query.principal.user_id.to_string())),
            text("query", queries.iter().map(|query| &query.sql)),
            optional_text("options", queries.iter().map(|query| Some(options_json(query)))),
            text("status", queries.iter().map(|_| "active")),
            times("created_at", queries.iter().map(|query| query.created_at)),
            times("updated_at", queries.iter().map(|query| query.updated_at)),
            counts("changes", queries.iter().map(|query| query.changes)),
            text("node_id", queries.iter().map(|_| &*node.0)),
        ],
    )
}

fn options_json(query: &LiveQueryInfo) -> String {
    json!({
        "label": query.label,
        "frames": query.frames,
        "complete_through": query.complete_through,
        "shared_by": query.shared_by,
    })
    .to_string()
}
