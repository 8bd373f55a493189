//! DataFusion's own corpus: the `.slt` files of the version that we build with. Its answers are DataFusion's;
//! where PostgreSQL answers differently, a rule says so.

use std::path::{Path, PathBuf};

use ::datafusion::arrow::array::{Array, AsArray, RecordBatch};
use ::datafusion::arrow::datatypes::{DataType, Float32Type, Float64Type};
use ::datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};

use super::records::Sort;
use super::{Corpus, Part, Wanted, home, is_same_hash};
use crate::guard::{Report, Run};

const REASONS: &str = include_str!("datafusion.toml");
/// Numbers are compared to ten digits; below 0.01, to twelve decimal places.
const DIGITS_LOST: f64 = 1e-10;
/// Rows that a failure shows.
const ROWS_SHOWN_MAX: usize = 30;

pub(crate) async fn guard(run: Run) -> Report {
    let Some(folder) = folder() else {
        return Report::absent(&run, "DataFusion's corpus is not there (.ci/setup corpora brings it)");
    };
    let mut files = Vec::new();
    collect(&folder, &folder, &mut files);
    files.sort_unstable();
    let parts = files.into_iter().enumerate().map(|(place, file)| {
        let seed = run.seed.wrapping_add(place as u64);
        Part { file, is_flushed: seed % 2 == 1, share: 1.0, seed }
    });
    let parts = parts.collect();
    let load = move |name: &str| with_includes(&folder.join(name));
    Corpus::new(run, REASONS, "datafusion", compare, Box::new(load)).await.play(parts).await
}

/// Returns the folder in which cargo unpacked the crate's sources.
fn folder() -> Option<PathBuf> {
    let cargo = std::env::var_os("CARGO_HOME").map_or_else(|| home(".cargo"), PathBuf::from);
    let registries = cargo.join("registry/src");
    let inner = format!("datafusion-sqllogictest-{}/test_files", ::datafusion::DATAFUSION_VERSION);
    let registries = std::fs::read_dir(registries).ok()?;
    registries.filter_map(Result::ok).map(|registry| registry.path().join(&inner)).find(|path| path.is_dir())
}

fn collect(root: &Path, folder: &Path, files: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(root, &path, files);
        } else if path.extension().is_some_and(|ending| ending == "slt") {
            files.push(path.strip_prefix(root).unwrap().display().to_string());
        }
    }
}

/// Returns the text of a file with its includes expanded.
fn with_includes(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let mut whole = String::with_capacity(text.len());
    for line in text.lines() {
        match line.strip_prefix("include ") {
            // A pattern names the files of TPC-H, whose tables we do not have.
            Some(name) if !name.contains('*') => {
                whole.push_str(&with_includes(&path.parent().unwrap().join(name.trim())));
            }
            _ => whole.push_str(line),
        }
        whole.push('\n');
    }
    whole
}

fn compare(wanted: &Wanted<'_>, batches: &[RecordBatch]) -> Result<(), String> {
    let mut rows: Vec<Vec<String>> = batches.iter().flat_map(batch_rows).collect();
    let word = |word: &str| if word == "-0" { "0".to_owned() } else { word.to_owned() };
    let words = |line: &str| line.split_whitespace().map(word).collect::<Vec<_>>();
    let mut found: Vec<Vec<String>> = rows.iter().map(|row| words(&row.join(" "))).collect();
    let mut right: Vec<Vec<String>> = wanted.expected.lines().map(words).collect();
    // Without ORDER BY rows come in any order, and LIMIT may keep any of them.
    let clauses = outer_clauses(wanted.sql);
    let is_ordered = clauses.contains("order by");
    if !is_ordered && clauses.contains("limit") && found.len() == right.len() {
        return Ok(());
    }
    if wanted.sort != Sort::No || !is_ordered {
        rows.sort_unstable();
        found.sort_unstable();
        right.sort_unstable();
    }
    let is_same = is_same_hash(wanted.expected, &rows.concat()).unwrap_or_else(|| {
        found.len() == right.len()
            && found.iter().zip(&right).all(|(found, right)| {
                found.len() == right.len()
                    && found.iter().zip(right).all(|(found, right)| is_same_word(found, right))
            })
    });
    if is_same {
        return Ok(());
    }
    let text = |rows: &[Vec<String>]| {
        let shown: Vec<_> = rows.iter().take(ROWS_SHOWN_MAX).map(|row| row.join(" ")).collect();
        format!("{} rows\n{}", rows.len(), shown.join("\n"))
    };
    Err(format!("right is {}\nwhat came is {}", text(&right), text(&found)))
}

/// Returns a query in lower case, without everything in parentheses.
fn outer_clauses(sql: &str) -> String {
    let mut depth = 0;
    let is_outer = |letter: &char| {
        depth += i32::from(*letter == '(') - i32::from(*letter == ')');
        depth == 0
    };
    sql.chars().filter(is_outer).collect::<String>().to_lowercase()
}

/// Compares integers exactly, other numbers in any notation and up to the digits that the corpus has.
fn is_same_word(found: &str, right: &str) -> bool {
    let is_whole = |word: &str| word.parse::<i128>().is_ok();
    if found == right || (is_whole(found) && is_whole(right)) {
        return found == right;
    }
    match (found.parse::<f64>(), right.parse::<f64>()) {
        (Ok(found), Ok(right)) if found.is_finite() => {
            (found - right).abs() <= DIGITS_LOST * right.abs().max(0.01)
        }
        (Ok(found), Ok(right)) => found == right || found.is_nan() && right.is_nan(),
        _ => false,
    }
}

fn batch_rows(batch: &RecordBatch) -> Vec<Vec<String>> {
    let options = FormatOptions::default().with_null("NULL");
    let formatters: Vec<_> =
        batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap()).collect();
    let cell = |column: usize, row: usize| -> String {
        let array = batch.column(column);
        let text = formatters[column].value(row).to_string();
        match array.data_type() {
            _ if array.is_null(row) => "NULL".to_owned(),
            DataType::Float64 => {
                array.as_primitive::<Float64Type>().value(row).to_string().replace("inf", "Infinity")
            }
            DataType::Float32 => {
                array.as_primitive::<Float32Type>().value(row).to_string().replace("inf", "Infinity")
            }
            DataType::Decimal128(_, 1..) => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
            _ if text.is_empty() => "(empty)".to_owned(),
            _ => text.trim_end_matches('\n').replace('\0', "\\0"),
        }
    };
    (0..batch.num_rows())
        .map(|row| (0..batch.num_columns()).map(|column| cell(column, row)).collect())
        .collect()
}
