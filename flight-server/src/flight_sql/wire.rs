//! What the calls share when they read a request and answer it: messages, refusals, and the seq in headers.
//!
//! Invariant: a request that cannot be read fails with 08000; a transaction id and a Substrait plan are
//! refused, never ignored.

use arrow_flight::FlightData;
use arrow_flight::sql::{Any, Command};
use bytes::Bytes;
use futures::stream::BoxStream;
use kalamdb_core::{Error, ErrorKind, Result, Seq, SqlState};
use prost::Message;
use tonic::Status;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};

/// The only catalog name in metadata.
pub(super) const CATALOG: &str = "kalam";
/// Header, trailer and JSON key for the seq of a read or a commit.
pub(super) const SEQ_KEY: &str = "kalamdb-seq";

/// The messages of a DoGet.
pub(super) type DataStream = BoxStream<'static, std::result::Result<FlightData, Status>>;

/// Decodes a descriptor's command.
pub(super) fn command(bytes: &Bytes) -> Result<Command> {
    let any: Any = decode(bytes)?;
    Command::try_from(any).map_err(|error| malformed("the command cannot be read").source(error))
}

/// Decodes a protobuf message.
pub(super) fn decode<M: Message + Default>(bytes: &Bytes) -> Result<M> {
    M::decode(bytes.clone()).map_err(|error| malformed("the message cannot be read").source(error))
}

/// Refuses a transaction id: there are no transactions, so no id is valid.
pub(super) fn no_transaction(transaction_id: Option<&Bytes>) -> Result<()> {
    match transaction_id {
        Some(id) if !id.is_empty() => Err(Error::new(
            ErrorKind::NotFound,
            SqlState::NO_ACTIVE_TRANSACTION,
            "the transaction does not exist",
        )
        .hint("every statement is a transaction of its own; turn autocommit on")),
        _ => Ok(()),
    }
}

/// Returns the error for a Substrait plan in place of SQL.
pub(super) fn no_substrait() -> Error {
    Error::unsupported("a Substrait plan").hint("send SQL")
}

/// Returns the error for a request that cannot be read.
pub(super) fn malformed(what: &str) -> Error {
    Error::new(ErrorKind::InvalidArgument, SqlState::CONNECTION_EXCEPTION, what.to_owned())
}

/// Returns the error for metadata that does not fit its own schema.
pub(super) fn metadata_not_built(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::internal("the metadata could not be built").source(error)
}

/// Writes the seq of a result or commit into the response headers.
pub(super) fn put_seq(headers: &mut MetadataMap, seq: Seq) {
    if let Ok(value) = MetadataValue::<Ascii>::try_from(seq.to_string()) {
        headers.insert(SEQ_KEY, value);
    }
}
