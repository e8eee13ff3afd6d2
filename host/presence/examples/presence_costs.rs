//! What presence costs: ENTER and LEAVE in rooms of several sizes, the frames of a storm of
//! reconnects, the flush of such a room, and the bytes of a member.
//!
//!     cargo run --release -p switchyard-presence --example presence_costs

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use peak_alloc::PeakAlloc;
use switchyard_presence::{Events, GATHER_MS, Limits, Member, Rooms};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const ROOM: &[u8] = b"room.1";
const DATA: &str = r#"{"name":"Ann","status":"here"}"#;
const PAGE: usize = 1_000;

fn limits(grace_ms: u64) -> Limits {
    Limits {
        members_max: 1_000_000,
        data_bytes_max: 1_024,
        grace_ms,
        memberships_max: 100,
        watches_max: 100,
        watchers_max: 1_000_000,
    }
}

fn member(connection: u64) -> Member {
    member_of(connection, connection)
}

fn member_of(connection: u64, user: u64) -> Member {
    Member { connection, user: Some(format!("user-{user}").into()), data: DATA.into() }
}

fn enter(rooms: &mut Rooms, member: Member, now_ms: u64) {
    let entered = rooms.enter(ROOM, member, usize::MAX, now_ms);
    entered.expect("there is room");
}

fn watch(rooms: &mut Rooms, connection: u64, now_ms: u64) {
    let snapshot = rooms.watch(ROOM, connection, PAGE).expect("there is room");
    let mut has_more = snapshot.page.has_more;
    while has_more {
        has_more = rooms.next_page(ROOM, connection, now_ms).is_some_and(|page| page.has_more);
    }
}

fn filled(members: u64, watchers: u64, grace_ms: u64) -> Rooms {
    let mut rooms = Rooms::new(limits(grace_ms));
    (1..=members).for_each(|connection| enter(&mut rooms, member(connection), 0));
    (1..=watchers).for_each(|connection| watch(&mut rooms, connection, 0));
    rooms
}

fn nanoseconds(duration: Duration, calls: usize) -> u128 {
    duration.as_nanos() / calls as u128
}

/// Ten changes per millisecond, as a busy room has, flushed when that is due. Prints medians.
fn changes(members: u64, watchers: u64) {
    const CALLS: u64 = 50_000;
    const CHUNK: usize = 500;
    let mut rooms = filled(members, watchers, 0);
    let first = members.max(watchers) + 1;
    let new: Vec<Member> = (first..first + CALLS).map(member).collect();
    let (mut entering, mut leaving, mut flushing) = (Vec::new(), Vec::new(), Vec::new());
    let mut now_ms = 0;
    for some in new.chunks(CHUNK) {
        let members: Vec<Member> = some.to_vec();
        let start = Instant::now();
        members.into_iter().for_each(|member| enter(&mut rooms, member, now_ms));
        entering.push(start.elapsed());
        now_ms += 50;
        let start = Instant::now();
        for member in some {
            rooms.leave(ROOM, member.connection, now_ms);
        }
        leaving.push(start.elapsed());
        now_ms += 50;
        if rooms.next_flush().is_some_and(|next| next <= now_ms) {
            let start = Instant::now();
            drop(rooms.flush(now_ms, usize::MAX));
            flushing.push(start.elapsed());
        }
    }
    println!(
        "{members:>7} {watchers:>9} {:>9} {:>9} {:>12}",
        nanoseconds(median(entering), CHUNK),
        nanoseconds(median(leaving), CHUNK),
        median(flushing).as_micros(),
    );
}

/// Other programs on the machine hardly change it.
fn median(mut durations: Vec<Duration>) -> Duration {
    durations.sort_unstable();
    durations.get(durations.len() / 2).copied().unwrap_or_default()
}

