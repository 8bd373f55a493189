//! The file FORMAT of a data directory: it says which programs can read the directory.
//!
//! ```text
//! kalamdb
//! format 1
//! features NAME NAME ...     names are sorted; without a feature, the line is the word `features`
//! ```
//!
//! A feature is something that a directory may contain and that a program without it would misread. Its name
//! has lower-case letters, digits and hyphens, and is never given to another feature. A directory names the
//! feature from its first use on.
//!
//! Invariant: a directory is opened only by a program that knows its version and all its features.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::failpoint;
use crate::platform;

/// The newest format this program reads and writes.
const VERSION: u32 = 1;
/// The names of the features this program reads and writes. So far format 1 has everything.
pub(super) const KNOWN_FEATURES: &[&str] = &[];

/// The names of the features a directory uses.
pub type Features = BTreeSet<String>;

/// Returns the features in the text of a FORMAT file, for a program that knows the features `known`.
///
/// # Errors
/// XX001 when the text is damaged, 55000 when it needs a newer program.
pub(super) fn parse(text: &str, known: &[&str]) -> Result<Features> {
    let mut lines = text.lines();
    if lines.next() != Some("kalamdb") {
        return Err(damaged());
    }
    let version: u32 = lines
        .next()
        .and_then(|line| line.strip_prefix("format "))
        .and_then(|version| version.parse().ok())
        .ok_or_else(damaged)?;
    let names = lines.next().and_then(|line| line.strip_prefix("features")).ok_or_else(damaged)?;
    if version > VERSION {
        return Err(newer(format!(
            "the data directory has format {version}, this program reads up to {VERSION}"
        )));
    }
    let features: Features = names.split_whitespace().map(str::to_owned).collect();
    check_features("the data directory", &features, known)?;
    Ok(features)
}

/// Checks that this program can read `object`, which uses `features`.
///
/// # Errors
/// 55000 with the name of an unknown feature.
pub(crate) fn check_known(object: &str, features: &Features) -> Result<()> {
    check_features(object, features, KNOWN_FEATURES)
}

fn check_features(object: &str, features: &Features, known: &[&str]) -> Result<()> {
    match features.iter().find(|feature| !known.contains(&feature.as_str())) {
        Some(unknown) => {
            Err(newer(format!("{object} uses the feature \"{unknown}\", which this program does not know")))
        }
        None => Ok(()),
    }
}

/// Writes a temporary file and renames it, so that a crash leaves the file as it was or the new one.
///
/// # Errors
/// Any error of the operating system.
pub(super) fn write(file: &Path, features: &Features) -> io::Result<()> {
    let temporary = file.with_extension("new");
    let mut writer = File::create(&temporary)?;
    writer.write_all(text(features).as_bytes())?;
    writer.sync_all()?;
    failpoint::step("open::format").map_err(io::Error::other)?;
    fs::rename(&temporary, file)?;
    match file.parent() {
        Some(parent) => platform::sync_folder(parent),
        None => Ok(()),
    }
}

fn text(features: &Features) -> String {
    let names: String = features.iter().map(|feature| format!(" {feature}")).collect();
    format!("kalamdb\nformat {VERSION}\nfeatures{names}\n")
}

/// Returns the error for a FORMAT file that no program has written.
pub(super) fn damaged() -> Error {
    Error::corruption("the FORMAT file of the data directory cannot be read")
        .hint("restore the data directory from a backup")
}

fn newer(message: String) -> Error {
    Error::new(ErrorKind::Unavailable, SqlState::OBJECT_NOT_IN_STATE, message)
        .hint("open it with a newer kalamdb: the version that wrote it, or a later one")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(names: &[&str]) -> Features {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_text_is_frozen() {
        for (names, expected) in [
            (features(&[]), "kalamdb\nformat 1\nfeatures\n"),
            (features(&["indexes", "alter-table"]), "kalamdb\nformat 1\nfeatures alter-table indexes\n"),
        ] {
            assert_eq!(text(&names), expected);
            assert_eq!(parse(expected, &["alter-table", "encryption", "indexes"]).unwrap(), names);
        }
        assert_eq!(parse("kalamdb\nformat 1\nfeatures\n", KNOWN_FEATURES).unwrap(), features(&[]));
    }

    #[test]
    fn newer_formats_and_features_are_refused() {
        for (text, kind, named) in [
            ("kalamdb\nformat 2\nfeatures\n", ErrorKind::Unavailable, "format 2"),
            ("kalamdb\nformat 1\nfeatures indexes\n", ErrorKind::Unavailable, "\"indexes\""),
            ("kalamdb\nformat 1\nfeatures alter-table indexes\n", ErrorKind::Unavailable, "\"indexes\""),
            ("kalamdb\nformat x\nfeatures\n", ErrorKind::Corruption, "FORMAT"),
            ("kalamdb\nformat 1\n", ErrorKind::Corruption, "FORMAT"),
            ("something else\n", ErrorKind::Corruption, "FORMAT"),
            ("", ErrorKind::Corruption, "FORMAT"),
        ] {
            let error = parse(text, &["alter-table"]).unwrap_err();
            assert_eq!(error.kind(), kind, "{text:?}");
            assert!(error.message().contains(named), "{text:?}: {error}");
            let way_out = if kind == ErrorKind::Unavailable { "newer kalamdb" } else { "backup" };
            assert!(error.hint_text().unwrap().contains(way_out), "{text:?}");
        }
    }
}
