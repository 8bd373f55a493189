//! Whose password is checked next: the sites of the clients (IPv4 addresses, /48 of IPv6) take turns.
//!
//! A flood of logins from one site waits for itself. Logins of other sites are checked in the next round, and
//! when the line is full, the newest login of the site with the most makes room for them.
//!
//! Invariants: nobody waits while another password may be checked; a login that is given up leaves the line
//! at once and never keeps a turn.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// The line of waiting logins.
pub(super) struct Turns {
    running_max: usize,
    waiting_max: usize,
    line: Mutex<Line>,
}

#[derive(Default)]
struct Line {
    running: usize,
    waiting: usize,
    last_ticket: u64,
    /// Sites with waiting logins, in the order of their next turns.
    ring: VecDeque<IpAddr>,
    /// The waiting logins of each site of the ring, by ticket and so by age.
    sites: HashMap<IpAddr, BTreeMap<u64, oneshot::Sender<()>>>,
}

/// The right to check a password, until it is dropped.
pub(super) struct Turn<'a>(&'a Turns);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.pass_on();
    }
}

impl Turns {
    /// Allows `running_max` checks at the same time and `waiting_max` waiting logins.
    pub(super) fn new(running_max: usize, waiting_max: usize) -> Self {
        Self { running_max, waiting_max, line: Mutex::default() }
    }

    /// Waits for a turn. Returns `None` if the line is full, or when it was and another site needed room.
    pub(super) async fn take(&self, site: IpAddr) -> Option<Turn<'_>> {
        let (ticket, called) = {
            let mut line = self.line.lock();
            if line.running < self.running_max {
                line.running += 1;
                return Some(Turn(self));
            }
            if line.waiting >= self.waiting_max && !line.make_room_for(site) {
                return None;
            }
            line.push(site)
        };
        let mut waiting = Waiting { turns: self, site, ticket, called, is_over: false };
        let is_called = (&mut waiting.called).await.is_ok();
        waiting.is_over = true;
        is_called.then(|| Turn(self))
    }

    /// Gives a turn that is over to the next login.
    fn pass_on(&self) {
        let mut line = self.line.lock();
        while let Some(call) = line.next() {
            // A login that is being given up does not hear the call.
            if call.send(()).is_ok() {
                return;
            }
        }
        line.running -= 1;
    }
}

impl Line {
    fn push(&mut self, site: IpAddr) -> (u64, oneshot::Receiver<()>) {
        let (call, called) = oneshot::channel();
        self.last_ticket += 1;
        self.waiting += 1;
        let waiting = self.sites.entry(site).or_default();
        if waiting.is_empty() {
            self.ring.push_back(site);
        }
        waiting.insert(self.last_ticket, call);
        (self.last_ticket, called)
    }

    /// Takes the oldest login of the site whose turn it is.
    fn next(&mut self) -> Option<oneshot::Sender<()>> {
        let site = self.ring.pop_front()?;
        let waiting = self.sites.get_mut(&site)?;
        let (_, call) = waiting.pop_first()?;
        self.waiting -= 1;
        if waiting.is_empty() {
            self.sites.remove(&site);
        } else {
            self.ring.push_back(site);
        }
        Some(call)
    }

    /// Takes a login out of the line, if it is still there.
    fn remove(&mut self, site: IpAddr, ticket: u64) {
        let Some(waiting) = self.sites.get_mut(&site) else { return };
        if waiting.remove(&ticket).is_none() {
            return;
        }
        self.waiting -= 1;
        if waiting.is_empty() {
            self.sites.remove(&site);
            self.ring.retain(|other| *other != site);
        }
    }

    /// Refuses the newest login of the site with the most, unless the newcomer's has as many.
    fn make_room_for(&mut self, newcomer: IpAddr) -> bool {
        let own = self.sites.get(&newcomer).map_or(0, BTreeMap::len);
        let Some((site, waiting)) = self.sites.iter().max_by_key(|(_, waiting)| waiting.len()) else {
            return false;
        };
        let (site, newest) = (*site, waiting.keys().next_back().copied());
        match newest {
            Some(ticket) if waiting.len() > own + 1 => {
                self.remove(site, ticket);
                true
            }
            _ => false,
        }
    }
}

