//! Password hashes: argon2id with OWASP's parameters, two at a time, off the threads that serve requests.
//!
//! Invariant: logins with an unknown name and with a wrong password take the same time and fail alike.

use std::sync::{Arc, OnceLock};

use argon2::password_hash::phc::PasswordHash;
use argon2::{Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version};
use tokio::sync::Semaphore;

use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::storage::blocking;

const MEMORY_KIB: u32 = 19_456;
const PASSES: u32 = 2;
const LANES: u32 = 1;
const SALT_BYTES: usize = 16;
const PASSWORD_BYTES: std::ops::RangeInclusive<usize> = 8..=1_024;

/// Each computation takes 19 MiB, so a flood of logins must not run at once; the others wait.
const CONCURRENT_MAX: usize = 2;

/// Computes and compares password hashes.
#[derive(Debug)]
pub(crate) struct Passwords {
    permits: Arc<Semaphore>,
    /// The hash to compare with for unknown names, made at its first use.
    dummy: Arc<OnceLock<String>>,
}

impl Default for Passwords {
    fn default() -> Self {
        Self { permits: Arc::new(Semaphore::new(CONCURRENT_MAX)), dummy: Arc::default() }
    }
}

impl Passwords {
    /// Returns the hash of a new password, in PHC format.
    ///
    /// # Errors
    /// 22023 unless it has 8 to 1,024 bytes.
    pub(crate) async fn hash(&self, password: &str) -> Result<String> {
        if !PASSWORD_BYTES.contains(&password.len()) {
            return Err(Error::invalid("the password is too short or too long").hint("use 8 to 1024 bytes"));
        }
        let password = password.to_owned();
        self.compute(move || hash(password.as_bytes())).await
    }

    /// Returns whether a password matches a hash; `None` stands for a user that does not exist.
    ///
    /// # Errors
    /// XX001 for a hash that cannot be read.
    pub(crate) async fn verify(&self, password: &str, expected: Option<String>) -> Result<bool> {
        let password =
            if password.len() <= *PASSWORD_BYTES.end() { password.to_owned() } else { String::new() };
        let dummy = Arc::clone(&self.dummy);
        self.compute(move || {
            let known = expected.is_some();
            let expected = match expected {
                Some(expected) => expected,
                None => match dummy.get() {
                    Some(dummy) => dummy.clone(),
                    None => {
                        let fresh = hash(&rand::random::<[u8; 32]>())?;
                        dummy.get_or_init(|| fresh).clone()
                    }
                },
            };
            let parsed = PasswordHash::new(&expected).map_err(|error| {
                Error::corruption("a password hash cannot be read").source(error.to_string())
            })?;
            Ok(hasher()?.verify_password(password.as_bytes(), &parsed).is_ok() && known)
        })
        .await
    }

    async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| Error::shutting_down())?;
        // The work owns the permit: a caller that stops waiting does not make room for another computation.
        blocking(move || {
            let result = work();
            drop(permit);
            result
        })
        .await
    }
}

fn hasher() -> Result<Argon2<'static>> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None)
        .map_err(|error| Error::internal("argon2 refuses its parameters").source(error.to_string()))?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

fn hash(password: &[u8]) -> Result<String> {
    let salt: [u8; SALT_BYTES] = rand::random();
    let hash = hasher()?
        .hash_password_with_salt(password, &salt)
        .map_err(|error| Error::internal("a password cannot be hashed").source(error.to_string()))?;
    Ok(hash.to_string())
}

/// Returns the only error of a failed login.
pub(crate) fn login_failed() -> Error {
    Error::new(ErrorKind::Unauthenticated, SqlState::INVALID_PASSWORD, "user name or password is wrong")
        .hint("check both; an administrator can set a new password with ALTER USER")
}
