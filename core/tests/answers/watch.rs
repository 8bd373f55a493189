//! A deadline for each statement: one that does not end cannot be stopped from within, so its process ends, and says what it ran.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long a statement may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// The exit code of a process that a statement did not let go on.
pub(crate) const STUCK: i32 = 3;

#[derive(Clone, Default)]
pub(crate) struct Watch {
    running: Arc<Mutex<Option<(Instant, String)>>>,
    note: Arc<Mutex<String>>,
}

impl Watch {
    /// Watches over statements; `name` is what to say of the run, with its seed.
    pub(crate) fn start(name: String) -> Self {
        let watch = Self::default();
        let (running, note) = (Arc::clone(&watch.running), Arc::clone(&watch.note));
        std::thread::spawn(move || {
            loop {
                std::thread::park_timeout(Duration::from_millis(500));
                let stuck = running.lock().clone().filter(|(since, _)| since.elapsed() > DEADLINE);
                if let Some((_, what)) = stuck {
                    let note = note.lock().clone();
                    println!("{name}, {note}: this has not ended after {} s:\n{what}", DEADLINE.as_secs());
                    std::process::exit(STUCK);
                }
            }
        });
        watch
    }

    /// What the next statements are part of.
    pub(crate) fn note(&self, note: String) {
        *self.note.lock() = note;
    }

    /// Which way the statement at work is run.
    pub(crate) fn note_more(&self, way: &'static str) {
        if let Some((_, what)) = &mut *self.running.lock() {
            let statement = what.split("\n-- ").next().unwrap_or_default();
            *what = format!("{statement}\n-- {way}");
        }
    }

    /// A statement begins.
    pub(crate) fn begin(&self, what: impl Into<String>) {
        *self.running.lock() = Some((Instant::now(), what.into()));
    }

    /// It has ended.
    pub(crate) fn end(&self) {
        *self.running.lock() = None;
    }
}
