//! What the changes of a window become.

use switchyard_presence::Limits;

use crate::scene::{LIMITS, Scene};

#[test]
fn changes_are_gathered_for_100_ms_after_the_first() {
    let mut scene = Scene::new();
    scene.watch(50, 10);
    scene.now_ms = 1_000;
    scene.enter("1=a");
    assert_eq!(scene.rooms.next_flush(), Some(1_100));
    scene.now_ms = 1_090;
    scene.enter("2=a");
    assert!(scene.flush_after(9).is_empty());
    assert_eq!(scene.flush_after(1), ["[50]: enter 1=a, enter 2=a"]);
    assert_eq!(scene.rooms.next_flush(), None);
}

#[test]
fn a_room_without_watchers_has_nothing_to_flush() {
    let mut scene = Scene::new();
    scene.enter("1=a");
    assert_eq!(scene.rooms.next_flush(), None);
}

#[test]
fn a_leave_of_none_and_the_same_data_again_have_no_event() {
    let mut scene = Scene::new();
    scene.enter("1:ann=a");
    scene.watch(50, 10);
    scene.leave(2);
    scene.enter("1:ann=a");
    assert_eq!(scene.rooms.next_flush(), None);
    scene.enter("1=a");
    assert_eq!(scene.flush(), ["[50]: update 1=a"], "another user is a difference");
}

#[test]
fn leave_shows_the_last_data() {
    let mut scene = Scene::new();
    scene.watch(50, 10);
    scene.enter("1=a");
    scene.enter("1=b");
    scene.end(1);
    assert_eq!(scene.flush(), ["[50]: enter 1=a, update 1=b, leave 1=b"]);
}

#[test]
fn sixteen_changes_are_single_events_in_their_order_and_seventeen_one_event() {
    let mut scene = Scene::new();
    scene.watch(50, 100);
    let enter = |scene: &mut Scene, count: usize| {
        for number in (0..count).rev() {
            scene.enter(&format!("{}=a", number + 10));
        }
    };
    enter(&mut scene, 16);
    let received = scene.flush();
    assert!(received[0].starts_with("[50]: enter 25=a, enter 24=a, "), "{received:?}");
    assert_eq!(received[0].matches("enter").count(), 16);
    for connection in 10..26 {
        scene.leave(connection);
    }
    scene.flush();
    enter(&mut scene, 17);
    let received = scene.flush();
    assert!(received[0].starts_with("[50]: presence enter [10=a 11=a "), "{received:?}");
}

#[test]
fn within_one_coalesced_event_opposite_changes_cancel() {
    let mut scene = Scene::new();
    for connection in 1..=20 {
        scene.enter(&format!("{connection}=a"));
    }
    scene.watch(50, 100);
    // An enter and a leave cancel.
    for connection in 30..40 {
        scene.enter(&format!("{connection}=a"));
    }
    for connection in 31..40 {
        scene.leave(connection);
    }
    // A leave and an enter with other data are an update, with the same data nothing.
    scene.leave(1);
    scene.leave(2);
    scene.enter("1=b");
    scene.enter("2=a");
    // Several updates are one; back to the first data, none.
    scene.enter("3=b");
    scene.enter("3=c");
    scene.enter("4=b");
    scene.enter("4=a");
    // A leave shows the data of before the leave, not of before the window.
    scene.enter("5=b");
    scene.leave(5);
    let received = "[50]: presence enter [30=a] update [1=b 3=c] leave [5=b]";
    assert_eq!(scene.flush(), [received]);
}

#[test]
fn many_changes_that_all_cancel_are_no_event() {
    let mut scene = Scene::new();
    scene.watch(50, 100);
    for connection in 1..=10 {
        scene.enter(&format!("{connection}=a"));
        scene.leave(connection);
    }
    assert!(scene.flush().is_empty());
    scene.enter("11=a");
    assert_eq!(scene.flush(), ["[50]: enter 11=a"]);
}

