//! What subscribers hold: frames that were made for them and wait to be sent.
//!
//! It counts against the subscriber's user, and against a limit for all users. Beyond a limit it is taken
//! away from the subscriber that has waited longest, of the user who holds most; and so are frames from the
//! change log that nobody has asked for recently. Nothing is lost: a cursor says what was delivered, and the
//! frames after it are made again when the subscriber asks for the next one. A scan must then read again what
//! it has delivered. So of the scans in use, those that have delivered most are kept, and all come to an end.
//!
//! Frames are made by tasks of their own and put here, because a transport can stop to ask at any time, also
//! while they are made. Members of a group share a chunk. It counts once for each user, and once for all.
//!
//! Invariant: after a call, what is held is within the limits, except for what was just made.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::frame::Frame;
use super::group::LogChunk;
use super::scan::Scan;
use crate::change_log::LogPosition;
use crate::config::Config;
use crate::ids::{SubscriptionId, UserId};

/// A subscriber that has not asked for a frame for this long is idle.
const IDLE_MAX: Duration = Duration::from_secs(1);
/// How long what was just made waits for its subscriber before it can be taken away.
const FRESH_MAX: Duration = Duration::from_millis(250);

/// What all subscribers hold.
pub(super) struct Held {
    state: Mutex<State>,
    /// 0 for no limit, as in the settings.
    bytes_max: usize,
    per_user_bytes_max: usize,
    last_item: AtomicU64,
    evictions: AtomicU64,
}

/// The right to put something into a subscriber's place, until another one is given or the place is cleared.
pub(super) struct Place {
    held: Arc<Held>,
    id: SubscriptionId,
    serial: u64,
}

/// The place of one subscriber, where it finds what was put there. Dropping it ends the place.
pub(super) struct Outbox {
    held: Arc<Held>,
    id: SubscriptionId,
    /// Whether something may be there.
    is_used: bool,
}

/// A frame that a subscriber held.
pub(super) struct HeldFrame {
    pub(super) frame: Arc<Frame>,
    /// The end of the chunk, if this is its last frame.
    pub(super) end: Option<LogPosition>,
}

/// What a subscriber holds.
enum Content {
    Chunk {
        chunk: Arc<LogChunk>,
        next: usize,
    },
    Scan {
        number: u64,
        scan: Box<Scan>,
        /// The rows that were delivered.
        rows: usize,
    },
}

#[derive(Default)]
struct State {
    slots: HashMap<SubscriptionId, Slot>,
    users: HashMap<UserId, UserHeld>,
    /// By item, how many subscribers of each user hold it.
    holders: HashMap<u64, HashMap<UserId, usize>>,
    bytes: usize,
    touches: u64,
}

struct Slot {
    user: UserId,
    /// The [`Place`] that may fill it.
    serial: u64,
    entry: Option<Entry>,
}

struct Entry {
    content: Content,
    /// The number and the time of the last touch.
    touch: u64,
    touched_at: Instant,
    /// Whether its subscriber has not come for it yet.
    is_fresh: bool,
}

#[derive(Default)]
struct UserHeld {
    bytes: usize,
    /// The subscribers that hold something, by their last touch.
    waiting: BTreeMap<u64, SubscriptionId>,
}

impl Place {
    /// Holds a chunk, whose frames before `next` are not needed, instead of what was held before.
    pub(super) fn put_chunk(&self, chunk: Arc<LogChunk>, next: usize) {
        self.held.put(self, Content::Chunk { chunk, next }, true);
    }

    /// Holds a scan that has delivered some rows, instead of what was held before.
    pub(super) fn put_scan(&self, scan: Box<Scan>, rows: usize) {
        let number = self.held.next_item();
        self.held.put(self, Content::Scan { number, scan, rows }, true);
    }
}

impl Outbox {
    pub(super) fn new(held: &Arc<Held>, id: SubscriptionId, user: UserId) -> Self {
        held.state.lock().slots.insert(id, Slot { user, serial: 0, entry: None });
        Self { held: Arc::clone(held), id, is_used: false }
    }

    /// Returns the right to fill the place. Earlier ones end.
    pub(super) fn place(&mut self) -> Place {
        self.is_used = true;
        let serial = self.held.state.lock().next_serial(self.id);
        Place { held: Arc::clone(&self.held), id: self.id, serial }
    }

