//! Removes rows of finished jobs and of the audit log after their retention time.
//!
//! Invariant: the row of an unfinished job stays, however old it is.

use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::array::{AsArray, BooleanArray, RecordBatch};
use datafusion::arrow::datatypes::TimestampMicrosecondType;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::system_rows::SystemRows;
use crate::casts::DAY_US;
use crate::clock::Clock;
use crate::error::{Error, Result};

/// The first check comes after this time at the latest.
const FIRST_AFTER_MAX: Duration = Duration::from_secs(60);

pub(super) struct Retention {
    pub(super) jobs: SystemRows,
    pub(super) audit_logs: SystemRows,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) interval_ms: u64,
    /// How long rows are kept, in days; 0 for ever.
    pub(super) job_days: u32,
    pub(super) audit_days: u32,
    pub(super) stop: CancellationToken,
}

impl Retention {
    /// Runs until told to stop.
    pub(super) async fn run(self) {
        let period = Duration::from_millis(self.interval_ms.max(1));
        let mut ticks = interval_at(Instant::now() + period.min(FIRST_AFTER_MAX), period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            if self.stop.run_until_cancelled(self.remove()).await.is_none() {
                return;
            }
        }
    }

    async fn remove(&self) {
        let kept =
            [(&self.jobs, self.job_days, "completed_at"), (&self.audit_logs, self.audit_days, "created_at")];
        for (rows, days, since) in kept.into_iter().filter(|(_, days, _)| *days > 0) {
            let before = self.clock.now_us().saturating_sub(i64::from(days).saturating_mul(DAY_US));
            let removed = rows.change(|batch| is_old(batch, since, before), |_| Ok(None)).await;
            match removed {
                Ok(0) => {}
                Ok(rows_removed) => {
                    info!(
                        table = rows.table.name(),
                        rows = rows_removed,
                        "removed rows past their retention time"
                    );
                }
                Err(error) => {
                    let table = rows.table.name();
                    warn!(table, %error, "rows past their retention time could not be removed");
                }
            }
        }
    }
}

/// Selects the rows whose time in column `since` is before `before`. Unfinished jobs have no such time.
fn is_old(batch: &RecordBatch, since: &str, before: i64) -> Result<BooleanArray> {
    let lacking = || Error::internal(format!("rows of a system table lack the column \"{since}\""));
    let times = batch.column_by_name(since).ok_or_else(lacking)?;
    let times = times.as_primitive_opt::<TimestampMicrosecondType>().ok_or_else(lacking)?;
    Ok(times.iter().map(|at| Some(at.is_some_and(|at| at < before))).collect())
}
