//! Splits the text of a test file into records. It reads the sqllogictest dialects of both corpora.

/// How the rows of an answer are sorted before they are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sort {
    No,
    Rows,
    Values,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind<'a> {
    Statement,
    /// `types` has one letter per column; `expected` has the lines below the dashes.
    Query {
        types: &'a str,
        sort: Sort,
        expected: &'a str,
    },
    /// A statement or query that must be refused.
    Refused,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Record<'a> {
    /// The line at which the record begins.
    pub(crate) line: usize,
    pub(crate) kind: Kind<'a>,
    pub(crate) sql: &'a str,
    /// Whether the record is meant for the engine that is asked.
    pub(crate) is_ours: bool,
}

/// Reads one file as one engine would.
pub(crate) struct Records<'a> {
    rest: &'a str,
    line: usize,
    engine: &'a str,
}

impl<'a> Records<'a> {
    pub(crate) fn new(text: &'a str, engine: &'a str) -> Self {
        Self { rest: text, line: 0, engine }
    }

    fn next_line(&mut self) -> Option<&'a str> {
        if self.rest.is_empty() {
            return None;
        }
        let (line, rest) = self.rest.split_once('\n').unwrap_or((self.rest, ""));
        self.rest = rest;
        self.line += 1;
        Some(line)
    }

    /// Returns the lines up to an empty line or the dashes, and whether dashes ended them.
    fn block(&mut self) -> (&'a str, bool) {
        let all = self.rest;
        let mut length = 0;
        while let Some(line) = self.next_line() {
            if line.is_empty() || line == "----" {
                return (&all[..length], !line.is_empty());
            }
            length = all.len() - self.rest.len();
        }
        (&all[..length], false)
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut is_ours = true;
        loop {
            let header = self.next_line()?;
            let mut words = header.split_ascii_whitespace();
            let first = words.next().unwrap_or_default();
            let second = words.next().unwrap_or_default();
            match first {
                "skipif" => is_ours &= second != self.engine,
                "onlyif" => is_ours &= second == self.engine,
                "halt" if is_ours => return None,
                "halt" => is_ours = true,
                "statement" | "query" => {
                    let line = self.line;
                    let (sql, has_results) = self.block();
                    let expected = if has_results { self.block().0 } else { "" };
                    let kind = match (first, second) {
                        (_, "error") => Kind::Refused,
                        ("statement", _) => Kind::Statement,
                        (_, types) => {
                            let sort = match words.next() {
                                Some("rowsort") => Sort::Rows,
                                Some("valuesort") => Sort::Values,
                                _ => Sort::No,
                            };
                            Kind::Query { types, sort, expected }
                        }
                    };
                    let sql = sql.trim_end().trim_end_matches(';');
                    return Some(Record { line, kind, sql, is_ours });
                }
                _ => {}
            }
        }
    }
}
