//! Password checks: slow on purpose, a few at a time, and ever slower for a name that fails.
//!
//! Recently verified credentials are remembered by a keyed digest, never as themselves, so that Basic on
//! every call does not pay for the password hash each time. Each use compares the user's auth generation, so
//! a changed password takes effect at once.
//!
//! A login that is delayed because its name failed waits before it takes its place in the line, and each name
//! has only a share of the line: guessing at one name does not lock out other names. In the line the sites
//! of the clients take turns.
//!
//! Invariant: the duration of a failed login does not reveal whether the name exists; the delay depends only
//! on the name as sent.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use kalamdb_core::access::Principal;
use kalamdb_core::ids::UserId;
use kalamdb_core::{Database, Error, ErrorKind, SqlState};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::turns::Turns;
use crate::seal::{MAC_BYTES, SealKey};

/// How long a login waits for its turn.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Logins of one name that are delayed, waiting or being verified; more are refused.
const WAITING_PER_NAME_MAX: usize = 64;
/// Logins that are delayed because their name failed; more are refused.
const DELAYED_MAX: usize = 1_024;
/// Remembered credentials; when the map is full, it is cleared and credentials are verified again.
const REMEMBERED_MAX: usize = 4_096;
const REMEMBERED_FOR: Duration = Duration::from_secs(300);
/// Names whose failures are counted; when the map is full, names without recent failures are dropped.
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
    turns: Turns,
    delayed: Semaphore,
    /// The number of logins per name that are delayed, waiting or being verified.
    names: Mutex<HashMap<String, usize>>,
}

/// A login's permit within the limit of its name.
struct NamePermit<'a> {
    logins: &'a Logins,
    username: &'a str,
}

impl Drop for NamePermit<'_> {
    fn drop(&mut self) {
        let mut names = self.logins.names.lock();
        if let Some(count) = names.get_mut(self.username) {
            *count -= 1;
            if *count == 0 {
                names.remove(self.username);
            }
        }
    }
}

impl Logins {
    /// Lets at most `waiting_max` logins wait for verification.
    pub(super) fn new(database: Database, waiting_max: usize) -> Self {
        let digests = SealKey::derive(database.secret(), "remembered credentials");
        // More would wait in the core, in no order of sites.
        let verifying_max = database.passwords_at_once();
        Self {
            database,
            digests,
            remembered: Mutex::default(),
            failures: Mutex::default(),
            turns: Turns::new(verifying_max, waiting_max),
            delayed: Semaphore::new(DELAYED_MAX),
            names: Mutex::default(),
        }
    }

    /// Returns the principal of valid credentials, which came from a client in `site`.
    ///
    /// # Errors
    /// 28P01, the same for an unknown name and a wrong password; 53300 when too many logins wait.
    pub(super) async fn verify(
        &self,
        username: &str,
        password: &str,
        site: IpAddr,
    ) -> Result<Principal, Error> {
        let digest = self.digest(username, password);
        if let Some(principal) = self.recall(&digest) {
            return Ok(principal);
        }
        let _permit = self.acquire_name_permit(username)?;
        let delay = self.delay(username);
        if !delay.is_zero() {
            let _delayed = self.delayed.try_acquire().map_err(|_| too_many())?;
            tokio::time::sleep(delay).await;
        }
        let turn = tokio::time::timeout(WAIT_MAX, self.turns.take(site)).await;
        let _turn = turn.ok().flatten().ok_or_else(too_many)?;
        // A login with the same credentials may have finished in the meantime.
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

    fn acquire_name_permit<'a>(&'a self, username: &'a str) -> Result<NamePermit<'a>, Error> {
        let mut names = self.names.lock();
        let count = names.get(username).copied().unwrap_or_default();
        if count >= WAITING_PER_NAME_MAX {
            return Err(too_many());
        }
        names.insert(username.to_owned(), count + 1);
        Ok(NamePermit { logins: self, username })
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

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use futures::future::BoxFuture;
    use kalamdb_core::Config;

    use super::*;

    const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    /// Logins that may wait in these tests.
    const WAITING_MAX: usize = 256;

    async fn logins() -> (Database, Logins) {
        let config = Config { root_password: Some("the right one".to_owned()), ..Config::in_memory() };
        let database = Database::open(config).await.unwrap();
        let logins = Logins::new(database.clone(), WAITING_MAX);
        (database, logins)
    }

    /// Polls each login once; returns the ones that are pending, and the number of refused ones.
    async fn begin<'a>(
        logins: &'a Logins,
        name: &'a str,
        count: usize,
    ) -> (Vec<BoxFuture<'a, Result<Principal, Error>>>, usize) {
        let mut waiting = Vec::new();
        let mut refused = 0;
        for _ in 0..count {
            let mut login: BoxFuture<'a, _> = Box::pin(logins.verify(name, "a wrong guess", LOCAL));
            match futures::poll!(&mut login) {
                Poll::Pending => waiting.push(login),
                Poll::Ready(Err(error)) => {
                    assert_eq!(error.sqlstate(), SqlState::TOO_MANY, "{error}");
                    refused += 1;
                }
                Poll::Ready(Ok(_)) => panic!("a wrong guess was right"),
            }
        }
        (waiting, refused)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn guessing_at_some_names_does_not_keep_the_others_out() {
        let (database, logins) = logins().await;
        let names: Vec<String> =
            (0..WAITING_MAX / WAITING_PER_NAME_MAX + 1).map(|n| format!("name{n}")).collect();
        for name in &names {
            for _ in 0..FAILURES_FREE {
                logins.note_failure(name);
            }
        }
        let mut delayed = Vec::new();
        for name in &names {
            let (waiting, refused) = begin(&logins, name, WAITING_PER_NAME_MAX + 7).await;
            assert_eq!((waiting.len(), refused), (WAITING_PER_NAME_MAX, 7), "{name}");
            delayed.push(waiting);
        }
        // More logins are delayed than may wait for verification, yet this one need not wait for them.
        assert!(logins.verify("root", "the right one", LOCAL).await.is_ok());
        drop(delayed);
        assert!(logins.names.lock().is_empty());
        database.shutdown().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn only_a_full_line_refuses_and_not_who_comes_from_elsewhere() {
        let (database, logins) = logins().await;
        let verifying_max = database.passwords_at_once();
        let names: Vec<String> = (0..WAITING_MAX + verifying_max).map(|n| format!("name{n}")).collect();
        let mut flood = Vec::new();
        for name in &names {
            let (waiting, refused) = begin(&logins, name, 1).await;
            assert_eq!((waiting.len(), refused), (1, 0), "{name}");
            flood.push(waiting);
        }
        let (_, refused) = begin(&logins, "one more", 1).await;
        assert_eq!(refused, 1);
        let elsewhere = IpAddr::from([10, 0, 0, 1]);
        let login =
            tokio::time::timeout(Duration::from_secs(30), logins.verify("root", "the right one", elsewhere));
        // The flood waits for its turns, and the login of another site is the next.
        let (login, _) = tokio::join!(login, async { drop(flood.drain(..verifying_max)) });
        assert!(login.expect("its turn comes soon").is_ok());
        drop(flood);
        database.shutdown().await.unwrap();
    }
}
