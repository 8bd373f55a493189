//! Decisions of a generator: drawn at random, recorded, and replayed with some removed to shrink a failure.
//!
//! The first alternative of a decision is the simplest; after the end of a given sequence it is always taken.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

pub(crate) struct Choices {
    source: Source,
    /// The decisions so far.
    pub(crate) taken: Vec<u32>,
}

enum Source {
    Random(Box<StdRng>),
    Given(Vec<u32>),
}

impl Choices {
    pub(crate) fn random(seed: u64) -> Self {
        Self { source: Source::Random(Box::new(StdRng::seed_from_u64(seed))), taken: Vec::new() }
    }

    pub(crate) fn given(decisions: Vec<u32>) -> Self {
        Self { source: Source::Given(decisions), taken: Vec::new() }
    }

    /// Returns a number below `count`, which is not 0.
    pub(crate) fn below(&mut self, count: usize) -> usize {
        let count = u32::try_from(count).unwrap().max(1);
        let decision = match &mut self.source {
            Source::Random(random) => random.random_range(0..count),
            Source::Given(decisions) => decisions.get(self.taken.len()).copied().unwrap_or(0) % count,
        };
        self.taken.push(decision);
        decision as usize
    }

    /// Returns true once in `count` times, on average.
    pub(crate) fn once_in(&mut self, count: usize) -> bool {
        self.below(count) == count - 1
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// Shortens and simplifies a sequence of decisions as long as `fails` reports that it still fails.
pub(crate) async fn shrink(
    mut decisions: Vec<u32>,
    tries_max: usize,
    mut fails: impl AsyncFnMut(&[u32]) -> bool,
) -> Vec<u32> {
    let mut tries = 0;
    let mut is_better = true;
    while is_better && tries < tries_max {
        is_better = false;
        for length in [16, 8, 4, 2, 1] {
            let mut at = decisions.len();
            while at > 0 && tries < tries_max {
                at = at.saturating_sub(length);
                let end = (at + length).min(decisions.len());
                let without = [&decisions[..at], &decisions[end..]].concat();
                let zeroed: Vec<u32> = decisions
                    .iter()
                    .enumerate()
                    .map(|(place, decision)| if (at..end).contains(&place) { 0 } else { *decision })
                    .collect();
                for candidate in [without, zeroed] {
                    if candidate == decisions || tries >= tries_max {
                        continue;
                    }
                    tries += 1;
                    if fails(&candidate).await {
                        decisions = candidate;
                        is_better = true;
                        break;
                    }
                }
            }
        }
    }
    decisions
}
