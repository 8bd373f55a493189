//! The gate in front of the parser: limits on the length, the chains and the nesting of a statement, counted in its tokens.
//!
//! Invariant: whatever passes here can be parsed, planned, cloned and dropped without overflowing a stack. Flat chains
//! (`1 + 1 + ...`, `a OR b OR ...`, `... UNION ALL ...`) become trees as deep as they are long, and a stack overflow would
//! end the whole process, so they are refused by counting tokens, before any tree exists.

use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer};

use crate::config::Config;
use crate::error::{Error, ErrorKind, Result, SqlState};

/// Parentheses, brackets and CASE in one another.
const NESTING_MAX: usize = 128;
/// Common table expressions and derived columns lists (`AS (`) in one statement; each adds to the depth of the plan.
const WITH_MAX: usize = 200;

/// The tokens of exactly one statement, without white space, comments and closing semicolons.
///
/// # Errors
/// 54000 when the text is too long, 54001 when it chains or nests too much, 42601 when it holds none or several statements or
/// cannot be read.
pub(crate) fn tokenize(sql: &str, config: &Config) -> Result<Vec<TokenWithSpan>> {
    if sql.len() > config.sql_bytes_max {
        return Err(Error::new(
            ErrorKind::ResourceExhausted,
            SqlState::PROGRAM_LIMIT_EXCEEDED,
            format!("the statement has {} bytes, the limit is {}", sql.len(), config.sql_bytes_max),
        )
        .hint("pass values as parameters, or load rows by ingest"));
    }
    let mut tokens = Tokenizer::new(&PostgreSqlDialect {}, sql)
        .tokenize_with_location()
        .map_err(|error| Error::syntax(error.to_string()))?;
    tokens.retain(|token| !matches!(token.token, Token::Whitespace(_) | Token::EOF));
    while tokens.last().is_some_and(|token| token.token == Token::SemiColon) {
        tokens.pop();
    }
    if tokens.is_empty() {
        return Err(Error::syntax("the statement is empty"));
    }
    if tokens.iter().any(|token| token.token == Token::SemiColon) {
        return Err(Error::syntax("more than one statement").hint("send one statement at a time"));
    }
    check_depth(&tokens, config.sql_operators_max)?;
    Ok(tokens)
}

/// One level of nesting.
#[derive(Default)]
struct Level {
    /// Operators since the last comma: an upper bound of the depth of the tree they become.
    chain: usize,
    /// The longest chain seen at this level.
    longest: usize,
    /// Commas of a FROM list join tables, so there they extend the chain instead of ending it.
    in_from: bool,
}

impl Level {
    fn end_chain(&mut self) {
        self.longest = self.longest.max(self.chain);
        self.chain = 0;
    }
}

fn check_depth(tokens: &[TokenWithSpan], operators_max: usize) -> Result<()> {
    let mut levels = vec![Level::default()];
    let mut with_count = 0;
    let mut previous = Keyword::NoKeyword;
    for token in tokens {
        let keyword = keyword_of(&token.token);
        match &token.token {
            Token::LParen | Token::LBracket | Token::LBrace => {
                with_count += usize::from(matches!(previous, Keyword::AS | Keyword::MATERIALIZED));
                levels.push(Level::default());
            }
            Token::RParen | Token::RBracket | Token::RBrace => close(&mut levels),
            Token::Comma => comma(&mut levels),
            Token::Word(_) if keyword == Keyword::CASE => levels.push(Level::default()),
            Token::Word(_) if keyword == Keyword::END => close(&mut levels),
            token => count(token, keyword, previous, &mut levels),
        }
        let chain = levels.last().map_or(0, |level| level.chain);
        if chain > operators_max || levels.len() > NESTING_MAX || with_count > WITH_MAX {
            return Err(too_complex(operators_max));
        }
        previous = keyword;
    }
    Ok(())
}

