//! Password hashes: argon2id with OWASP's parameters, on threads of their own.
//!
//! A hash takes 19 MiB and keeps a core busy for some ten milliseconds. So a few threads compute them, one
//! after the other, in memory that each thread uses again, and the threads of other work never wait.
//!
//! Invariant: logins with an unknown name and with a wrong password take the same time and fail alike.

use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use argon2::password_hash::phc::{Output, ParamsString, PasswordHash, Salt};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::error::{Error, ErrorKind, Result, SqlState};

const MEMORY_KIB: u32 = 19_456;
const PASSES: u32 = 2;
const LANES: u32 = 1;
const SALT_BYTES: usize = 16;
const HASH_BYTES: usize = 32;
const PASSWORD_BYTES: std::ops::RangeInclusive<usize> = 8..=1_024;

/// Passwords that wait for a thread; more are refused.
const WAITING_MAX: usize = 4_096;
/// A thread that had nothing to do for so long gives its memory back.
const MEMORY_KEPT_FOR: Duration = Duration::from_secs(60);

/// Work of a thread, which lends its memory.
type Job = Box<dyn FnOnce(&mut Vec<Block>) + Send>;

/// Computes and compares password hashes.
#[derive(Debug, Default)]
pub(crate) struct Passwords {
    /// The queue of the threads, which begin with the first password and end with this struct.
    queue: Mutex<Option<SyncSender<Job>>>,
    /// The hash to compare with for unknown names, made at its first use.
    dummy: Arc<OnceLock<String>>,
}

impl Passwords {
    /// Returns the hash of a new password, in PHC format.
    ///
    /// # Errors
    /// 22023 unless it has 8 to 1,024 bytes; 53300 when too many passwords wait.
    pub(crate) async fn hash(&self, password: &str) -> Result<String> {
        if !PASSWORD_BYTES.contains(&password.len()) {
            return Err(Error::invalid("the password is too short or too long").hint("use 8 to 1024 bytes"));
        }
        let password = password.to_owned();
        self.compute(move |memory| hash(password.as_bytes(), memory)).await
    }

    /// Returns whether a password matches a hash; `None` stands for a user that does not exist.
    ///
    /// # Errors
    /// XX001 for a hash that cannot be read; 53300 when too many passwords wait.
    pub(crate) async fn verify(&self, password: &str, expected: Option<String>) -> Result<bool> {
        let password =
            if password.len() <= *PASSWORD_BYTES.end() { password.to_owned() } else { String::new() };
        let dummy = Arc::clone(&self.dummy);
        self.compute(move |memory| {
            let known = expected.is_some();
            let expected = match expected {
                Some(expected) => expected,
                None => match dummy.get() {
                    Some(dummy) => dummy.clone(),
                    None => {
                        let fresh = hash(&rand::random::<[u8; 32]>(), memory)?;
                        dummy.get_or_init(|| fresh).clone()
                    }
                },
            };
            Ok(matches(password.as_bytes(), &expected, memory)? && known)
        })
        .await
    }

    /// Runs `work` on one of the threads; not at all if the caller stops waiting before its turn.
    async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Vec<Block>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |memory| {
            if !answer.is_closed() {
                // If the caller stopped waiting meanwhile, nobody needs the result.
                let _ = answer.send(work(memory));
            }
        });
        self.queue()?.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => too_many(),
            TrySendError::Disconnected(_) => Error::internal("no thread checks passwords"),
        })?;
        // Only a panic leaves a job without an answer.
        answered.await.unwrap_or_else(|_| Err(Error::internal("a password could not be hashed")))
    }

    /// Returns the queue; starts the threads first if there are none.
    fn queue(&self) -> Result<SyncSender<Job>> {
        let mut queue = self.queue.lock();
        if let Some(jobs) = &*queue {
            return Ok(jobs.clone());
        }
        let (sender, jobs) = sync_channel(WAITING_MAX);
        let jobs = Arc::new(Mutex::new(jobs));
        for _ in 0..threads() {
            let jobs = Arc::clone(&jobs);
            std::thread::Builder::new()
                .name("kalam-login".to_owned())
                .spawn(move || run(&jobs))
                .map_err(|error| Error::internal("a thread for passwords could not start").source(error))?;
        }
        *queue = Some(sender.clone());
        Ok(sender)
    }
}

