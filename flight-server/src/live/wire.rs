//! Frames of the core as gRPC messages.
//!
//! A frame with rows is sent in two pieces; the first is per subscriber, the second is shared by all of them:
//!
//! ```text
//! compressed u8 = 0 | message length u32 BE | Frame fields 1..4 | key and length of the body
//!     | rows | key and length of ipc
//! the ipc bytes, in the buffer that the core encoded the batch into
//! ```
//!
//! Invariant: both pieces are together the canonical message of `live.proto`; a test decodes them with the
//! generated code.

use bytes::{BufMut, Bytes, BytesMut};
use kalamdb_core::live_query::{CloseReason, EncodedBatch, Frame, FrameBody, ResetReason};
use kalamdb_proto::live::v1 as pb;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

/// Length of the prefix of every gRPC message: a flag and a length.
const PREFIX_BYTES: usize = 5;
/// Up to this size, one piece is cheaper than two.
const INLINE_BYTES_MAX: usize = 1024;

/// How long a client should wait before the next attempt after a retryable `closed`, in milliseconds.
const MIN_BACKOFF_MS: i32 = 200;

const SNAPSHOT_TAG: u32 = 11;
const DELTA_TAG: u32 = 13;
const BATCH_IPC_TAG: u32 = 1;
const BATCH_ROWS_TAG: u32 = 2;

/// One gRPC message, in the pieces it is sent in.
pub(super) struct WireFrame {
    /// The whole message, or everything before `ipc`.
    pub(super) head: Bytes,
    /// The rows, when `head` does not contain them.
    pub(super) ipc: Option<Bytes>,
}

/// Encodes `frame` with its gRPC prefix.
pub(super) fn encode(frame: &Frame) -> WireFrame {
    match &frame.body {
        FrameBody::Snapshot(batch) => encode_rows(&fields(frame), SNAPSHOT_TAG, batch),
        FrameBody::Delta(batch) => encode_rows(&fields(frame), DELTA_TAG, batch),
        FrameBody::Started { schema_ipc, .. } => {
            let mut message = frame_header(frame);
            if let Some(pb::frame::Body::Started(started)) = &mut message.body {
                started.schema_ipc = Bytes::clone(schema_ipc);
            }
            whole(&message)
        }
        _ => whole(&frame_header(frame)),
    }
}

/// Returns a frame without its Arrow data, that is without schema and rows.
pub(crate) fn frame_header(frame: &Frame) -> pb::Frame {
    pb::Frame { body: Some(body(&frame.body)), ..fields(frame) }
}

fn fields(frame: &Frame) -> pb::Frame {
    pb::Frame {
        complete_through: frame.complete_through.0,
        resume_token: frame.resume_token.clone().unwrap_or_default(),
        more: frame.more,
        server_time_us: u64::try_from(frame.server_time_us).unwrap_or_default(),
        body: None,
    }
}

fn whole(message: &pb::Frame) -> WireFrame {
    let length = message.encoded_len();
    let mut head = prefix(length, length);
    message.encode_raw(&mut head);
    WireFrame { head: head.freeze(), ipc: None }
}

/// Returns the last frame of a server that shuts down while the core still runs.
pub(super) fn closed_by_shutdown() -> Bytes {
    let closed = closed(CloseReason::Shutdown, "the server is shutting down", true);
    whole(&pb::Frame { body: Some(pb::frame::Body::Closed(closed)), ..Default::default() }).head
}

fn encode_rows(header: &pb::Frame, body_tag: u32, batch: &EncodedBatch) -> WireFrame {
    let rows = batch.rows as u64;
    let ipc_length = batch.ipc.len() as u64;
    let before_ipc = key_len(BATCH_ROWS_TAG)
        + encoded_len_varint(rows)
        + key_len(BATCH_IPC_TAG)
        + encoded_len_varint(ipc_length);
    let body_length = before_ipc + batch.ipc.len();
    let message_length =
        header.encoded_len() + key_len(body_tag) + encoded_len_varint(body_length as u64) + body_length;

    let inline = batch.ipc.len() <= INLINE_BYTES_MAX;
    let mut head =
        prefix(message_length, if inline { message_length } else { message_length - batch.ipc.len() });
    header.encode_raw(&mut head);
    encode_key(body_tag, WireType::LengthDelimited, &mut head);
    encode_varint(body_length as u64, &mut head);
    encode_key(BATCH_ROWS_TAG, WireType::Varint, &mut head);
    encode_varint(rows, &mut head);
    encode_key(BATCH_IPC_TAG, WireType::LengthDelimited, &mut head);
    encode_varint(ipc_length, &mut head);
    if inline {
        head.put_slice(&batch.ipc);
        return WireFrame { head: head.freeze(), ipc: None };
    }
    WireFrame { head: head.freeze(), ipc: Some(Bytes::clone(&batch.ipc)) }
}

fn prefix(message_length: usize, capacity: usize) -> BytesMut {
    let mut head = BytesMut::with_capacity(PREFIX_BYTES + capacity);
    head.put_u8(0);
    // The core limits batches to a few MiB, far below the limit of four bytes.
    head.put_u32(u32::try_from(message_length).unwrap_or(u32::MAX));
    head
}

