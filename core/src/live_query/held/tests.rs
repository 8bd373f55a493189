//! What is held: how it counts, and whose it is that goes.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::ids::Seq;
use crate::live_query::cursor::Cursor;
use crate::live_query::frame::FrameBody;

const ANN: UserId = UserId(1);
const BOB: UserId = UserId(2);

fn held(bytes_max: usize, per_user_bytes_max: usize) -> Arc<Held> {
    Held::new(&Config {
        live_held_bytes_max: bytes_max,
        live_held_per_user_bytes_max: per_user_bytes_max,
        ..Config::in_memory()
    })
}

fn chunk(held: &Held, frames: u64, bytes: usize) -> Arc<LogChunk> {
    let frame = |seq| {
        let resume_token = Some(Bytes::from_static(b"token"));
        let body = FrameBody::Progress;
        Arc::new(Frame { complete_through: Seq(seq), resume_token, more: false, server_time_us: 0, body })
    };
    Arc::new(LogChunk {
        id: held.next_item(),
        from: Cursor::after(Seq::ZERO),
        next: LogPosition::after(Seq(frames)),
        first: None,
        frames: (1..=frames).map(frame).collect(),
        bytes,
        left_out: 0,
    })
}

/// Puts a chunk, for which its subscriber has come already.
fn put(outbox: &mut Outbox, chunk: Arc<LogChunk>, next: usize) {
    outbox.place().put_chunk(chunk, next);
    outbox.held.state.lock().touch(outbox.id).expect("it is there");
}

/// Takes frames until none is left, and returns their seqs.
fn drain(outbox: &mut Outbox) -> Vec<u64> {
    std::iter::from_fn(|| outbox.take_frame()).map(|held| held.frame.complete_through.0).collect()
}

#[test]
fn frames_come_in_order_and_the_last_one_ends_the_chunk() {
    let held = held(0, 0);
    let mut outbox = Outbox::new(&held, SubscriptionId(1), ANN);
    assert!(outbox.take_frame().is_none());
    outbox.place().put_chunk(chunk(&held, 3, 100), 0);
    let first = outbox.take_frame().unwrap();
    assert_eq!((first.frame.complete_through, first.end), (Seq(1), None));
    assert_eq!(outbox.take_frame().unwrap().end, None);
    assert_eq!(outbox.take_frame().unwrap().end, Some(LogPosition::after(Seq(3))));
    assert!(outbox.take_frame().is_none());
    assert_eq!(held.bytes(), 100, "it stays for other members");
    outbox.place().put_chunk(chunk(&held, 2, 70), 1);
    assert_eq!((drain(&mut outbox), held.bytes()), (vec![2], 70));
    drop(outbox);
    assert_eq!(held.bytes(), 0);
    let state = held.state.lock();
    assert!(state.users.is_empty() && state.holders.is_empty());
}

#[test]
fn who_has_waited_longest_goes_first_and_the_newest_stays() {
    let held = held(0, 250);
    let mut outboxes = [1, 2, 3].map(|id| Outbox::new(&held, SubscriptionId(id), ANN));
    put(&mut outboxes[0], chunk(&held, 3, 100), 0);
    put(&mut outboxes[1], chunk(&held, 3, 100), 0);
    assert!(outboxes[0].take_frame().is_some());
    put(&mut outboxes[2], chunk(&held, 3, 100), 0);
    assert_eq!(outboxes.each_mut().map(drain), [vec![2, 3], vec![], vec![1, 2, 3]]);
    assert_eq!((held.bytes(), held.evictions()), (200, 1));
    // More than the user may hold: everything else goes, but what was just made is there to be sent.
    put(&mut outboxes[1], chunk(&held, 3, 300), 0);
    assert_eq!(outboxes.each_mut().map(drain), [vec![], vec![1, 2, 3], vec![]]);
    assert_eq!(held.evictions(), 1, "who had sent everything lost nothing");
}

