//! Who may evaluate now: some users at a time, and each with some of its queries, in the order they asked.
//!
//! Invariant: a user with many queries delays another user by a few evaluations at most.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Result};
use crate::ids::UserId;

/// The evaluations that may run at the same time.
pub(super) struct Turns {
    all: Arc<Semaphore>,
    per_user_max: usize,
    /// The users who evaluate or wait.
    users: Mutex<HashMap<UserId, Weak<Semaphore>>>,
}

/// The right to evaluate, until it is dropped.
pub(super) struct Turn {
    _of_all: OwnedSemaphorePermit,
    _of_user: OwnedSemaphorePermit,
}

impl Turns {
    /// Allows `max` evaluations at the same time, and half of them to one user.
    pub(super) fn new(max: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(max.max(1))),
            per_user_max: (max / 2).max(1),
            users: Mutex::default(),
        }
    }

    /// Waits for the turn of a user.
    pub(super) async fn take(&self, user: UserId) -> Result<Turn> {
        let closed = |_| Error::shutting_down();
        // First among the user's own evaluations, so that only a few of them wait beside those of others.
        let of_user = self.of(user).acquire_owned().await.map_err(closed)?;
        let of_all = Arc::clone(&self.all).acquire_owned().await.map_err(closed)?;
        Ok(Turn { _of_all: of_all, _of_user: of_user })
    }

    fn of(&self, user: UserId) -> Arc<Semaphore> {
        let mut users = self.users.lock();
        if let Some(known) = users.get(&user).and_then(Weak::upgrade) {
            return known;
        }
        users.retain(|_, known| known.strong_count() > 0);
        let fresh = Arc::new(Semaphore::new(self.per_user_max));
        users.insert(user, Arc::downgrade(&fresh));
        fresh
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_user_with_many_evaluations_leaves_room_for_others() {
        let turns = Turns::new(4);
        let (ann, bob) = (UserId(1), UserId(2));
        let held = [turns.take(ann).await.unwrap(), turns.take(ann).await.unwrap()];
        let mut third = Box::pin(turns.take(ann));
        assert!(futures::poll!(&mut third).is_pending());
        let of_bob = [turns.take(bob).await.unwrap(), turns.take(bob).await.unwrap()];
        drop(of_bob);
        drop(held);
        drop(third.now_or_never().expect("its turn has come").unwrap());
        drop(turns.take(bob).await.unwrap());
        assert_eq!(turns.users.lock().len(), 1, "who is done is forgotten");
    }
}
