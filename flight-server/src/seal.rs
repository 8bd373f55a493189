//! Seals: HMAC-SHA256 over a byte string, with a key derived from the database's secret.
//!
//! Bearer tokens and tickets pass through clients; only this seal makes them trustworthy when they return.
//! Each purpose has its own key, so a ticket never passes for a token.
//!
//! ```text
//! sealed = body | mac (32 bytes, HMAC-SHA256(key of the purpose, body))
//! ```
//!
//! Invariant: `open` returns the body only after a constant-time comparison.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

type HmacSha256 = Hmac<Sha256>;

/// Length of the seal at the end of a sealed byte string.
pub(crate) const MAC_BYTES: usize = 32;

/// A key for one purpose.
#[derive(Clone)]
pub(crate) struct SealKey {
    keyed: HmacSha256,
}

impl SealKey {
    /// Derives the key of `purpose` from the database's secret.
    pub(crate) fn derive(secret: &[u8], purpose: &str) -> Self {
        let mut derivation = keyed(secret);
        derivation.update(purpose.as_bytes());
        let key = derivation.finalize().into_bytes();
        Self { keyed: keyed(key.as_slice()) }
    }

    /// Appends the seal to `body`.
    pub(crate) fn seal(&self, mut body: Vec<u8>) -> Vec<u8> {
        let mac = self.digest(&body);
        body.extend_from_slice(&mac);
        body
    }

    /// Returns the body of a sealed byte string, or `None` if the seal is invalid.
    pub(crate) fn open<'a>(&self, sealed: &'a [u8]) -> Option<&'a [u8]> {
        let body_bytes = sealed.len().checked_sub(MAC_BYTES)?;
        let (body, mac) = sealed.split_at_checked(body_bytes)?;
        let mut hmac = self.keyed.clone();
        hmac.update(body);
        hmac.verify_slice(mac).ok()?;
        Some(body)
    }

    /// Returns the keyed digest of `bytes`, for map keys that must not contain the bytes themselves.
    pub(crate) fn digest(&self, bytes: &[u8]) -> [u8; MAC_BYTES] {
        let mut hmac = self.keyed.clone();
        hmac.update(bytes);
        hmac.finalize().into_bytes().into()
    }
}

fn keyed(key: &[u8]) -> HmacSha256 {
    match HmacSha256::new_from_slice(key) {
        Ok(hmac) => hmac,
        // HMAC hashes long keys and pads short ones, so it accepts every length.
        Err(_) => unreachable!("HMAC takes keys of every length"),
    }
}

#[cfg(test)]
mod tests {
    use super::SealKey;

    #[test]
    fn the_bytes_are_frozen() {
        const MAC: [u8; 32] = [
            0xA8, 0x4C, 0xAF, 0x9B, 0xF3, 0x1C, 0xFC, 0x65, 0x36, 0x21, 0xFC, 0x1E, 0x0F, 0x8F, 0xAE, 0xB1,
            0x99, 0x9E, 0x3C, 0x85, 0xF8, 0x60, 0xC5, 0x72, 0x57, 0x61, 0xF5, 0xBE, 0xC0, 0x21, 0xBB, 0x6A,
        ];
        let key = SealKey::derive(b"secret", "ticket");
        let sealed = [&b"body"[..], &MAC].concat();
        assert_eq!(key.seal(b"body".to_vec()), sealed);
        assert_eq!(key.open(&sealed), Some(b"body".as_slice()));
    }

    #[test]
    fn sealed_bytes_open_only_unchanged_and_for_their_purpose() {
        let tickets = SealKey::derive(b"secret", "ticket");
        let tokens = SealKey::derive(b"secret", "token");
        let sealed = tickets.seal(b"body".to_vec());
        assert_eq!(tickets.open(&sealed), Some(b"body".as_slice()));
        assert_eq!(tokens.open(&sealed), None);
        for position in 0..sealed.len() {
            let mut forged = sealed.clone();
            forged[position] ^= 1;
            assert_eq!(tickets.open(&forged), None, "byte {position}");
        }
        assert_eq!(tickets.open(&[]), None);
        assert_eq!(tickets.open(&sealed[..31]), None);
    }
}