#[test]
fn a_user_who_holds_much_keeps_nothing_from_another() {
    let held = held(1_000, 900);
    let mut of_bob = Outbox::new(&held, SubscriptionId(100), BOB);
    put(&mut of_bob, chunk(&held, 3, 200), 0);
    let mut of_ann: Vec<_> = (1..=9).map(|id| Outbox::new(&held, SubscriptionId(id), ANN)).collect();
    of_ann.iter_mut().for_each(|outbox| put(outbox, chunk(&held, 3, 100), 0));
    assert_eq!(held.bytes(), 1_000);
    assert_eq!(drain(&mut of_bob), [1, 2, 3]);
    assert_eq!((drain(&mut of_ann[0]).len(), drain(&mut of_ann[1]).len()), (0, 3));
}

#[test]
fn what_members_share_counts_once_for_each_user_and_once_for_all() {
    let held = held(0, 0);
    let shared = chunk(&held, 2, 100);
    let mut outboxes: Vec<_> =
        [(1, ANN), (2, ANN), (3, BOB)].map(|(id, user)| Outbox::new(&held, SubscriptionId(id), user)).into();
    outboxes.iter_mut().for_each(|outbox| put(outbox, Arc::clone(&shared), 0));
    let bytes = || {
        let state = held.state.lock();
        (state.bytes_of(ANN), state.bytes_of(BOB), state.bytes)
    };
    assert_eq!(bytes(), (100, 100, 100));
    outboxes[0].clear();
    assert_eq!(bytes(), (100, 100, 100));
    outboxes[1].clear();
    assert_eq!(bytes(), (0, 100, 100));
    outboxes[2].clear();
    assert_eq!(bytes(), (0, 0, 0));
}

#[test]
fn only_the_newest_place_is_filled() {
    let held = held(0, 0);
    let mut outbox = Outbox::new(&held, SubscriptionId(1), ANN);
    let (older, newer) = (outbox.place(), outbox.place());
    older.put_chunk(chunk(&held, 2, 100), 0);
    assert_eq!((held.bytes(), drain(&mut outbox)), (0, vec![]));
    newer.put_chunk(chunk(&held, 2, 100), 0);
    assert_eq!((held.bytes(), drain(&mut outbox)), (100, vec![1, 2]));
    outbox.clear();
    newer.put_chunk(chunk(&held, 2, 100), 0);
    assert_eq!(held.bytes(), 0, "its subscriber wants nothing any more");
    let last = outbox.place();
    drop(outbox);
    last.put_chunk(chunk(&held, 2, 100), 0);
    assert_eq!(held.bytes(), 0, "its subscriber has gone");
}

#[test]
fn what_was_just_made_waits_for_its_subscriber() {
    let held = held(1, 1);
    let mut outboxes = [1, 2].map(|id| Outbox::new(&held, SubscriptionId(id), ANN));
    let put_at = |outbox: &mut Outbox, touched_at: Instant| {
        outbox.place().put_chunk(chunk(&held, 2, 100), 0);
        let mut state = held.state.lock();
        state.slots.get_mut(&outbox.id).unwrap().entry.as_mut().unwrap().touched_at = touched_at;
    };
    let later = Instant::now() + Duration::from_secs(3_600);
    put_at(&mut outboxes[0], later);
    put_at(&mut outboxes[1], later);
    assert_eq!((held.bytes(), held.evictions()), (200, 0));
    put_at(&mut outboxes[0], Instant::now() - FRESH_MAX);
    put_at(&mut outboxes[1], later);
    assert_eq!(outboxes.each_mut().map(drain), [vec![], vec![1, 2]], "it did not come");
    put_at(&mut outboxes[0], later);
    assert!(outboxes[0].take_frame().is_some());
    put_at(&mut outboxes[1], later);
    assert_eq!(outboxes.each_mut().map(drain), [vec![], vec![1, 2]], "it came and left the rest");
}

