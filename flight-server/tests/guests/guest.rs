//! A guest: one statement of an ordinary user, whose client reads at most one batch of rows.

use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use futures::StreamExt;
use tokio::task::JoinHandle;

use crate::fixture::{self, FlightClient};

/// How the server answered a guest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Answer {
    Rows,
    /// The SQLSTATE.
    Refused(String),
    /// An error without an SQLSTATE, such as a broken connection.
    Lost(String),
}

impl Answer {
    pub(crate) fn of(error: &FlightError) -> Self {
        let said = error.to_string();
        match sqlstate(&said) {
            Some(state) => Self::Refused(state.to_owned()),
            None => Self::Lost(said),
        }
    }

    /// Returns whether the server failed rather than the statement.
    pub(crate) fn is_internal(&self) -> bool {
        matches!(self, Self::Refused(state) if state.starts_with("XX"))
    }

    /// Returns whether the server does not know what the statement means: then it tests nothing.
    pub(crate) fn is_misunderstood(&self) -> bool {
        matches!(self, Self::Refused(state) if state.starts_with("42") || state == "0A000")
    }
}

/// Returns the SQLSTATE of a message of the server, where it stands in brackets.
pub(crate) fn sqlstate(said: &str) -> Option<&str> {
    fn is_state(text: &str) -> bool {
        text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
    }
    let bracketed = said.split('[').skip(1).filter_map(|rest| rest.split_once(']'));
    bracketed.map(|(text, _)| text).find(|text| is_state(text))
}

/// Runs a statement and reads at most one batch; returns the stream, so that the statement goes on.
pub(crate) async fn open(
    client: &mut FlightClient,
    sql: &str,
) -> Result<Option<FlightRecordBatchStream>, FlightError> {
    let info = client.execute(sql.to_owned(), None).await?;
    let Some(ticket) = info.endpoint.into_iter().find_map(|endpoint| endpoint.ticket) else {
        return Ok(None);
    };
    let mut rows = client.do_get(ticket).await?;
    rows.next().await.transpose()?;
    Ok(Some(rows))
}

/// Runs a statement until its first batch.
pub(crate) async fn ask(client: &mut FlightClient, sql: &str) -> Answer {
    match open(client, sql).await {
        Ok(_) => Answer::Rows,
        Err(error) => Answer::of(&error),
    }
}

/// A guest on a connection of its own.
pub(crate) struct Guest(JoinHandle<Answer>);

impl Guest {
    pub(crate) fn arrive(address: &str, token: &str, sql: &str) -> Self {
        let (address, token, sql) = (address.to_owned(), token.to_owned(), sql.to_owned());
        Self(tokio::spawn(async move {
            match fixture::client(&address, &token).await {
                Ok(mut client) => ask(&mut client, &sql).await,
                Err(said) => Answer::Lost(said),
            }
        }))
    }

    /// Closes the connection; returns the answer if there was one.
    pub(crate) async fn leave(self) -> Option<Answer> {
        self.0.abort();
        self.0.await.ok()
    }
}

#[test]
fn an_sqlstate_stands_in_brackets() {
    assert_eq!(sqlstate("Tonic error: message: \"[57014] cancelled [x]\""), Some("57014"));
    assert_eq!(sqlstate("items [1, 2] and [0A000] here"), Some("0A000"));
    assert_eq!(sqlstate("transport error"), None);
}
