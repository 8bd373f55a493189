//! Tests which filters become key ranges, and that these contain exactly the rows that the filters accept.

use std::collections::BTreeSet;
use std::ops::Not;

use arrow::array::{ArrayRef, AsArray, Int32Array, Int64Array, StringArray};
use arrow::record_batch::RecordBatch;
use datafusion::common::DFSchema;
use datafusion::prelude::{SessionContext, col, lit};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use std::sync::Arc;

use super::*;
use crate::ids::{ColumnId, TableId, UserId};
use crate::schema_registry::{ColumnDefinition, TableKind, TableOptions};
use TableProviderFilterPushDown::{Exact, Inexact, Unsupported};

const SCOPE: ScopeId = ScopeId(7);

fn definition(columns: &[(&str, ColumnType)], key: &[usize]) -> TableDefinition {
    let columns =
        columns.iter().map(|(name, ty)| ColumnDefinition::new(ColumnId(0), *name, *ty, true)).collect();
    let created = TableDefinition::create(
        TableId(1000),
        "app".into(),
        "notes".into(),
        TableKind::User,
        columns,
        key,
        TableOptions::defaults_for(TableKind::User),
        UserId::ROOT,
        1,
    );
    created.unwrap()
}

/// Returns a table with PRIMARY KEY (room TEXT, day INTEGER, id BIGINT).
fn messages() -> TableDefinition {
    let columns = [
        ("id", ColumnType::BigInt),
        ("room", ColumnType::Text),
        ("day", ColumnType::Integer),
        ("body", ColumnType::Text),
    ];
    definition(&columns, &[1, 2, 0])
}

/// Room, day and id of a message.
type Message = (&'static str, i32, i64);

/// Returns a few rows of `messages`, with their keys.
fn rows() -> Vec<(Vec<u8>, Message)> {
    let mut rows = Vec::new();
    for room in ["", "a", "ab", "abc", "b", "\u{fff}"] {
        for day in [i32::MIN, -1, 0, 1, i32::MAX] {
            for id in [i64::MIN, 0, 5, i64::MAX] {
                rows.push((room, day, id));
            }
        }
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.0))),
        Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.1))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.2))),
    ];
    let encoder = KeyEncoder::new(&messages().key_types()).unwrap();
    let keys = encoder.encode(TableId(1000), SCOPE, &columns).unwrap();
    keys.iter().map(|key| key.to_vec()).zip(rows).collect()
}

