//! The call of a client: what limits its statements, and how all of them are ended together.
//!
//! Invariant: a statement that begins in a call that was ended is told to stop.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::control::StatementControl;
use super::reason::StopReason;
use crate::error::Error;

/// The call of a client. Clones are the same call.
///
/// # Examples
/// ```
/// use kalamdb_core::{Call, Database, StopReason};
///
/// # #[tokio::main]
/// # async fn main() -> kalamdb_core::Result<()> {
/// # let database = Database::open_in_memory().await?;
/// # let session = database.session_for("root")?;
/// let call = Call::default();
/// let sql = "SELECT count(*) FROM generate_series(1, 1000000000000)";
/// let rows = session.in_call(&call).execute(sql, ()).await?.rows()?;
/// call.end(StopReason::Cancelled);
/// assert_eq!(rows.collect().await.unwrap_err().sqlstate().0, "57014");
/// # database.shutdown().await
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Call {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    timeout: Option<Duration>,
    ended: CancellationToken,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    end: Option<StopReason>,
    statements: Vec<Weak<StatementControl>>,
}

impl Call {
    /// Creates a call whose statements have this `statement_timeout`, whatever the session says; zero means
    /// none.
    pub fn with_timeout(timeout: Duration) -> Self {
        Self { inner: Arc::new(Inner { timeout: Some(timeout), ..Inner::default() }) }
    }

    /// Tells all statements of the call to stop.
    pub fn end(&self, reason: StopReason) {
        let statements = {
            let mut state = self.inner.state.lock();
            state.end.get_or_insert(reason);
            std::mem::take(&mut state.statements)
        };
        self.inner.ended.cancel();
        for control in statements.iter().filter_map(Weak::upgrade) {
            control.stop(reason);
        }
    }

    /// Waits until the call is ended, and returns what its client is told.
    pub fn ended(&self) -> impl Future<Output = Error> + Send + use<> {
        let call = self.clone();
        async move {
            call.inner.ended.cancelled().await;
            call.inner.state.lock().end.unwrap_or(StopReason::Cancelled).error()
        }
    }

    /// Returns the time that the call sets for its statements.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.inner.timeout
    }

    /// Adds a statement.
    pub(super) fn add(&self, control: &Arc<StatementControl>) {
        let mut state = self.inner.state.lock();
        let State { end, statements } = &mut *state;
        if let Some(reason) = *end {
            control.stop(reason);
            return;
        }
        if statements.len() == statements.capacity() {
            statements.retain(|statement| statement.strong_count() > 0);
        }
        statements.push(Arc::downgrade(control));
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("timeout", &self.inner.timeout).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::error::SqlState;

    #[tokio::test]
    async fn all_statements_of_a_call_end_with_it_also_later_ones() {
        let (call, config) = (Call::default(), Config::in_memory());
        let [before, later, other] = [(); 3].map(|()| StatementControl::new(&config));
        call.add(&before);
        let clone = call.clone();
        let told = tokio::spawn(clone.ended());
        call.end(StopReason::HandleClosed);
        call.end(StopReason::Cancelled);
        call.add(&later);
        assert_eq!(before.reason(), Some(StopReason::HandleClosed));
        assert_eq!(later.reason(), Some(StopReason::HandleClosed));
        assert_eq!(other.reason(), None);
        assert_eq!(told.await.unwrap().sqlstate(), SqlState::QUERY_CANCELED);
    }
}
