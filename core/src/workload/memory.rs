//! Accounts of the bytes that statements, users and the server hold, in memory and on disk.
//!
//! An account has a limit, and mostly a parent: a statement's account is in its user's, a user's in the
//! server's. Whoever holds bytes charges them first, and drops the [`Charge`] together with them.
//!
//! Invariants: an account holds the sum of the live charges of itself and of all accounts within it. A charge
//! is made in the account and in all its parents, or in none.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::config::Config;
use crate::error::Error;
use crate::ids::UserId;
use crate::platform;

/// The default of `query_memory_bytes`, where a quarter of the memory is not less.
const QUERY_MEMORY_BYTES: usize = 1 << 30;
/// Accounts of users that are kept before those that nobody uses are removed.
const USERS_MIN: usize = 64;

/// Whose limit it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    /// The limit of one statement.
    Statement,
    /// The limit of all statements and handles of one user.
    User,
    /// The limit of all users together.
    Server,
}

/// The limit of an account. As an error it is the limit that a charge would exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Whose limit it is.
    pub level: Level,
    /// The most bytes that the account may hold.
    pub bytes_max: usize,
    /// What holds the bytes, for messages.
    pub noun: &'static str,
    /// The setting that the limit comes from.
    pub setting: &'static str,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let owner = match self.level {
            Level::Statement => "statement",
            Level::User => "user",
            Level::Server => "server",
        };
        let Self { bytes_max, noun, setting, .. } = self;
        write!(f, "the {owner} has reached its limit of {bytes_max} bytes of {noun} ({setting})")
    }
}

impl From<Limit> for Error {
    fn from(limit: Limit) -> Self {
        Self::out_of_memory(limit.to_string())
    }
}

/// Counts the bytes that somebody holds, and refuses more than the limit.
#[derive(Debug)]
pub struct Account {
    limit: Limit,
    used: AtomicUsize,
    peak: AtomicUsize,
    parent: Option<Arc<Account>>,
}

impl Account {
    /// Creates an account that is in no other.
    pub fn new(limit: Limit) -> Arc<Self> {
        Self::within(limit, None)
    }

    /// Creates an account whose bytes also count in this one.
    pub fn child(self: &Arc<Self>, limit: Limit) -> Arc<Self> {
        Self::within(limit, Some(Arc::clone(self)))
    }

    fn within(limit: Limit, parent: Option<Arc<Self>>) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicUsize::new(0), peak: AtomicUsize::new(0), parent })
    }

    /// Returns the limit.
    pub fn limit(&self) -> Limit {
        self.limit
    }

    /// Returns the bytes that are held now.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Returns the most bytes that were ever held at once.
    pub fn peak(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }

    /// Charges bytes until the returned value is dropped.
    ///
    /// # Errors
    /// The limit of this account or of a parent that would be exceeded.
    pub fn charge(self: &Arc<Self>, bytes: usize) -> Result<Charge, Limit> {
        self.take(bytes)?;
        Ok(Charge { account: Arc::clone(self), bytes })
    }

    /// Counts more bytes. The caller gives them back.
    pub(super) fn take(&self, bytes: usize) -> Result<(), Limit> {
        let more = |used: usize| used.checked_add(bytes).filter(|used| *used <= self.limit.bytes_max);
        let before =
            self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).map_err(|_| self.limit)?;
        if let Some(parent) = &self.parent
            && let Err(limit) = parent.take(bytes)
        {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            return Err(limit);
        }
        self.peak.fetch_max(before.saturating_add(bytes), Ordering::Relaxed);
        Ok(())
    }

    /// Counts bytes that are held already, even beyond the limits. The caller gives them back.
    pub(super) fn take_held(&self, bytes: usize) {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        self.peak.fetch_max(before.saturating_add(bytes), Ordering::Relaxed);
        if let Some(parent) = &self.parent {
            parent.take_held(bytes);
        }
    }

    /// Gives bytes back that were taken.
    pub(super) fn give_back(&self, bytes: usize) {
        let before = self.used.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(before >= bytes, "{bytes} bytes were given back, {before} were held");
        if let Some(parent) = &self.parent {
            parent.give_back(bytes);
        }
    }
}

