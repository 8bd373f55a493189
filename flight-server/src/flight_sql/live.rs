//! `SUBSCRIBE TO (SELECT ...)` as a statement: an endless DoGet for clients without LiveQuery stubs.
//!
//! The batches are the bytes of the live query's batches. Each message carries its frame's header, a `Frame`
//! of live.proto without the rows, in `app_metadata`. A frame without rows comes with an empty batch, because
//! some clients show only messages with batches.
//!
//! Invariant: the first message is the schema that FlightInfo promised; the stream ends with OK only if
//! everything that was requested was delivered.

use arrow_flight::FlightData;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use kalamdb_core::{EncodedBatch, Frame, FrameBody, Result, Subscription};
use prost::Message;

use super::encode::{BatchEncoder, WireSchema};
use crate::live::{end_error, frame_header};

/// Returns the messages of a live query.
pub(super) fn messages(
    subscription: Subscription,
    schema: WireSchema,
) -> BoxStream<'static, Result<FlightData>> {
    let first = schema.message(Bytes::new());
    let mut encoder = BatchEncoder::new(schema);
    let frames = subscription.flat_map(move |frame| {
        let items = match frame {
            Ok(frame) => {
                let end = match &frame.body {
                    FrameBody::Closed { reason, message, .. } => end_error(*reason, message),
                    _ => None,
                };
                [Some(message(&frame, &mut encoder)), end.map(Err)]
            }
            Err(error) => [Some(Err(error)), None],
        };
        stream::iter(items.into_iter().flatten())
    });
    stream::iter([Ok(first)]).chain(frames).boxed()
}

fn message(frame: &Frame, encoder: &mut BatchEncoder) -> Result<FlightData> {
    let header = Bytes::from(frame_header(frame).encode_to_vec());
    match rows_of(frame) {
        Some(rows) => {
            let (data_header, data_body) = rows.header_and_body();
            Ok(FlightData { data_header, data_body, app_metadata: header, ..FlightData::default() })
        }
        None => encoder.encode_empty(header),
    }
}

fn rows_of(frame: &Frame) -> Option<&EncodedBatch> {
    match &frame.body {
        FrameBody::Snapshot(rows) | FrameBody::Delta(rows) => Some(rows),
        FrameBody::Started { .. }
        | FrameBody::SnapshotEnd
        | FrameBody::Progress
        | FrameBody::Reset { .. }
        | FrameBody::Notice(_)
        | FrameBody::Closed { .. } => None,
    }
}
