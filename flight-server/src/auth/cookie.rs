//! Names of sessions, which clients send as a cookie or in a header.
//!
//! A client without a name is in the session of its connection. A client that uses several connections for
//! one session, or wants to keep its session when it reconnects, sends a name: the cookie that it got from
//! Handshake or SetSessionOptions, or 16 random bytes of its own.
//!
//! Invariant: a name is only a key among the sessions of its user; whoever knows another user's name gets a
//! session of their own.

use http::HeaderMap;
use http::header::COOKIE;
use kalamdb_core::Error;
use tonic::metadata::{Ascii, MetadataValue};

/// The cookie with the name of the session; the name of the cookie is that of Flight's specification.
const COOKIE_NAME: &str = "arrow_flight_session_id";
/// The header with the name of the session, for clients without cookies.
const SESSION_HEADER: &str = "kalamdb-session";
/// The header of a cookie for the client.
pub(crate) const SET_COOKIE: &str = "set-cookie";

/// The name of a session: 16 bytes, written as 32 hexadecimal digits.
pub(crate) type SessionName = [u8; 16];

/// Returns the name of the session that a request asks for.
///
/// # Errors
/// 22023 for a name that is not 32 hexadecimal digits.
pub(crate) fn session_name(headers: &HeaderMap) -> Result<Option<SessionName>, Error> {
    if let Some(header) = headers.get(SESSION_HEADER) {
        return parse(header.to_str().unwrap_or_default(), SESSION_HEADER).map(Some);
    }
    let cookies = headers.get_all(COOKIE).iter().filter_map(|header| header.to_str().ok());
    let mut pairs = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.split_once('='));
    match pairs.find(|(name, _)| name.trim() == COOKIE_NAME) {
        Some((_, value)) => parse(value, COOKIE_NAME).map(Some),
        None => Ok(None),
    }
}

fn parse(text: &str, source: &str) -> Result<SessionName, Error> {
    let digits = text.trim().trim_matches('"');
    let is_name = digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    match u128::from_str_radix(digits, 16) {
        Ok(number) if is_name => Ok(number.to_be_bytes()),
        _ => Err(Error::invalid(format!("the name of the session in \"{source}\" is not valid"))
            .hint("send 32 hexadecimal digits, or nothing")),
    }
}

/// Returns a new name.
pub(crate) fn new_session_name() -> SessionName {
    *uuid::Uuid::new_v4().as_bytes()
}

/// Returns the cookie that tells a name to a client.
pub(super) fn cookie(name: SessionName, is_secure: bool) -> Result<MetadataValue<Ascii>, Error> {
    let digits = u128::from_be_bytes(name);
    let secure = if is_secure { "; Secure" } else { "" };
    MetadataValue::try_from(format!("{COOKIE_NAME}={digits:032x}; Path=/; HttpOnly; SameSite=Strict{secure}"))
        .map_err(|error| Error::internal("a cookie is not a header value").source(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a_name_is_found_among_other_cookies_and_the_header_is_stronger() {
        let name = [0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff];
        let digits = "0a0000000000000000000000000000ff";
        assert_eq!(session_name(&headers(&[])).unwrap(), None);
        assert_eq!(session_name(&headers(&[("cookie", "a=b; c"), ("cookie", "d")])).unwrap(), None);
        for cookie in [
            format!("arrow_flight_session_id={digits}"),
            format!("a=b; arrow_flight_session_id=\"{}\"; c=d", digits.to_uppercase()),
        ] {
            assert_eq!(
                session_name(&headers(&[("cookie", "x=y"), ("cookie", cookie.as_str())])).unwrap(),
                Some(name)
            );
        }
        let other = "0".repeat(32);
        let both =
            headers(&[("kalamdb-session", other.as_str()), ("cookie", "arrow_flight_session_id=nonsense")]);
        assert_eq!(session_name(&both).unwrap(), Some([0; 16]));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = "0".repeat(33);
        for value in
            ["", "abc", "+0a000000000000000000000000000ff", "0a0000000000000000000000000000fg", long.as_str()]
        {
            let error = session_name(&headers(&[("kalamdb-session", value)])).unwrap_err();
            assert_eq!(error.sqlstate().0, "22023", "{value}");
            let cookie = format!("arrow_flight_session_id={value}");
            assert!(session_name(&headers(&[("cookie", cookie.as_str())])).is_err(), "{value}");
        }
    }

    #[test]
    fn a_cookie_comes_back_as_its_name() {
        let name = new_session_name();
        let text = cookie(name, true).unwrap();
        let text = text.to_str().unwrap();
        assert!(text.ends_with("; Path=/; HttpOnly; SameSite=Strict; Secure"), "{text}");
        let pair = text.split(';').next().unwrap();
        assert_eq!(session_name(&headers(&[("cookie", pair)])).unwrap(), Some(name));
        assert!(!cookie(name, false).unwrap().to_str().unwrap().contains("Secure"));
    }
}
