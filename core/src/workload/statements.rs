//! The running statements: who runs what, in which state, and how one, those of a session or all are stopped.
//!
//! Whoever ends others must be able to do so when everything is busy, so nothing here waits or needs a thread
//! of the engine.
//!
//! Invariant: a statement is listed from its beginning until it is over, and anything that works for it keeps
//! it listed.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use dashmap::DashMap;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tracing::{debug, info};

use super::calls::Call;
use super::control::{Limits, OnEnd, StatementControl, StatementParts};
use super::reason::StopReason;
use super::sessions::millis;
use crate::clock::Clock;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::ids::{QueryId, SessionId, UserId};

/// In place of a text that may contain a password.
const HIDDEN: &str = "<hidden>";
/// The most bytes of a text that lists and the log show.
const SHOWN_BYTES_MAX: usize = 4 << 10;

type Listed = Arc<DashMap<QueryId, Weak<StatementControl>>>;

/// The running statements.
pub(crate) struct Statements {
    listed: Listed,
    last_id: AtomicU64,
    limits: Limits,
    on_end: OnEnd,
    clock: Arc<dyn Clock>,
    /// For timers. Its threads do no work of statements, so no timer is late.
    runtime: Handle,
    is_closed: AtomicBool,
}

impl Statements {
    /// Creates an empty list. Must be called within a tokio runtime.
    pub(crate) fn new(config: &Config, clock: Arc<dyn Clock>) -> Self {
        let listed = Listed::default();
        let ended = Arc::clone(&listed);
        let slow = Duration::from_millis(config.slow_statement_ms);
        let on_end: OnEnd = Arc::new(move |control: &StatementControl| {
            ended.remove(&control.id());
            if !slow.is_zero() && control.elapsed() > slow {
                log_slow(control);
            }
        });
        Self {
            listed,
            last_id: AtomicU64::new(0),
            limits: Limits::new(config),
            on_end,
            clock,
            runtime: Handle::current(),
            is_closed: AtomicBool::new(false),
        }
    }

    /// Begins a statement, in a call if there is one.
    ///
    /// # Errors
    /// 57P01, 57P05 or 08000 when the session has ended, 57014 when the call was ended, 57P01 while closing.
    pub(crate) fn begin(
        &self,
        parts: StatementParts<'_>,
        call: Option<&Call>,
    ) -> Result<Arc<StatementControl>> {
        let id = QueryId(self.last_id.fetch_add(1, Ordering::Relaxed) + 1);
        let (session, timeout) = (parts.session, parts.timeout);
        let now_us = self.clock.now_us();
        let on_end = Some(Arc::clone(&self.on_end));
        let control = StatementControl::begin(id, self.limits, now_us, parts, on_end);
        self.listed.insert(id, Arc::downgrade(&control));
        // Checked once it is listed, so that who ends the session, the call or all statements misses none.
        session.check()?;
        if let Some(call) = call {
            call.add(&control);
        }
        if self.is_closed.load(Ordering::Acquire) {
            return Err(Error::shutting_down());
        }
        control.check()?;
        if let Some(at) = timeout.and_then(|timeout| Instant::now().checked_add(timeout)) {
            let timer = self.runtime.spawn(stop_at(Arc::downgrade(&control), at));
            control.set_timer(timer.abort_handle());
        }
        Ok(control)
    }

    /// Returns the control of work that is no statement, such as reading the names of tables. It is not
    /// listed.
    pub(crate) fn unlisted(&self, parts: StatementParts<'_>) -> Arc<StatementControl> {
        StatementControl::begin(QueryId(0), self.limits, self.clock.now_us(), parts, None)
    }

    /// Returns a running statement.
    pub(crate) fn get(&self, id: QueryId) -> Option<Arc<StatementControl>> {
        self.listed.get(&id).and_then(|listed| listed.upgrade())
    }

    /// Returns the running statements, oldest first.
    pub(crate) fn list(&self) -> Vec<Arc<StatementControl>> {
        // The last owner of a control removes it from the map, so none is dropped while the map is read.
        let mut controls: Vec<_> = self.listed.iter().filter_map(|listed| listed.upgrade()).collect();
        controls.sort_by_key(|control| control.id());
        controls
    }

    /// Tells the statements of a session to stop.
    pub(crate) fn stop_session(&self, session: SessionId, reason: StopReason) {
        for control in self.list().iter().filter(|control| control.session().id() == session) {
            control.stop(reason);
        }
    }

    /// Tells all statements to stop that have begun.
    pub(crate) fn stop_all(&self) {
        for control in self.list() {
            control.stop(StopReason::ShuttingDown);
        }
    }

    /// Tells all statements to stop, and lets none begin.
    pub(crate) fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
        self.stop_all();
    }

    /// Tells the statements of users to stop who are gone or have another password or role. `generation`
    /// returns the present one of a user.
    pub(crate) fn stop_logged_out(&self, generation: impl Fn(UserId) -> Option<u32>) {
        for control in self.list() {
            if control.auth_generation().is_some_and(|began| generation(control.user()) != Some(began)) {
                control.stop(StopReason::LoggedOut);
            }
        }
    }
}

async fn stop_at(control: Weak<StatementControl>, at: Instant) {
    tokio::time::sleep_until(at).await;
    if let Some(control) = control.upgrade() {
        control.stop(StopReason::Timeout);
    }
}

/// Returns the text as lists and the log show it.
pub(crate) fn shown_text(control: &StatementControl) -> &str {
    match control.text() {
        None => HIDDEN,
        Some(text) => text.get(..text.floor_char_boundary(SHOWN_BYTES_MAX)).unwrap_or(text),
    }
}

fn log_slow(control: &StatementControl) {
    let session = control.session();
    info!(
        query = control.id().0,
        session = session.id().0,
        user = session.username(),
        kind = control.kind(),
        elapsed_ms = millis(control.elapsed()),
        queued_ms = millis(control.queued_time()),
        cpu_ms = control.cpu_us() / 1_000,
        rows = control.rows(),
        memory_peak_bytes = control.memory().peak(),
        spill_bytes = control.spill_bytes(),
        end = control.end_name(),
        fingerprint = control.text().map(fingerprint),
        "slow statement"
    );
    debug!(query = control.id().0, sql = shown_text(control), "text of a slow statement");
}

/// Returns a number that equal texts share, as 16 hexadecimal digits. It does not tell the text.
fn fingerprint(text: &str) -> String {
    let hash = Sha256::digest(text.as_bytes());
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
