//! A deadline for each statement. A hanging one cannot be stopped, so the process prints it and exits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long a statement may take.
const DEADLINE: Duration = Duration::from_secs(60);
/// The exit code of a process with a hanging statement.
pub(crate) const STUCK: i32 = 3;

#[derive(Clone, Default)]
pub(crate) struct Watch {
    running: Arc<Mutex<Option<(Instant, String)>>>,
    note: Arc<Mutex<String>>,
}

impl Watch {
    /// Starts the watch. `name` identifies the run and its seed in the output.
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

    /// Notes what the next statements are part of.
    pub(crate) fn note(&self, note: String) {
        *self.note.lock() = note;
    }

    /// Notes the plan under which the current statement runs.
    pub(crate) fn note_more(&self, variant: &'static str) {
        if let Some((_, what)) = &mut *self.running.lock() {
            let statement = what.split("\n-- ").next().unwrap_or_default();
            *what = format!("{statement}\n-- {variant}");
        }
    }

    /// Notes that a statement begins.
    pub(crate) fn begin(&self, what: impl Into<String>) {
        *self.running.lock() = Some((Instant::now(), what.into()));
    }

    /// Notes that it has ended.
    pub(crate) fn end(&self) {
        *self.running.lock() = None;
    }
}
