//! The grammar of SUBSCRIBE: `SUBSCRIBE TO (SELECT ...) [WITH (option = value, ...)]`.

use std::time::Duration;

use datafusion::sql::sqlparser::tokenizer::Token;

use super::cursor::Cursor;
use super::dialect::{BoundedDialect, parser};
use super::statement::{Statement, Subscribe};
use crate::error::{Error, Result};
use crate::ids::Seq;
use crate::live_query::{SnapshotMode, SubscribeRequest, SubscribeStart, token_from_text};
use crate::sql::syntax_tree::syntax_error;

/// Parses the part after SUBSCRIBE.
pub(super) fn parse(cursor: &mut Cursor<'_>) -> Result<Statement> {
    cursor.expect_keyword("TO")?;
    let Some(len) = cursor.group_len() else {
        return Err(cursor.unexpected("a SELECT in parentheses"));
    };
    let inner = cursor.rest().get(1..len - 1).unwrap_or_default();
    let dialect = BoundedDialect::new(inner);
    let mut parser = parser(inner, &dialect);
    let query = parser.parse_query().map_err(syntax_error)?;
    if parser.peek_token().token != Token::EOF {
        return Err(Error::syntax(format!("unexpected {} in the query of SUBSCRIBE", parser.peek_token())));
    }
    cursor.skip(len);
    let mut request = SubscribeRequest::new(query.to_string());
    if cursor.keyword("WITH") {
        for (name, value) in cursor.options()? {
            set_option(&mut request, &name, &value)?;
        }
    }
    Ok(Statement::Subscribe(Box::new(Subscribe { query, request })))
}

fn set_option(request: &mut SubscribeRequest, name: &str, value: &str) -> Result<()> {
    let wrong = |hint: &str| Error::invalid(format!("option \"{name}\" cannot be \"{value}\"")).hint(hint);
    let number = || value.parse::<u64>().map_err(|_| wrong("it must be a whole number"));
    let size = || value.parse::<usize>().map_err(|_| wrong("it must be a whole number"));
    match name {
        "snapshot" => {
            request.snapshot = match value.to_ascii_lowercase().as_str() {
                "include" | "true" => SnapshotMode::Include,
                "skip" | "false" => SnapshotMode::Skip,
                "only" => SnapshotMode::Only,
                _ => return Err(wrong("use include, skip or only")),
            };
        }
        "resume_token" => {
            let token = token_from_text(value).map_err(|_| wrong("use the token of a frame, in base64"))?;
            request.start = SubscribeStart::Token(token);
        }
        "after_seq" => request.start = SubscribeStart::AfterSeq(Seq(number()?)),
        "up_to_seq" => request.up_to_seq = Some(Seq(number()?)),
        "max_rows" => request.max_rows = size()?,
        "max_bytes" => request.max_bytes = size()?,
        "heartbeat_ms" => request.heartbeat = Duration::from_millis(number()?),
        "label" => value.clone_into(&mut request.label),
        _ => {
            return Err(Error::invalid(format!("SUBSCRIBE has no option \"{name}\"")).hint(
                "options are snapshot, resume_token, after_seq, up_to_seq, max_rows, max_bytes, heartbeat_ms \
                 and label",
            ));
        }
    }
    Ok(())
}