#[test]
fn only_frames_of_the_log_go_when_nobody_asks_for_them() {
    let held = held(0, 0);
    let mut outboxes = [1, 2].map(|id| Outbox::new(&held, SubscriptionId(id), ANN));
    put(&mut outboxes[0], chunk(&held, 2, 100), 0);
    outboxes[1].put_scan(Scan::ended(), 7);
    let now = Instant::now();
    held.evict_idle(now);
    assert_eq!(held.evictions(), 0);
    held.evict_idle(now + IDLE_MAX);
    assert_eq!(held.evictions(), 1);
    assert!(outboxes[0].take_frame().is_none() && outboxes[1].take_scan().is_some());
    assert_eq!(held.bytes(), 0);
}

#[test]
fn of_scans_in_use_those_that_have_delivered_most_stay() {
    let scan_bytes = Scan::ended().bytes();
    let held = held(0, 2 * scan_bytes);
    let mut outboxes = [1, 2, 3, 4].map(|id| Outbox::new(&held, SubscriptionId(id), ANN));
    for (outbox, rows) in outboxes.iter_mut().zip([30, 10, 20]) {
        outbox.put_scan(Scan::ended(), rows);
    }
    put(&mut outboxes[3], chunk(&held, 2, 1), 0);
    assert_eq!(held.evictions(), 2);
    // Frames of the log are made again more easily than a scan.
    outboxes[1].put_scan(Scan::ended(), 10);
    let kept = outboxes.each_mut().map(|outbox| outbox.take_scan().is_some());
    assert_eq!(kept, [true, true, false, false]);
}

/// Puts, takes and clears at random, and counts again what is held.
#[test]
fn the_counts_are_right_and_within_the_limits() {
    let seed = rand::random();
    let mut random = StdRng::seed_from_u64(seed);
    let (bytes_max, per_user_bytes_max) = (2_000, 900);
    let held = held(bytes_max, per_user_bytes_max);
    let mut outboxes: Vec<_> =
        (0..12).map(|id| Outbox::new(&held, SubscriptionId(id), UserId(id % 3))).collect();
    let mut chunks: Vec<_> = (0..4).map(|_| chunk(&held, 3, 200)).collect();
    for step in 0..5_000 {
        let number = random.random_range(0..outboxes.len());
        let outbox = &mut outboxes[number];
        let mut own = None;
        match random.random_range(0..10) {
            0..5 => {
                let number = random.random_range(0..chunks.len());
                if random.random_ratio(1, 3) {
                    chunks[number] = chunk(&held, 3, random.random_range(50..600));
                }
                put(outbox, Arc::clone(&chunks[number]), random.random_range(0..3));
                own = Some(chunks[number].bytes);
            }
            5..8 => drop(outbox.take_frame()),
            8 => outbox.clear(),
            _ => held.evict_idle(Instant::now()),
        }
        let state = held.state.lock();
        let mut items: HashMap<u64, usize> = HashMap::new();
        let mut by_user: HashMap<UserId, HashSet<u64>> = HashMap::new();
        for slot in state.slots.values() {
            let Some(entry) = &slot.entry else { continue };
            items.insert(entry.content.item(), entry.content.bytes());
            by_user.entry(slot.user).or_default().insert(entry.content.item());
        }
        assert_eq!(state.bytes, items.values().sum::<usize>(), "seed {seed}, step {step}");
        assert_eq!(state.holders.len(), items.len(), "seed {seed}, step {step}");
        for (user, held) in &state.users {
            let of_user = by_user[user].iter().map(|item| items[item]).sum::<usize>();
            assert_eq!(held.bytes, of_user, "seed {seed}, step {step}");
            let is_own = |slot: &&Slot| slot.user == *user && slot.entry.is_some();
            let expected = state.slots.values().filter(is_own).count();
            assert_eq!(held.waiting.len(), expected, "seed {seed}, step {step}");
            assert!(held.bytes <= per_user_bytes_max.max(own.unwrap_or_default()));
        }
        assert_eq!(state.users.len(), by_user.len(), "seed {seed}, step {step}");
        assert!(state.bytes <= bytes_max.max(own.unwrap_or_default()), "seed {seed}, step {step}");
    }
}
