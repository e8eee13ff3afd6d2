//! The grace time, and takeovers.

use switchyard_presence::{Limits, Refused};

use crate::scene::{LIMITS, Scene};

fn with_grace(grace_ms: u64) -> Scene {
    Scene::with(Limits { grace_ms, ..LIMITS })
}

#[test]
fn a_connection_that_ended_stays_a_member_for_the_grace_time() {
    let mut scene = with_grace(500);
    scene.enter("7:ann=1");
    scene.watch(1, 10);
    scene.end(7);
    assert_eq!(scene.rooms.next_expiry(), Some(500));
    assert!(scene.flush_after(499).is_empty());
    assert_eq!(scene.presence(None, 10), "1 members, 1 users: [7:ann=1]");
    assert!(scene.flush_after(1).is_empty());
    assert_eq!(scene.presence(None, 10), "0 members, 0 users: []");
    assert_eq!(scene.flush(), ["[1]: leave 7:ann=1"]);
    assert_eq!(scene.rooms.next_expiry(), None);
}

#[test]
fn enter_by_another_of_the_same_user_takes_its_place_with_one_update() {
    let mut scene = with_grace(500);
    scene.enter("7:ann=1");
    scene.watch(1, 10);
    scene.end(7);
    assert_eq!(scene.enter("9:ann=2"), 1);
    assert_eq!(scene.flush(), ["[1]: update 9:ann=2 was 7"]);
    assert!(scene.flush_after(1_000).is_empty(), "the grace time of 7 is over");
    assert_eq!(scene.enter("9:ann=3"), 1);
    assert_eq!(scene.flush(), ["[1]: update 9:ann=3"], "`was` is in the first update only");
    assert_eq!(scene.presence(None, 10), "1 members, 1 users: [9:ann=3]");
}

#[test]
fn a_takeover_with_the_same_data_is_an_update_too() {
    let mut scene = with_grace(500);
    scene.enter("7:ann=1");
    scene.watch(1, 10);
    scene.end(7);
    scene.enter("9:ann=1");
    assert_eq!(scene.flush(), ["[1]: update 9:ann=1 was 7"]);
}

#[test]
fn null_and_other_users_take_no_place() {
    let mut scene = with_grace(500);
    scene.enter("7:ann=1");
    scene.enter("8=1");
    scene.end(7);
    scene.end(8);
    assert_eq!(scene.enter("9=2"), 3);
    assert_eq!(scene.enter("10:bob=2"), 4);
}

#[test]
fn a_member_in_another_room_or_not_in_grace_keeps_its_place() {
    let mut scene = with_grace(500);
    scene.enter("7:ann=1");
    assert_eq!(scene.enter("8:ann=1"), 2);
    scene.end(7);
    assert_eq!(scene.try_enter_in(b"room.2", "9:ann=1"), Ok(1));
    assert_eq!(scene.presence(None, 10), "2 members, 1 users: [7:ann=1 8:ann=1]");
}

#[test]
fn the_oldest_one_in_grace_is_replaced_first() {
    let mut scene = with_grace(500);
    scene.enter_all(&["1:ann=1", "2:ann=1", "3:ann=1"]);
    scene.watch(50, 10);
    for connection in [2, 1, 3] {
        scene.end(connection);
    }
    scene.enter_all(&["11:ann=1", "12:ann=1", "13:ann=1", "14:ann=1"]);
    let received = "[50]: update 11:ann=1 was 2, update 12:ann=1 was 1, update 13:ann=1 was 3, \
                    enter 14:ann=1";
    assert_eq!(scene.flush(), [received]);
}

#[test]
fn a_member_that_enters_again_takes_no_second_place() {
    let mut scene = with_grace(500);
    scene.enter("7:ann=1");
    scene.enter("8:ann=1");
    scene.end(7);
    assert_eq!(scene.enter("8:ann=2"), 2);
}

#[test]
fn leave_knows_no_grace() {
    let mut scene = with_grace(500);
    scene.enter("7:ann=1");
    assert_eq!(scene.leave(7), 0);
    scene.end(7);
    assert_eq!(scene.enter("8:ann=1"), 1);
}

#[test]
fn a_takeover_is_possible_in_a_full_room_but_not_over_the_connections_own_limit() {
    let mut scene =
        Scene::with(Limits { grace_ms: 500, members_max: 1, memberships_max: 1, ..LIMITS });
    scene.members_max = 1;
    scene.enter("7:ann=1");
    scene.end(7);
    assert_eq!(scene.try_enter("8:bob=1"), Err(Refused::RoomMembers));
    assert_eq!(scene.try_enter("8:ann=1"), Ok(1));
    assert_eq!(scene.try_enter_in(b"room.2", "8:ann=1"), Err(Refused::Memberships));
}

#[test]
fn members_in_grace_end_in_bounded_steps() {
    let mut scene = with_grace(500);
    for connection in 1..=5 {
        scene.enter(&format!("{connection}=1"));
        scene.end(connection);
        scene.now_ms += 1;
    }
    assert_eq!(scene.rooms.expire(500, 10), Some(501));
    assert_eq!(scene.rooms.expire(600, 2), Some(503));
    assert_eq!(scene.rooms.totals().members, 2);
    assert_eq!(scene.rooms.expire(600, 2), None);
}
