//! Limits the length, the chains and the nesting of a statement, counted in its tokens before it is parsed.
//!
//! Invariant: a statement that passes can be parsed, planned, cloned and dropped without a stack overflow.
//! Flat chains (`1 + 1 + ...`, `a OR b OR ...`, `... UNION ALL ...`) become trees as deep as the chain is
//! long, and a stack overflow would end the whole process, so long chains are refused before any tree exists.

use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer, Whitespace};

use crate::config::Config;
use crate::error::{Error, ErrorKind, Result, SqlState};

/// Depth of nested parentheses, brackets and braces.
const NESTING_MAX: usize = 128;
/// Common table expressions and derived column lists (`AS (`) in one statement; each makes the plan deeper.
const WITH_MAX: usize = 200;
/// Periods in one name: a column has at most three parts before it, a field of a struct a few more.
const PERIODS_MAX: usize = 8;

/// Returns the tokens of exactly one statement, without white space, comments and trailing semicolons.
///
/// # Errors
/// 54000 when the text is too long, 54001 when its chains or nesting are too deep, 42601 when it holds none
/// or several statements or cannot be tokenized.
pub(crate) fn tokenize(sql: &str, config: &Config) -> Result<Vec<TokenWithSpan>> {
    if sql.len() > config.sql_bytes_max {
        return Err(Error::new(
            ErrorKind::ResourceExhausted,
            SqlState::PROGRAM_LIMIT_EXCEEDED,
            format!("the statement has {} bytes; the limit is {}", sql.len(), config.sql_bytes_max),
        )
        .hint("pass values as parameters, or load rows with ingest"));
    }
    let mut tokens = Tokenizer::new(&PostgreSqlDialect {}, sql)
        .tokenize_with_location()
        .map_err(|error| Error::syntax(error.to_string()))?;
    join_texts(&mut tokens);
    for token in &mut tokens {
        // `SELECT TOP 5` belongs to other databases; in PostgreSQL `TOP` is a name.
        if let Token::Word(word) = &mut token.token
            && word.keyword == Keyword::TOP
        {
            word.keyword = Keyword::NoKeyword;
        }
    }
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

/// Drops white space and comments, and joins string literals on successive lines, as standard SQL does.
fn join_texts(tokens: &mut Vec<TokenWithSpan>) {
    let mut joined: Vec<TokenWithSpan> = Vec::with_capacity(tokens.len());
    let mut is_new_line = false;
    for token in tokens.drain(..) {
        match (token.token, joined.last_mut().map(|last| &mut last.token)) {
            (Token::Whitespace(Whitespace::Newline | Whitespace::SingleLineComment { .. }), _) => {
                is_new_line = true;
                continue;
            }
            (Token::Whitespace(_) | Token::EOF, _) => continue,
            (Token::SingleQuotedString(text), Some(Token::SingleQuotedString(last))) if is_new_line => {
                last.push_str(&text);
            }
            (other, _) => joined.push(TokenWithSpan { token: other, span: token.span }),
        }
        is_new_line = false;
    }
    *tokens = joined;
}

/// One level of nesting: the statement itself, or the content of parentheses, brackets or braces.
#[derive(Default)]
struct Level {
    /// Operators since the last comma: an upper bound for the depth of their tree.
    chain: usize,
    /// The longest chain seen at this level.
    longest: usize,
    /// Set operations. A comma does not end them.
    sets: usize,
    /// Commas of a FROM list join tables, so they extend the chain instead of ending it.
    in_from: bool,
}

impl Level {
    fn end_chain(&mut self) {
        self.longest = self.longest.max(self.chain);
        self.chain = 0;
    }
}

/// An upper bound for the depth of the trees that the tokens so far become.
///
/// Any word can also be a name. Where it can be one it ends nothing: the depth is never under-counted.
#[derive(Default)]
struct Depth<'a> {
    levels: Vec<Level>,
    with_count: usize,
    /// Periods in the name that is being read.
    periods: usize,
    previous: Option<&'a Token>,
}