/// A closed level hangs below one operand of its parent, so its depth adds to the parent's chain.
fn close(levels: &mut Vec<Level>) {
    if levels.len() < 2 {
        return;
    }
    if let (Some(mut inner), Some(outer)) = (levels.pop(), levels.last_mut()) {
        inner.end_chain();
        outer.chain += inner.longest + 1;
    }
}

fn comma(levels: &mut [Level]) {
    if let Some(level) = levels.last_mut() {
        if level.in_from {
            level.chain += 1;
        } else {
            level.end_chain();
        }
    }
}

fn count(token: &Token, keyword: Keyword, previous: Keyword, levels: &mut [Level]) {
    let Some(level) = levels.last_mut() else { return };
    match keyword {
        Keyword::FROM if previous != Keyword::DISTINCT => level.in_from = true,
        Keyword::WHERE
        | Keyword::GROUP
        | Keyword::ORDER
        | Keyword::HAVING
        | Keyword::WINDOW
        | Keyword::LIMIT
        | Keyword::SELECT
        | Keyword::SET => level.in_from = false,
        Keyword::WHEN | Keyword::THEN | Keyword::ELSE => level.end_chain(),
        Keyword::AND
        | Keyword::OR
        | Keyword::NOT
        | Keyword::XOR
        | Keyword::LIKE
        | Keyword::ILIKE
        | Keyword::SIMILAR
        | Keyword::IS
        | Keyword::BETWEEN
        | Keyword::IN
        | Keyword::COLLATE
        | Keyword::AT
        | Keyword::UNION
        | Keyword::EXCEPT
        | Keyword::INTERSECT
        | Keyword::MINUS
        | Keyword::JOIN => level.chain += 1,
        _ if is_operator(token) => level.chain += 1,
        _ => {}
    }
}

/// Everything that is neither a name, a value nor punctuation is taken for an operator.
fn is_operator(token: &Token) -> bool {
    !matches!(
        token,
        Token::Word(_)
            | Token::Number(..)
            | Token::SingleQuotedString(_)
            | Token::DollarQuotedString(_)
            | Token::EscapedStringLiteral(_)
            | Token::UnicodeStringLiteral(_)
            | Token::NationalStringLiteral(_)
            | Token::HexStringLiteral(_)
            | Token::SingleQuotedByteStringLiteral(_)
            | Token::Placeholder(_)
            | Token::Question
            | Token::Period
            | Token::Colon
    )
}

fn keyword_of(token: &Token) -> Keyword {
    match token {
        Token::Word(word) => word.keyword,
        _ => Keyword::NoKeyword,
    }
}

fn too_complex(operators_max: usize) -> Error {
    Error::new(
        ErrorKind::ResourceExhausted,
        SqlState::STATEMENT_TOO_COMPLEX,
        format!("the statement is too complex: it chains or nests more than {operators_max} operators"),
    )
    .hint("use IN (...) instead of chains of OR, VALUES instead of chains of UNION, or several statements")
}

/// A text cut at its semicolons, for command lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SplitStatements {
    /// The statements that end in a semicolon, without it.
    pub statements: Vec<String>,
    /// What stands behind the last semicolon: empty, or a statement that goes on.
    pub rest: String,
}

/// Cuts a text at the semicolons that stand outside quotes and comments. A text that cannot be read, such as one that ends
/// within a quote, is all `rest`.
pub fn split_statements(text: &str) -> SplitStatements {
    let whole = || SplitStatements { statements: Vec::new(), rest: text.trim().to_owned() };
    let Ok(tokens) = Tokenizer::new(&PostgreSqlDialect {}, text).tokenize_with_location() else {
        return whole();
    };
    let lines = line_starts(text);
    let mut split = SplitStatements::default();
    let mut start = 0;
    let mut has_words = false;
    for token in &tokens {
        match token.token {
            Token::SemiColon => {
                let Some(end) = byte_offset(text, &lines, token.span.start) else { return whole() };
                let statement = text.get(start..end).unwrap_or_default().trim();
                if has_words {
                    split.statements.push(statement.to_owned());
                }
                (start, has_words) = (end + 1, false);
            }
            Token::Whitespace(_) | Token::EOF => {}
            _ => has_words = true,
        }
    }
    if has_words {
        split.rest = text.get(start..).unwrap_or_default().trim().to_owned();
    }
    split
}

