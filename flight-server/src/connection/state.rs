//! The state of one connection, shared by its socket, its calls and the table of connections.
//!
//! Invariant: whoever changes what a blocked reader waits for wakes it afterwards.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures::task::AtomicWaker;

/// What the parts of the server share about one connection.
#[derive(Debug)]
pub(super) struct State {
    pub(super) number: u64,
    pub(super) peer: SocketAddr,
    is_logged_in: AtomicBool,
    /// Whether the connection must end.
    is_closing: AtomicBool,
    /// Whether its socket is gone.
    is_closed: AtomicBool,
    /// Calls whose credentials are being checked.
    logins: AtomicUsize,
    /// Calls in flight that began before a login.
    calls: AtomicUsize,
    /// The task that reads the socket.
    pub(super) reader: AtomicWaker,
}

impl State {
    /// Creates the state of an accepted connection.
    pub(super) fn new(number: u64, peer: SocketAddr) -> Self {
        Self {
            number,
            peer,
            is_logged_in: AtomicBool::new(false),
            is_closing: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            logins: AtomicUsize::new(0),
            calls: AtomicUsize::new(0),
            reader: AtomicWaker::new(),
        }
    }

    pub(super) fn is_logged_in(&self) -> bool {
        self.is_logged_in.load(Ordering::Acquire)
    }

    /// Lets the reader go on.
    pub(super) fn mark_logged_in(&self) {
        self.is_logged_in.store(true, Ordering::Release);
        self.reader.wake();
    }

    pub(super) fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Acquire)
    }

    /// Tells the reader to end the connection.
    pub(super) fn close(&self) {
        self.is_closing.store(true, Ordering::Release);
        self.reader.wake();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    pub(super) fn mark_closed(&self) {
        self.is_closed.store(true, Ordering::Release);
    }

    /// Whether credentials of a call are being checked.
    pub(super) fn is_logging_in(&self) -> bool {
        self.logins.load(Ordering::Acquire) > 0
    }
}

/// A call whose credentials are being checked.
#[derive(Debug)]
pub(crate) struct LoginGuard(Arc<State>);

impl LoginGuard {
    pub(super) fn new(state: Arc<State>) -> Self {
        state.logins.fetch_add(1, Ordering::AcqRel);
        Self(state)
    }
}

impl Drop for LoginGuard {
    fn drop(&mut self) {
        self.0.logins.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A call in flight that began before a login.
#[derive(Debug)]
pub(crate) struct CallGuard(Arc<State>);

impl CallGuard {
    /// Counts a call; `None` when `calls_max` are in flight.
    pub(super) fn new(state: &Arc<State>, calls_max: usize) -> Option<Self> {
        let counted = state.calls.fetch_update(Ordering::AcqRel, Ordering::Acquire, |calls| {
            (calls < calls_max).then(|| calls + 1)
        });
        counted.ok().map(|_| Self(Arc::clone(state)))
    }
}

impl Drop for CallGuard {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::AcqRel);
    }
}
