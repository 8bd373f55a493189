//! Rows on stdout, in the format the caller chose.
//!
//! Invariant: rows are printed as they arrive; only a table's block waits, for the widths of its columns.

use std::io::Write;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, StringArray};
use arrow::csv::{Writer as CsvWriter, WriterBuilder as CsvBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use arrow::json::writer::{LineDelimited, Writer as JsonWriter, WriterBuilder as JsonBuilder};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow::util::pretty::pretty_format_batches_with_options;

use super::{Failure, OutputFormat, OutputStyle};

/// Rows of one table block; each block has its own column widths.
const TABLE_BLOCK_ROWS: usize = 1_000;
/// Maximum number of characters per value in a table of many columns.
const CELL_CHARS_MAX: usize = 60;
/// Tables with at most this many columns show values in full, because they include plans and definitions.
const FULL_COLUMNS_MAX: usize = 2;

/// Prints one result.
pub(super) struct Printer<W: Write> {
    schema: SchemaRef,
    rows: u64,
    kind: Kind<W>,
}

enum Kind<W: Write> {
    Table { out: W, cells: Cells, block: Vec<RecordBatch>, block_rows: usize, printed: bool },
    Csv { writer: Box<CsvWriter<W>>, text: SchemaRef },
    Json(Box<JsonWriter<W, LineDelimited>>),
    Arrow(Box<StreamWriter<W>>),
}

impl<W: Write> Printer<W> {
    /// Prepares to print rows of `schema`.
    pub(super) fn new(style: OutputStyle, schema: &SchemaRef, out: W) -> Result<Self, Failure> {
        let kind = match style.format {
            OutputFormat::Table => Kind::Table {
                out,
                cells: Cells::of(schema, style.full),
                block: Vec::new(),
                block_rows: 0,
                printed: false,
            },
            OutputFormat::Csv => {
                let text = flat_schema(schema);
                let mut writer = CsvBuilder::new().with_header(true).build(out);
                // Print the header even if no row follows.
                writer.write(&RecordBatch::new_empty(Arc::clone(&text)))?;
                Kind::Csv { writer: Box::new(writer), text }
            }
            OutputFormat::Json => Kind::Json(Box::new(
                JsonBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(out),
            )),
            OutputFormat::Arrow => Kind::Arrow(Box::new(StreamWriter::try_new(out, schema)?)),
        };
        Ok(Self { schema: Arc::clone(schema), rows: 0, kind })
    }

    /// Prints `batch`, which must have the result's schema.
    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<(), Failure> {
        self.rows += batch.num_rows() as u64;
        match &mut self.kind {
            Kind::Table { block, block_rows, .. } => {
                let mut from = 0;
                while from < batch.num_rows() {
                    let taken = (TABLE_BLOCK_ROWS - *block_rows).min(batch.num_rows() - from);
                    block.push(batch.slice(from, taken));
                    *block_rows += taken;
                    from += taken;
                    if *block_rows == TABLE_BLOCK_ROWS {
                        break;
                    }
                }
                if *block_rows < TABLE_BLOCK_ROWS {
                    return Ok(());
                }
                self.print_block()?;
                let left = batch.slice(from, batch.num_rows() - from);
                self.rows -= left.num_rows() as u64;
                if left.num_rows() == 0 { Ok(()) } else { self.write(&left) }
            }
            Kind::Csv { writer, text } => Ok(writer.write(&flatten(batch, text)?)?),
            Kind::Json(writer) => Ok(writer.write(batch)?),
            Kind::Arrow(writer) => Ok(writer.write(batch)?),
        }
    }

    /// Passes everything printed so far to the operating system.
    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        match &mut self.kind {
            Kind::Table { .. } => self.print_block(),
            // The CSV writer flushes after each batch.
            Kind::Csv { .. } => Ok(()),
            Kind::Json(writer) => Ok(writer.get_mut().flush()?),
            Kind::Arrow(writer) => Ok(writer.flush()?),
        }
    }

    /// Ends the output and returns the number of printed rows.
    pub(super) fn finish(mut self) -> Result<u64, Failure> {
        if let Kind::Table { printed: false, block, .. } = &mut self.kind
            && block.is_empty()
        {
            block.push(RecordBatch::new_empty(Arc::clone(&self.schema)));
        }
        self.flush()?;
        match &mut self.kind {
            Kind::Table { .. } | Kind::Csv { .. } => {}
            Kind::Json(writer) => writer.finish()?,
            Kind::Arrow(writer) => writer.finish()?,
        }
        Ok(self.rows)
    }

    fn print_block(&mut self) -> Result<(), Failure> {
        if let Kind::Table { out, cells, block, block_rows, printed } = &mut self.kind
            && !block.is_empty()
        {
            let texts = block.iter().map(|batch| cells.show(batch)).collect::<Result<Vec<_>, _>>()?;
            let table = pretty_format_batches_with_options(&texts, &options())?;
            writeln!(out, "{table}")?;
            out.flush()?;
            block.clear();
            *block_rows = 0;
            *printed = true;
        }
        Ok(())
    }
}