/// A login in the line.
struct Waiting<'a> {
    turns: &'a Turns,
    site: IpAddr,
    ticket: u64,
    called: oneshot::Receiver<()>,
    /// Whether it got its turn or was refused.
    is_over: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        self.called.close();
        match self.called.try_recv() {
            // It was called when it was about to be given up.
            Ok(()) => self.turns.pass_on(),
            Err(_) => self.turns.line.lock().remove(self.site, self.ticket),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use futures::future::BoxFuture;
    use proptest::prelude::*;

    use super::*;

    fn site(number: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, number])
    }

    fn is_empty(turns: &Turns) -> bool {
        let line = turns.line.lock();
        line.running == 0 && line.waiting == 0 && line.ring.is_empty() && line.sites.is_empty()
    }

    #[tokio::test]
    async fn sites_take_turns() {
        let turns = Turns::new(1, 100);
        let mut turn = turns.take(site(0)).await;
        assert!(turn.is_some());
        let mut waiting: Vec<(u8, BoxFuture<'_, Option<Turn<'_>>>)> = Vec::new();
        for from in [1, 1, 1, 1, 2, 2, 3] {
            let mut login: BoxFuture<'_, _> = Box::pin(turns.take(site(from)));
            assert!(futures::poll!(&mut login).is_pending());
            waiting.push((from, login));
        }
        let mut order = Vec::new();
        while !waiting.is_empty() {
            drop(turn.take());
            let mut called = None;
            for (position, (from, login)) in waiting.iter_mut().enumerate() {
                if let Poll::Ready(next) = futures::poll!(login) {
                    assert!(called.is_none(), "one at a time");
                    turn = next;
                    called = Some((position, *from));
                }
            }
            let (position, from) = called.expect("a next login");
            drop(waiting.remove(position));
            order.push(from);
        }
        assert_eq!(order, [1, 2, 3, 1, 2, 1, 1]);
        drop(turn);
        assert!(is_empty(&turns));
    }

    #[tokio::test]
    async fn a_full_line_has_room_for_another_site() {
        let turns = Turns::new(1, 3);
        let turn = turns.take(site(1)).await;
        let mut flood: Vec<BoxFuture<'_, _>> = Vec::new();
        for _ in 0..3 {
            let mut login: BoxFuture<'_, _> = Box::pin(turns.take(site(1)));
            assert!(futures::poll!(&mut login).is_pending());
            flood.push(login);
        }
        assert!(turns.take(site(1)).await.is_none(), "the flood refuses itself");
        let mut other: BoxFuture<'_, _> = Box::pin(turns.take(site(2)));
        assert!(futures::poll!(&mut other).is_pending());
        assert!(matches!(futures::poll!(&mut flood[2]), Poll::Ready(None)), "the newest made room");
        // Whoever is given up makes room too, even after its call.
        drop(turn);
        flood.clear();
        assert!(other.await.is_some());
        assert!(is_empty(&turns));
    }

    proptest! {
        #[test]
        fn turns_are_never_lost(steps in proptest::collection::vec((0..3_u8, 0..4_u8, any::<usize>()), 0..100)) {
            let turns = Turns::new(2, 5);
            {
                let mut context = std::task::Context::from_waker(std::task::Waker::noop());
                let mut waiting: Vec<BoxFuture<'_, Option<Turn<'_>>>> = Vec::new();
                let mut running: Vec<Turn<'_>> = Vec::new();
                for (step, from, which) in steps {
                    match step {
                        0 => waiting.push(Box::pin(turns.take(site(from)))),
                        1 if !waiting.is_empty() => drop(waiting.swap_remove(which % waiting.len())),
                        2 if !running.is_empty() => drop(running.swap_remove(which % running.len())),
                        _ => {}
                    }
                    // Some hear their call only later.
                    if which % 3 > 0 {
                        waiting.retain_mut(|login| match login.as_mut().poll(&mut context) {
                            Poll::Ready(turn) => {
                                running.extend(turn);
                                false
                            }
                            Poll::Pending => true,
                        });
                        let line = turns.line.lock();
                        prop_assert!(running.len() <= 2 && line.waiting <= 5);
                        prop_assert_eq!(line.running, running.len());
                        prop_assert!(line.waiting == 0 || line.running == 2, "nobody waits without a reason");
                    }
                }
            }
            prop_assert!(is_empty(&turns));
        }
    }
}
