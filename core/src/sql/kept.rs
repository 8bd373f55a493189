//! The parsed statements that a session keeps, by their texts.
//!
//! Invariant: the session's user is charged for what is kept, which takes a small part of the user's memory.
//! A statement that is not kept is parsed again.

use std::collections::HashMap;
use std::sync::Arc;

use super::hot::KnownStatement;
use crate::workload::{Account, Charge};

/// The most statements of a session, and the most memory that they take. When it is reached all are dropped:
/// a session repeats few texts or none.
const STATEMENTS_MAX: usize = 256;
const BYTES_MAX: usize = 2 << 20;
/// Nothing is kept that would leave the user with less than three quarters of the memory.
const USER_MEMORY_PART: usize = 4;

#[derive(Default)]
pub(super) struct KeptStatements {
    by_text: HashMap<Arc<str>, (Arc<KnownStatement>, Charge)>,
    /// The memory of all statements.
    bytes: usize,
}

impl KeptStatements {
    pub(super) fn get(&self, sql: &str) -> Option<Arc<KnownStatement>> {
        self.by_text.get(sql).map(|(known, _)| Arc::clone(known))
    }

    /// Keeps a statement if its user, with this account, has enough memory left.
    pub(super) fn keep(&mut self, known: &Arc<KnownStatement>, memory: &Arc<Account>) {
        let size = known.size();
        if self.by_text.len() >= STATEMENTS_MAX || self.bytes + size > BYTES_MAX {
            *self = Self::default();
        }
        if memory.used().saturating_add(size) > memory.limit().bytes_max / USER_MEMORY_PART {
            return;
        }
        let Ok(charge) = memory.charge(size) else { return };
        let text = Arc::clone(&known.parsed.sql);
        if self.by_text.insert(text, (Arc::clone(known), charge)).is_none() {
            self.bytes += size;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::ids::UserId;
    use crate::sql::text::parse::parse;
    use crate::workload::Memory;

    fn known(sql: &str) -> Arc<KnownStatement> {
        Arc::new(KnownStatement::new(parse(sql, &Config::in_memory()).unwrap()))
    }

    fn account(bytes: usize) -> Arc<Account> {
        let memory = Memory::new(&Config { user_memory_bytes: bytes, ..Config::in_memory() });
        memory.users().user(UserId::ROOT)
    }

    #[test]
    fn kept_statements_are_charged_to_the_user() {
        let (account, mut kept) = (account(64 << 20), KeptStatements::default());
        let select = known("SELECT 1");
        kept.keep(&select, &account);
        kept.keep(&select, &account);
        assert_eq!(account.used(), select.size());
        assert!(Arc::ptr_eq(&kept.get("SELECT 1").unwrap(), &select));
        for number in 0..STATEMENTS_MAX {
            kept.keep(&known(&format!("SELECT {number}, {number}")), &account);
        }
        assert!(kept.get("SELECT 1").is_none() && kept.by_text.len() <= STATEMENTS_MAX);
        drop(kept);
        assert_eq!(account.used(), 0);
    }

    #[test]
    fn a_user_with_little_memory_keeps_nothing() {
        let (account, mut kept) = (account(1 << 20), KeptStatements::default());
        let _held = account.charge(300 << 10).unwrap();
        kept.keep(&known("SELECT 1"), &account);
        assert!(kept.get("SELECT 1").is_none());
    }
}