/// How much of a value a table shows.
#[derive(Clone, Copy)]
enum Cells {
    /// Everything, over several lines if the value has them.
    Full,
    /// One line, truncated to the maximum length.
    Truncated,
}

impl Cells {
    fn of(schema: &Schema, full: bool) -> Self {
        if full || schema.fields().len() <= FULL_COLUMNS_MAX { Self::Full } else { Self::Truncated }
    }

    /// Returns `batch` with every value replaced by the text that the table shows.
    fn show(self, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
        let options = options();
        let columns = batch.columns().iter().map(|column| {
            let formatter = ArrayFormatter::try_new(column, &options)?;
            let texts = (0..column.len()).map(|row| Some(self.cell(&formatter.value(row).to_string())));
            Ok(Arc::new(texts.collect::<StringArray>()) as ArrayRef)
        });
        let columns = columns.collect::<Result<Vec<_>, ArrowError>>()?;
        let fields =
            batch.schema_ref().fields().iter().map(|field| Field::new(field.name(), DataType::Utf8, true));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let rows = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(schema, columns, &rows)
    }

    fn cell(self, value: &str) -> String {
        match self {
            Self::Full => printable(value, |c| c == '\n'),
            Self::Truncated => {
                let mut text = printable(value, |_| false);
                let mut tail = text.char_indices().skip(CELL_CHARS_MAX - 1);
                if let (Some((last, _)), Some(_)) = (tail.next(), tail.next()) {
                    text.truncate(last);
                    text.push('…');
                }
                text
            }
        }
    }
}

/// Escapes control characters in `value`, except `kept` ones, so that no value controls the terminal.
pub(super) fn printable(value: &str, kept: impl Fn(char) -> bool) -> String {
    let mut text = String::with_capacity(value.len());
    for c in value.chars() {
        if c.is_control() && !kept(c) { text.extend(c.escape_default()) } else { text.push(c) }
    }
    text
}

/// Returns the options for values as text.
pub(super) fn options() -> FormatOptions<'static> {
    FormatOptions::new().with_null("NULL").with_display_error(true)
}

/// Returns the schema for CSV, which has no nested values: these become text.
fn flat_schema(schema: &SchemaRef) -> SchemaRef {
    let fields: Vec<Field> = schema
        .fields()
        .iter()
        .map(|field| match field.data_type().is_nested() {
            true => Field::new(field.name(), DataType::Utf8, true),
            false => field.as_ref().clone(),
        })
        .collect();
    Arc::new(Schema::new(fields))
}

fn flatten(batch: &RecordBatch, text: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let columns = batch
        .columns()
        .iter()
        .map(|column| if column.data_type().is_nested() { to_text(column) } else { Ok(Arc::clone(column)) })
        .collect::<Result<Vec<_>, _>>()?;
    RecordBatch::try_new(Arc::clone(text), columns)
}