fn check_depth(tokens: &[TokenWithSpan], operators_max: usize) -> Result<()> {
    let mut depth = Depth { levels: vec![Level::default()], ..Depth::default() };
    for token in tokens {
        depth.take(&token.token);
        // An open level hangs below the open levels around it, so their chains add up.
        let chains: usize = depth.levels.iter().map(|level| level.chain + level.sets).sum();
        if chains > operators_max
            || depth.levels.len() > NESTING_MAX
            || depth.with_count > WITH_MAX
            || depth.periods > PERIODS_MAX
        {
            return Err(too_complex(operators_max));
        }
    }
    Ok(())
}

impl<'a> Depth<'a> {
    fn take(&mut self, token: &'a Token) {
        let previous = self.previous.replace(token);
        if *token == Token::Period {
            self.periods += 1;
        } else if previous != Some(&Token::Period) {
            self.periods = 0;
        }
        match token {
            Token::LParen | Token::LBracket | Token::LBrace => {
                let is_with = matches!(keyword(previous), Keyword::AS | Keyword::MATERIALIZED);
                self.with_count += usize::from(is_with);
                self.levels.push(Level::default());
            }
            Token::RParen | Token::RBracket | Token::RBrace => self.close(),
            Token::Comma => self.comma(),
            Token::Word(word) => self.word(word.keyword, previous),
            token if is_operator(token) => self.add(),
            _ => {}
        }
    }

    fn add(&mut self) {
        if let Some(level) = self.levels.last_mut() {
            level.chain += 1;
        }
    }

    /// A closed level hangs below one operand of its parent, so its depth adds to the parent's chain.
    fn close(&mut self) {
        if self.levels.len() < 2 {
            return;
        }
        if let (Some(mut inner), Some(outer)) = (self.levels.pop(), self.levels.last_mut()) {
            inner.end_chain();
            outer.chain += inner.longest + inner.sets + 1;
        }
    }

    fn comma(&mut self) {
        match self.levels.last_mut() {
            Some(level) if level.in_from => level.chain += 1,
            Some(level) => level.end_chain(),
            None => {}
        }
    }

    fn word(&mut self, word: Keyword, previous: Option<&Token>) {
        let Some(level) = self.levels.last_mut() else { return };
        let before = keyword(previous);
        // After AS and a period every word is a name; after FROM, JOIN and a comma it is a table's name.
        let is_name = before == Keyword::AS || previous == Some(&Token::Period);
        let is_table = matches!(before, Keyword::FROM | Keyword::JOIN) || previous == Some(&Token::Comma);
        match word {
            _ if is_infix(word) => level.chain += 1,
            _ if is_set_operation(word) => level.sets += 1,
            _ if is_name => {}
            Keyword::FROM if before != Keyword::DISTINCT => level.in_from = true,
            Keyword::WHERE
            | Keyword::GROUP
            | Keyword::ORDER
            | Keyword::HAVING
            | Keyword::WINDOW
            | Keyword::LIMIT
            | Keyword::SELECT
                if !is_table =>
            {
                level.in_from = false;
            }
            _ => {}
        }
    }
}

/// Whether a keyword makes a tree deeper.
fn is_infix(word: Keyword) -> bool {
    matches!(
        word,
        Keyword::AND
            | Keyword::OR
            | Keyword::NOT
            | Keyword::XOR
            | Keyword::DIV
            | Keyword::LIKE
            | Keyword::ILIKE
            | Keyword::RLIKE
            | Keyword::REGEXP
            | Keyword::SIMILAR
            | Keyword::MATCH
            | Keyword::MEMBER
            | Keyword::IS
            | Keyword::NOTNULL
            | Keyword::BETWEEN
            | Keyword::OVERLAPS
            | Keyword::IN
            | Keyword::COLLATE
            | Keyword::AT
            | Keyword::INTERVAL
            | Keyword::PRIOR
            | Keyword::JOIN
            | Keyword::STRAIGHT_JOIN
            | Keyword::APPLY
            | Keyword::CASE
            | Keyword::OPERATOR
    )
}

fn is_set_operation(word: Keyword) -> bool {
    matches!(word, Keyword::UNION | Keyword::EXCEPT | Keyword::INTERSECT | Keyword::MINUS)
}

/// Whether a token counts as an operator: all do but names, values and punctuation.
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

