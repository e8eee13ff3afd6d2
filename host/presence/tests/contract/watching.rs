//! WATCH, its pages, and UNWATCH.

use switchyard_presence::{Limits, Refused, Totals};

use crate::scene::{LIMITS, ROOM, Scene};

#[test]
fn watch_answers_as_presence_and_pages_follow_until_complete() {
    let mut scene = Scene::new();
    scene.enter_all(&["1=a", "2=a", "3=a"]);
    assert_eq!(scene.watch(50, 1), "3 members, 3 users: [1=a] more");
    assert_eq!(scene.next_page(50).as_deref(), Some("[2=a] more"));
    assert_eq!(scene.next_page(50).as_deref(), Some("[3=a]"));
    assert_eq!(scene.next_page(50), None);
    assert_eq!(scene.next_page(51), None, "it does not watch");
    assert_eq!(scene.watch(50, 3), "3 members, 3 users: [1=a 2=a 3=a]");
    assert_eq!(scene.next_page(50), None);
}

#[test]
fn a_change_above_the_cursor_is_in_a_later_page_and_no_event() {
    let mut scene = Scene::new();
    scene.enter_all(&["1=a", "5=a", "9=a"]);
    scene.watch(50, 1);
    scene.enter("7=a");
    scene.enter("5=b");
    scene.leave(9);
    assert!(scene.flush().is_empty());
    assert_eq!(scene.next_page(50).as_deref(), Some("[5=b] more"));
    assert_eq!(scene.next_page(50).as_deref(), Some("[7=a]"));
    assert!(scene.flush().is_empty());
}

#[test]
fn a_change_below_the_cursor_is_an_event_after_the_last_page() {
    let mut scene = Scene::new();
    scene.enter_all(&["1=a", "3=a", "5=a", "9=a"]);
    scene.watch(50, 3);
    scene.enter("2=a");
    scene.enter("3=b");
    scene.leave(5);
    assert!(scene.flush().is_empty(), "the snapshot is not complete");
    assert_eq!(scene.next_page(50).as_deref(), Some("[9=a]"));
    assert_eq!(scene.flush(), ["[50]: enter 2=a, update 3=b, leave 5=a"]);
    assert!(scene.flush().is_empty());
}

#[test]
fn what_is_kept_for_an_incomplete_snapshot_is_the_net_difference() {
    let mut scene = Scene::new();
    scene.enter_all(&["1=a", "2=a", "3=a", "9=a"]);
    scene.watch(50, 3);
    // Each window is flushed, so that it is more than the difference of one.
    scene.leave(1);
    scene.enter("4=a");
    scene.leave(2);
    scene.flush();
    scene.enter("1=a");
    scene.leave(4);
    scene.enter("2=b");
    scene.enter("3=b");
    scene.flush();
    scene.leave(3);
    scene.next_page(50);
    assert_eq!(scene.flush(), ["[50]: update 2=b, leave 3=b"], "with the last data");
}

#[test]
fn watch_again_is_a_new_snapshot_and_discards_the_events_before() {
    let mut scene = Scene::new();
    scene.enter_all(&["1=a", "2=a"]);
    scene.watch(50, 10);
    scene.leave(1);
    assert_eq!(scene.watch(50, 10), "1 members, 1 users: [2=a]");
    scene.leave(2);
    assert_eq!(scene.flush(), ["[50]: leave 2=a"]);
}

#[test]
fn a_watcher_that_begins_within_a_window_receives_only_the_rest_of_it() {
    let mut scene = Scene::new();
    scene.enter("1=a");
    scene.watch(50, 10);
    scene.enter("2=a");
    assert_eq!(scene.watch(51, 10), "2 members, 2 users: [1=a 2=a]");
    assert_eq!(scene.watch(52, 10), "2 members, 2 users: [1=a 2=a]");
    scene.leave(1);
    assert_eq!(scene.watch(53, 10), "1 members, 1 users: [2=a]");
    let mut received = scene.flush();
    received.sort_unstable();
    assert_eq!(received, ["[50]: enter 2=a, leave 1=a", "[52, 51]: leave 1=a"]);
    scene.enter("3=a");
    assert_eq!(scene.flush(), ["[50, 51, 52, 53]: enter 3=a"], "now they share a group");
}

#[test]
fn unwatch_is_also_for_a_connection_that_does_not_watch() {
    let mut scene = Scene::new();
    assert!(!scene.rooms.unwatch(ROOM, 50));
    scene.watch(50, 10);
    scene.enter("1=a");
    assert!(scene.rooms.unwatch(ROOM, 50));
    assert!(!scene.rooms.unwatch(ROOM, 50));
    assert!(scene.flush().is_empty());
    scene.leave(1);
    assert_eq!(scene.rooms.totals(), Totals::default());
}

#[test]
fn nothing_is_kept_once_all_watchers_know_the_room_or_have_ended() {
    let mut scene = Scene::new();
    scene.enter("1=a");
    let bytes = scene.rooms.totals().bytes;
    scene.watch(50, 10);
    let watched = scene.rooms.totals().bytes;
    scene.enter("1=b");
    assert!(scene.rooms.totals().bytes > watched);
    scene.flush();
    assert_eq!(scene.rooms.totals().bytes, watched);
    scene.enter("1=c");
    scene.rooms.unwatch(ROOM, 50);
    assert_eq!(scene.rooms.totals().bytes, bytes);
}

#[test]
fn what_is_kept_for_a_stopped_watcher_is_bounded_by_the_members() {
    let mut scene = Scene::new();
    scene.enter_all(&["1=a", "2=a", "3=a"]);
    scene.watch(49, 10);
    scene.watch(50, 2);
    let before = scene.rooms.totals().bytes;
    for change in 0..10_000 {
        scene.enter(&format!("{}=a", change + 100));
        scene.enter(&format!("1={change}"));
        scene.leave(change + 100);
        if change % 10 == 0 {
            scene.flush();
        }
    }
    assert!(scene.rooms.totals().bytes < before + 60_000);
    scene.next_page(50);
    let received = scene.flush();
    assert!(received.contains(&"[50]: update 1=9999".to_owned()), "{received:?}");
}

#[test]
fn a_room_without_members_can_be_watched() {
    let mut scene = Scene::new();
    assert_eq!(scene.watch(50, 10), "0 members, 0 users: []");
    scene.enter("1=a");
    scene.leave(1);
    assert_eq!(scene.flush(), ["[50]: enter 1=a, leave 1=a"]);
    assert_eq!(scene.rooms.totals().rooms, 1);
}

#[test]
fn watches_of_all_connections_are_limited() {
    let mut scene = Scene::with(Limits { watchers_max: 2, ..LIMITS });
    scene.watch(50, 10);
    scene.watch(51, 10);
    scene.watch(51, 10);
    assert_eq!(scene.rooms.watch(b"room.2", 50, 10), Err(Refused::Watchers));
    scene.end(50);
    assert!(scene.rooms.watch(b"room.2", 51, 10).is_ok());
}

#[test]
fn watches_of_a_connection_are_limited_and_end_with_it() {
    let mut scene = Scene::with(Limits { watches_max: 1, ..LIMITS });
    scene.watch(50, 10);
    scene.watch(50, 10);
    assert_eq!(scene.rooms.watch(b"room.2", 50, 10), Err(Refused::Watches));
    assert_eq!(scene.rooms.totals().rooms, 1);
    scene.end(50);
    assert_eq!(scene.rooms.totals(), Totals::default());
}
