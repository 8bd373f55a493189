//! The state of one connection, shared by its socket, its calls and the table of connections.
//!
//! Invariant: whoever changes what a blocked reader waits for wakes it afterwards.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use futures::task::AtomicWaker;
use tokio::sync::{Semaphore, SemaphorePermit};

/// The bytes of refused calls that a connection without a login may send in vain, in all. They are more than
/// a client sends before it hears of a refusal.
const DISCARDED_BYTES_MAX: usize = 8 << 20;
/// Bodies of refused calls that are read at the same time.
const DISCARDED_BODIES_MAX: usize = 8;

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
    /// Passwords that were wrong.
    failed_logins: AtomicU32,
    /// The right to have a password checked; closed by a login.
    login_turn: Semaphore,
    /// Calls in flight that began before a login.
    calls: AtomicUsize,
    /// The right to have the body of a refused call read.
    pub(super) discards: Semaphore,
    /// Bytes of such bodies that may still be read.
    discarded_bytes_left: AtomicUsize,
    /// Bytes that were read and are gone, for the reader to read as many again.
    bytes_back: AtomicUsize,
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
            failed_logins: AtomicU32::new(0),
            login_turn: Semaphore::new(1),
            calls: AtomicUsize::new(0),
            discards: Semaphore::new(DISCARDED_BODIES_MAX),
            discarded_bytes_left: AtomicUsize::new(DISCARDED_BYTES_MAX),
            bytes_back: AtomicUsize::new(0),
            reader: AtomicWaker::new(),
        }
    }

    pub(super) fn is_logged_in(&self) -> bool {
        self.is_logged_in.load(Ordering::Acquire)
    }

    /// Lets the reader go on, and the calls that wait for a login.
    pub(super) fn mark_logged_in(&self) {
        self.is_logged_in.store(true, Ordering::Release);
        self.login_turn.close();
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

    /// Waits until no other password of the connection is being checked. Returns `None` after a login.
    pub(super) async fn login_turn(&self) -> Option<SemaphorePermit<'_>> {
        self.login_turn.acquire().await.ok()
    }

    /// Returns how many passwords were wrong.
    pub(super) fn failed_logins(&self) -> u32 {
        self.failed_logins.load(Ordering::Relaxed)
    }

    pub(super) fn note_failed_login(&self) {
        self.failed_logins.fetch_add(1, Ordering::Relaxed);
    }

    /// Lets the reader read as many bytes again as those of a refused call that are gone. Returns false when
    /// the connection has sent too many of them.
    pub(super) fn give_back(&self, bytes: usize) -> bool {
        let left = |left: usize| left.checked_sub(bytes);
        if self.discarded_bytes_left.fetch_update(Ordering::AcqRel, Ordering::Acquire, left).is_err() {
            return false;
        }
        self.bytes_back.fetch_add(bytes, Ordering::AcqRel);
        self.reader.wake();
        true
    }

    /// Returns the bytes that were given back since the last time.
    pub(super) fn take_back(&self) -> usize {
        self.bytes_back.swap(0, Ordering::AcqRel)
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
