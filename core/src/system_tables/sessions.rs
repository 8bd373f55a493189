//! `system.sessions`: the sessions open on this node, with what they do now.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;

use super::columns::{self, counts, optional_text, text, times};
use super::{SystemSources, may_see};
use crate::error::Result;
use crate::ids::SessionId;
use crate::schema_registry::TableSchemas;
use crate::workload::SessionInfo;

pub(super) fn batch(sources: &SystemSources<'_>, table: &TableSchemas) -> Result<RecordBatch> {
    let mut sessions = sources.sessions.list();
    sessions.retain(|session| may_see(sources, session.user()));
    let memory = memory_of_sessions(sources);
    let all = || sessions.iter().map(|session| &**session);
    columns::batch(
        table,
        vec![
            text("session_id", all().map(|session| session.id().to_string())),
            text("user_id", all().map(|session| session.user().to_string())),
            text("username", all().map(SessionInfo::username)),
            optional_text(
                "client_address",
                all().map(|session| session.address().map(|address| address.to_string())),
            ),
            text("application_name", all().map(SessionInfo::application_name)),
            text("kind", all().map(|session| session.kind().name())),
            text("namespace", all().map(|session| Arc::clone(&session.settings().read().namespace))),
            times("started_at", all().map(SessionInfo::started_at)),
            times("last_active_at", all().map(SessionInfo::last_active_at)),
            counts("queries", all().map(|session| session.statements() as u64)),
            counts("prepared", all().map(|session| session.prepared() as u64)),
            counts("live_queries", all().map(|session| session.live_queries() as u64)),
            counts(
                "memory_bytes",
                all().map(|session| {
                    let of_statements = memory.get(&session.id()).copied().unwrap_or_default();
                    of_statements + session.prepared_bytes() as u64
                }),
            ),
            text("node_id", all().map(|_| &*sources.node_id.0)),
        ],
    )
}

/// Returns what the running statements of each session hold.
fn memory_of_sessions(sources: &SystemSources<'_>) -> HashMap<SessionId, u64> {
    let mut memory = HashMap::new();
    for query in sources.statements.list() {
        *memory.entry(query.session().id()).or_default() += query.memory().used() as u64;
    }
    memory
}
