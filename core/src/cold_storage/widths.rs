//! How many bytes the values of a segment's columns take once they are decoded.
//!
//! Compression and dictionaries hide it: a text that repeats takes almost nothing in the object. The page
//! index has the bytes before both.
//!
//! Invariant: values of one size have exactly this size.

use arrow::datatypes::Schema;
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};

use crate::types::fixed_bytes;

/// Returns the bytes of a value of each column: the mean of the page where they are longest.
pub(super) fn value_bytes(metadata: &ParquetMetaData, schema: &Schema) -> Vec<usize> {
    let fields = schema.fields().iter();
    let fixed: Vec<Option<usize>> = fields.map(|field| fixed_bytes(field.data_type())).collect();
    let mut bytes: Vec<usize> = fixed.iter().map(|bytes| bytes.unwrap_or_default()).collect();
    let leaves = metadata.file_metadata().schema_descr();
    for leaf in 0..leaves.num_columns() {
        let column = leaves.get_column_root_idx(leaf);
        if let (Some(None), Some(bytes)) = (fixed.get(column), bytes.get_mut(column)) {
            let groups = metadata.row_groups().iter().enumerate();
            let means = groups.map(|(number, group)| longest_mean(metadata, number, group, leaf));
            *bytes = bytes.saturating_add(means.max().unwrap_or_default());
        }
    }
    bytes
}

/// Returns the mean of the page with the longest values in a row group.
fn longest_mean(metadata: &ParquetMetaData, number: usize, group: &RowGroupMetaData, leaf: usize) -> usize {
    let index = metadata.offset_index().and_then(|groups| groups.get(number)?.get(leaf));
    let pages =
        index.and_then(|index| Some((index.page_locations(), index.unencoded_byte_array_data_bytes()?)));
    let Some((pages, bytes)) = pages else {
        let column = group.columns().get(leaf);
        return column.map_or(0, |column| mean(column.uncompressed_size(), group.num_rows()));
    };
    let begins = pages.iter().map(|page| page.first_row_index);
    let ends = begins.clone().skip(1).chain([group.num_rows()]);
    let means = begins.zip(ends).zip(bytes).map(|((begin, end), bytes)| mean(*bytes, end - begin));
    means.max().unwrap_or_default()
}

fn mean(bytes: i64, rows: i64) -> usize {
    usize::try_from(bytes / rows.max(1)).unwrap_or_default()
}
