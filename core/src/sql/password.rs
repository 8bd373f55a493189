//! Password hashes: argon2id with OWASP's parameters, on threads of their own.
//!
//! A hash takes 19 MiB and keeps a core busy for some ten milliseconds. So a few threads compute them, one
//! after the other, in memory that each thread uses again, and the threads of other work never wait. They go
//! before statements and after all other work, so a flood of logins takes little from commits and calls.
//!
//! Invariant: logins with an unknown name and with a wrong password take the same time and fail alike.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use argon2::password_hash::phc::{Output, ParamsString, PasswordHash, Salt};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::platform::{self, LOGIN_PRIORITY};

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
#[derive(Debug)]
pub(crate) struct Passwords {
    /// The queue of the threads, which end with this struct.
    queue: SyncSender<Job>,
    /// The hash to compare with for unknown names, made at its first use.
    dummy: Arc<OnceLock<String>>,
}

impl Passwords {
    /// Starts the threads.
    ///
    /// # Errors
    /// 58030 when the operating system refuses.
    pub(crate) fn start() -> Result<Self> {
        let (queue, jobs) = sync_channel(WAITING_MAX);
        let jobs = Arc::new(Mutex::new(jobs));
        for _ in 0..threads() {
            let jobs = Arc::clone(&jobs);
            let work = move || {
                if let Err(error) = platform::lower_thread_priority(LOGIN_PRIORITY) {
                    tracing::debug!(%error, "a thread for passwords keeps its priority");
                }
                run(&jobs);
            };
            std::thread::Builder::new().name("kalam-login".to_owned()).spawn(work).map_err(|error| {
                let message = "the threads for passwords cannot be started";
                Error::new(ErrorKind::Unavailable, SqlState::IO_ERROR, message)
                    .hint("raise the limit of threads")
                    .source(error)
            })?;
        }
        Ok(Self { queue, dummy: Arc::default() })
    }

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
        self.queue.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => too_many(),
            TrySendError::Disconnected(_) => Error::internal("no thread checks passwords"),
        })?;
        // Only a panic leaves a job without an answer.
        answered.await.unwrap_or_else(|_| Err(Error::internal("a password could not be hashed")))
    }
}

/// Returns the number of passwords that are checked at the same time.
pub(crate) fn threads() -> usize {
    (platform::processors() / 4).max(2)
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
mod tests;