/// Members that watch end and come back, spread over some seconds: their new connections ENTER and
/// WATCH. Counts what the members receive that do neither.
fn reconnects(members: u64, reconnecting: u64, end_ms: u64, grace_ms: u64) {
    let mut rooms = filled(members, members.min(2_000 + reconnecting), grace_ms);
    let observer = members.min(2_000 + reconnecting);
    let mut frames = BTreeMap::<u64, usize>::new();
    let (mut groups, mut flushes, mut flushing, mut longest) =
        (0, 0, Duration::ZERO, Duration::ZERO);
    let mut listed = 0;
    let mut shown = 0;
    for now_ms in 0..end_ms + 2 * GATHER_MS + grace_ms {
        if now_ms < end_ms {
            for index in now_ms * reconnecting / end_ms..(now_ms + 1) * reconnecting / end_ms {
                rooms.connection_ended(index + 1, now_ms);
                let new = 1_000_000 + index;
                enter(&mut rooms, member_of(new, index + 1), now_ms);
                watch(&mut rooms, new, now_ms);
            }
        }
        rooms.expire(now_ms, usize::MAX);
        if rooms.next_flush().is_some_and(|next| next <= now_ms) {
            let start = Instant::now();
            let flushed = rooms.flush(now_ms, usize::MAX);
            let took = start.elapsed();
            (flushing, longest, flushes) = (flushing + took, longest.max(took), flushes + 1);
            groups += flushed.groups.len();
            for group in &flushed.groups {
                let size = match &group.events {
                    Events::Each(changes) => changes.len(),
                    Events::Coalesced(coalesced) => coalesced.len(),
                    Events::Unwatched => 0,
                };
                listed += size;
                if group.watchers.contains(&observer) {
                    *frames.entry(now_ms / 1_000).or_default() +=
                        if matches!(group.events, Events::Each(_)) { size } else { 1 };
                    shown += size;
                }
            }
        }
    }
    println!(
        "{reconnecting} of {members} members in {end_ms} ms, grace {grace_ms} ms: event frames of a \
         watcher in each second {:?}, with {shown} changes; {} groups and {} changes a flush to \
         encode; a flush takes {} µs, at most {} µs",
        frames.into_values().collect::<Vec<_>>(),
        groups / flushes,
        listed / flushes,
        nanoseconds(flushing, flushes) / 1_000,
        longest.as_micros(),
    );
}

/// The same storm within one window, flushed in slices: how long the caller holds its lock.
fn slices(work_max: usize) {
    let mut rooms = filled(10_000, 4_000, 0);
    for index in 0..2_000 {
        rooms.connection_ended(index + 1, 0);
        enter(&mut rooms, member(1_000_000 + index), 0);
        watch(&mut rooms, 1_000_000 + index, 0);
    }
    let (mut calls, mut longest, mut all) = (0, Duration::ZERO, Duration::ZERO);
    while rooms.next_flush().is_some() {
        let start = Instant::now();
        drop(rooms.flush(GATHER_MS, work_max));
        let took = start.elapsed();
        (calls, longest, all) = (calls + 1, longest.max(took), all + took);
    }
    println!(
        "the same in slices of {work_max}: {calls} calls of {} µs, at most {} µs",
        nanoseconds(all, calls) / 1_000,
        longest.as_micros(),
    );
}

fn bytes(members: u64, watchers: u64) {
    let before = ALLOCATOR.current_usage();
    let rooms = filled(members, watchers, 0);
    let really = ALLOCATOR.current_usage() - before;
    let counted = rooms.totals().bytes;
    println!(
        "{members:>7} members, {watchers:>5} watchers: {} bytes a member, {} counted",
        really / members as usize,
        counted / members as usize,
    );
}

/// Watchers that read one page and then stop, while the members change.
fn stalled(members: u64, watchers: u64, changes: u64) {
    let mut rooms = filled(members, 0, 0);
    for connection in 1..=watchers {
        rooms.watch(ROOM, connection, PAGE).expect("there is room");
    }
    let (before, counted) = (ALLOCATOR.current_usage(), rooms.totals().bytes);
    let start = Instant::now();
    for change in 0..changes {
        let now_ms = change / 10;
        let connection = 1_000_000 + change;
        enter(&mut rooms, member(connection), now_ms);
        rooms.leave(ROOM, connection, now_ms);
        let known = change % members + 1;
        rooms.leave(ROOM, known, now_ms);
        enter(&mut rooms, member(known), now_ms);
        if rooms.next_flush().is_some_and(|next| next <= now_ms) {
            rooms.flush(now_ms, usize::MAX);
        }
    }
    println!(
        "{watchers} watchers stopped after one page of {members} members: {} changes took {} ns each \
         and keep {} KiB, {} KiB counted",
        changes * 4,
        nanoseconds(start.elapsed(), 4 * changes as usize),
        ALLOCATOR.current_usage().saturating_sub(before) / 1_024,
        rooms.totals().bytes.saturating_sub(counted) / 1_024,
    );
}

fn main() {
    println!("members  watchers  ENTER ns  LEAVE ns     flush µs");
    for watchers in [0, 2_000] {
        for members in [10, 1_000, 10_000] {
            changes(members, watchers);
        }
    }
    println!();
    reconnects(2_000, 1_900, 5_000, 0);
    reconnects(10_000, 2_000, 5_000, 0);
    reconnects(10_000, 2_000, 5_000, 30_000);
    reconnects(10_000, 2_000, 100, 0);
    slices(100);
    slices(1_000);
    slices(10_000);
    println!();
    bytes(10_000, 0);
    bytes(10_000, 10_000);
    bytes(10, 0);
    stalled(10_000, 2_000, 100_000);
}