/// Bytes that are charged to an account. Dropping the charge gives them back.
#[derive(Debug)]
pub struct Charge {
    account: Arc<Account>,
    bytes: usize,
}

impl Charge {
    /// Returns the charged bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Charges more bytes.
    ///
    /// # Errors
    /// The limit that would be exceeded; the charge is then unchanged.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Limit> {
        self.account.take(bytes)?;
        self.bytes = self.bytes.saturating_add(bytes);
        Ok(())
    }

    /// Gives some of the bytes back, at most all.
    pub fn shrink(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.account.give_back(bytes);
        self.bytes -= bytes;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.account.give_back(self.bytes);
    }
}

/// The accounts of users, in an account of all users.
#[derive(Debug)]
pub struct UserAccounts {
    all: Arc<Account>,
    /// The limit of each user.
    of_user: Limit,
    users: Mutex<Users>,
}

#[derive(Debug)]
struct Users {
    accounts: HashMap<UserId, Weak<Account>>,
    /// The length at which accounts that nobody uses are removed.
    sweep_at: usize,
}

impl UserAccounts {
    /// Creates the account of all users, with these limits.
    pub fn new(of_all: Limit, of_user: Limit) -> Self {
        let users = Users { accounts: HashMap::new(), sweep_at: USERS_MIN };
        Self { all: Account::new(of_all), of_user, users: Mutex::new(users) }
    }

    /// Returns the account of all users.
    pub fn all(&self) -> &Arc<Account> {
        &self.all
    }

    /// Returns the limit of each user.
    pub fn of_user(&self) -> Limit {
        self.of_user
    }

    /// Returns the account of a user: the same one as long as anybody uses it.
    pub fn user(&self, user: UserId) -> Arc<Account> {
        let mut users = self.users.lock();
        if let Some(account) = users.accounts.get(&user).and_then(Weak::upgrade) {
            return account;
        }
        if users.accounts.len() >= users.sweep_at {
            users.accounts.retain(|_, account| account.strong_count() > 0);
            users.sweep_at = (2 * users.accounts.len()).max(USERS_MIN);
        }
        let account = self.all.child(self.of_user);
        users.accounts.insert(user, Arc::downgrade(&account));
        account
    }
}

/// The memory of the server's users and of their statements.
#[derive(Debug)]
pub struct Memory {
    users: UserAccounts,
    /// The limit of each statement.
    of_statement: Limit,
}

impl Memory {
    /// Creates the accounts with the limits of the settings, or with those that suit the machine.
    pub fn new(config: &Config) -> Self {
        let [server, user, statement] = limits(config, platform::memory_limit_bytes());
        Self { users: UserAccounts::new(server, user), of_statement: statement }
    }

    /// Returns the accounts of all users.
    pub fn users(&self) -> &UserAccounts {
        &self.users
    }

    /// Returns a new account for a statement of a user.
    pub(crate) fn statement(&self, user: UserId) -> Arc<Account> {
        self.users.user(user).child(self.of_statement)
    }
}

/// Returns the limits of the server, of a user and of a statement, on a machine with so much memory.
fn limits(config: &Config, machine_bytes: Option<u64>) -> [Limit; 3] {
    let or = |setting: usize, default: usize| if setting == 0 { default } else { setting };
    let quarter = machine_bytes.map_or(usize::MAX, |bytes| usize::try_from(bytes / 4).unwrap_or(usize::MAX));
    let server = or(config.query_memory_bytes, QUERY_MEMORY_BYTES.min(quarter));
    let user = or(config.user_memory_bytes, server / 2);
    let statement = or(config.statement_memory_bytes, server / 2);
    let of = |level, bytes_max, setting| Limit { level, bytes_max, noun: "memory", setting };
    [
        of(Level::Server, server, "query_memory_bytes"),
        of(Level::User, user, "user_memory_bytes"),
        of(Level::Statement, statement, "statement_memory_bytes"),
    ]
}

#[cfg(test)]
mod tests;
