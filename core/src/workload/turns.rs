//! Who is next: which of the waiting statements may run. Plain data; nothing here waits.
//!
//! A free slot goes to the user with the fewest running statements, and among equals to the one that has
//! waited longest. So the slots are shared out *max-min fairly*: a user gets more than another only while the
//! other wants no more. Administrators have reserved slots in addition, so that they can end what the others
//! run.
//!
//! Invariant: no more statements run than the limits allow, in all and of one user.

use std::collections::{BTreeSet, HashMap};

use crate::ids::UserId;

/// The number of a statement, in the order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Ticket(pub(super) u64);

/// Slots for administrators, beside those of all users.
pub(super) const RESERVED_SLOTS: usize = 2;

/// How many statements may run and wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct SlotLimits {
    pub(super) running_max: usize,
    pub(super) running_per_user_max: usize,
    pub(super) queued_max: usize,
    pub(super) queued_per_user_max: usize,
}

/// The statements that run and wait.
#[derive(Debug)]
pub(super) struct Turns {
    limits: SlotLimits,
    statements: HashMap<Ticket, Known>,
    users: HashMap<UserId, User>,
    /// The users with a statement that may run once a slot is free; the first is next.
    ranks: BTreeSet<Rank>,
    /// The waiting statements of administrators.
    privileged: BTreeSet<Ticket>,
    /// Statements in slots that are not reserved.
    running: usize,
    /// Statements in reserved slots.
    reserved: usize,
    waiting: usize,
}

#[derive(Debug)]
struct Known {
    user: UserId,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Queue,
    Slot,
    ReservedSlot,
}

#[derive(Debug, Default)]
struct User {
    /// Statements in slots that are not reserved.
    running: usize,
    waiting: BTreeSet<Ticket>,
}

/// The rank of a user: the fewest running statements come first, then the longest wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    running: usize,
    first: Ticket,
    user: UserId,
}

impl Turns {
    pub(super) fn new(limits: SlotLimits) -> Self {
        Self {
            limits,
            statements: HashMap::new(),
            users: HashMap::new(),
            ranks: BTreeSet::new(),
            privileged: BTreeSet::new(),
            running: 0,
            reserved: 0,
            waiting: 0,
        }
    }

    /// Adds a statement, which waits until [`Turns::next`] returns it. One that has run before keeps its
    /// ticket, and so goes before the later ones of its user.
    pub(super) fn arrive(&mut self, ticket: Ticket, user: UserId, is_administrator: bool) {
        self.leave(ticket);
        self.statements.insert(ticket, Known { user, place: Place::Queue });
        self.waiting += 1;
        if is_administrator {
            self.privileged.insert(ticket);
        }
        self.change(user, |user| {
            user.waiting.insert(ticket);
        });
    }

    /// Returns the next statement that has a slot from now on; `None` when nobody waits who may have one.
    pub(super) fn next(&mut self) -> Option<Ticket> {
        if self.running < self.limits.running_max
            && let Some(Rank { first, .. }) = self.ranks.first().copied()
        {
            self.start(first, Place::Slot);
            return Some(first);
        }
        if self.reserved < RESERVED_SLOTS
            && let Some(first) = self.privileged.first().copied()
        {
            self.start(first, Place::ReservedSlot);
            return Some(first);
        }
        None
    }

    /// Removes a statement, whether it runs or waits.
    pub(super) fn leave(&mut self, ticket: Ticket) {
        let Some(Known { user, place }) = self.statements.remove(&ticket) else { return };
        match place {
            Place::Queue => self.unqueue(ticket, user),
            Place::Slot => {
                self.running -= 1;
                self.change(user, |user| user.running -= 1);
            }
            Place::ReservedSlot => self.reserved -= 1,
        }
    }

    fn start(&mut self, ticket: Ticket, place: Place) {
        let Some(known) = self.statements.get_mut(&ticket) else { return };
        known.place = place;
        let user = known.user;
        self.unqueue(ticket, user);
        if place == Place::ReservedSlot {
            self.reserved += 1;
        } else {
            self.running += 1;
            self.change(user, |user| user.running += 1);
        }
    }

    fn unqueue(&mut self, ticket: Ticket, user: UserId) {
        self.waiting -= 1;
        self.privileged.remove(&ticket);
        self.change(user, |user| {
            user.waiting.remove(&ticket);
        });
    }

    /// Changes what is known of a user, and with it the user's rank.
    fn change(&mut self, id: UserId, change: impl FnOnce(&mut User)) {
        let running_max = self.limits.running_per_user_max;
        let user = self.users.entry(id).or_default();
        if let Some(rank) = user.rank(id, running_max) {
            self.ranks.remove(&rank);
        }
        change(user);
        if let Some(rank) = user.rank(id, running_max) {
            self.ranks.insert(rank);
        } else if user.running == 0 && user.waiting.is_empty() {
            self.users.remove(&id);
        }
    }

    /// Whether one more statement of a user may wait.
    pub(super) fn has_room(&self, user: UserId) -> bool {
        let of_user = self.users.get(&user).map_or(0, |user| user.waiting.len());
        self.waiting < self.limits.queued_max && of_user < self.limits.queued_per_user_max
    }

    /// Returns the number of statements that wait, in all.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Returns the number of statements that run, in all.
    pub(super) fn running(&self) -> usize {
        self.running + self.reserved
    }

    /// Returns the numbers of a user's statements that run and that wait. Reserved slots are not counted.
    pub(super) fn of_user(&self, user: UserId) -> (usize, usize) {
        self.users.get(&user).map_or((0, 0), |user| (user.running, user.waiting.len()))
    }
}

impl User {
    /// Returns the user's rank; `None` if no statement waits or no more may run.
    fn rank(&self, user: UserId, running_max: usize) -> Option<Rank> {
        let first = self.waiting.first().copied().filter(|_| self.running < running_max)?;
        Some(Rank { running: self.running, first, user })
    }
}

#[cfg(test)]
mod tests;
