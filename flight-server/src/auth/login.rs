//! Checking passwords: slow on purpose, so it is done seldom, by few at a time, and ever slower for a name that fails.
//!
//! Credentials that were right lately are remembered by a keyed digest, never as themselves, so that Basic on every call does
//! not pay the password hash every time. A user's generation is compared on each use: a changed password is noticed at once.
//!
//! Invariant: how long a failed login takes does not tell whether the name exists; the delay goes by the name as it was sent.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use kalamdb_core::access::Principal;
use kalamdb_core::ids::UserId;
use kalamdb_core::{Database, Error, ErrorKind, SqlState};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::seal::{MAC_BYTES, SealKey};

/// Password hashes computed at a time; each takes some 19 MiB and a core.
const VERIFYING_MAX: usize = 2;
/// Logins that may wait for their turn; beyond it they are refused.
const WAITING_MAX: usize = 256;
/// Remembered credentials; when full, all are forgotten and verified anew.
const REMEMBERED_MAX: usize = 4_096;
const REMEMBERED_FOR: Duration = Duration::from_secs(300);
/// Names whose failures are counted; when full, the ones at rest are forgotten.
const FAILING_NAMES_MAX: usize = 10_000;
const FAILURES_FREE: u32 = 3;
const DELAY_FIRST: Duration = Duration::from_millis(100);
const DELAY_MAX: Duration = Duration::from_secs(3);
const FAILURES_FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

struct Remembered {
    user_id: UserId,
    generation: u32,
    verified_at: Instant,
}

struct Failures {
    count: u32,
    last_at: Instant,
}

/// Verifies names and passwords.
pub(super) struct Logins {
    database: Database,
    digests: SealKey,
    remembered: Mutex<HashMap<[u8; MAC_BYTES], Remembered>>,
    failures: Mutex<HashMap<String, Failures>>,
    verifying: Semaphore,
    waiting: Semaphore,
}

impl Logins {
    pub(super) fn new(database: Database) -> Self {
        let digests = SealKey::derive(database.secret(), "remembered credentials");
        Self {
            database,
            digests,
            remembered: Mutex::default(),
            failures: Mutex::default(),
            verifying: Semaphore::new(VERIFYING_MAX),
            waiting: Semaphore::new(WAITING_MAX),
        }
    }

    /// Answers the principal of right credentials.
    ///
    /// # Errors
    /// 28P01, the same for an unknown name as for a wrong password; 53300 when too many logins wait.
    pub(super) async fn verify(&self, username: &str, password: &str) -> Result<Principal, Error> {
        let digest = self.digest(username, password);
        if let Some(principal) = self.recall(&digest) {
            return Ok(principal);
        }
        let _waiting = self.waiting.try_acquire().map_err(|_| too_many())?;
        let delay = self.delay(username);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let _verifying = self.verifying.acquire().await.map_err(|_| Error::shutting_down())?;
        // Whoever waited beside us for the same credentials may have been quicker.
        if let Some(principal) = self.recall(&digest) {
            return Ok(principal);
        }
        match self.database.authenticate(username, password).await {
            Ok(principal) => {
                self.failures.lock().remove(username);
                self.remember(digest, &principal)?;
                Ok(principal)
            }
            Err(error) => {
                if error.kind() == ErrorKind::Unauthenticated {
                    self.note_failure(username);
                }
                Err(error)
            }
        }
    }

    fn digest(&self, username: &str, password: &str) -> [u8; MAC_BYTES] {
        let mut bytes = Vec::with_capacity(8 + username.len() + password.len());
        bytes.extend_from_slice(&(username.len() as u64).to_le_bytes());
        bytes.extend_from_slice(username.as_bytes());
        bytes.extend_from_slice(password.as_bytes());
        self.digests.digest(&bytes)
    }

    fn recall(&self, digest: &[u8; MAC_BYTES]) -> Option<Principal> {
        let (user_id, generation) = {
            let remembered = self.remembered.lock();
            let entry = remembered.get(digest)?;
            if entry.verified_at.elapsed() > REMEMBERED_FOR {
                return None;
            }
            (entry.user_id, entry.generation)
        };
        if self.database.auth_generation(user_id).ok()? != generation {
            return None;
        }
        self.database.principal(user_id).ok()
    }

    fn remember(&self, digest: [u8; MAC_BYTES], principal: &Principal) -> Result<(), Error> {
        let generation = self.database.auth_generation(principal.user_id)?;
        let mut remembered = self.remembered.lock();
        if remembered.len() >= REMEMBERED_MAX {
            remembered.clear();
        }
        let entry = Remembered { user_id: principal.user_id, generation, verified_at: Instant::now() };
        remembered.insert(digest, entry);
        Ok(())
    }

    fn delay(&self, username: &str) -> Duration {
        let failures = self.failures.lock();
        let Some(entry) = failures.get(username) else {
            return Duration::ZERO;
        };
        if entry.last_at.elapsed() > FAILURES_FORGOTTEN_AFTER || entry.count < FAILURES_FREE {
            return Duration::ZERO;
        }
        let doublings = (entry.count - FAILURES_FREE).min(10);
        DELAY_FIRST.saturating_mul(1 << doublings).min(DELAY_MAX)
    }

    fn note_failure(&self, username: &str) {
        let mut failures = self.failures.lock();
        if failures.len() >= FAILING_NAMES_MAX {
            failures.retain(|_, entry| entry.last_at.elapsed() <= FAILURES_FORGOTTEN_AFTER);
        }
        if failures.len() >= FAILING_NAMES_MAX {
            return;
        }
        let now = Instant::now();
        let entry = failures.entry(username.to_owned()).or_insert(Failures { count: 0, last_at: now });
        if entry.last_at.elapsed() > FAILURES_FORGOTTEN_AFTER {
            entry.count = 0;
        }
        entry.count = entry.count.saturating_add(1);
        entry.last_at = now;
    }
}

fn too_many() -> Error {
    Error::new(ErrorKind::ResourceExhausted, SqlState::TOO_MANY, "too many logins are waiting")
        .hint("try again in a moment, and log in once per connection")
}