fn keyword(token: Option<&Token>) -> Keyword {
    match token {
        Some(Token::Word(word)) => word.keyword,
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

/// A text split at its semicolons, for command lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SplitStatements {
    /// The statements that end in a semicolon, without it.
    pub statements: Vec<String>,
    /// The text after the last semicolon: empty, or an unfinished statement.
    pub rest: String,
}

/// Splits a text at the semicolons outside quotes and comments. A text that cannot be tokenized, such as one
/// that ends within a quote, is all `rest`.
///
/// # Examples
/// ```
/// let split = kalamdb_core::split_statements("SELECT ';'; SELECT 2; SELECT");
/// assert_eq!(split.statements, ["SELECT ';'", "SELECT 2"]);
/// assert_eq!(split.rest, "SELECT");
/// ```
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

/// Returns the byte offset of a location, which counts lines and characters from 1.
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
        for link in
            [" NOTNULL", " OPERATOR(+) a", " OVERLAPS a", " RLIKE a", " REGEXP a", " MATCH a", " MEMBER a"]
        {
            assert_eq!(state(&repeat("SELECT a", link, 5_000)), "54001", "{link}");
        }
        for link in [" DIV a", " NOT NULL", " IS NULL", " XOR a", " NOT LIKE a", " AT TIME ZONE a"] {
            assert_eq!(state(&repeat("SELECT a", link, 5_000)), "54001", "{link}");
        }
        assert_eq!(state(&repeat("SELECT ", "INTERVAL ", 5_000)), "54001");
        assert_eq!(state(&repeat("SELECT a", ".'b'", 5_000)), "54001");
        assert_eq!(state(&repeat("SELECT a", ".a", 20)), "54001");
        assert_eq!(state("SELECT kalam.app.t.a.b.c FROM kalam.app.t"), "ok");
    }

    #[test]
    fn no_word_ends_a_chain_where_it_is_a_name() {
        let repeat = |head: &str, link: &str, count: usize| format!("{head}{}", link.repeat(count));
        // Commas do not end set operations, and commas in FROM end nothing.
        assert_eq!(state(&repeat("SELECT 1, 2", " UNION ALL SELECT 1, 2", 5_000)), "54001");
        for name in ["set", "limit", "where", "group", "window", "case", "end", "when"] {
            assert_eq!(
                state(&repeat(&format!("SELECT * FROM t AS {name}"), ", t AS a", 5_000)),
                "54001",
                "{name}"
            );
            assert_eq!(state(&repeat(&format!("SELECT * FROM {name}"), ", t", 5_000)), "54001", "{name}");
            assert_eq!(state(&repeat(&format!("SELECT * FROM a.{name}"), ", t", 5_000)), "54001", "{name}");
            let alias = format!(" UNION ALL SELECT 1 AS {name}");
            assert_eq!(state(&repeat("SELECT 1", &alias, 5_000)), "54001", "{name}");
        }
        for name in ["when", "then", "else", "end", "case", "t.when", "t.case", "t.end"] {
            assert_eq!(
                state(&repeat("SELECT 1 WHERE a", &format!(" OR {name} = 1"), 5_000)),
                "54001",
                "{name}"
            );
            assert_eq!(
                state(&repeat("SELECT CASE WHEN a", &format!(" OR {name}"), 5_000)),
                "54001",
                "{name}"
            );
            assert_eq!(state(&repeat("SELECT 1", &format!(" + f({name}, 1)"), 5_000)), "54001", "{name}");
            assert_eq!(
                state(&repeat("SELECT 1", &format!(" UNION SELECT 1 {name}"), 5_000)),
                "54001",
                "{name}"
            );
        }
    }

    #[test]
    fn commas_end_chains_where_they_separate() {
        let arms = " WHEN a = 1 THEN 2".repeat(400);
        assert_eq!(
            state(&format!("SELECT CASE{arms} ELSE 0 END, CASE{arms} END, CASE{arms} END FROM t")),
            "ok"
        );
        assert_eq!(
            state(&format!("UPDATE t SET a = CASE a{} END WHERE a = 3", " WHEN 1 THEN 2".repeat(5_000))),
            "ok"
        );
        let columns = vec!["c = 1 AND d"; 5_000].join(", ");
        assert_eq!(state(&format!("UPDATE t SET {columns} = 1 WHERE a = 1")), "ok");
        assert_eq!(state(&format!("SELECT a FROM t WHERE a = 1 GROUP BY a ORDER BY {columns}")), "ok");
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
