//! Byte budgets: what the server holds for clients, for one purpose each.
//!
//! A limit on entries does not bound memory, because one entry may be large. Code that keeps client data
//! charges its bytes to a budget first; dropping the [`Charge`] together with the data returns them. What a
//! budget holds for a user is part of the memory that the user may have.
//!
//! Invariant: a charge is made in the budget and in the memory of the user, or in neither.

use std::sync::Arc;

use kalamdb_core::ids::UserId;
use kalamdb_core::workload::{self, Level, Limit, Memory, UserAccounts};

/// Limits of held bytes, and the current amounts.
#[derive(Debug)]
pub(crate) struct Budget {
    held: UserAccounts,
    memory: Arc<Memory>,
}

impl Budget {
    fn new(memory: &Arc<Memory>, of_all: Limit, of_user: Limit) -> Arc<Self> {
        Arc::new(Self { held: UserAccounts::new(of_all, of_user), memory: Arc::clone(memory) })
    }

    /// Allows prepared statements half of the memory, so that something is left to run them with.
    pub(crate) fn of_prepared(memory: &Arc<Memory>) -> Arc<Self> {
        let half = |limit: Limit| {
            let noun = "prepared statements and their parameters";
            Limit { bytes_max: limit.bytes_max / 2, noun, ..limit }
        };
        let users = memory.users();
        Self::new(memory, half(users.all().limit()), half(users.of_user()))
    }

    /// Allows `bytes_max` bytes of rows and parameters while they arrive. A user has no part of its own.
    pub(crate) fn of_inbound(memory: &Arc<Memory>, bytes_max: usize) -> Arc<Self> {
        let noun = "rows and parameters on their way in";
        let all = Limit { level: Level::Server, bytes_max, noun, setting: "inbound_bytes_max" };
        Self::new(memory, all, Limit { level: Level::User, bytes_max: usize::MAX, ..all })
    }

    /// Returns a budget of these sizes, in a memory of its own.
    #[cfg(test)]
    pub(crate) fn for_test(bytes_max: usize, user_bytes_max: usize) -> Arc<Self> {
        let config =
            kalamdb_core::Config { query_memory_bytes: 4 << 30, ..kalamdb_core::Config::in_memory() };
        let of = |level, bytes_max| Limit { level, bytes_max, noun: "test data", setting: "none" };
        let memory = Arc::new(Memory::new(&config));
        Self::new(&memory, of(Level::Server, bytes_max), of(Level::User, user_bytes_max))
    }

    /// Returns the limit of all users together.
    pub(crate) fn of_all(&self) -> Limit {
        self.held.all().limit()
    }

    /// Returns the limit of each user.
    pub(crate) fn of_user(&self) -> Limit {
        self.held.of_user()
    }

    /// Charges `bytes` to `user` until the charge is dropped.
    ///
    /// # Errors
    /// The limit that would be exceeded: of the budget, or of the memory.
    pub(crate) fn charge(&self, user: UserId, bytes: usize) -> Result<Charge, Limit> {
        let held = self.held.user(user).charge(bytes)?;
        let memory = self.memory.users().user(user).charge(bytes)?;
        Ok(Charge { held, memory })
    }

    /// Returns the bytes held now.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.held.all().used()
    }
}

/// Bytes charged to a budget; dropping the charge returns them.
#[derive(Debug)]
pub(crate) struct Charge {
    held: workload::Charge,
    memory: workload::Charge,
}

impl Charge {
    /// Charges more bytes.
    pub(crate) fn grow(&mut self, bytes: usize) -> Result<(), Limit> {
        self.held.grow(bytes)?;
        let grown = self.memory.grow(bytes);
        if grown.is_err() {
            self.held.shrink(bytes);
        }
        grown
    }
}

#[cfg(test)]
mod tests {
    use kalamdb_core::Config;

    use super::*;

    #[test]
    fn a_budget_is_for_each_user_and_for_all() {
        let budget = Budget::for_test(100, 60);
        let mut ann = budget.charge(UserId(1), 40).unwrap();
        assert_eq!(ann.grow(21).unwrap_err(), budget.of_user());
        ann.grow(20).unwrap();
        let bob = budget.charge(UserId(2), 40).unwrap();
        assert_eq!(budget.charge(UserId(3), 1).unwrap_err(), budget.of_all());
        assert_eq!(budget.held(), 100);
        drop(ann);
        assert_eq!(budget.held(), 40);
        budget.charge(UserId(1), 60).unwrap();
        drop(bob);
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn what_is_held_for_a_user_counts_as_the_users_memory() {
        let config = Config { query_memory_bytes: 1_000, user_memory_bytes: 400, ..Config::in_memory() };
        let memory = Arc::new(Memory::new(&config));
        let ann = memory.users().user(UserId(1));
        let (prepared, inbound) = (Budget::of_prepared(&memory), Budget::of_inbound(&memory, 600));
        assert_eq!(prepared.charge(UserId(1), 201).unwrap_err(), prepared.of_user());
        let _statement = prepared.charge(UserId(1), 150).unwrap();
        let mut rows = inbound.charge(UserId(1), 200).unwrap();
        assert_eq!(ann.used(), 350);
        assert_eq!(rows.grow(51).unwrap_err(), ann.limit());
        assert_eq!((ann.used(), inbound.held()), (350, 200), "a refusal changes nothing");
        assert_eq!(prepared.charge(UserId(1), 51).unwrap_err(), prepared.of_user());
        assert_eq!(inbound.charge(UserId(2), 401).unwrap_err(), inbound.of_all());
        drop(rows);
        assert_eq!((ann.used(), inbound.held(), prepared.held()), (150, 0, 150));
    }
}