    /// Takes the next frame of the chunk. The chunk stays until there is another one, for other members.
    pub(super) fn take_frame(&mut self) -> Option<HeldFrame> {
        if !self.is_used {
            return None;
        }
        let mut state = self.held.state.lock();
        match state.touch(self.id)? {
            Content::Chunk { chunk, next } => {
                let frame = Arc::clone(chunk.frames.get(*next)?);
                *next += 1;
                Some(HeldFrame { frame, end: (*next == chunk.frames.len()).then_some(chunk.next) })
            }
            Content::Scan { .. } => None,
        }
    }

    /// Takes the scan. Whoever works with it holds it alone, and it does not count meanwhile.
    pub(super) fn take_scan(&mut self) -> Option<Box<Scan>> {
        match self.remove()? {
            Content::Scan { scan, .. } => Some(scan),
            Content::Chunk { .. } => None,
        }
    }

    /// Puts a scan back that has delivered some rows.
    pub(super) fn put_scan(&mut self, scan: Box<Scan>, rows: usize) {
        let place = self.place();
        let number = self.held.next_item();
        self.held.put(&place, Content::Scan { number, scan, rows }, false);
    }

    /// Holds nothing any more.
    pub(super) fn clear(&mut self) {
        drop(self.remove());
    }

    /// What is returned must not be dropped under the lock: for a scan, that can take long.
    fn remove(&mut self) -> Option<Content> {
        if !std::mem::take(&mut self.is_used) {
            return None;
        }
        let mut state = self.held.state.lock();
        state.next_serial(self.id);
        state.remove(self.id)
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        let content = {
            let mut state = self.held.state.lock();
            let content = state.remove(self.id);
            state.slots.remove(&self.id);
            content
        };
        drop(content);
    }
}

impl Held {
    pub(super) fn new(config: &Config) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            bytes_max: config.live_held_bytes_max,
            per_user_bytes_max: config.live_held_per_user_bytes_max,
            last_item: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
        })
    }

    /// Returns a number for something that can be held.
    pub(super) fn next_item(&self) -> u64 {
        self.last_item.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Returns the bytes that are held.
    pub(super) fn bytes(&self) -> usize {
        self.state.lock().bytes
    }

    /// Returns how often something was taken away from a subscriber.
    pub(super) fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
    }

    fn put(&self, place: &Place, content: Content, is_fresh: bool) {
        let mut state = self.state.lock();
        let Some(slot) = state.slots.get(&place.id).filter(|slot| slot.serial == place.serial) else {
            return;
        };
        let user = slot.user;
        let before = state.remove(place.id);
        state.insert(place.id, content, is_fresh);
        let mut evicted = Vec::new();
        while exceeds(state.bytes_of(user), self.per_user_bytes_max)
            && let Some(id) = state.dispensable_of(user, place.id)
        {
            evicted.extend(state.remove(id));
        }
        while exceeds(state.bytes, self.bytes_max)
            && let Some(id) = state.dispensable(place.id)
        {
            evicted.extend(state.remove(id));
        }
        drop(state);
        self.note_evicted(&evicted);
        drop((before, evicted));
    }

    /// Takes away the frames from the change log whose subscribers are idle.
    pub(super) fn evict_idle(&self, now: Instant) {
        let mut state = self.state.lock();
        let waiting = state.users.values().flat_map(|held| held.waiting.values());
        let is_idle = |id: &&SubscriptionId| {
            let entry = state.slots.get(*id).and_then(|slot| slot.entry.as_ref());
            entry.is_some_and(|entry| matches!(entry.content, Content::Chunk { .. }) && entry.is_idle(now))
        };
        let idle: Vec<SubscriptionId> = waiting.filter(is_idle).copied().collect();
        let evicted: Vec<_> = idle.into_iter().filter_map(|id| state.remove(id)).collect();
        drop(state);
        self.note_evicted(&evicted);
    }

    fn note_evicted(&self, evicted: &[Content]) {
        let with_frames = evicted.iter().filter(|content| content.has_frames()).count();
        self.evictions.fetch_add(with_frames as u64, Ordering::Relaxed);
    }
}

fn exceeds(bytes: usize, bytes_max: usize) -> bool {
    bytes_max > 0 && bytes > bytes_max
}

impl Content {
    fn item(&self) -> u64 {
        match self {
            Self::Chunk { chunk, .. } => chunk.id,
            Self::Scan { number, .. } => *number,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Chunk { chunk, .. } => chunk.bytes,
            Self::Scan { scan, .. } => scan.bytes(),
        }
    }

