//! Where a subscription starts: with a snapshot, or after a commit that the client already has.
//!
//! Invariant: a stream starts after a commit only if the change log has every later commit. Otherwise it
//! starts with a snapshot, and a RESET gives the reason.

use super::frame::ResetReason;
use super::frame_maker::FrameMaker;
use super::token::CommitPosition;
use super::{SnapshotMode, SubscribeRequest, SubscribeStart};
use crate::commit::Snapshot;
use crate::error::{Error, Result};
use crate::ids::Seq;

/// Where a subscription starts.
pub(super) enum Start {
    /// With a snapshot: it was requested, or the requested position no longer exists.
    Snapshot { reset: Option<ResetReason> },
    /// After a commit.
    After { seq: Seq, resumed: bool },
}

impl Start {
    /// Returns where the subscription of `request` starts, as of `snapshot`.
    pub(super) fn of(request: &SubscribeRequest, maker: &FrameMaker, snapshot: &Snapshot) -> Result<Self> {
        let seq = match &request.start {
            SubscribeStart::Now => {
                return Ok(match request.snapshot {
                    SnapshotMode::Include | SnapshotMode::Only => Self::Snapshot { reset: None },
                    SnapshotMode::Skip => Self::After { seq: snapshot.seq, resumed: false },
                });
            }
            _ if request.snapshot == SnapshotMode::Only => {
                return Err(Error::invalid("a snapshot-only live query cannot resume")
                    .hint("remove the resume token or seq"));
            }
            SubscribeStart::Token(token) => match maker.sealer.open(&maker.scope, token)? {
                Ok(position) if is_kept(position, maker, snapshot) => position.seq,
                Ok(_) => return Ok(Self::Snapshot { reset: Some(ResetReason::Server) }),
                Err(reason) => return Ok(Self::Snapshot { reset: Some(reason) }),
            },
            SubscribeStart::AfterSeq(seq) if *seq > snapshot.seq => {
                return Err(Error::invalid(format!(
                    "seq {seq} is in the future: the newest is {}",
                    snapshot.seq
                )));
            }
            SubscribeStart::AfterSeq(seq) => *seq,
        };
        if seq < snapshot.log_floor {
            return Ok(Self::Snapshot { reset: Some(ResetReason::Retention) });
        }
        Ok(Self::After { seq, resumed: true })
    }
}

/// Whether the commit that a token names is part of this database's history.
fn is_kept(position: CommitPosition, maker: &FrameMaker, snapshot: &Snapshot) -> bool {
    position.seq <= snapshot.seq && maker.committer.epochs().contains(position.epoch, position.seq)
}