/// Checks the pushdown of `filters`, the number of ranges, and that they hold exactly the rows `accepts`
/// accepts.
fn check(
    filters: &[Expr],
    uses: &[TableProviderFilterPushDown],
    ranges: usize,
    accepts: impl Fn(&'static str, i32, i64) -> bool,
) {
    let borrowed: Vec<&Expr> = filters.iter().collect();
    let filter = key_filter(&messages(), SCOPE, &borrowed);
    assert_eq!(filter.uses, uses, "{filters:?}");
    assert_eq!(filter.ranges.len(), ranges, "{filters:?}: {:?}", filter.ranges);
    for (before, after) in filter.ranges.iter().zip(filter.ranges.iter().skip(1)) {
        assert!(before.end.as_ref().is_some_and(|end| *end <= after.start), "{filters:?} overlap");
    }
    for (key, (room, day, id)) in rows() {
        let is_read = filter.ranges.iter().any(|range| range.contains(&key));
        assert_eq!(is_read, accepts(room, day, id), "{filters:?}: {room:?} {day} {id}");
    }
}

#[test]
fn equality_comes_first_then_one_range() {
    let a = || col("room").eq(lit("a"));
    check(&[], &[], 1, |_, _, _| true);
    check(&[a()], &[Exact], 1, |room, _, _| room == "a");
    check(&[lit("a").eq(col("room"))], &[Exact], 1, |room, _, _| room == "a");
    check(&[a(), col("day").gt(lit(0))], &[Exact, Exact], 1, |room, day, _| room == "a" && day > 0);
    check(&[lit(0).gt_eq(col("day")), a()], &[Exact, Exact], 1, |room, day, _| room == "a" && day <= 0);
    check(&[a(), col("day").lt(lit(i32::MIN))], &[Exact, Exact], 1, |_, _, _| false);
    check(&[a(), col("day").gt(lit(i32::MAX))], &[Exact, Exact], 1, |_, _, _| false);
    check(
        &[a(), col("day").gt(lit(-1)), col("day").lt_eq(lit(1))],
        &[const { Exact }; 3],
        1,
        |room, day, _| room == "a" && (0..=1).contains(&day),
    );
    check(&[a(), col("day").between(lit(-1), lit(1))], &[const { Exact }; 2], 1, |room, day, _| {
        room == "a" && (-1..=1).contains(&day)
    });
    check(&[a(), col("day").gt(lit(1)), col("day").lt(lit(0))], &[const { Exact }; 3], 0, |_, _, _| false);
    check(
        &[a(), col("day").eq(lit(0)), col("id").eq(lit(5_i64))],
        &[const { Exact }; 3],
        1,
        |room, day, id| (room, day, id) == ("a", 0, 5),
    );
    check(&[col("room").gt(lit("ab"))], &[Exact], 1, |room, _, _| room > "ab");
    check(
        &[col("room").gt_eq(lit("ab")), col("room").lt(lit("b"))],
        &[const { Exact }; 2],
        1,
        |room, _, _| ("ab".."b").contains(&room),
    );
}

#[test]
fn values_multiply() {
    let rooms =
        || col("room").in_list(vec![lit("b"), lit("a"), lit("a"), lit(ScalarValue::Utf8(None))], false);
    check(&[rooms()], &[Exact], 2, |room, _, _| room == "a" || room == "b");
    check(
        &[rooms(), col("day").in_list(vec![lit(0), lit(1)], false)],
        &[const { Exact }; 2],
        4,
        |room, day, _| (room == "a" || room == "b") && (day == 0 || day == 1),
    );
    check(&[rooms(), col("day").lt(lit(0))], &[const { Exact }; 2], 2, |room, day, _| {
        (room == "a" || room == "b") && day < 0
    });
    let either = col("room").eq(lit("a")).or(col("room").eq(lit("abc")));
    check(&[either], &[Exact], 2, |room, _, _| room == "a" || room == "abc");
    check(&[col("room").in_list(vec![lit(ScalarValue::Utf8(None))], false)], &[Exact], 0, |_, _, _| false);
}

#[test]
fn beginnings_of_text_are_ranges() {
    let starts_with = |room: &'static str, _: i32, _: i64| room.starts_with("ab");
    check(&[col("room").like(lit("ab%"))], &[Exact], 1, starts_with);
    check(&[col("room").like(lit("ab%c"))], &[Inexact], 1, starts_with);
    check(&[col("room").like(lit("ab_"))], &[Inexact], 1, starts_with);
    for filter in
        [col("room").like(lit("%ab")), col("room").like(lit("ab")), col("room").not_like(lit("ab%"))]
    {
        check(&[filter], &[Unsupported], 1, |_, _, _| true);
    }
    check(&[col("room").ilike(lit("ab%"))], &[Unsupported], 1, |_, _, _| true);
}

#[test]
fn other_filters_stay_filters() {
    let all = |_: &'static str, _: i32, _: i64| true;
    check(&[col("body").eq(lit("a"))], &[Unsupported], 1, all);
    check(&[col("day").eq(lit(0))], &[Unsupported], 1, all);
    check(&[col("room").not_eq(lit("a"))], &[Unsupported], 1, all);
    check(&[col("room").eq(lit("a")).not()], &[Unsupported], 1, all);
    check(&[col("room").in_list(vec![lit("a")], true)], &[Unsupported], 1, all);
    check(&[col("room").eq(lit("a")).or(col("day").eq(lit(0)))], &[Unsupported], 1, all);
    // Nothing equals NULL.
    check(&[col("room").eq(lit(ScalarValue::Utf8(None)))], &[Exact], 0, |_, _, _| false);
    check(&[col("room").eq(col("body"))], &[Unsupported], 1, all);
    // The literal has another type, and a comparison in that type is not a comparison of keys.
    check(&[col("room").eq(lit("a")), col("day").eq(lit(0.5))], &[Exact, Unsupported], 1, |room, _, _| {
        room == "a"
    });
    // No key is that long, so no range can begin or end there.
    check(&[col("room").lt(lit("x".repeat(10_000)))], &[Unsupported], 1, all);
    check(&[col("room").like(lit("x".repeat(10_000) + "%"))], &[Unsupported], 1, all);
}

#[test]
fn constraints_on_one_column_are_combined() {
    let two = &[const { Exact }; 2];
    check(&[col("room").eq(lit("a")), col("room").eq(lit("b"))], two, 0, |_, _, _| false);
    check(&[col("room").gt(lit("a")), col("room").gt(lit("ab"))], two, 1, |room, _, _| room > "ab");
    check(&[col("room").gt_eq(lit("ab")), col("room").gt(lit("ab"))], two, 1, |room, _, _| room > "ab");
    check(&[col("room").lt(lit("b")), col("room").lt_eq(lit("ab"))], two, 1, |room, _, _| room <= "ab");
    check(&[col("room").like(lit("a%")), col("room").like(lit("ab%"))], two, 1, |room, _, _| {
        room.starts_with("ab")
    });
    check(&[col("room").gt_eq(lit("ab")), col("room").like(lit("a%"))], two, 1, |room, _, _| {
        room >= "ab" && room.starts_with('a')
    });
    check(&[col("room").gt_eq(lit("ab")), col("room").like(lit("abc%"))], two, 1, |room, _, _| {
        room.starts_with("abc")
    });
    let rooms = || col("room").in_list(vec![lit("a"), lit("ab"), lit("abc"), lit("b")], false);
    check(&[rooms(), col("room").gt(lit("ab"))], two, 2, |room, _, _| room == "abc" || room == "b");
    check(&[col("room").between(lit("ab"), lit("b")), rooms()], two, 3, |room, _, _| {
        ["ab", "abc", "b"].contains(&room)
    });
    check(
        &[rooms(), col("room").like(lit("%c")), col("room").like(lit("ab%"))],
        &[Exact, Unsupported, Exact],
        2,
        |room, _, _| room == "ab" || room == "abc",
    );
    // The upper bound leaves one value of `room`.
    check(
        &[
            rooms(),
            col("day").gt(lit(-1)),
            col("room").lt(lit("ab")),
            col("day").in_list(vec![lit(-1), lit(1)], false),
        ],
        &[const { Exact }; 4],
        1,
        |room, day, _| room == "a" && day == 1,
    );
    let both = col("room").gt(lit("a")).and(col("room").lt_eq(lit("abc")));
    check(&[both], &[Exact], 1, |room, _, _| room == "ab" || room == "abc");
    // No key is that long.
    check(&[col("room").eq(lit("x".repeat(10_000)))], &[Exact], 0, |_, _, _| false);
    let long = col("room").in_list(vec![lit("x".repeat(10_000)), lit("b")], false);
    check(&[long], &[Exact], 1, |room, _, _| room == "b");
}

/// Generates a filter on one column, mostly a key column.
fn arbitrary_filter() -> impl Strategy<Value = Expr> {
    let text = || select(vec!["", "a", "ab", "abc", "b", "c"]);
    let bound = select(vec![Expr::eq, Expr::gt, Expr::gt_eq, Expr::lt, Expr::lt_eq]);
    let comparison = prop_oneof![
        3 => text().prop_map(|text| (col("room"), lit(text))),
        3 => select(vec![i32::MIN, -1, 0, 1]).prop_map(|day| (col("day"), lit(day))),
        2 => select(vec![i64::MIN, 0, 5]).prop_map(|id| (col("id"), lit(id))),
    ];
    let comparison = (comparison, bound).prop_map(|((column, value), bound)| bound(column, value));
    let list =
        vec(text(), 1..4).prop_map(|rooms| col("room").in_list(rooms.into_iter().map(lit).collect(), false));
    let days = vec(select(vec![i32::MIN, -1, 0, 1, 7]), 1..5)
        .prop_map(|days| col("day").in_list(days.into_iter().map(lit).collect(), false));
    let between = (text(), text()).prop_map(|(low, high)| col("room").between(lit(low), lit(high)));
    let pattern =
        select(vec!["a%", "ab%", "a%c", "b%", "%"]).prop_map(|pattern| col("room").like(lit(pattern)));
    let one = prop_oneof![6 => comparison, 2 => list, 2 => days, 1 => between, 2 => pattern].boxed();
    prop_oneof![
        6 => one.clone(),
        1 => (one.clone(), one.clone()).prop_map(|(left, right)| left.or(right)),
        1 => (one.clone(), one).prop_map(|(left, right)| left.and(right)),
    ]
}

/// Returns for each row of `messages` whether all `filters` accept it, evaluated as expressions.
fn accepted(context: &SessionContext, filters: &[&Expr]) -> Vec<bool> {
    let messages: Vec<Message> = rows().into_iter().map(|(_, message)| message).collect();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("room", Arc::new(StringArray::from_iter_values(messages.iter().map(|row| row.0)))),
        ("day", Arc::new(Int32Array::from_iter_values(messages.iter().map(|row| row.1)))),
        ("id", Arc::new(Int64Array::from_iter_values(messages.iter().map(|row| row.2)))),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let schema = DFSchema::try_from(batch.schema()).unwrap();
    let mut accepted = vec![true; batch.num_rows()];
    for filter in filters {
        let filter = context.create_physical_expr(Expr::clone(filter), &schema).unwrap();
        let mask = filter.evaluate(&batch).unwrap().into_array(batch.num_rows()).unwrap();
        for (accepted, matches) in accepted.iter_mut().zip(mask.as_boolean()) {
            *accepted &= matches == Some(true);
        }
    }
    accepted
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]
    /// The optimizer asks several times about some of the filters. The scan gets all that were ever pushed
    /// down, and filters that were never exact are evaluated after it.
    #[test]
    fn whatever_was_asked_the_rows_are_those_of_the_filters(
        filters in vec(arbitrary_filter(), 1..6),
        passes in vec(vec(any::<bool>(), 6), 1..4),
        backwards in any::<bool>(),
    ) {
        let context = SessionContext::new();
        let mut best = vec![Unsupported; filters.len()];
        for pass in passes {
            let asked: Vec<usize> = (0..filters.len()).filter(|filter| pass[*filter]).collect();
            let borrowed: Vec<&Expr> = asked.iter().map(|filter| &filters[*filter]).collect();
            let uses = key_filter(&messages(), SCOPE, &borrowed).uses;
            for (filter, used) in asked.into_iter().zip(uses) {
                if used == Exact || best[filter] == Unsupported {
                    best[filter] = used;
                }
            }
        }
        let of = |wanted: &dyn Fn(&TableProviderFilterPushDown) -> bool| -> Vec<&Expr> {
            filters.iter().zip(&best).filter(|(_, used)| wanted(used)).map(|(filter, _)| filter).collect()
        };
        let mut pushed = of(&|used| *used != Unsupported);
        if backwards {
            pushed.reverse();
        }
        let ranges = key_filter(&messages(), SCOPE, &pushed).ranges;
        for (before, after) in ranges.iter().zip(ranges.iter().skip(1)) {
            prop_assert!(before.end.as_ref().is_some_and(|end| *end <= after.start));
        }
        let evaluated = accepted(&context, &of(&|used| *used != Exact));
        let wanted = accepted(&context, &filters.iter().collect::<Vec<_>>());
        for (((key, message), evaluated), wanted) in rows().into_iter().zip(evaluated).zip(wanted) {
            let is_read = ranges.iter().any(|range| range.contains(&key));
            prop_assert_eq!(is_read && evaluated, wanted, "{:?}: {:?} {:?}", message, filters, best);
        }
    }
}

