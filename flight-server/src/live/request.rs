//! Converts `SubscribeRequest` from the wire to the core's type.
//!
//! Invariant: no field that a client sets is dropped. An unknown field is refused by name or number,
//! whichever `.proto` the client was generated from.

use std::time::Duration;

use bytes::{Buf, Bytes};
use kalamdb_core::ids::Seq;
use kalamdb_core::live_query::{SnapshotMode, SubscribeRequest, SubscribeStart};
use kalamdb_core::{Error, ScalarValue};
use kalamdb_proto::live::v1 as pb;
use prost::Message;
use prost::encoding::{DecodeContext, decode_key, skip_field};

/// The longest accepted `heartbeat`.
const HEARTBEAT_MAX: Duration = Duration::from_secs(3600);

/// Fields that `live.proto` reserves.
const RESERVED: [(u32, &str); 9] = [
    (7, "envelope"),
    (8, "old_values"),
    (9, "update_encoding"),
    (13, "min_interval"),
    (14, "conflate"),
    (15, "on_lag"),
    (16, "visibility"),
    (17, "ipc_compression"),
    (19, "schema_version"),
];

/// Reads one request.
///
/// # Errors
/// When the bytes are not a request, a field is not offered, or a value is out of range.
pub(super) fn decode(bytes: Bytes) -> Result<SubscribeRequest, Error> {
    refuse_unknown_fields(Bytes::clone(&bytes))?;
    let request = pb::SubscribeRequest::decode(bytes).map_err(malformed)?;
    let snapshot = match pb::SnapshotMode::try_from(request.snapshot) {
        Ok(pb::SnapshotMode::Include) => SnapshotMode::Include,
        Ok(pb::SnapshotMode::Skip) => SnapshotMode::Skip,
        Ok(pb::SnapshotMode::Only) => SnapshotMode::Only,
        Err(_) => return Err(Error::invalid(format!("snapshot mode {} does not exist", request.snapshot))),
    };
    let start = match request.start {
        None => SubscribeStart::Now,
        Some(pb::subscribe_request::Start::ResumeToken(token)) => SubscribeStart::Token(token),
        Some(pb::subscribe_request::Start::AsOfSeq(seq)) => SubscribeStart::AfterSeq(Seq(seq)),
    };
    Ok(SubscribeRequest {
        sql: request.sql,
        params: parameters(&request.params_ipc)?,
        snapshot,
        start,
        up_to_seq: request.up_to_seq.map(Seq),
        max_rows: to_usize(request.max_rows),
        max_bytes: to_usize(request.max_bytes).min(SubscribeRequest::MAX_BYTES_LIMIT),
        heartbeat: heartbeat(request.heartbeat)?,
        label: request.label,
    })
}

fn refuse_unknown_fields(mut bytes: Bytes) -> Result<(), Error> {
    while bytes.has_remaining() {
        let (tag, wire_type) = decode_key(&mut bytes).map_err(malformed)?;
        match tag {
            1..=6 | 10..=12 | 18 => {}
            _ => {
                let name = RESERVED.iter().find(|(reserved, _)| *reserved == tag).map(|(_, name)| *name);
                return Err(match name {
                    Some(name) => Error::unsupported(format_args!("field \"{name}\" of SubscribeRequest")),
                    None => Error::invalid(format!("field {tag} of SubscribeRequest does not exist"))
                        .hint("generate the client from this server's live.proto"),
                });
            }
        }
        skip_field(wire_type, tag, &mut bytes, DecodeContext::default()).map_err(malformed)?;
    }
    Ok(())
}

fn parameters(ipc: &[u8]) -> Result<Vec<ScalarValue>, Error> {
    if ipc.is_empty() {
        return Ok(Vec::new());
    }
    let rows = crate::ipc_decoder::decode_params(ipc)?;
    if rows.num_rows() != 1 {
        return Err(Error::invalid(format!(
            "params_ipc has {} rows; it must have exactly one",
            rows.num_rows()
        )));
    }
    rows.columns().iter().map(|column| ScalarValue::try_from_array(column, 0).map_err(Error::from)).collect()
}

fn heartbeat(wanted: Option<prost_types::Duration>) -> Result<Duration, Error> {
    let Some(wanted) = wanted else { return Ok(SubscribeRequest::HEARTBEAT) };
    let heartbeat = Duration::try_from(wanted).map_err(|_| {
        Error::invalid("heartbeat must not be negative").hint("omit it for the default of 5 s")
    })?;
    if heartbeat > HEARTBEAT_MAX {
        return Err(Error::invalid("heartbeat is longer than an hour"));
    }
    Ok(heartbeat)
}

fn malformed(_: prost::DecodeError) -> Error {
    Error::invalid("the request is not a kalamdb.live.v1.SubscribeRequest")
}

fn to_usize(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use kalamdb_core::ErrorKind;

    use super::*;

    fn bytes(request: &pb::SubscribeRequest) -> Bytes {
        request.encode_to_vec().into()
    }

    #[test]
    fn an_empty_request_means_the_defaults() {
        let request =
            decode(bytes(&pb::SubscribeRequest { sql: "SELECT 1".to_owned(), ..Default::default() }))
                .expect("request");
        assert_eq!(request.sql, "SELECT 1");
        assert_eq!(request.snapshot, SnapshotMode::Include);
        assert_eq!(request.start, SubscribeStart::Now);
        assert_eq!(request.up_to_seq, None);
        assert_eq!(request.heartbeat, Duration::from_secs(5));
    }

    #[test]
    fn what_is_not_offered_is_refused_by_name() {
        // Key of field 8 (`old_values`), varint 1.
        let error = decode(Bytes::from_static(&[0x40, 1])).expect_err("old_values");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("old_values"), "{error}");
        // Key of field 30, varint 1.
        let error = decode(Bytes::from_static(&[0xF0, 1, 1])).expect_err("field 30");
        assert!(error.to_string().contains("field 30"), "{error}");
    }

    #[test]
    fn values_out_of_range_are_refused() {
        let refused =
            |request: pb::SubscribeRequest| decode(bytes(&request)).expect_err("refused").to_string();
        assert!(
            refused(pb::SubscribeRequest { snapshot: 9, ..Default::default() }).contains("snapshot mode 9")
        );
        for (seconds, says) in [(-1, "negative"), (3601, "an hour")] {
            let heartbeat = Some(prost_types::Duration { seconds, nanos: 0 });
            let message = refused(pb::SubscribeRequest { heartbeat, ..Default::default() });
            assert!(message.contains(says), "{message}");
        }
    }

    #[test]
    fn rubbish_is_no_request() {
        for rubbish in [
            &[0xFF_u8][..],
            &[0x0A, 200],
            &[0x0B],
            &[0x08, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF],
        ] {
            assert!(decode(Bytes::copy_from_slice(rubbish)).is_err(), "{rubbish:?}");
        }
    }
}
