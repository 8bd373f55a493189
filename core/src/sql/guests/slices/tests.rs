//! Tests that slices are the batch again, and that none of them becomes too much.

use datafusion::arrow::array::{Int64Array, ListArray, StringArray};
use datafusion::arrow::buffer::OffsetBuffer;
use datafusion::arrow::compute::concat_batches;
use datafusion::arrow::datatypes::{Field, Int64Type, SchemaRef};
use datafusion::common::NullEquality;
use futures::FutureExt;
use proptest::prelude::*;

use super::*;

const BATCH_ROWS: usize = 8_192;

fn texts(lengths: &[usize]) -> RecordBatch {
    let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values((0..).take(lengths.len())));
    let texts: ArrayRef =
        Arc::new(StringArray::from_iter_values(lengths.iter().map(|length| "x".repeat(*length))));
    RecordBatch::try_from_iter([("n", numbers), ("t", texts)]).unwrap()
}

fn lists(lengths: &[usize]) -> RecordBatch {
    let lists = lengths.iter().map(|length| (*length > 0).then(|| vec![Some(7); *length]));
    let lists: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(lists));
    let texts: ArrayRef = Arc::new(StringArray::from_iter_values(lengths.iter().map(|_| "x".repeat(1_000))));
    RecordBatch::try_from_iter_with_nullable([("l", lists, true), ("t", texts, true)]).unwrap()
}

fn list_cut() -> ListCut {
    ListCut { lists: vec![ListUnnest { index_in_input_schema: 0, depth: 1 }], repeated: vec![1] }
}

fn probe_cut(pairing: Pairing, built: Built, columns: Vec<usize>) -> ProbeCut {
    let meter = Meter::new(Vec::new(), NullEquality::NullEqualsNothing, Vec::new(), 1);
    meter.know(0, Some(built));
    ProbeCut { pairing, meter, columns }
}

