//! `system.queries`: the statements running on this node, with their state and what they use.

use datafusion::arrow::array::RecordBatch;

use super::columns::{self, counts, optional_counts, optional_text, text, times};
use super::{SystemSources, may_see};
use crate::error::Result;
use crate::schema_registry::TableSchemas;
use crate::workload::{StatementControl, millis, shown_text};

pub(super) fn batch(sources: &SystemSources<'_>, table: &TableSchemas) -> Result<RecordBatch> {
    let mut queries = sources.statements.list();
    queries.retain(|query| may_see(sources, query.user()));
    let all = || queries.iter().map(|query| &**query);
    // The state may change meanwhile, and must fit what the statement waits for.
    let states: Vec<_> = all().map(StatementControl::state).collect();
    columns::batch(
        table,
        vec![
            text("query_id", all().map(|query| query.id().to_string())),
            text("session_id", all().map(|query| query.session().id().to_string())),
            text("user_id", all().map(|query| query.user().to_string())),
            text("username", all().map(|query| query.session().username())),
            optional_text(
                "client_address",
                all().map(|query| query.session().address().map(|address| address.to_string())),
            ),
            text("application_name", all().map(|query| query.session().application_name())),
            text("kind", all().map(StatementControl::kind)),
            text("state", states.iter().map(|state| state.name())),
            optional_text("wait_event", states.iter().map(|state| state.wait_event())),
            text("query", all().map(shown_text)),
            times("started_at", all().map(StatementControl::started_at)),
            counts("age_ms", all().map(|query| millis(query.elapsed()))),
            counts("rows", all().map(StatementControl::rows)),
            counts("memory_bytes", all().map(|query| query.memory().used() as u64)),
            counts("memory_peak_bytes", all().map(|query| query.memory().peak() as u64)),
            counts("spill_bytes", all().map(StatementControl::spill_bytes)),
            counts("cpu_ms", all().map(|query| query.cpu_us() / 1_000)),
            optional_counts("statement_timeout_ms", all().map(|query| query.timeout().map(millis))),
            text("node_id", all().map(|_| &*sources.node_id.0)),
        ],
    )
}
