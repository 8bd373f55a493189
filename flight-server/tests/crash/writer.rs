//! A writer's loop until the server is gone: it notes each statement before sending it and after its OK.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rand::Rng;
use rand::seq::IteratorRandom;

use crate::model::Writer;
use crate::server::Client;
use crate::tables::{ALL, State, Table};

/// Keys of one writer in one table; few, so each is written often.
const KEYS: i64 = 60;
/// Maximum number of rows of one INSERT.
const INSERT_ROWS_MAX: i64 = 40;
/// Bytes of padding in some rows, so that the log and the memtables move.
const PAD_BYTES: usize = 300;

impl Writer {
    /// Writes until a call fails; a call may fail only once `may_fail` is true.
    pub(crate) async fn run(mut self, mut client: Client, may_fail: Arc<AtomicBool>) -> Self {
        loop {
            let (sql, table, after, changes) = self.choose();
            self.attempted = Some((table, after));
            match client.run(&sql).await {
                Ok(count) => {
                    let id = self.id;
                    assert_eq!(count, changes, "writer {id}: {sql}");
                    if let Some((table, after)) = self.attempted.take() {
                        self.known.insert(table, after);
                    }
                    self.acknowledged += 1;
                }
                Err(error) => {
                    assert!(may_fail.load(Ordering::SeqCst), "a living server refused {sql}: {error}");
                    return self;
                }
            }
        }
    }

    /// Returns the next statement, its table, the table's state after it, and the number of changed rows.
    fn choose(&mut self) -> (String, Table, State, i64) {
        let table = ALL[self.random.random_range(0..ALL.len())];
        let now = self.known.entry(table).or_default().clone();
        let full = now.len() as i64 >= KEYS - INSERT_ROWS_MAX;
        match self.random.random_range(0..10) {
            0..4 if !full => self.insert(table, now, 1),
            4..6 if !full => {
                let rows = self.random.random_range(2..=INSERT_ROWS_MAX);
                self.insert(table, now, rows)
            }
            6 | 7 if !now.is_empty() => self.update_one(table, now),
            8 if !now.is_empty() => self.update_range(table, now),
            _ if !now.is_empty() => self.delete(table, now),
            _ => self.insert(table, now, 1),
        }
    }

    fn value(&mut self) -> i64 {
        self.next_value += 1;
        self.next_value
    }

    fn insert(&mut self, table: Table, mut state: State, rows: i64) -> (String, Table, State, i64) {
        let free = (0..KEYS).filter(|id| !state.contains_key(id));
        let ids = free.choose_multiple(&mut self.random, rows as usize);
        let mut sql = format!("INSERT INTO {} (writer, id, value, pad) VALUES ", table.name());
        for (at, id) in ids.iter().enumerate() {
            let value = self.value();
            let pad = if self.random.random_bool(0.2) { "x".repeat(PAD_BYTES) } else { String::new() };
            let comma = if at == 0 { "" } else { ", " };
            write!(sql, "{comma}({}, {id}, {value}, '{pad}')", self.id).expect("write to a string");
            state.insert(*id, value);
        }
        (sql, table, state, ids.len() as i64)
    }

    fn update_one(&mut self, table: Table, mut state: State) -> (String, Table, State, i64) {
        let id = state.keys().copied().choose(&mut self.random).expect("a row");
        let value = self.value();
        state.insert(id, value);
        let sql =
            format!("UPDATE {} SET value = {value} WHERE writer = {} AND id = {id}", table.name(), self.id);
        (sql, table, state, 1)
    }

    fn update_range(&mut self, table: Table, mut state: State) -> (String, Table, State, i64) {
        let from = self.random.random_range(0..KEYS);
        // Sums stay different from all other values of the writer, which grow in steps far below this.
        let step = 1_000_000_000;
        let mut changes = 0;
        for (_, value) in state.range_mut(from..) {
            *value += step;
            changes += 1;
        }
        let sql = format!(
            "UPDATE {} SET value = value + {step} WHERE writer = {} AND id >= {from}",
            table.name(),
            self.id
        );
        (sql, table, state, changes)
    }

    fn delete(&mut self, table: Table, mut state: State) -> (String, Table, State, i64) {
        let from = self.random.random_range(0..KEYS);
        let to = from + self.random.random_range(1..KEYS);
        let before = state.len();
        state.retain(|id, _| !(from..to).contains(id));
        let sql =
            format!("DELETE FROM {} WHERE writer = {} AND id >= {from} AND id < {to}", table.name(), self.id);
        let changes = (before - state.len()) as i64;
        (sql, table, state, changes)
    }
}
