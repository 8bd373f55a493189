//! Tests that a measured build side is passed on as it is, and that no key occurs more often than measured.

use std::collections::HashMap;

use datafusion::arrow::array::{Int64Array, StringArray};
use datafusion::physical_expr::expressions::Column;
use futures::FutureExt;
use proptest::prelude::*;

use super::*;

type Key = (Option<i64>, Option<String>);

fn batches(keys: &[Key], batch_rows: usize) -> Vec<RecordBatch> {
    let batch = |keys: &[Key]| {
        let numbers: ArrayRef = Arc::new(keys.iter().map(|key| key.0).collect::<Int64Array>());
        let texts: ArrayRef = Arc::new(keys.iter().map(|key| key.1.as_deref()).collect::<StringArray>());
        RecordBatch::try_from_iter_with_nullable([("n", numbers, true), ("t", texts, true)]).unwrap()
    };
    keys.chunks(batch_rows).map(batch).collect()
}

fn meter(nulls: NullEquality, columns: Vec<usize>) -> Arc<Meter> {
    let keys: [PhysicalExprRef; 2] = [Arc::new(Column::new("n", 0)), Arc::new(Column::new("t", 1))];
    Meter::new(keys.to_vec(), nulls, columns, 1)
}

/// Reads a build side to its end.
fn read(meter: &Arc<Meter>, batches: &[RecordBatch]) -> Vec<RecordBatch> {
    let Some(first) = batches.first() else { return Vec::new() };
    let owned = batches.to_vec();
    let input = RecordBatchStreamAdapter::new(first.schema(), stream::iter(owned.into_iter().map(Ok)));
    let input = Box::pin(input);
    let measured = meter.measured(0, input);
    assert_eq!(meter.built(0), None, "nothing is known before the last row");
    measured.try_collect().now_or_never().unwrap().unwrap()
}

/// Returns how often the most frequent key occurs.
fn most_frequent(keys: &[Key], nulls: NullEquality) -> usize {
    let mut counts: HashMap<&Key, usize> = HashMap::new();
    for key in keys {
        if nulls == NullEquality::NullEqualsNull || (key.0.is_some() && key.1.is_some()) {
            *counts.entry(key).or_default() += 1;
        }
    }
    counts.into_values().max().unwrap_or(0)
}

fn key() -> impl Strategy<Value = Key> {
    (prop::option::weighted(0.9, 0..40_i64), prop::option::weighted(0.9, "[ab]?"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_key_occurs_more_often_than_measured(
        keys in prop::collection::vec(key(), 1..6_000),
        batch_rows in 1..3_000_usize,
        nulls in prop::sample::select(vec![NullEquality::NullEqualsNothing, NullEquality::NullEqualsNull]),
    ) {
        let (meter, batches) = (meter(nulls, vec![1]), batches(&keys, batch_rows));
        prop_assert_eq!(read(&meter, &batches), batches.clone());
        let built = meter.built(0).unwrap();
        prop_assert!(built.matches_max >= most_frequent(&keys, nulls), "{built:?}");
        prop_assert!(built.matches_max <= keys.len(), "{built:?}");
        let widest = keys.iter().map(|key| key.1.as_ref().map_or(0, String::len)).max().unwrap_or(0);
        prop_assert!(built.row_bytes_max >= widest && built.bytes >= widest, "{built:?}");
    }
}

#[test]
fn unique_keys_have_few_matches() {
    let keys: Vec<Key> = (0..100_000).map(|n| (Some(n), Some("a".to_owned()))).collect();
    let meter = meter(NullEquality::NullEqualsNothing, Vec::new());
    read(&meter, &batches(&keys, 8_192));
    let built = meter.built(0).unwrap();
    assert!(built.matches_max <= 50, "{built:?}");
    assert_eq!((built.row_bytes_max, built.bytes), (0, 0));
}

#[test]
fn keys_with_null_have_no_pairs_unless_they_are_equal() {
    let keys: Vec<Key> = vec![(None, Some("a".to_owned())); 5_000];
    for (nulls, least, most) in
        [(NullEquality::NullEqualsNothing, 0, 0), (NullEquality::NullEqualsNull, 5_000, 5_000)]
    {
        let meter = meter(nulls, Vec::new());
        read(&meter, &batches(&keys, 5_000));
        let built = meter.built(0).unwrap();
        assert!((least..=most).contains(&built.matches_max), "{nulls:?}: {built:?}");
    }
}

#[test]
fn a_build_side_that_is_read_again_is_measured_again() {
    let keys = |rows: usize| -> Vec<Key> { vec![(Some(1), None); rows] };
    let meter = Meter::new(Vec::new(), NullEquality::NullEqualsNothing, vec![0], 1);
    read(&meter, &batches(&keys(3_000), 100));
    let built = Built { matches_max: 3_000, row_bytes_max: 8, bytes: 24_000 };
    assert_eq!(meter.built(0), Some(built));
    // All partitions of the probe side share the only partition of the build side.
    assert_eq!(meter.built(5), Some(built));
    read(&meter, &batches(&keys(2), 100));
    assert_eq!(meter.built(0), Some(Built { matches_max: 2, row_bytes_max: 8, bytes: 16 }));
}

#[test]
fn partitions_are_measured_each_for_itself() {
    let meter = Meter::new(Vec::new(), NullEquality::NullEqualsNothing, Vec::new(), 2);
    read(&meter, &batches(&[(Some(1), None)], 10));
    assert_eq!(meter.built(0).map(|built| built.matches_max), Some(1));
    assert_eq!(meter.built(1), None);
}
