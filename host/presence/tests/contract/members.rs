//! ENTER, LEAVE and PRESENCE.

use switchyard_presence::{Limits, Refused, Totals};

use crate::scene::{LIMITS, ROOM, Scene, snapshot};

#[test]
fn a_connection_is_one_member_and_two_of_one_user_are_two() {
    let mut scene = Scene::new();
    assert_eq!(scene.enter("7:ann=1"), 1);
    assert_eq!(scene.enter("8:ann=2"), 2);
    assert_eq!(scene.presence(None, 10), "2 members, 1 users: [7:ann=1 8:ann=2]");
}

#[test]
fn users_counts_different_ones_and_each_null() {
    let mut scene = Scene::new();
    scene.enter_all(&["1=a", "2=a", "3:ann=a", "4:ann=a", "5:bob=a"]);
    assert_eq!(scene.presence(None, 1), "5 members, 4 users: [1=a] more");
}

#[test]
fn entering_again_replaces_the_data_and_the_user() {
    let mut scene = Scene::new();
    scene.enter("7:ann=1");
    assert_eq!(scene.enter("7:bob=2"), 1);
    assert_eq!(scene.presence(None, 10), "1 members, 1 users: [7:bob=2]");
}

#[test]
fn leave_is_also_for_a_connection_that_is_no_member() {
    let mut scene = Scene::new();
    assert_eq!(scene.leave(7), 0);
    scene.enter("7=1");
    assert_eq!((scene.leave(8), scene.leave(7), scene.leave(7)), (1, 0, 0));
    assert_eq!(scene.rooms.totals(), Totals::default(), "a room ends with its last member");
}

#[test]
fn the_end_of_a_connection_ends_its_memberships_at_once_without_grace() {
    let mut scene = Scene::new();
    scene.enter("7=1");
    scene.try_enter_in(b"room.2", "7=1").unwrap();
    scene.enter("8=1");
    scene.end(7);
    assert_eq!(scene.presence(None, 10), "1 members, 1 users: [8=1]");
    assert_eq!(scene.rooms.totals().rooms, 1);
}

#[test]
fn pages_are_sorted_by_connection_as_numbers() {
    let mut scene = Scene::new();
    scene.enter_all(&["10=a", "9=a", "4294967297=a", "100=a"]);
    assert_eq!(scene.presence(None, 2), "4 members, 4 users: [9=a 10=a] more");
    assert_eq!(scene.presence(Some(10), 2), "4 members, 4 users: [100=a 4294967297=a]");
    assert_eq!(scene.presence(Some(50), 1), "4 members, 4 users: [100=a] more");
    assert_eq!(scene.presence(Some(u64::MAX), 1), "4 members, 4 users: []");
    let counted = scene.rooms.presence(ROOM, None, 10, true);
    assert_eq!(snapshot(&counted), "4 members, 4 users: []");
    assert_eq!(scene.rooms.presence(ROOM, None, 2, false).page.next(), Some(10));
    assert_eq!(scene.rooms.presence(ROOM, None, 4, false).page.next(), None);
}

#[test]
fn a_channel_without_a_room_has_no_members() {
    let scene = Scene::new();
    assert_eq!(scene.presence(None, 10), "0 members, 0 users: []");
    assert_eq!(scene.rooms.totals(), Totals::default());
}

#[test]
fn new_members_over_a_limit_are_refused_and_members_may_replace_their_data() {
    let limits = Limits { members_max: 3, memberships_max: 2, ..LIMITS };
    let mut scene = Scene::with(limits);
    scene.members_max = 2;
    scene.enter_all(&["1=a", "2=a"]);
    assert_eq!(scene.try_enter("3=a"), Err(Refused::RoomMembers));
    assert_eq!(scene.try_enter("2=b"), Ok(2));
    assert_eq!(scene.try_enter_in(b"room.2", "1=a"), Ok(1));
    assert_eq!(scene.try_enter_in(b"room.3", "1=a"), Err(Refused::Memberships));
    assert_eq!(scene.try_enter_in(b"room.2", "2=a"), Err(Refused::Members));
    assert_eq!(scene.rooms.totals().rooms, 2, "a refused command begins no room");
    scene.leave(1);
    assert_eq!(scene.try_enter_in(b"room.3", "1=a"), Ok(1));
}

#[test]
fn a_lower_limit_ends_no_membership() {
    let mut scene = Scene::new();
    scene.enter_all(&["1=a", "2=a"]);
    scene.rooms.set_limits(Limits { members_max: 1, memberships_max: 0, ..LIMITS });
    assert_eq!(scene.try_enter("1=b"), Ok(2));
    assert_eq!(scene.try_enter("3=a"), Err(Refused::Memberships));
    assert_eq!(scene.presence(None, 10), "2 members, 2 users: [1=b 2=a]");
}

#[test]
fn rooms_are_listed_after_a_name() {
    let mut scene = Scene::new();
    for channel in ["b", "a", "c"] {
        scene.try_enter_in(channel.as_bytes(), "1=a").unwrap();
    }
    scene.rooms.watch(b"c", 2, 10).unwrap();
    let listed = scene.rooms.list(Some(b"a"), 2);
    let text = |index: usize| (listed[index].channel.to_vec(), listed[index].watchers);
    assert_eq!((text(0), text(1)), ((b"b".to_vec(), 0), (b"c".to_vec(), 1)));
    assert_eq!(scene.rooms.list(Some(b"c"), 2), []);
}

#[test]
fn bytes_rise_with_members_watchers_and_what_is_kept_and_end_at_zero() {
    let mut scene = Scene::new();
    let mut last = 0;
    let mut check = |scene: &Scene| {
        let bytes = scene.rooms.totals().bytes;
        assert!(bytes > last);
        last = bytes;
    };
    scene.enter("1=a");
    check(&scene);
    scene.enter("2=a much longer text");
    check(&scene);
    scene.watch(1, 10);
    check(&scene);
    scene.enter("1=b");
    check(&scene);
    scene.flush();
    scene.end(1);
    scene.end(2);
    assert_eq!(scene.rooms.totals(), Totals::default());
}
