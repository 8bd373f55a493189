//! The memory of one statement, as DataFusion's operators ask for it.
//!
//! Operators that can spill share what the statement may still have: each gets the same part of it, and
//! spills when it needs more. The others get memory as long as there is some.
//!
//! Invariant: what the operators hold is charged to the statement's account.

use std::fmt;
use std::sync::Arc;

use datafusion::common::{DataFusionError, Result as DataFusionResult};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation};
use parking_lot::Mutex;

use super::memory::{Account, Limit};

/// The memory of the operators of one statement.
#[derive(Debug)]
pub(crate) struct StatementPool {
    account: Arc<Account>,
    spillers: Mutex<Spillers>,
}

/// The operators that can spill.
#[derive(Debug, Default)]
struct Spillers {
    count: usize,
    /// The bytes that they hold.
    bytes: usize,
}

impl StatementPool {
    /// Charges what operators hold to the account of their statement.
    pub(crate) fn new(account: &Arc<Account>) -> Self {
        Self { account: Arc::clone(account), spillers: Mutex::default() }
    }

    /// Charges more bytes for an operator that can spill, up to its part.
    fn take_part(&self, held: usize, bytes: usize) -> Result<(), Limit> {
        let limit = self.account.limit();
        let mut spillers = self.spillers.lock();
        let others = self.account.used().saturating_sub(spillers.bytes);
        let part = limit.bytes_max.saturating_sub(others) / spillers.count.max(1);
        if held.saturating_add(bytes) > part {
            return Err(limit);
        }
        self.account.take(bytes)?;
        spillers.bytes += bytes;
        Ok(())
    }
}

impl MemoryPool for StatementPool {
    fn name(&self) -> &str {
        "statement"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        if consumer.can_spill() {
            self.spillers.lock().count += 1;
        }
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        if consumer.can_spill() {
            self.spillers.lock().count -= 1;
        }
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.account.take_held(additional);
        if reservation.consumer().can_spill() {
            self.spillers.lock().bytes += additional;
        }
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        if reservation.consumer().can_spill() {
            self.spillers.lock().bytes -= shrink;
        }
        self.account.give_back(shrink);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> DataFusionResult<()> {
        let taken = match reservation.consumer().can_spill() {
            true => self.take_part(reservation.size(), additional),
            false => self.account.take(additional),
        };
        // Operators spill when they get this error.
        taken.map_err(|limit| DataFusionError::ResourcesExhausted(limit.to_string()))
    }

    fn reserved(&self) -> usize {
        self.account.used()
    }

    fn memory_limit(&self) -> MemoryLimit {
        MemoryLimit::Finite(self.account.limit().bytes_max)
    }
}

impl fmt::Display for StatementPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} bytes of {}", self.name(), self.account.used(), self.account.limit().bytes_max)
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::Level;
    use super::*;
    use crate::error::{Error, SqlState};

    fn account(bytes_max: usize) -> Arc<Account> {
        Account::new(Limit { level: Level::Statement, bytes_max, noun: "memory", setting: "some_bytes" })
    }

    fn pool(account: &Arc<Account>) -> Arc<dyn MemoryPool> {
        Arc::new(StatementPool::new(account))
    }

    fn operator(pool: &Arc<dyn MemoryPool>, can_spill: bool) -> MemoryReservation {
        MemoryConsumer::new("operator").with_can_spill(can_spill).register(pool)
    }

    #[test]
    fn operators_that_spill_share_what_the_others_leave() {
        let account = account(100);
        let pool = pool(&account);
        let (one, two, join) = (operator(&pool, true), operator(&pool, true), operator(&pool, false));
        one.try_grow(50).unwrap();
        let error = one.try_grow(1).unwrap_err();
        assert!(matches!(error, DataFusionError::ResourcesExhausted(_)), "{error}");
        assert_eq!(Error::from(error).sqlstate(), SqlState::OUT_OF_MEMORY);
        one.shrink(30);
        // What functions and windows hold counts as well.
        let charge = account.charge(20).unwrap();
        join.try_grow(40).unwrap();
        assert!(two.try_grow(21).is_err());
        two.try_grow(20).unwrap();
        assert!(join.try_grow(1).is_err(), "all of it is held");
        assert_eq!(pool.reserved(), 100);

        drop((join, charge, one));
        two.try_grow(80).unwrap();
        assert_eq!((account.used(), account.peak()), (100, 100));
        drop(two);
        assert_eq!(account.used(), 0);
    }

    #[test]
    fn what_an_operator_holds_already_is_counted() {
        let account = account(10);
        let pool = pool(&account);
        let (sort, join) = (operator(&pool, true), operator(&pool, false));
        sort.grow(30);
        join.grow(5);
        assert_eq!(account.used(), 35);
        assert!(join.try_grow(1).is_err() && sort.try_grow(1).is_err());
        drop((sort, join));
        assert_eq!(account.used(), 0);
    }

    #[test]
    fn a_limit_around_the_statement_makes_operators_spill_too() {
        let user = account(60);
        let statement = user.child(Limit { bytes_max: 100, ..user.limit() });
        let pool = pool(&statement);
        let _others = user.charge(30).unwrap();
        let sort = operator(&pool, true);
        sort.try_grow(30).unwrap();
        assert!(sort.try_grow(1).is_err());
        assert_eq!((statement.used(), user.used()), (30, 60));
    }
}
