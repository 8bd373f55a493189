//! Trims the change log when it is older or larger than allowed.
//!
//! A trim by age waits for some slack, and one by size makes some, so that trims are few and worth a job.
//!
//! Invariant: a commit younger than the retention time is trimmed only when the log is larger than allowed.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::log_size::LogSize;
use super::record::JobKind;
use super::store::JobStore;
use crate::change_log;
use crate::commit::{CommitFeed, Committer, Snapshot, WriteSet};
use crate::error::Result;
use crate::failpoint;
use crate::ids::{Seq, UserId};
use crate::segments::Control;
use crate::storage;

/// A smaller log is not trimmed for its size: a trim's own commits, some KiB, must not cause the next one.
const LOG_BYTES_MIN: u64 = 64 << 10;

pub(super) struct Trim {
    pub(super) store: Arc<JobStore>,
    pub(super) interval_ms: u64,
    pub(super) limits: TrimLimits,
    pub(super) stop: CancellationToken,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct TrimLimits {
    pub(super) retention_s: u64,
    pub(super) bytes_max: u64,
}

impl Trim {
    /// Runs until told to stop.
    pub(super) async fn run(self) {
        let feed = self.store.committer.commits();
        let mut heads = feed.watch();
        let mut ticks = interval(Duration::from_millis(self.interval_ms.max(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut size: Option<(LogSize, Seq)> = None;
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                changed = heads.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.count(&feed, &mut size);
                    continue;
                }
                _ = ticks.tick() => {}
            }
            self.count(&feed, &mut size);
            if let Some((size, _)) = &mut size
                && let Err(error) = self.trim(size).await
                && !self.stop.is_cancelled()
            {
                warn!(%error, "the change log could not be trimmed");
            }
        }
    }

    /// Counts the commits since the last call. The first count starts from the store's own size.
    fn count(&self, feed: &CommitFeed, size: &mut Option<(LogSize, Seq)>) {
        let records = size.as_ref().and_then(|(_, counted)| feed.after(*counted));
        let (Some((size, counted)), Some(records)) = (size.as_mut(), records) else {
            let snapshot = self.store.committer.snapshot();
            let bytes = self.store.committer.storage_metrics().log_bytes;
            let fresh = LogSize::new(snapshot.log_floor, snapshot.seq, bytes, self.limits.bytes_max);
            *size = Some((fresh, snapshot.seq));
            return;
        };
        for record in records {
            size.note(&record);
            *counted = record.seq;
        }
    }

    async fn trim(&self, size: &mut LogSize) -> Result<()> {
        let snapshot = self.store.committer.snapshot();
        size.trimmed(snapshot.log_floor);
        let by_bytes = match size.bytes() > self.limits.bytes_max.max(LOG_BYTES_MIN) {
            true => size.floor_for(self.limits.bytes_max / 10 * 9),
            false => None,
        };
        let now = self.store.clock.now_us();
        let retention_s = self.limits.retention_s;
        let floor = snapshot.log_floor;
        let by_age = storage::blocking(move || floor_by_age(&snapshot, now, retention_s)).await?;
        let Some(target) = by_bytes.max(by_age).filter(|target| *target > floor) else { return Ok(()) };
        let parameters = json!({ "up_to_seq": target.0, "log_bytes": size.bytes() });
        let committer = Arc::clone(&self.store.committer);
        let job = self.store.enqueue(JobKind::LogTrim, None, parameters).await?;
        self.store.run(job, 0, |control| trim_to(Arc::clone(&committer), target, control)).await?;
        size.trimmed(self.store.committer.snapshot().log_floor);
        Ok(())
    }
}

/// Trims in steps, each a commit.
async fn trim_to(committer: Arc<Committer>, target: Seq, control: Control) -> Result<String> {
    loop {
        let snapshot = committer.snapshot();
        if snapshot.log_floor >= target {
            return Ok(format!("trimmed the change log up to seq {}", snapshot.log_floor));
        }
        control.check()?;
        let set = WriteSet { trim_log_to: Some(target), ..WriteSet::new(UserId::SYSTEM, snapshot.seq) };
        let floor = snapshot.log_floor;
        failpoint::step("trim::commit")?;
        committer.commit(set).await?;
        failpoint::step("trim::committed")?;
        if committer.snapshot().log_floor == floor {
            return Ok(format!("nothing to trim after seq {floor}"));
        }
    }
}

/// Returns the last commit older than the retention time; `None` if none is old enough to be worth a trim.
fn floor_by_age(snapshot: &Snapshot, now: i64, retention_s: u64) -> Result<Option<Seq>> {
    const SECOND_US: i64 = 1_000_000;
    /// The most seconds by which commits may outlive the retention time.
    const SLACK_S_MAX: u64 = 3_600;
    let age_us = |seconds: u64| i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(SECOND_US);
    let committed_at = |seq: Seq| -> Result<Option<i64>> {
        Ok(change_log::header(snapshot.storage.as_ref(), seq)?.map(|header| header.commit_ts))
    };
    let oldest = snapshot.log_floor.next();
    let worth = now.saturating_sub(age_us(retention_s.saturating_add((retention_s / 20).min(SLACK_S_MAX))));
    match committed_at(oldest)? {
        Some(at) if at < worth => {}
        _ => return Ok(None),
    }
    // Commit times never fall as seqs grow: `old` is too old, `young` is not.
    let limit = now.saturating_sub(age_us(retention_s));
    let (mut old, mut young) = (oldest.0, snapshot.seq.0.saturating_add(1));
    while young - old > 1 {
        let middle = old + (young - old) / 2;
        match committed_at(Seq(middle))? {
            Some(at) if at < limit => old = middle,
            _ => young = middle,
        }
    }
    Ok(Some(Seq(old)))
}
