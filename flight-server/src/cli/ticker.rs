//! The table format of a live query: one header, then one line per change, aligned by the first rows.

use std::io::Write;

use arrow::array::RecordBatch;
use arrow::util::display::ArrayFormatter;

use super::Failure;
use super::output::{options, printable};

/// The minimum and maximum width that a column is padded to.
const WIDTH_MIN: usize = 6;
const WIDTH_MAX: usize = 40;

/// Prints changes as lines.
pub(super) struct Ticker<W: Write> {
    out: W,
    /// Set by the first rows; wider values in later rows shift their line.
    widths: Vec<usize>,
}

impl<W: Write> Ticker<W> {
    /// Prints to `out`.
    pub(super) fn new(out: W) -> Self {
        Self { out, widths: Vec::new() }
    }

    /// Prints the rows of `batch`; the column names come before the first rows.
    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<(), Failure> {
        let options = options();
        let formatters = batch
            .columns()
            .iter()
            .map(|column| ArrayFormatter::try_new(column, &options))
            .collect::<Result<Vec<_>, _>>()?;
        let lines: Vec<Vec<String>> = (0..batch.num_rows())
            .map(|row| {
                formatters
                    .iter()
                    .map(|formatter| printable(&formatter.value(row).to_string(), |_| false))
                    .collect()
            })
            .collect();
        if self.widths.is_empty() {
            let names: Vec<String> =
                batch.schema().fields().iter().map(|field| field.name().clone()).collect();
            self.widths = names.iter().map(|name| name.chars().count().max(WIDTH_MIN)).collect();
            for line in &lines {
                for (width, value) in self.widths.iter_mut().zip(line) {
                    *width = value.chars().count().clamp(*width, WIDTH_MAX.max(*width));
                }
            }
            self.print(&names)?;
        }
        lines.iter().try_for_each(|line| self.print(line))?;
        Ok(self.out.flush()?)
    }

    fn print(&mut self, values: &[String]) -> Result<(), Failure> {
        let mut line = String::new();
        for (value, width) in values.iter().zip(&self.widths) {
            line.push_str(&format!("{value:<width$}  "));
        }
        Ok(writeln!(self.out, "{}", line.trim_end())?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringArray};

    use super::*;

    #[test]
    fn lines_are_aligned_and_stay_lines() {
        let columns: [(&str, ArrayRef); 2] = [
            ("id", Arc::new(Int64Array::from(vec![Some(1), None]))),
            ("body", Arc::new(StringArray::from(vec!["a\nb", "longer than that"]))),
        ];
        let mut out = Vec::new();
        let mut ticker = Ticker::new(&mut out);
        let batch = RecordBatch::try_from_iter(columns).expect("batch");
        ticker.write(&batch).expect("write");
        ticker.write(&batch.slice(0, 1)).expect("write");
        let text = String::from_utf8(out).expect("text");
        assert_eq!(text, "id      body\n1       a\\nb\nNULL    longer than that\n1       a\\nb\n");
    }
}
