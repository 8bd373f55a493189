//! Translates PostgreSQL's patterns to the syntax of the crate `regex`.

use std::borrow::Cow;
use std::iter::Peekable;
use std::str::Chars;

use crate::error::{Error, Result};

/// Translates escapes that the crate writes differently, and refuses by name what the crate lacks.
pub(super) fn translated(pattern: &str) -> Result<Cow<'_, str>> {
    for around in ["(?=", "(?!", "(?<=", "(?<!"] {
        if pattern.contains(around) {
            let error = Error::unsupported(format!("look-around {around}...) in a regular expression"));
            return Err(error.hint("match the surroundings too and extract a group with regexp_match"));
        }
    }
    if !pattern.contains(['\\', '[']) {
        return Ok(Cow::Borrowed(pattern));
    }
    let mut translated = String::with_capacity(pattern.len());
    let mut chars = pattern.chars().peekable();
    while let Some(char) = chars.next() {
        if char == '[' {
            bracket(&mut chars, &mut translated)?;
            continue;
        }
        if char != '\\' {
            translated.push(char);
            continue;
        }
        match chars.next() {
            Some('m') => translated.push_str("\\b{start}"),
            Some('M') => translated.push_str("\\b{end}"),
            Some('y') => translated.push_str("\\b"),
            Some('Y') => translated.push_str("\\B"),
            Some('Z') => translated.push_str("\\z"),
            Some(digit @ '1'..='9') => {
                return Err(Error::unsupported(format!(
                    "the back reference \\{digit} in a regular expression"
                )));
            }
            Some(other) => translated.extend(['\\', other]),
            None => translated.push('\\'),
        }
    }
    Ok(Cow::Owned(translated))
}

/// Translates the rest of a bracket expression. Only the crate nests them and has set operations (`[a&&b]`).
fn bracket(chars: &mut Peekable<Chars<'_>>, translated: &mut String) -> Result<()> {
    translated.push('[');
    translated.extend(chars.next_if_eq(&'^'));
    // A leading bracket does not end the expression.
    if chars.next_if_eq(&']').is_some() {
        translated.push_str("\\]");
    }
    while let Some(char) = chars.next() {
        match char {
            ']' => {
                translated.push(']');
                break;
            }
            '[' if chars.peek() == Some(&':') => {
                translated.push('[');
                for char in chars.by_ref() {
                    translated.push(char);
                    if char == ']' {
                        break;
                    }
                }
            }
            '[' if matches!(chars.peek(), Some('.' | '=')) => {
                return Err(Error::unsupported("[. and [= in a bracket of a regular expression"));
            }
            '-' if translated.ends_with('-') => translated.push_str("\\-"),
            '[' | '&' | '~' => translated.extend(['\\', char]),
            '\\' => {
                translated.push('\\');
                translated.extend(chars.next());
            }
            other => translated.push(other),
        }
    }
    Ok(())
}

/// Translates a SIMILAR TO pattern to a regular expression for the whole text.
pub(super) fn similar(pattern: &str, escape: Option<char>) -> String {
    let mut regex = String::from("^(?:");
    let mut chars = pattern.chars();
    let mut in_class = false;
    while let Some(char) = chars.next() {
        match char {
            _ if Some(char) == escape => {
                if let Some(escaped) = chars.next() {
                    regex.push_str(&regex::escape(&escaped.to_string()));
                }
            }
            '[' => {
                in_class = true;
                regex.push('[');
            }
            ']' => {
                in_class = false;
                regex.push(']');
            }
            _ if in_class => {
                if char == '\\' {
                    regex.push('\\');
                }
                regex.push(char);
            }
            '%' => regex.push_str(".*"),
            '_' => regex.push('.'),
            '(' => regex.push_str("(?:"),
            '|' | '*' | '+' | '?' | '{' | '}' | ')' => regex.push(char),
            other => regex.push_str(&regex::escape(&other.to_string())),
        }
    }
    regex.push_str(")$");
    regex
}