/// Returns the number of passwords that are checked at the same time.
fn threads() -> usize {
    (std::thread::available_parallelism().map_or(1, NonZero::get) / 4).max(2)
}

/// Does jobs until nobody can send any.
fn run(jobs: &Mutex<Receiver<Job>>) {
    let mut memory = Vec::new();
    loop {
        // The threads wait for the lock in turn; whoever takes a job releases it.
        let next = jobs.lock().recv_timeout(MEMORY_KEPT_FOR);
        match next {
            Ok(job) => {
                // A panic fails one password, not all later ones.
                if catch_unwind(AssertUnwindSafe(|| job(&mut memory))).is_err() {
                    tracing::error!("a password's hash panicked");
                }
            }
            Err(RecvTimeoutError::Timeout) => memory = Vec::new(),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn hash(password: &[u8], memory: &mut Vec<Block>) -> Result<String> {
    let failed =
        |error: String| Error::internal("a password cannot be hashed with these parameters").source(error);
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None).map_err(|error| failed(error.to_string()))?;
    let salt: [u8; SALT_BYTES] = rand::random();
    let mut output = [0; HASH_BYTES];
    let (algorithm, version) = (Algorithm::Argon2id, Version::V0x13);
    let hasher = Argon2::new(algorithm, version, params);
    fill(&hasher, password, &salt, &mut output, memory).map_err(|error| failed(error.to_string()))?;
    let hash = PasswordHash {
        algorithm: algorithm.ident(),
        version: Some(version.into()),
        params: ParamsString::try_from(hasher.params()).map_err(|error| failed(error.to_string()))?,
        salt: Some(Salt::new(&salt).map_err(|error| failed(error.to_string()))?),
        hash: Some(Output::new(&output).map_err(|error| failed(error.to_string()))?),
    };
    Ok(hash.to_string())
}

/// Returns whether a password has the hash `expected`, with the parameters that the hash names.
fn matches(password: &[u8], expected: &str, memory: &mut Vec<Block>) -> Result<bool> {
    let unreadable = |error: String| Error::corruption("a password hash cannot be read").source(error);
    let parsed = PasswordHash::new(expected).map_err(|error| unreadable(error.to_string()))?;
    let (Some(salt), Some(expected)) = (&parsed.salt, &parsed.hash) else {
        return Err(unreadable("it has no salt or no hash".to_owned()));
    };
    let algorithm =
        Algorithm::new(parsed.algorithm.as_str()).map_err(|error| unreadable(error.to_string()))?;
    let version = match parsed.version {
        Some(version) => Version::try_from(version).map_err(|error| unreadable(error.to_string()))?,
        None => Version::default(),
    };
    let params = Params::try_from(&parsed).map_err(|error| unreadable(error.to_string()))?;
    let mut output = vec![0; expected.len()];
    fill(&Argon2::new(algorithm, version, params), password, salt, &mut output, memory)
        .map_err(|error| unreadable(error.to_string()))?;
    let output = Output::new(&output).map_err(|error| unreadable(error.to_string()))?;
    // This comparison takes the same time wherever the two differ.
    Ok(output == *expected)
}

/// Computes a hash in `memory`, which grows if it is too small.
fn fill(
    hasher: &Argon2<'_>,
    password: &[u8],
    salt: &[u8],
    output: &mut [u8],
    memory: &mut Vec<Block>,
) -> argon2::Result<()> {
    let blocks = hasher.params().block_count();
    if memory.len() < blocks {
        memory.resize(blocks, Block::new());
    }
    hasher.hash_password_into_with_memory(password, salt, output, memory.as_mut_slice())
}

fn too_many() -> Error {
    Error::new(
        ErrorKind::ResourceExhausted,
        SqlState::TOO_MANY,
        format!("{WAITING_MAX} passwords wait to be checked"),
    )
    .hint("try again in a moment")
}

/// Returns the only error of a failed login.
pub(crate) fn login_failed() -> Error {
    Error::new(ErrorKind::Unauthenticated, SqlState::INVALID_PASSWORD, "user name or password is wrong")
        .hint("check both; an administrator can set a new password with ALTER USER")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hashes made by the reference implementation: with our parameters, and with small ones.
    const OLD: [(&str, &str); 2] = [
        (
            "an old password",
            "$argon2id$v=19$m=19456,t=2,p=1$AAECAwQFBgcICQoLDA0ODw$\
             FwW61Tn2s4+vbmzLTOwDxBZvgx/vVIW9QI9+06iUw9c",
        ),
        (
            "a smaller one",
            "$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHRzYWx0c2FsdA$1G/2jLTF/O7BmdniqcKIXPFfrtehpnIi",
        ),
    ];

    #[tokio::test]
    async fn hashes_of_earlier_programs_are_known_again() {
        let passwords = Passwords::default();
        for (password, hash) in OLD {
            let hash = || Some(hash.to_owned());
            assert!(passwords.verify(password, hash()).await.unwrap(), "{password}");
            assert!(!passwords.verify("another password", hash()).await.unwrap(), "{password}");
        }
    }

    #[tokio::test]
    async fn a_hash_has_the_parameters_of_the_first_release_and_matches_its_password_alone() {
        let passwords = Passwords::default();
        let hash = passwords.hash("correct horse").await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert_eq!(hash.len(), OLD[0].1.len(), "{hash}");
        assert_ne!(hash, passwords.hash("correct horse").await.unwrap(), "the salt differs");
        assert!(passwords.verify("correct horse", Some(hash.clone())).await.unwrap());
        assert!(!passwords.verify("correct horses", Some(hash)).await.unwrap());
        assert!(!passwords.verify("correct horse", None).await.unwrap());
        for damaged in ["", "$argon2id$v=19$m=19456,t=2,p=1", "$scrypt$v=19$m=64,t=1,p=1$c2FsdHNhbHQ$AAAA"] {
            let error = passwords.verify("correct horse", Some(damaged.to_owned())).await.unwrap_err();
            assert_eq!(error.sqlstate(), SqlState::DATA_CORRUPTED, "{damaged}: {error}");
        }
    }

    #[tokio::test]
    async fn who_stops_waiting_costs_nothing_and_a_panic_one_answer() {
        let passwords = Passwords::default();
        let (begun, mut has_begun) = tokio::sync::mpsc::channel::<()>(2 * threads());
        let mut release = Vec::new();
        let mut busy = Vec::new();
        for _ in 0..threads() {
            let (go, wait) = std::sync::mpsc::channel::<()>();
            release.push(go);
            let begun = begun.clone();
            busy.push(Box::pin(passwords.compute(move |_| {
                begun.blocking_send(()).unwrap();
                wait.recv().unwrap();
                Ok(())
            })));
        }
        for work in &mut busy {
            assert!(futures::poll!(work).is_pending());
        }
        for _ in 0..threads() {
            has_begun.recv().await.unwrap();
        }
        // All threads are busy: this one is given up before its turn.
        let mut given_up = Box::pin(passwords.compute(|_| -> Result<()> { panic!("nobody waits") }));
        assert!(futures::poll!(&mut given_up).is_pending());
        drop(given_up);
        drop(release);
        for work in busy {
            let error = work.await.unwrap_err();
            assert_eq!(error.sqlstate(), SqlState::INTERNAL, "{error}");
        }
        assert!(passwords.compute(|_| Ok(true)).await.unwrap(), "the threads go on");
    }
}