fn to_text(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let options = FormatOptions::default();
    let formatter = ArrayFormatter::try_new(column, &options)?;
    let texts = (0..column.len()).map(|row| match column.is_null(row) {
        true => Ok(None),
        false => formatter.value(row).try_to_string().map(Some),
    });
    Ok(Arc::new(texts.collect::<Result<StringArray, _>>()?))
}

#[cfg(test)]
mod tests {
    use arrow::array::{FixedSizeListArray, Float32Array, Int64Array};

    use super::*;

    fn rows(count: usize) -> RecordBatch {
        let ids = Int64Array::from_iter((0..count).map(|id| (id % 2 == 0).then_some(id as i64)));
        let item = Arc::new(Field::new("item", DataType::Float32, true));
        let points = Float32Array::from(vec![0.5; count * 2]);
        let points = FixedSizeListArray::try_new(item, 2, Arc::new(points), None).expect("list");
        RecordBatch::try_from_iter_with_nullable([
            ("id", Arc::new(ids) as ArrayRef, true),
            ("point", Arc::new(points) as ArrayRef, false),
        ])
        .expect("batch")
    }

    fn print(format: OutputFormat, batches: &[RecordBatch]) -> (String, u64) {
        let mut out = Vec::new();
        let style = OutputStyle { format, full: false };
        let mut printer = Printer::new(style, &rows(0).schema(), &mut out).expect("printer");
        for batch in batches {
            printer.write(batch).expect("write");
        }
        let rows = printer.finish().expect("finish");
        (String::from_utf8(out).expect("text"), rows)
    }

    #[test]
    fn csv_has_a_header_and_flat_values() {
        assert_eq!(
            print(OutputFormat::Csv, &[rows(2)]),
            ("id,point\n0,\"[0.5, 0.5]\"\n,\"[0.5, 0.5]\"\n".to_owned(), 2)
        );
        assert_eq!(print(OutputFormat::Csv, &[]), ("id,point\n".to_owned(), 0));
    }

    #[test]
    fn json_has_a_line_for_each_row_and_says_null() {
        let expected = "{\"id\":0,\"point\":[0.5,0.5]}\n{\"id\":null,\"point\":[0.5,0.5]}\n";
        assert_eq!(print(OutputFormat::Json, &[rows(2)]), (expected.to_owned(), 2));
    }

    #[test]
    fn tables_are_printed_in_blocks_and_count_every_row() {
        let (text, count) = print(OutputFormat::Table, &[rows(700), rows(700), rows(2_100)]);
        assert_eq!(count, 3_500);
        assert_eq!(text.matches("| id").count(), 4);
        let (text, count) = print(OutputFormat::Table, &[]);
        assert_eq!((text.matches("| id").count(), count), (1, 0));
    }

    #[test]
    fn tables_of_many_columns_truncate_long_values() {
        let long = "x".repeat(CELL_CHARS_MAX + 1);
        let column = |value: &str| Arc::new(StringArray::from(vec![value])) as ArrayRef;
        let table = |names: &[&str], full: bool| {
            let batch = RecordBatch::try_from_iter(
                names.iter().map(|name| (*name, column(&format!("{long}\n\u{1b}")))),
            )
            .expect("batch");
            let mut out = Vec::new();
            let style = OutputStyle { format: OutputFormat::Table, full };
            let mut printer = Printer::new(style, &batch.schema(), &mut out).expect("printer");
            printer.write(&batch).expect("write");
            printer.finish().expect("finish");
            String::from_utf8(out).expect("text")
        };
        let cut = format!("| {}… |", "x".repeat(CELL_CHARS_MAX - 1));
        assert!(table(&["a", "b", "c"], false).contains(&cut));
        for whole in [table(&["a", "b", "c"], true), table(&["a", "b"], false)] {
            assert!(
                whole.contains(&long) && whole.contains("\\u{1b}") && !whole.contains('\u{1b}'),
                "{whole}"
            );
        }
    }
}