fn sliced(cut: Cut, schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Vec<RecordBatch>> {
    let owned = batches.to_vec();
    let input = RecordBatchStreamAdapter::new(Arc::clone(schema), stream::iter(owned.into_iter().map(Ok)));
    Arc::new(cut).slices(0, BATCH_ROWS, Box::pin(input)).try_collect().now_or_never().unwrap()
}

/// Returns the rows of a slice of a batch of narrow rows.
fn rows(pairing: Pairing, built: Built) -> usize {
    probe_cut(pairing, built, Vec::new()).rows(built, BATCH_ROWS, &texts(&[1; 10])).unwrap()
}

fn matches(matches_max: usize) -> Built {
    Built { matches_max, ..Built::default() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_slices_of_a_probe_side_are_its_batches(
        lengths in prop::collection::vec(prop::collection::vec(0..20_usize, 0..50), 1..5),
        slice_rows in 1..60_usize,
    ) {
        let batches: Vec<_> = lengths.iter().map(|lengths| texts(lengths)).collect();
        let schema = texts(&[]).schema();
        let cut = probe_cut(Pairing::Hash, matches(HASH_PAIRS_MAX / slice_rows), vec![1]);
        let slices = sliced(Cut::Probe(cut), &schema, &batches).unwrap();
        prop_assert_eq!(
            concat_batches(&schema, &slices).unwrap(),
            concat_batches(&schema, &batches).unwrap()
        );
        let expected: usize = lengths.iter().map(|rows| rows.len().div_ceil(slice_rows).max(1)).sum();
        // The division above may round down.
        prop_assert!(slices.len() <= expected && slices.len() >= lengths.len());
        prop_assert!(slices.iter().all(|slice| slice.num_rows() <= HASH_PAIRS_MAX / (HASH_PAIRS_MAX / slice_rows)));
    }

    #[test]
    fn the_slices_of_lists_are_their_batches(
        lengths in prop::collection::vec(prop_oneof![4 => 0..10_usize, 1 => 10_000..60_000_usize], 0..40),
    ) {
        let batch = lists(&lengths);
        let cut = list_cut();
        let slices = sliced(Cut::Lists(list_cut()), &batch.schema(), std::slice::from_ref(&batch)).unwrap();
        for slice in &slices {
            prop_assert!(cut.bytes(slice) <= SLICE_BYTES_MAX + (2 << 20) || slice.num_rows() == 1);
        }
        prop_assert_eq!(concat_batches(&batch.schema(), &slices).unwrap(), batch);
    }
}

#[test]
fn a_slice_has_at_most_so_many_pairs() {
    assert_eq!(rows(Pairing::Hash, matches(0)), HASH_PAIRS_MAX);
    assert_eq!(rows(Pairing::Hash, matches(2_048)), 8_192);
    assert_eq!(rows(Pairing::Hash, matches(1 << 20)), 16);
    assert_eq!(rows(Pairing::Hash, matches(usize::MAX)), 0);
    assert_eq!(rows(Pairing::Nested, matches(8_192)), 8_192);
    assert_eq!(rows(Pairing::Cross, matches(usize::MAX)), SLICE_BYTES_MAX);
}

#[test]
fn a_slice_becomes_at_most_so_many_bytes() {
    let wide = Built { matches_max: 10, row_bytes_max: 1 << 20, bytes: 10 << 20 };
    assert_eq!(rows(Pairing::Cross, wide), 64);
    assert_eq!(rows(Pairing::Hash, wide), 6);
    // Few bytes in all are no reason for a cut.
    assert_eq!(rows(Pairing::Hash, Built { row_bytes_max: 100, ..wide }), HASH_PAIRS_MAX / 10);
    let long = texts(&[1 << 20, 1]);
    let of = |columns| probe_cut(Pairing::Hash, wide, columns).rows(wide, BATCH_ROWS, &long).unwrap();
    assert_eq!((of(vec![]), of(vec![1])), (6, 3));
}

#[test]
fn one_row_that_becomes_too_much_is_refused() {
    let check = |found: Result<usize>| {
        let error = Error::from(found.unwrap_err());
        assert_eq!(error.sqlstate(), SqlState::PROGRAM_LIMIT_EXCEEDED);
        assert!(error.message().contains("512 MiB"), "{error}");
    };
    let huge = Built { matches_max: 1, row_bytes_max: 600 << 20, bytes: 600 << 20 };
    check(probe_cut(Pairing::Cross, huge, Vec::new()).rows(huge, BATCH_ROWS, &texts(&[1])));

    let many = Built { matches_max: 2_000, row_bytes_max: 8, bytes: 16_000 };
    let hash = probe_cut(Pairing::Hash, many, vec![1]);
    assert_eq!(hash.rows(many, BATCH_ROWS, &texts(&[200 << 10])).unwrap(), 0);
    check(hash.rows(many, BATCH_ROWS, &texts(&[300 << 10])));
    // One long value among the matches does not make them all long.
    let one_long = Built { matches_max: 2_000, row_bytes_max: 1 << 20, bytes: 2 << 20 };
    assert_eq!(hash.rows(one_long, BATCH_ROWS, &texts(&[8])).unwrap(), 0);

    check(list_cut().rows(&lists(&[600 << 10])));
    assert_eq!(list_cut().rows(&lists(&[300 << 10, 1])).unwrap(), 1);
    let refused = sliced(Cut::Lists(list_cut()), &lists(&[]).schema(), &[lists(&[1]), lists(&[600 << 10])]);
    check(refused.map(|slices| slices.len()));
}

#[test]
fn lists_within_lists_count_at_every_level() {
    let inner =
        ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(1); 5]), None, Some(vec![])]);
    let inner: ArrayRef = Arc::new(inner);
    assert_eq!(elements(&inner, 1), 3 + 5);
    assert_eq!(elements(&inner.slice(0, 1), 1), 1 + 5);
    assert_eq!(elements(&inner.slice(1, 2), 1), 2);
    let field = Arc::new(Field::new_list_field(inner.data_type().clone(), true));
    let offsets = OffsetBuffer::from_lengths([2, 1]);
    let outer: ArrayRef = Arc::new(ListArray::new(field, offsets, inner, None));
    assert_eq!(elements(&outer, 1), 2 + 3);
    assert_eq!(elements(&outer, 2), 2 + 3 + 5);
    assert_eq!(elements(&outer.slice(1, 1), 2), 1 + 1);
}

#[test]
fn without_a_measure_nothing_is_cut() {
    let meter = Meter::new(Vec::new(), NullEquality::NullEqualsNothing, Vec::new(), 1);
    let cut = Cut::Probe(ProbeCut { pairing: Pairing::Nested, meter, columns: Vec::new() });
    let batch = texts(&[1; 100]);
    assert_eq!(sliced(cut, &batch.schema(), std::slice::from_ref(&batch)).unwrap(), [batch]);
}
