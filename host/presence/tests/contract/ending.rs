//! A reload after which a channel has no presence.

use std::sync::Arc;

use switchyard_presence::{Limits, Refused, Totals};

use crate::scene::{LIMITS, ROOM, Scene};

fn lose(scene: &mut Scene) {
    assert_eq!(scene.rooms.end_rooms(None, |channel| channel != ROOM, 10), None);
}

#[test]
fn watchers_receive_each_leave_and_then_unwatched() {
    let mut scene = Scene::new();
    scene.enter_all(&["1=a", "2=a"]);
    scene.watch(50, 10);
    scene.enter("1=b");
    lose(&mut scene);
    assert_eq!(scene.rooms.next_flush(), Some(0));
    let received = ["[50]: update 1=b, leave 1=b, leave 2=a", "[50]: unwatched"];
    assert_eq!(scene.flush_after(0), received);
    assert_eq!(scene.rooms.totals(), Totals::default());
    assert!(!scene.rooms.is_watching(ROOM, 50));
}

#[test]
fn a_watcher_with_an_incomplete_snapshot_receives_the_leaves_of_what_it_was_shown() {
    let mut scene = Scene::new();
    scene.enter_all(&["1=a", "2=a", "3=a"]);
    scene.watch(50, 2);
    lose(&mut scene);
    assert_eq!(scene.next_page(50), None);
    assert_eq!(scene.flush_after(0), ["[50]: leave 1=a, leave 2=a", "[50]: unwatched"]);
}

#[test]
fn while_a_room_is_being_ended_it_is_refused() {
    let mut scene = Scene::with(Limits { grace_ms: 500, ..LIMITS });
    scene.enter_all(&["1:ann=a", "2=a"]);
    scene.end(1);
    lose(&mut scene);
    assert_eq!(scene.try_enter("3:ann=a"), Err(Refused::Ending));
    assert_eq!(scene.rooms.watch(ROOM, 50, 10), Err(Refused::Ending));
    scene.end(2);
    assert_eq!(scene.presence(None, 10), "1 members, 1 users: [1:ann=a]", "2 has no grace");
    assert!(scene.flush_after(0).is_empty());
    assert_eq!((scene.rooms.totals(), scene.rooms.next_expiry()), (Totals::default(), None));
    assert_eq!(scene.enter("4=a"), 1, "the caller decides after that");
}

#[test]
fn rooms_that_keep_presence_stay_and_rooms_are_looked_at_in_slices() {
    let mut scene = Scene::new();
    for channel in ["a", "b", "c", "d"] {
        scene.try_enter_in(channel.as_bytes(), "1=a").unwrap();
    }
    let mut after: Option<Arc<[u8]>> = None;
    let mut looked_at = Vec::new();
    loop {
        let keep = |channel: &[u8]| {
            looked_at.push(channel.to_vec());
            channel < b"c".as_slice()
        };
        after = scene.rooms.end_rooms(after.as_deref(), keep, 3);
        if after.is_none() {
            break;
        }
    }
    assert_eq!(looked_at, [b"a", b"b", b"c", b"d"]);
    scene.flush_after(0);
    let left = scene.rooms.list(None, 10);
    assert_eq!(left.iter().map(|room| &*room.channel).collect::<Vec<_>>(), [b"a", b"b"]);
    assert_eq!(scene.rooms.totals().members, 2);
}

#[test]
fn members_leave_in_bounded_slices() {
    let mut scene = Scene::new();
    for number in 0..3_000 {
        scene.enter(&format!("{number}=a"));
    }
    scene.watch(50_000, 10_000);
    lose(&mut scene);
    let mut calls = 0;
    let mut unwatched = false;
    while scene.rooms.next_flush().is_some() {
        let groups = scene.rooms.flush(0, 500).groups;
        calls += 1;
        unwatched =
            groups.iter().any(|group| group.events == switchyard_presence::Events::Unwatched);
    }
    assert!(unwatched && calls >= 6, "{calls}");
    assert_eq!(scene.rooms.totals(), Totals::default());
}
