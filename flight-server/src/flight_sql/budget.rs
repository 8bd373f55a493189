//! Byte budgets: what the server holds for clients, counted per user and in total.
//!
//! A limit on entries does not bound memory, because one entry may be large. Code that keeps client data
//! charges its bytes to a budget first; dropping the [`Charge`] together with the data returns them.
//!
//! Invariant: the held bytes are the sum of all live charges.

use std::collections::HashMap;
use std::sync::Arc;

use kalamdb_core::ids::UserId;
use parking_lot::Mutex;

/// Limits of held bytes, and the current amounts.
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

/// Which limit a charge would exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exhausted {
    /// The user already holds too much.
    ByUser,
    /// All users together hold too much.
    ByAll,
}

impl Budget {
    /// Allows at most `bytes_max` in total and `user_bytes_max` per user.
    pub(crate) fn new(bytes_max: usize, user_bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { bytes_max, user_bytes_max, held: Mutex::default() })
    }

    /// Charges `bytes` to `user` until the charge is dropped.
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

    /// Returns the bytes held now.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.held.lock().bytes
    }
}

/// Bytes charged to a budget; dropping the charge returns them.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: Arc<Budget>,
    user: UserId,
    bytes: usize,
}

impl Charge {
    /// Charges more bytes.
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