#[test]
fn takeovers_in_a_coalesced_event_are_updates() {
    let mut scene = Scene::with(Limits { grace_ms: 500, ..LIMITS });
    for number in 1..=20 {
        scene.enter(&format!("{number}:user{number}=a"));
    }
    scene.watch(50, 100);
    // In turn: 21 takes over, ends, and 22 takes over.
    for number in [21, 22] {
        scene.end(number - if number == 21 { 20 } else { 1 });
        scene.enter(&format!("{number}:user1=a"));
    }
    // The new connection leaves again.
    scene.end(2);
    scene.enter("23:user2=b");
    scene.leave(23);
    // Updated after the takeover.
    scene.end(3);
    scene.enter("24:user3=b");
    scene.enter("24:user3=c");
    for number in 4..=14 {
        scene.enter(&format!("{number}:user{number}=b"));
    }
    let received = scene.flush();
    let received = received[0].as_str();
    assert!(received.starts_with("[50]: presence enter [] update [4:user4=b "), "{received}");
    let end = "22:user1=a was 1 24:user3=c was 3] leave [2:user2=a]";
    assert!(received.ends_with(end), "{received}");
}

#[test]
fn a_takeover_in_a_coalesced_event_follows_the_last_place_of_a_connection() {
    let mut scene = Scene::with(Limits { grace_ms: 500, ..LIMITS });
    scene.enter_all(&["9=a", "1:ann=a", "2:bob=a"]);
    scene.watch(50, 100);
    // 1 leaves, enters again, and is taken over: its last place counts.
    scene.leave(1);
    scene.enter("1:ann=b");
    scene.end(1);
    scene.enter("11:ann=c");
    // 2 is taken over by a connection that leaves and enters again.
    scene.end(2);
    scene.enter("12:bob=b");
    scene.leave(12);
    scene.enter("12:bob=c");
    (0..20).for_each(|number| scene.enter_all(&[&format!("9={number}")]));
    let received = "[50]: presence enter [12:bob=c] update [9=19 11:ann=c was 1] leave [2:bob=a]";
    assert_eq!(scene.flush(), [received]);
}

#[test]
fn a_takeover_of_a_member_in_an_earlier_page_by_one_in_a_later_page_is_an_update() {
    let mut scene = Scene::with(Limits { grace_ms: 500, ..LIMITS });
    scene.enter_all(&["1:ann=a", "2=a"]);
    scene.watch(50, 1);
    scene.end(1);
    scene.enter("3:ann=b");
    assert_eq!(scene.next_page(50).as_deref(), Some("[2=a] more"));
    assert_eq!(scene.next_page(50).as_deref(), Some("[3:ann=b]"));
    assert_eq!(scene.flush(), ["[50]: update 3:ann=b was 1"]);
}

#[test]
fn work_above_the_budget_follows_with_the_next_call() {
    let mut scene = Scene::new();
    for channel in ["a", "b"] {
        scene.rooms.watch(channel.as_bytes(), 50, 10).unwrap();
        scene.try_enter_in(channel.as_bytes(), "1=a").unwrap();
    }
    let first = scene.rooms.flush(100, 1);
    assert_eq!((first.groups.len(), first.next_ms), (1, Some(100)));
    let second = scene.rooms.flush(100, 1);
    assert_eq!((second.groups.len(), second.next_ms), (1, None));
}

#[test]
fn members_that_reconnect_make_at_most_ten_frames_a_second() {
    let mut scene = Scene::new();
    for number in 0..2_000 {
        scene.enter(&format!("{number}=a"));
    }
    scene.watch(50_000, 2_000);
    let mut frames = 0;
    for number in 0..2_000 {
        scene.end(number);
        scene.enter(&format!("{}=a", number + 10_000));
        let elapsed_ms = (number + 1) * 5_000 / 2_000 - scene.now_ms;
        frames += scene.flush_after(elapsed_ms).len();
    }
    assert!((40..=50).contains(&frames), "{frames}");
}
