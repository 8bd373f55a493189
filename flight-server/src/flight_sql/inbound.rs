//! The messages of a DoPut, limited and charged while they arrive.
//!
//! Invariant: delivered bytes stay charged to the user until the [`Inbound`] is dropped, so callers keep it
//! as long as the data.

use arrow_flight::FlightData;
use kalamdb_core::{Error, ErrorKind, Result, SqlState, UserId};
use tonic::{Code, Streaming};

use super::budget::{Budget, Charge};
use super::wire::malformed;

/// The messages of a DoPut. The first carries the descriptor and, from some clients, a schema.
pub(super) struct Inbound {
    messages: Streaming<FlightData>,
    message_bytes_max: usize,
    first: Option<FlightData>,
    bytes: usize,
    held: Charge,
}

impl Inbound {
    /// Charges the messages to `user`. `message_bytes_max` is the transport's limit, for its error.
    ///
    /// # Errors
    /// 53200 when all clients together have sent too much.
    pub(super) fn new(
        messages: Streaming<FlightData>,
        message_bytes_max: usize,
        budget: &Budget,
        user: UserId,
    ) -> Result<Self> {
        let held = budget.charge(user, 0)?;
        Ok(Self { messages, message_bytes_max, first: None, bytes: 0, held })
    }

    /// Returns the first message, which `next` returns again; `None` when the stream is empty.
    pub(super) async fn first(&mut self) -> Result<Option<FlightData>> {
        let first = self.next().await?;
        self.first.clone_from(&first);
        Ok(first)
    }

    /// Returns the next message, or `None` at the end.
    ///
    /// # Errors
    /// 08000 for a malformed message, 54000 for one over the limit, 53200 when the user or all clients
    /// together have sent too much, 57014 when the client disconnected.
    pub(super) async fn next(&mut self) -> Result<Option<FlightData>> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        let Some(message) = self.read().await? else { return Ok(None) };
        // Headers count too: a dictionary or an empty batch may have only a header.
        let bytes = message.data_header.len() + message.data_body.len();
        self.held.grow(bytes)?;
        self.bytes = self.bytes.saturating_add(bytes);
        Ok(Some(message))
    }

    /// Returns the bytes of all messages so far, headers and bodies.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Reads and drops the rest; some clients treat an answer before the end of their stream as an error.
    pub(super) async fn drain(&mut self) -> Result<()> {
        self.first = None;
        while self.read().await?.is_some() {}
        Ok(())
    }

    async fn read(&mut self) -> Result<Option<FlightData>> {
        self.messages.message().await.map_err(|status| match status.code() {
            Code::OutOfRange | Code::ResourceExhausted => Error::new(
                ErrorKind::ResourceExhausted,
                SqlState::PROGRAM_LIMIT_EXCEEDED,
                format!("a message is larger than {} bytes", self.message_bytes_max),
            )
            .hint("send smaller batches"),
            // The transport's code for a malformed message; if the connection broke, nobody reads this error.
            Code::Internal => malformed("a message of the stream is not FlightData").source(status),
            _ => Error::new(
                ErrorKind::Cancelled,
                SqlState::QUERY_CANCELED,
                "the client's stream was interrupted",
            )
            .source(status),
        })
    }
}
