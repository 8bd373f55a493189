//! SQLite's sqllogictest corpus: seven million records on whose answers SQLite, PostgreSQL, MySQL and others
//! agree. We read it as PostgreSQL would.

use std::fs::File;

use ::datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use ::datafusion::arrow::compute::cast;
use ::datafusion::arrow::datatypes::{DataType, Float64Type, Int64Type};
use ::datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use zip::ZipArchive;

use super::records::Sort;
use super::{Corpus, Part, Wanted, home, is_same_hash};
use crate::guard::{Report, Run};

/// The path below Maven's local repository.
const ARCHIVE: &str = "net/hydromatic/sql-logic-test/0.3/sql-logic-test-0.3.jar";
const REASONS: &str = include_str!("sqlite.toml");
/// The least share of a file's queries that is asked: the file's tables cost as much as many queries.
const SHARE_OF_FILE_MIN: f64 = 0.1;
/// From this percentage on, each file runs over hot and over flushed tables; below it, over one of the two.
const PERCENT_OF_BOTH_COPIES: u64 = 20;
/// Values that a failure shows.
const VALUES_SHOWN_MAX: usize = 20;

pub(crate) async fn guard(run: Run) -> Report {
    let path = home(".m2/repository").join(ARCHIVE);
    let Ok(archive) = File::open(&path) else {
        return Report::absent(&run, "SQLite's corpus is not there (.ci/setup corpora brings it)");
    };
    let archive = ZipArchive::new(archive).unwrap();
    let mut files: Vec<String> =
        archive.file_names().filter(|name| name.ends_with(".test")).map(str::to_owned).collect();
    files.sort_unstable();
    let parts = parts(&run, files);
    let archive = Mutex::new(archive);
    let load = move |name: &str| {
        let mut archive = archive.lock();
        std::io::read_to_string(archive.by_name(name).unwrap()).unwrap()
    };
    Corpus::new(run, REASONS, "postgresql", compare, Box::new(load)).await.play(parts).await
}

/// Returns the files to run, in an order that the seed decides.
fn parts(run: &Run, mut files: Vec<String>) -> Vec<Part> {
    let percent = f64::from(u32::try_from(run.percent).unwrap()) / 100.0;
    let share = percent.max(SHARE_OF_FILE_MIN);
    let mut rng = SmallRng::seed_from_u64(run.seed);
    files.shuffle(&mut rng);
    let mut parts = Vec::new();
    for file in files {
        let (is_chosen, is_flushed, seed) = (rng.random_bool(percent / share), rng.random(), rng.random());
        let is_both = run.percent >= PERCENT_OF_BOTH_COPIES;
        if is_chosen {
            let part = Part { file, is_flushed, share, seed };
            parts.push(part.clone());
            parts.extend(is_both.then_some(Part { is_flushed: !is_flushed, ..part }));
        }
    }
    parts
}

fn compare(wanted: &Wanted<'_>, batches: &[RecordBatch]) -> Result<(), String> {
    let mut rows = Vec::new();
    for batch in batches {
        if batch.num_columns() != wanted.types.len() {
            return Err(format!("{} columns are right, {} came", wanted.types.len(), batch.num_columns()));
        }
        let columns: Vec<_> = batch
            .columns()
            .iter()
            .zip(wanted.types.chars())
            .map(|(column, ty)| column_cells(column, ty))
            .collect();
        rows.extend(
            (0..batch.num_rows()).map(|row| columns.iter().map(|column| column[row].clone()).collect()),
        );
    }
    if wanted.sort == Sort::Rows {
        rows.sort_unstable();
    }
    let mut values: Vec<String> = rows.into_iter().flat_map(|row: Vec<String>| row).collect();
    if wanted.sort == Sort::Values {
        values.sort_unstable();
    }
    let is_same = is_same_hash(wanted.expected, &values)
        .unwrap_or_else(|| wanted.expected.lines().eq(values.iter().map(String::as_str)));
    if is_same {
        return Ok(());
    }
    let right: Vec<&str> = wanted.expected.lines().take(VALUES_SHOWN_MAX).collect();
    let shown = &values[..values.len().min(VALUES_SHOWN_MAX)];
    Err(format!("right is {right:?}\n{} values came, {shown:?}", values.len()))
}

/// Formats a column like the corpus: `I` without fraction, `R` with three digits, others as text.
fn column_cells(array: &ArrayRef, ty: char) -> Vec<String> {
    let is_number = array.data_type().is_numeric() || *array.data_type() == DataType::Boolean;
    let value: Box<dyn Fn(usize) -> String> = match ty {
        'I' if is_number => {
            // A cast of a decimal to an integer rounds, but the corpus truncates.
            let is_whole = array.data_type().is_integer() || *array.data_type() == DataType::Boolean;
            let floats = cast(array, &DataType::Float64).unwrap();
            let wholes = cast(array, &DataType::Int64).unwrap();
            Box::new(move |row| match is_whole {
                true => wholes.as_primitive::<Int64Type>().value(row).to_string(),
                // The corpus has no signed zero.
                false => format!("{:.0}", floats.as_primitive::<Float64Type>().value(row).trunc() + 0.0),
            })
        }
        'R' if is_number => {
            let floats = cast(array, &DataType::Float64).unwrap();
            Box::new(move |row| format!("{:.3}", floats.as_primitive::<Float64Type>().value(row)))
        }
        _ => {
            let options = FormatOptions::default();
            let formatter = ArrayFormatter::try_new(array, &options).unwrap();
            let texts: Vec<String> = (0..array.len()).map(|row| formatter.value(row).to_string()).collect();
            Box::new(move |row| match (ty, texts[row].as_str()) {
                // No text in the corpus begins with a digit.
                ('I', _) => "0".to_owned(),
                ('R', _) => "0.000".to_owned(),
                (_, "") => "(empty)".to_owned(),
                (_, text) => text.replace(|letter: char| !(' '..='~').contains(&letter), "@"),
            })
        }
    };
    (0..array.len()).map(|row| if array.is_null(row) { "NULL".to_owned() } else { value(row) }).collect()
}
