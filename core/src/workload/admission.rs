//! Admission: a statement runs on the engine while it has a slot. It waits for one on its caller's thread.
//! Large writes have an admission of their own.
//!
//! Invariants: a slot goes to the next statement as soon as its own ends, gives it back or is given up. A
//! statement that must stop does not wait.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::control::{StatementControl, StatementState};
use super::threads::BLOCKING_THREADS_MAX;
use super::turns::{SlotLimits, Ticket, Turns};
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result, SqlState};

/// Large writes that block threads at the same time, in all and of one user. All other statements read and
/// write with the remaining threads.
const LARGE_WRITES_MAX: usize = BLOCKING_THREADS_MAX / 4;
const LARGE_WRITES_PER_USER_MAX: usize = LARGE_WRITES_MAX / 2;

/// Decides which statements run, and which wait for their turn.
pub struct Admission {
    limits: SlotLimits,
    /// `None` sets no limit.
    queue_timeout: Option<Duration>,
    state: Mutex<State>,
}

/// How many statements run and wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdmissionCounters {
    /// Statements that have a slot.
    pub running: usize,
    /// Statements that wait for one.
    pub waiting: usize,
}

struct State {
    turns: Turns,
    last_ticket: Ticket,
    /// The statements of `turns`.
    admitted: HashMap<Ticket, Admitted>,
}

/// A statement that runs or waits.
struct Admitted {
    control: Arc<StatementControl>,
    /// Called when its turn has come; `None` while it runs.
    call: Option<oneshot::Sender<()>>,
}

/// A turn that has not come yet.
struct Waiting {
    called: oneshot::Receiver<()>,
    /// Whether the queue has room for the statement.
    has_room: bool,
}

impl Admission {
    /// Creates an admission that lets nobody wait longer than the settings say.
    pub(crate) fn new(config: &Config) -> Arc<Self> {
        let limits = SlotLimits {
            running_max: config.statements_running_max(),
            running_per_user_max: config.statements_running_per_user_max(),
            queued_max: config.statements_queued_max,
            queued_per_user_max: config.statements_queued_per_user_max,
        };
        let queue_timeout = Duration::from_millis(config.statement_queue_timeout_ms);
        Self::with(limits, (!queue_timeout.is_zero()).then_some(queue_timeout))
    }

    /// Creates an admission of statements that block a thread for long while they write. Those run, and so
    /// nobody is refused.
    pub(crate) fn of_large_writes() -> Arc<Self> {
        let limits = SlotLimits {
            running_max: LARGE_WRITES_MAX,
            running_per_user_max: LARGE_WRITES_PER_USER_MAX,
            queued_max: usize::MAX,
            queued_per_user_max: usize::MAX,
        };
        Self::with(limits, None)
    }

    fn with(limits: SlotLimits, queue_timeout: Option<Duration>) -> Arc<Self> {
        let state = State { turns: Turns::new(limits), last_ticket: Ticket(0), admitted: HashMap::new() };
        Arc::new(Self { limits, queue_timeout, state: Mutex::new(state) })
    }

    /// Waits until it is the statement's turn to run.
    ///
    /// # Errors
    /// 53300 when too many statements wait, or this one has waited too long; the reason when it must stop.
    pub(crate) async fn enter(self: &Arc<Self>, control: &Arc<StatementControl>) -> Result<Slot> {
        let slot = Slot {
            admission: Arc::clone(self),
            control: Arc::clone(control),
            ticket: self.new_ticket(),
            is_held: true,
        };
        match self.arrive(&slot) {
            None => Ok(slot),
            Some(Waiting { has_room: false, .. }) => Err(self.full(control)),
            Some(Waiting { called, .. }) => {
                slot.wait(called, self.queue_timeout).await?;
                Ok(slot)
            }
        }
    }

    fn new_ticket(&self) -> Ticket {
        let mut state = self.state.lock();
        state.last_ticket.0 += 1;
        state.last_ticket
    }

    /// Adds a statement; `None` if it runs at once.
    fn arrive(&self, slot: &Slot) -> Option<Waiting> {
        let (ticket, control) = (slot.ticket, Arc::clone(&slot.control));
        let mut state = self.state.lock();
        let has_room = state.turns.has_room(control.user());
        state.turns.arrive(ticket, control.user(), control.may_use_reserved());
        let mut runs = false;
        while let Some(next) = state.turns.next() {
            match next == ticket {
                true => runs = true,
                false => state.call(next),
            }
        }
        let (call, waiting) = match runs {
            true => (None, None),
            false => {
                let (call, called) = oneshot::channel();
                (Some(call), Some(Waiting { called, has_room }))
            }
        };
        state.admitted.insert(ticket, Admitted { control, call });
        waiting
    }