fn body(body: &FrameBody) -> pb::frame::Body {
    use pb::frame::Body;
    let rows = |batch: &EncodedBatch| pb::Batch {
        ipc: Bytes::new(),
        rows: u32::try_from(batch.rows).unwrap_or(u32::MAX),
    };
    match body {
        FrameBody::Started { subscription, key_columns, snapshot_seq, resumed, .. } => {
            Body::Started(pb::Started {
                schema_ipc: Bytes::new(),
                key_columns: key_columns.clone(),
                sub_id: subscription.0,
                snapshot_seq: snapshot_seq.0,
                resumed: *resumed,
            })
        }
        FrameBody::Snapshot(batch) => Body::Snapshot(rows(batch)),
        FrameBody::Delta(batch) => Body::Delta(rows(batch)),
        FrameBody::SnapshotEnd => Body::SnapshotEnd(pb::SnapshotEnd {}),
        FrameBody::Progress => Body::Progress(pb::Progress {}),
        FrameBody::Reset { reason, snapshot_seq } => {
            Body::Reset(pb::Reset { reason: reset_reason(*reason).into(), snapshot_seq: snapshot_seq.0 })
        }
        FrameBody::Notice(message) => Body::Notice(pb::Notice { message: message.clone() }),
        FrameBody::Closed { reason, message, retryable } => {
            Body::Closed(closed(*reason, message, *retryable))
        }
    }
}

fn closed(reason: CloseReason, message: &str, retryable: bool) -> pb::Closed {
    pb::Closed {
        reason: close_reason(reason).into(),
        message: message.to_owned(),
        retryable,
        min_backoff: retryable
            .then_some(prost_types::Duration { seconds: 0, nanos: MIN_BACKOFF_MS * 1_000_000 }),
    }
}

fn reset_reason(reason: ResetReason) -> pb::ResetReason {
    match reason {
        ResetReason::Retention => pb::ResetReason::Retention,
        ResetReason::Lag => pb::ResetReason::Lag,
        ResetReason::Schema => pb::ResetReason::Schema,
        ResetReason::Security => pb::ResetReason::Security,
        ResetReason::Server => pb::ResetReason::Server,
    }
}

fn close_reason(reason: CloseReason) -> pb::CloseReason {
    match reason {
        CloseReason::Completed => pb::CloseReason::Completed,
        CloseReason::Killed => pb::CloseReason::Killed,
        CloseReason::TableDropped => pb::CloseReason::TableDropped,
        CloseReason::SchemaChanged => pb::CloseReason::SchemaChanged,
        CloseReason::UserDropped => pb::CloseReason::UserDropped,
        CloseReason::AccessChanged => pb::CloseReason::AccessChanged,
        CloseReason::Failed => pb::CloseReason::Failed,
        CloseReason::Shutdown => pb::CloseReason::Shutdown,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::Schema;
    use kalamdb_core::ids::Seq;

    use super::*;

    fn rows_frame(ipc: Vec<u8>) -> Frame {
        let schema = Arc::new(Schema::empty());
        Frame {
            complete_through: Seq(300),
            resume_token: Some(Bytes::from_static(b"token")),
            more: true,
            server_time_us: 1_700_000_000_000_000,
            body: FrameBody::Delta(EncodedBatch { ipc: ipc.into(), rows: 200, schema }),
        }
    }

    fn decode(wire: &WireFrame) -> pb::Frame {
        let mut bytes = wire.head.to_vec();
        bytes.extend_from_slice(wire.ipc.as_deref().unwrap_or_default());
        let (prefix, message) = bytes.split_at(PREFIX_BYTES);
        assert_eq!(prefix[0], 0);
        assert_eq!(u32::from_be_bytes(prefix[1..].try_into().expect("four bytes")) as usize, message.len());
        pb::Frame::decode(message).expect("a frame")
    }

    #[test]
    fn pieces_together_are_the_message_of_the_proto() {
        for length in [0, 1, 127, 128, INLINE_BYTES_MAX, INLINE_BYTES_MAX + 1, 3 << 20] {
            let ipc = vec![7; length];
            let wire = encode(&rows_frame(ipc.clone()));
            assert_eq!(wire.ipc.is_some(), length > INLINE_BYTES_MAX);
            let frame = decode(&wire);
            assert_eq!(frame.complete_through, 300);
            assert_eq!(frame.resume_token.as_ref(), b"token");
            assert!(frame.more);
            assert_eq!(frame.server_time_us, 1_700_000_000_000_000);
            let Some(pb::frame::Body::Delta(batch)) = frame.body else { panic!("{:?}", frame.body) };
            assert_eq!((batch.rows, batch.ipc.len()), (200, length));
            assert_eq!(batch.ipc, ipc);
        }
    }

    #[test]
    fn large_rows_are_shared_and_not_copied() {
        let frame = rows_frame(vec![7; 1 << 20]);
        let FrameBody::Delta(batch) = &frame.body else { unreachable!() };
        let wire = encode(&frame);
        assert_eq!(wire.ipc.map(|ipc| ipc.as_ptr()), Some(batch.ipc.as_ptr()));
    }

    #[test]
    fn the_last_frame_says_when_to_come_back() {
        let frame = decode(&WireFrame { head: closed_by_shutdown(), ipc: None });
        let Some(pb::frame::Body::Closed(closed)) = frame.body else { panic!("{:?}", frame.body) };
        assert_eq!(closed.reason(), pb::CloseReason::Shutdown);
        assert!(closed.retryable && closed.min_backoff.is_some());
    }
}
