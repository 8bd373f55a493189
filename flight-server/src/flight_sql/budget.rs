//! Bytes the server holds for clients, counted for each user and in all.
//!
//! Counting entries bounds no memory: one entry may be large. Whoever keeps something of a client's takes its bytes out of a
//! budget first, and gives them back by dropping the [`Charge`] together with what it stands for.
//!
//! Invariant: what is held is the sum of all charges that live.

use std::collections::HashMap;
use std::sync::Arc;

use kalamdb_core::ids::UserId;
use parking_lot::Mutex;

/// What may be held, and what is.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes_max: usize,
    user_bytes_max: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    bytes: usize,
    users: HashMap<UserId, usize>,
}

/// Why a budget does not give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exhausted {
    /// The user holds too much already.
    ByUser,
    /// All users together do.
    ByAll,
}

impl Budget {
    /// At most `bytes_max` for all, and `user_bytes_max` for each user.
    pub(crate) fn new(bytes_max: usize, user_bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { bytes_max, user_bytes_max, held: Mutex::default() })
    }

    /// Takes `bytes` for `user` until the charge is dropped.
    pub(crate) fn charge(self: &Arc<Self>, user: UserId, bytes: usize) -> Result<Charge, Exhausted> {
        self.take(user, bytes)?;
        Ok(Charge { budget: Arc::clone(self), user, bytes })
    }

    fn take(&self, user: UserId, bytes: usize) -> Result<(), Exhausted> {
        let mut held = self.held.lock();
        let all = held.bytes.saturating_add(bytes);
        let own = held.users.get(&user).copied().unwrap_or_default().saturating_add(bytes);
        if own > self.user_bytes_max {
            return Err(Exhausted::ByUser);
        }
        if all > self.bytes_max {
            return Err(Exhausted::ByAll);
        }
        held.bytes = all;
        held.users.insert(user, own);
        Ok(())
    }

    fn give_back(&self, user: UserId, bytes: usize) {
        let mut held = self.held.lock();
        held.bytes = held.bytes.saturating_sub(bytes);
        if let Some(own) = held.users.get_mut(&user) {
            *own = own.saturating_sub(bytes);
            if *own == 0 {
                held.users.remove(&user);
            }
        }
    }

    /// What is held now.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.held.lock().bytes
    }
}

/// Bytes taken out of a budget; dropping it gives them back.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: Arc<Budget>,
    user: UserId,
    bytes: usize,
}

impl Charge {
    /// Takes more.
    pub(crate) fn grow(&mut self, bytes: usize) -> Result<(), Exhausted> {
        self.budget.take(self.user, bytes)?;
        self.bytes = self.bytes.saturating_add(bytes);
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.give_back(self.user, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_for_each_user_and_for_all() {
        let budget = Budget::new(100, 60);
        let mut ann = budget.charge(UserId(1), 40).unwrap();
        assert_eq!(ann.grow(21).unwrap_err(), Exhausted::ByUser);
        ann.grow(20).unwrap();
        let bob = budget.charge(UserId(2), 40).unwrap();
        assert_eq!(budget.charge(UserId(3), 1).unwrap_err(), Exhausted::ByAll);
        assert_eq!(budget.held(), 100);
        drop(ann);
        assert_eq!(budget.held(), 40);
        budget.charge(UserId(1), 60).unwrap();
        drop(bob);
        assert_eq!(budget.held(), 0);
        assert!(budget.held.lock().users.is_empty());
    }
}
