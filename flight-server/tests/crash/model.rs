//! A writer's knowledge, and the verdict on the state after a crash.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::tables::{State, Table};

/// One writer: its random choices and its knowledge of its rows.
pub(crate) struct Writer {
    pub(crate) id: u64,
    /// Acknowledged statements over all cycles.
    pub(crate) acknowledged: u64,
    pub(crate) random: StdRng,
    /// The acknowledged state of each table.
    pub(crate) known: BTreeMap<Table, State>,
    /// The table state that a statement without an answer would produce.
    pub(crate) attempted: Option<(Table, State)>,
    /// The next value; values are never reused, so an old row cannot pass for a new one.
    pub(crate) next_value: i64,
}

/// Observations over all cycles.
#[derive(Default)]
pub(crate) struct Tally {
    /// Statements without an answer that were applied.
    applied: u64,
    /// Statements without an answer that left no trace.
    vanished: u64,
    pub(crate) ready_max: Duration,
    /// The kinds of the jobs that a crash interrupted, by job id.
    interrupted: HashMap<String, String>,
}

impl Tally {
    pub(crate) fn interrupted(&mut self, jobs: HashMap<String, String>) {
        self.interrupted.extend(jobs);
    }

    /// Counts the jobs of a kind that a crash interrupted.
    pub(crate) fn interrupted_of(&self, kind: &str) -> usize {
        self.interrupted.values().filter(|interrupted| *interrupted == kind).count()
    }

    pub(crate) fn ready(&mut self, ready_in: Duration) {
        self.ready_max = self.ready_max.max(ready_in);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { applied, vanished, ready_max, .. } = self;
        write!(
            f,
            "{} in flight at a crash ({applied} applied whole, {vanished} not at all), 0 lost, 0 torn, 0 ghosts, \
             interrupted: {} flushes, {} compactions, {} trims; slowest start {} ms",
            applied + vanished,
            self.interrupted_of("flush"),
            self.interrupted_of("compact"),
            self.interrupted_of("log_trim"),
            ready_max.as_millis()
        )
    }
}

impl Writer {
    pub(crate) fn new(id: u64, seed: u64) -> Self {
        Self {
            id,
            acknowledged: 0,
            random: StdRng::seed_from_u64(seed ^ (id + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)),
            known: BTreeMap::new(),
            attempted: None,
            next_value: 1,
        }
    }

    /// Accepts `found` as the writer's state of `table` from now on, or returns why it is wrong.
    pub(crate) fn settle(&mut self, table: Table, found: State, tally: &mut Tally) -> Result<(), String> {
        let known = self.known.entry(table).or_default();
        let attempted = self.attempted.take_if(|(attempted, _)| *attempted == table);
        match attempted {
            Some((_, after)) if found == after => {
                tally.applied += 1;
                *known = after;
                Ok(())
            }
            Some(_) if found == *known => {
                tally.vanished += 1;
                Ok(())
            }
            None if found == *known => Ok(()),
            attempted => Err(describe(known, attempted.as_ref().map(|(_, after)| after), &found)),
        }
    }
}

/// Names the first wrong rows.
fn describe(known: &State, attempted: Option<&State>, found: &State) -> String {
    let allowed = |id: &i64, value: Option<&i64>| {
        value == known.get(id) || attempted.is_some_and(|after| value == after.get(id))
    };
    let wrong: Vec<String> = known
        .keys()
        .chain(found.keys())
        .filter(|id| !allowed(id, found.get(id)))
        .take(5)
        .map(|id| format!("key {id}: acknowledged {:?}, found {:?}", known.get(id), found.get(id)))
        .collect();
    if wrong.is_empty() {
        return format!("a torn statement: acknowledged {known:?}, attempted {attempted:?}, found {found:?}");
    }
    format!("lost writes or ghosts: {}", wrong.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(rows: &[(i64, i64)]) -> State {
        rows.iter().copied().collect()
    }

    /// A model that accepts everything proves nothing.
    #[test]
    fn the_model_tells_lost_torn_and_ghost_from_right() {
        let settle = |found: &[(i64, i64)]| {
            let mut writer = Writer::new(0, 0);
            writer.known.insert(Table::Shared, state(&[(1, 1), (2, 2)]));
            writer.attempted = Some((Table::Shared, state(&[(1, 3), (2, 4), (5, 5)])));
            writer.settle(Table::Shared, state(found), &mut Tally::default())
        };
        assert!(settle(&[(1, 1), (2, 2)]).is_ok());
        assert!(settle(&[(1, 3), (2, 4), (5, 5)]).is_ok());
        assert!(settle(&[(1, 3), (2, 2)]).unwrap_err().starts_with("a torn statement"));
        assert!(settle(&[(1, 1)]).unwrap_err().contains("key 2: acknowledged Some(2), found None"));
        assert!(settle(&[(1, 1), (2, 2), (9, 9)]).unwrap_err().contains("key 9"));
    }
}
