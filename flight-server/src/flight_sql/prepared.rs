//! Prepared statements. JDBC prepares everything it runs, so preparing must accept any statement and change
//! nothing.
//!
//! DoPut always returns the handle it received: a driver that replaced its handle would close the wrong one.
//!
//! Invariant: an update's dataset_schema is empty and a query's is not, because older drivers distinguish
//! them only by this.

use arrow::datatypes::Schema;
use arrow_flight::sql::{ActionCreatePreparedStatementRequest, DoPutPreparedStatementResult};
use bytes::Bytes;
use kalamdb_core::schema_registry::encode_schema;
use kalamdb_core::{Prepared, Result, StatementKind};
use prost::Message;

use super::handles::PreparedStatements;
use super::inbound::Inbound;
use super::messages::CreatePreparedStatementResult;
use super::parameters::Parameters;
use super::state::{Caller, FlightState};
use super::update::{self, WriteOutcome};
use super::{statement, wire};
use crate::sessions::OpenSession;

/// Prepares a statement and opens a handle of the caller for it.
pub(super) async fn create(
    state: &FlightState,
    caller: &Caller,
    request: ActionCreatePreparedStatementRequest,
) -> Result<CreatePreparedStatementResult> {
    wire::no_transaction(request.transaction_id.as_ref())?;
    let prepared = caller.session.prepare(&request.query).await?;
    let is_update = prepared.kind() == StatementKind::Update;
    let dataset_schema =
        if is_update { Bytes::new() } else { statement::result_schema(state, &prepared).ipc() };
    let parameter_schema = parameter_schema(&prepared);
    let handle = state.prepared.open(&caller.session, prepared)?;
    Ok(CreatePreparedStatementResult {
        prepared_statement_handle: Bytes::copy_from_slice(&handle),
        dataset_schema,
        parameter_schema,
        is_update: Some(is_update),
    })
}

/// Binds the parameters of a DoPut to a query, or to an update that runs in a later call.
pub(super) async fn bind(
    statements: &PreparedStatements,
    session: &OpenSession,
    handle: Bytes,
    inbound: &mut Inbound,
) -> Result<Bytes> {
    // Checked before the data is read, so that an unknown handle costs nothing.
    let entry = statements.get(session, &handle)?;
    let parameters = Parameters::read(inbound, &entry.prepared).await?;
    statements.bind(session, &handle, parameters.into_bound(&entry.prepared)?)?;
    let result = DoPutPreparedStatementResult { prepared_statement_handle: Some(handle) };
    Ok(result.encode_to_vec().into())
}

/// Runs an update with the parameters of a DoPut: each row is one execution; all of them are one commit.
pub(super) async fn update(
    state: &FlightState,
    caller: &Caller,
    handle: &[u8],
    inbound: &mut Inbound,
) -> Result<WriteOutcome> {
    let entry = state.prepared.get(&caller.session, handle)?;
    let _running = state.running.enter(caller.running(None, Some(entry.handle)));
    let prepared = entry.prepared.in_call(&caller.call);
    let parameters = Parameters::read(inbound, &prepared).await?;
    if parameters.were_sent {
        return update::run_rows(&prepared, parameters.rows()?).await;
    }
    // The call carried no parameters: use the ones bound before.
    update::run_bound(&prepared, &entry.bound).await
}

/// Encodes the schema of a statement's parameters; always present, because drivers read a missing one as "not
/// supported".
fn parameter_schema(prepared: &Prepared) -> Bytes {
    encode_schema(&Schema::new(prepared.parameters().to_vec()))
}
