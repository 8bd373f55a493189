//! Compiled patterns, cached, with their flags.

use std::borrow::Cow;
use std::sync::{Arc, LazyLock};

use quick_cache::sync::Cache;
use regex::{Regex, RegexBuilder};

use super::syntax::translated;
use crate::error::{Error, ErrorKind, Result, SqlState};

/// Maximum number of cached patterns.
const COMPILED_MAX: usize = 256;
/// Maximum size of a compiled pattern, in bytes.
const COMPILED_BYTES_MAX: usize = 1 << 20;

static COMPILED: LazyLock<Cache<(String, String), Arc<Regex>>> = LazyLock::new(|| Cache::new(COMPILED_MAX));

/// Returns the compiled pattern, cached. Flags: `i` ignores case; `n`, `m` and `p` make line breaks special;
/// `x` allows comments; `q` takes the pattern literally. `c` and `s` are the default; the caller reads `g`.
pub(super) fn compiled(pattern: &str, flags: &str) -> Result<Arc<Regex>> {
    COMPILED
        .get_or_insert_with(&(pattern.to_owned(), flags.to_owned()), || compile(pattern, flags).map(Arc::new))
}

fn compile(pattern: &str, flags: &str) -> Result<Regex> {
    if let Some(unknown) = flags.chars().find(|flag| !"cginmpqsx".contains(*flag)) {
        return Err(Error::invalid(format!("a regular expression has no flag \"{unknown}\"")));
    }
    let pattern = if flags.contains('q') { Cow::Owned(regex::escape(pattern)) } else { translated(pattern)? };
    let by_line = flags.contains(['n', 'm']);
    RegexBuilder::new(&pattern)
        .case_insensitive(flags.contains('i'))
        .multi_line(by_line)
        .dot_matches_new_line(!by_line && !flags.contains('p'))
        .ignore_whitespace(flags.contains('x'))
        .size_limit(COMPILED_BYTES_MAX)
        .build()
        .map_err(|error| invalid(&pattern, &error))
}

fn invalid(pattern: &str, error: &regex::Error) -> Error {
    let shown: String = pattern.chars().take(64).collect();
    if let regex::Error::CompiledTooBig(_) = error {
        return Error::new(
            ErrorKind::ResourceExhausted,
            SqlState::PROGRAM_LIMIT_EXCEEDED,
            format!("the regular expression \"{shown}\" is too large"),
        );
    }
    Error::new(
        ErrorKind::InvalidArgument,
        SqlState::INVALID_REGULAR_EXPRESSION,
        format!("invalid regular expression \"{shown}\""),
    )
    .source(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::syntax::similar;
    use super::*;

    #[test]
    fn similar_to_is_a_pattern_for_the_whole_text() {
        let matches =
            |text: &str, pattern: &str| compiled(&similar(pattern, Some('\\')), "").unwrap().is_match(text);
        for (text, pattern, expected) in [
            ("xaxbx", "axb", false),
            ("ab", "a%b", true),
            ("abc", "b", false),
            ("ab", "a_", true),
            ("abc", "(ab|b)c", true),
            ("a.c", "a.c", true),
            ("abc", "a.c", false),
            ("aaa", "a{2,3}", true),
            ("a%", "a\\%", true),
            ("ab", "a\\%", false),
            ("a-b", "a[-+]b", true),
            ("^a", "^a", true),
        ] {
            assert_eq!(matches(text, pattern), expected, "{text} {pattern}");
        }
    }

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        let state = |pattern: &str| compiled(pattern, "").unwrap_err().sqlstate();
        assert_eq!(state("("), SqlState::INVALID_REGULAR_EXPRESSION);
        assert_eq!(state("a(?=b)"), SqlState::FEATURE_NOT_SUPPORTED);
        assert_eq!(state("(a)\\1"), SqlState::FEATURE_NOT_SUPPORTED);
        assert!(compiled("\\ma\\M", "i").unwrap().is_match("B A b"));
    }
}