#[test]
fn used_filters_alone_give_the_same_ranges() {
    let filters = [
        col("room").eq(lit("a")),
        col("body").eq(lit("x")),
        col("day").gt(lit(0)),
        col("day").gt(lit(1)),
        col("id").eq(lit(5_i64)),
    ];
    let all: Vec<&Expr> = filters.iter().collect();
    let first = key_filter(&messages(), SCOPE, &all);
    let used: Vec<&Expr> = all
        .iter()
        .zip(&first.uses)
        .filter(|(_, used)| **used != Unsupported)
        .map(|(filter, _)| *filter)
        .collect();
    let second = key_filter(&messages(), SCOPE, &used);
    assert_eq!(first.ranges, second.ranges);
    assert!(second.uses.iter().all(|used| *used != Unsupported));
}

#[test]
fn floats_are_looked_up_but_evaluated_again() {
    let table = definition(&[("x", ColumnType::Double)], &[0]);
    let uses = |filter: Expr| key_filter(&table, SCOPE, &[&filter]).uses;
    assert_eq!(uses(col("x").eq(lit(1.5))), [Inexact]);
    assert_eq!(uses(col("x").eq(lit(f64::NAN))), [Unsupported]);
    assert_eq!(uses(col("x").gt(lit(1.5))), [Unsupported]);
}