fn line_starts(text: &str) -> Vec<usize> {
    std::iter::once(0).chain(text.match_indices('\n').map(|(index, _)| index + 1)).collect()
}

/// Locations count lines and characters from 1.
fn byte_offset(text: &str, lines: &[usize], location: Location) -> Option<usize> {
    let line = usize::try_from(location.line).ok()?.checked_sub(1)?;
    let column = usize::try_from(location.column).ok()?.checked_sub(1)?;
    let start = *lines.get(line)?;
    let rest = text.get(start..)?;
    rest.char_indices().nth(column).map(|(index, _)| start + index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(sql: &str) -> String {
        match tokenize(sql, &Config::default()) {
            Ok(_) => "ok".to_owned(),
            Err(error) => error.sqlstate().to_string(),
        }
    }

    #[test]
    fn chains_are_counted_before_parsing() {
        let repeat = |head: &str, link: &str, count: usize| format!("{head}{}", link.repeat(count));
        assert_eq!(state(&repeat("SELECT 1", "+1", 900)), "ok");
        assert_eq!(state(&repeat("SELECT 1", "+1", 1_001)), "54001");
        assert_eq!(state(&repeat("SELECT 1 WHERE 1=1", " OR a=1", 10_000)), "54001");
        assert_eq!(state(&repeat("SELECT 1", " UNION ALL SELECT 1", 5_000)), "54001");
        assert_eq!(state(&repeat("SELECT 'a'", "||'a'", 5_000)), "54001");
        assert_eq!(state(&repeat("SELECT ", "NOT ", 5_000)), "54001");
        assert_eq!(state(&repeat("SELECT 1", "::int", 5_000)), "54001");
        assert_eq!(state(&repeat("SELECT * FROM t", ",t", 5_000)), "54001");
        assert_eq!(state(&repeat("SELECT a", "[1]", 5_000)), "54001");
        assert_eq!(state(&format!("SELECT {}1{}", "(".repeat(500), ")".repeat(500))), "54001");
    }

    #[test]
    fn depth_adds_up_through_parentheses() {
        let mut expression = "1".to_owned();
        for _ in 0..10 {
            expression = format!("({expression}){}", "+1".repeat(200));
        }
        assert_eq!(state(&format!("SELECT {expression}")), "54001");
    }

    #[test]
    fn long_lists_are_no_chains() {
        let rows = vec!["(-1, 'a' || 'b', 2 * 3)"; 20_000].join(", ");
        assert_eq!(state(&format!("INSERT INTO t VALUES {rows}")), "ok");
        let values = vec!["-1"; 50_000].join(",");
        assert_eq!(state(&format!("SELECT 1 WHERE a IN ({values})")), "ok");
        let columns = vec!["a = 1 AND b"; 5_000].join(",");
        assert_eq!(state(&format!("SELECT {columns} FROM t")), "ok");
    }

    #[test]
    fn only_one_statement_passes() {
        assert_eq!(state("SELECT 1;;"), "ok");
        assert_eq!(state("SELECT 1; SELECT 2"), "42601");
        assert_eq!(state(" -- nothing\n"), "42601");
        assert_eq!(state("SELECT 'open"), "42601");
        assert_eq!(state(&format!("SELECT '{}'", "x".repeat(1 << 20))), "54000");
    }

    #[test]
    fn texts_are_cut_outside_quotes() {
        let split = split_statements("SELECT ';' ; -- a;b\nINSERT INTO ä VALUES ('ü;');\n SELECT 3");
        assert_eq!(split.statements, ["SELECT ';'", "-- a;b\nINSERT INTO ä VALUES ('ü;')"]);
        assert_eq!(split.rest, "SELECT 3");
        assert_eq!(split_statements("SELECT 'open; x").rest, "SELECT 'open; x");
        assert_eq!(split_statements(" ; ;").statements.len(), 0);
    }
}