    /// Removes a statement, and calls those whose turn it is now.
    fn leave(&self, ticket: Ticket) {
        let left = {
            let mut state = self.state.lock();
            state.leave(ticket)
        };
        // It may be the last owner of its control, which is not dropped under the lock.
        drop(left);
    }

    /// Returns the slots of a statement that does not let go of its thread.
    pub(super) fn give_up(&self, control: &Arc<StatementControl>) {
        let mut state = self.state.lock();
        let is_its = |(_, admitted): &(&Ticket, &Admitted)| Arc::ptr_eq(&admitted.control, control);
        let tickets: Vec<_> = state.admitted.iter().filter(is_its).map(|(ticket, _)| *ticket).collect();
        for ticket in tickets {
            state.leave(ticket);
        }
    }

    /// Returns how many statements run and wait.
    pub fn counters(&self) -> AdmissionCounters {
        let state = self.state.lock();
        AdmissionCounters { running: state.turns.running(), waiting: state.turns.waiting() }
    }

    fn full(&self, control: &StatementControl) -> Error {
        let (_, of_user) = self.state.lock().turns.of_user(control.user());
        // The statement itself is counted.
        if of_user > self.limits.queued_per_user_max {
            let (most, user) = (self.limits.queued_per_user_max, control.session().username());
            return too_many(format!("{most} statements of user \"{user}\" wait for their turn"))
                .hint("run fewer statements at a time, or raise statements_queued_per_user_max");
        }
        too_many(format!("{} statements wait for their turn", self.limits.queued_max))
            .hint("try again later, or raise statements_queued_max")
    }

    fn timed_out(&self, control: &StatementControl, waited: Duration) -> Error {
        let (of_user, in_all) = {
            let state = self.state.lock();
            (state.turns.of_user(control.user()).0, state.turns.running())
        };
        let (waited_s, user) = (waited.as_secs_f64(), control.session().username());
        let running = format!("{of_user} statements of user \"{user}\" and {in_all} in all were running");
        too_many(format!("the statement waited {waited_s:.1} s; {running}")).hint(
            "run fewer statements at a time, or raise statements_running_max or statement_queue_timeout_ms",
        )
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission").field("counters", &self.counters()).finish_non_exhaustive()
    }
}

impl State {
    fn leave(&mut self, ticket: Ticket) -> Option<Admitted> {
        let left = self.admitted.remove(&ticket);
        self.turns.leave(ticket);
        while let Some(next) = self.turns.next() {
            self.call(next);
        }
        left
    }

    fn call(&mut self, ticket: Ticket) {
        if let Some(call) = self.admitted.get_mut(&ticket).and_then(|admitted| admitted.call.take()) {
            // If it does not wait any more, it leaves in a moment.
            let _heard = call.send(());
        }
    }
}

/// The right of a statement to run on the engine. Dropping it passes it on.
#[derive(Debug)]
pub(crate) struct Slot {
    admission: Arc<Admission>,
    control: Arc<StatementControl>,
    ticket: Ticket,
    is_held: bool,
}

impl Slot {
    /// Lets another statement run while this one needs no thread.
    pub(crate) fn give_back(&mut self) {
        if std::mem::take(&mut self.is_held) {
            self.admission.leave(self.ticket);
        }
    }

    /// Waits for a slot, unless the statement has it, before all later statements of the same user. Nothing
    /// but a reason to stop ends the wait.
    ///
    /// # Errors
    /// The reason to stop.
    pub(crate) async fn take_back(&mut self) -> Result<()> {
        if self.is_held {
            return Ok(());
        }
        if let Some(Waiting { called, .. }) = self.admission.arrive(self) {
            self.wait(called, None).await?;
        }
        self.is_held = true;
        Ok(())
    }

    async fn wait(&self, called: oneshot::Receiver<()>, timeout: Option<Duration>) -> Result<()> {
        let control = &self.control;
        control.set_state(StatementState::Queued);
        let began = Instant::now();
        let too_long = async {
            match timeout {
                Some(timeout) => tokio::time::sleep(timeout).await,
                None => std::future::pending().await,
            }
        };
        let result = tokio::select! {
            biased;
            () = control.stopped() => Err(control.error()),
            called = called => called.map_err(|_| control.error()),
            () = too_long => Err(self.admission.timed_out(control, began.elapsed())),
        };
        control.set_state(StatementState::Planning);
        result
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // Also a place in the queue.
        self.admission.leave(self.ticket);
    }
}

fn too_many(message: String) -> Error {
    Error::new(ErrorKind::ResourceExhausted, SqlState::TOO_MANY, message)
}

#[cfg(test)]
mod tests;