    /// Whether there is something that the subscriber was not sent.
    fn has_frames(&self) -> bool {
        match self {
            Self::Chunk { chunk, next } => *next < chunk.frames.len(),
            Self::Scan { .. } => true,
        }
    }
}

impl Entry {
    fn is_idle(&self, now: Instant) -> bool {
        now.duration_since(self.touched_at) >= IDLE_MAX
    }

    fn is_wanted_now(&self, now: Instant) -> bool {
        self.is_fresh && now.duration_since(self.touched_at) < FRESH_MAX
    }
}

impl State {
    fn next_serial(&mut self, id: SubscriptionId) -> u64 {
        let Some(slot) = self.slots.get_mut(&id) else { return 0 };
        slot.serial += 1;
        slot.serial
    }

    fn insert(&mut self, id: SubscriptionId, content: Content, is_fresh: bool) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let bytes = content.bytes();
        let holders = self.holders.entry(content.item()).or_default();
        if holders.is_empty() {
            self.bytes += bytes;
        }
        let of_user = holders.entry(slot.user).or_default();
        let held = self.users.entry(slot.user).or_default();
        if *of_user == 0 {
            held.bytes += bytes;
        }
        *of_user += 1;
        self.touches += 1;
        held.waiting.insert(self.touches, id);
        slot.entry = Some(Entry { content, touch: self.touches, touched_at: Instant::now(), is_fresh });
    }

    fn remove(&mut self, id: SubscriptionId) -> Option<Content> {
        let slot = self.slots.get_mut(&id)?;
        let Entry { content, touch, .. } = slot.entry.take()?;
        let user = slot.user;
        let (item, bytes) = (content.item(), content.bytes());
        let holders = self.holders.entry(item).or_default();
        let of_user = holders.entry(user).or_default();
        *of_user = of_user.saturating_sub(1);
        let held = self.users.entry(user).or_default();
        held.waiting.remove(&touch);
        if *of_user == 0 {
            holders.remove(&user);
            held.bytes = held.bytes.saturating_sub(bytes);
        }
        if holders.is_empty() {
            self.holders.remove(&item);
            self.bytes = self.bytes.saturating_sub(bytes);
        }
        if held.waiting.is_empty() {
            self.users.remove(&user);
        }
        Some(content)
    }

    /// Returns what a subscriber holds, and notes that it has asked for it.
    fn touch(&mut self, id: SubscriptionId) -> Option<&mut Content> {
        let slot = self.slots.get_mut(&id)?;
        let entry = slot.entry.as_mut()?;
        self.touches += 1;
        if let Some(held) = self.users.get_mut(&slot.user) {
            held.waiting.remove(&entry.touch);
            held.waiting.insert(self.touches, id);
        }
        (entry.touch, entry.touched_at, entry.is_fresh) = (self.touches, Instant::now(), false);
        Some(&mut entry.content)
    }

    fn bytes_of(&self, user: UserId) -> usize {
        self.users.get(&user).map_or(0, |held| held.bytes)
    }

    /// Returns the subscriber of a user, other than `own`, that loses least: the one that has waited longest,
    /// or if all others have scans in use, the one whose scan has delivered least.
    fn dispensable_of(&self, user: UserId, own: SubscriptionId) -> Option<SubscriptionId> {
        let now = Instant::now();
        let mut least = None;
        for id in self.users.get(&user)?.waiting.values().filter(|id| **id != own) {
            let entry = self.slots.get(id)?.entry.as_ref()?;
            match &entry.content {
                _ if entry.is_wanted_now(now) => {}
                Content::Scan { rows, .. } if !entry.is_idle(now) => {
                    if least.is_none_or(|(fewest, _)| *rows < fewest) {
                        least = Some((*rows, *id));
                    }
                }
                Content::Scan { .. } | Content::Chunk { .. } => return Some(*id),
            }
        }
        least.map(|(_, id)| id)
    }

    /// As [`State::dispensable_of`], of the user who holds most among those that have one.
    fn dispensable(&self, own: SubscriptionId) -> Option<SubscriptionId> {
        let mut users: Vec<_> = self.users.iter().map(|(user, held)| (held.bytes, *user)).collect();
        users.sort_unstable_by_key(|user| Reverse(*user));
        users.into_iter().find_map(|(_, user)| self.dispensable_of(user, own))
    }
}

#[cfg(test)]
mod tests;