#[test]
fn booleans_stand_for_themselves() {
    let table = definition(&[("done", ColumnType::Boolean), ("id", ColumnType::BigInt)], &[0, 1]);
    let filter = key_filter(&table, SCOPE, &[&col("done")]);
    assert_eq!(filter.uses, [Exact]);
    let not = key_filter(&table, SCOPE, &[&col("done").not()]);
    assert_eq!(not.uses, [Exact]);
    assert_ne!(filter.ranges, not.ranges);
    assert_eq!(filter.pinned, 1);
}

#[test]
fn a_table_without_key_is_read_whole() {
    let table = definition(&[("a", ColumnType::Text)], &[]);
    let filter = key_filter(&table, SCOPE, &[&col("a").eq(lit("x"))]);
    assert_eq!(filter.uses, [Unsupported]);
    assert_eq!(filter.ranges, [KeyRange::prefix(scope_prefix(TableId(1000), SCOPE))]);
}

#[test]
fn no_range_leaves_the_scope() {
    let whole = KeyRange::prefix(scope_prefix(TableId(1000), SCOPE));
    let filters = [col("room").gt(lit("")), col("room").lt(lit("zz")), col("room").like(lit("\u{10ffff}%"))];
    let distinct: BTreeSet<_> = filters
        .iter()
        .flat_map(|filter| key_filter(&messages(), SCOPE, &[filter]).ranges)
        .map(|range| (range.start, range.end))
        .collect();
    for (start, end) in distinct {
        assert!(start >= whole.start && end.is_some() && end <= whole.end);
    }
}
