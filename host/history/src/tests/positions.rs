//! The sentences of the protocol on positions, one by one.

use std::ops::Bound;
use std::sync::Arc;

use super::{BEGIN_US, all, entry, limits, rule};
use crate::{
    Entry, Limits, Look, Message, Page, Position, Published, Reason, Resume, Resumed, Streams,
};

const CHAT: &[u8] = b"chat.1";

fn streams() -> Streams {
    Streams::new(limits(), all(rule(100, 300_000, 86_400_000)))
}

fn publish(streams: &mut Streams, payload: &str, now_us: u64) -> Position {
    match streams.publish(CHAT, entry(payload), || 0, now_us) {
        Published::Kept(position) => position,
        other => panic!("{other:?}"),
    }
}

fn from(streams: &mut Streams, position: Position, now_us: u64) -> Resumed {
    let resume = Resume { position: Some(position), ..Resume::default() };
    streams.resume(CHAT, &resume, || 0, now_us).expect("it has history")
}

fn look(streams: &mut Streams, look: Look, now_us: u64) -> Page {
    streams.history(CHAT, &look, || 0, now_us).expect("it has history")
}

fn payloads(messages: &[Message]) -> Vec<&str> {
    messages.iter().map(|one| std::str::from_utf8(one.entry.payload()).unwrap()).collect()
}

#[test]
fn the_epoch_is_the_time_of_the_begin_and_above_any_before() {
    let mut streams = streams();
    let first = publish(&mut streams, "1", BEGIN_US);
    assert_eq!(first, Position { epoch: BEGIN_US, offset: 1 });
    assert_eq!(publish(&mut streams, "2", BEGIN_US + 9).offset, 2);
    assert_eq!(streams.purge(CHAT, BEGIN_US + 9), Some(2));
    assert_eq!(streams.purge(CHAT, BEGIN_US + 9), None);
    // The clock was set back.
    let again = publish(&mut streams, "3", BEGIN_US - 1_000_000);
    assert_eq!(again, Position { epoch: BEGIN_US + 9, offset: 1 });
    streams.purge(CHAT, BEGIN_US);
    assert_eq!(publish(&mut streams, "4", BEGIN_US).epoch, BEGIN_US + 10);
}

#[test]
fn a_resume_is_all_or_nothing() {
    let mut streams = Streams::new(
        Limits { resume_messages_max: 4, resume_bytes_max: 40, ..limits() },
        all(rule(6, 300_000, 86_400_000)),
    );
    let positions: Vec<Position> =
        (1..=8).map(|number| publish(&mut streams, &number.to_string(), BEGIN_US)).collect();
    let mut check = |from_offset: u64, expected: Result<&[&str], Reason>| {
        let position = Position { offset: from_offset, ..positions[0] };
        let resumed = from(&mut streams, position, BEGIN_US);
        assert_eq!(resumed.position, positions[7]);
        assert_eq!(resumed.recovered, expected.is_ok());
        assert_eq!(resumed.reason, expected.err());
        assert_eq!(payloads(&resumed.messages), expected.unwrap_or_default());
    };
    check(8, Ok(&[]));
    check(7, Ok(&["8"]));
    check(4, Ok(&["5", "6", "7", "8"]));
    check(3, Err(Reason::Many));
    check(2, Err(Reason::Many));
    check(1, Err(Reason::Trimmed));
    check(0, Err(Reason::Trimmed));
    check(9, Err(Reason::Epoch));
    check(u64::MAX, Err(Reason::Epoch));
    for epoch in [0, BEGIN_US - 1, BEGIN_US + 1, u64::MAX] {
        let resumed = from(&mut streams, Position { epoch, offset: 8 }, BEGIN_US);
        assert_eq!(resumed.reason, Some(Reason::Epoch));
    }
    let large = publish(&mut streams, &"x".repeat(41), BEGIN_US);
    let before = Position { offset: large.offset - 1, ..large };
    assert_eq!(from(&mut streams, before, BEGIN_US).reason, Some(Reason::Many));
}

#[test]
fn the_beginning_is_a_position() {
    let mut streams = streams();
    let begun = streams.resume(CHAT, &Resume::default(), || 0, BEGIN_US).unwrap();
    assert_eq!(begun.position, Position { epoch: BEGIN_US, offset: 0 });
    assert_eq!((begun.recovered, begun.reason), (false, None));
    assert!(from(&mut streams, begun.position, BEGIN_US).recovered);
    publish(&mut streams, "1", BEGIN_US + 5);
    assert_eq!(payloads(&from(&mut streams, begun.position, BEGIN_US + 5).messages), ["1"]);
}

#[test]
fn what_is_too_old_is_never_returned_and_missed() {
    let mut streams = streams();
    let first = publish(&mut streams, "1", BEGIN_US);
    let second = publish(&mut streams, "2", BEGIN_US + 1_000_000);
    let at_the_age = BEGIN_US + 300_000_000;
    let begin = Position { offset: 0, ..first };
    assert_eq!(payloads(&from(&mut streams, begin, at_the_age).messages), ["1", "2"]);
    let over = at_the_age + 1_000;
    assert_eq!(from(&mut streams, begin, over).reason, Some(Reason::Trimmed));
    assert_eq!(payloads(&from(&mut streams, first, over).messages), ["2"]);
    let page = look(&mut streams, Look { limit: 10, ..Look::default() }, over);
    assert_eq!(payloads(&page.messages), ["2"]);
    let all = (Bound::Unbounded, Bound::Unbounded);
    let range = streams.range(CHAT, all.0, all.1, None, false, over).unwrap();
    assert_eq!(payloads(&range), ["2"]);
    // Nothing was missed after the last, however old it is.
    let much_later = over + 80_000_000_000;
    assert!(from(&mut streams, second, much_later).recovered);
}

#[test]
fn an_idle_stream_ends_after_its_begin_publication_or_last_listener() {
    let idle_us = 86_400_000_000;
    let epoch = |streams: &mut Streams, now_us| {
        streams.resume(CHAT, &Resume::default(), || 0, now_us).unwrap().position.epoch
    };
    let mut streams = streams();
    assert_eq!(epoch(&mut streams, BEGIN_US), BEGIN_US);
    assert_eq!(epoch(&mut streams, BEGIN_US + idle_us - 1_000), BEGIN_US, "a RESUME is no use");
    assert_eq!(epoch(&mut streams, BEGIN_US + idle_us), BEGIN_US + idle_us);
    let begun = BEGIN_US + idle_us;
    let published = begun + 1_000_000;
    publish(&mut streams, "1", published);
    assert_eq!(epoch(&mut streams, published + idle_us - 1_000), begun);
    streams.listening(CHAT, 1, published + idle_us - 1_000);
    assert_eq!(epoch(&mut streams, published + 9 * idle_us), begun, "it has a listener");
    let left = published + 9 * idle_us;
    streams.listening(CHAT, -1, left);
    assert_eq!(epoch(&mut streams, left + idle_us - 1_000), begun);
    assert_eq!(epoch(&mut streams, left + idle_us), left + idle_us);
}

#[test]
fn a_stream_begins_with_the_listeners_that_there_are() {
    let mut streams = streams();
    streams.listening(CHAT, 1, BEGIN_US);
    assert_eq!(streams.length(CHAT, BEGIN_US), None, "a listener begins no stream");
    streams.publish(CHAT, entry("1"), || 3, BEGIN_US);
    streams.publish(CHAT, entry("2"), || unreachable!("it has begun"), BEGIN_US);
    streams.listening(CHAT, -1, BEGIN_US);
    assert_eq!(streams.list(None, 10, BEGIN_US).streams[0].listeners, 2);
}

#[test]
fn last_and_since_rewind_where_nothing_is_recovered() {
    let mut streams = Streams::new(
        Limits { resume_messages_max: 5, resume_bytes_max: 7, ..limits() },
        all(rule(100, 300_000, 86_400_000)),
    );
    for number in 0..6 {
        publish(&mut streams, &format!("{number}."), BEGIN_US + number * 1_000);
    }
    let now_us = BEGIN_US + 10_000;
    let mut check = |resume: Resume, recovered: bool, expected: &[&str]| {
        let resumed = streams.resume(CHAT, &resume, || 0, now_us).unwrap();
        assert_eq!(payloads(&resumed.messages), expected, "{resume:?}");
        assert_eq!(resumed.recovered, recovered);
    };
    let none = Resume::default();
    check(Resume { last: Some(1), ..none }, false, &["5."]);
    check(Resume { last: Some(2), ..none }, false, &["4.", "5."]);
    check(Resume { last: Some(5), ..none }, false, &["3.", "4.", "5."]);
    let since_ms = Some(BEGIN_US / 1_000 + 4);
    check(Resume { since_ms, ..none }, false, &["4.", "5."]);
    check(Resume { since_ms, last: Some(1), ..none }, false, &["5."]);
    check(Resume { since_ms: Some(u64::MAX), ..none }, false, &[]);
    let position = Some(Position { epoch: BEGIN_US, offset: 6 });
    check(Resume { position, last: Some(2), ..none }, true, &[]);
    let position = Some(Position { epoch: 1, offset: 6 });
    check(Resume { position, last: Some(2), ..none }, false, &["4.", "5."]);
    check(Resume { last: Some(2), is_listening: true, ..none }, false, &[]);
}

#[test]
fn a_connection_that_listens_receives_nothing_old() {
    let mut streams = streams();
    let first = publish(&mut streams, "1", BEGIN_US);
    publish(&mut streams, "2", BEGIN_US);
    let resume = Resume { position: Some(first), is_listening: true, ..Resume::default() };
    let resumed = streams.resume(CHAT, &resume, || 1, BEGIN_US).unwrap();
    assert_eq!(resumed.position.offset, 2);
    assert_eq!((resumed.recovered, resumed.reason), (false, Some(Reason::Listening)));
    assert!(resumed.messages.is_empty());
}

#[test]
fn pages_of_history_are_all_of_it() {
    let mut streams =
        Streams::new(Limits { resume_bytes_max: 8, ..limits() }, all(rule(8, 300_000, 86_400_000)));
    for number in 0..9 {
        let payload = if number == 4 { "too large for a page" } else { "page" };
        publish(&mut streams, payload, BEGIN_US);
    }
    for reverse in [false, true] {
        let mut offsets: Vec<Vec<u64>> = Vec::new();
        let mut request = Look { limit: 3, reverse, ..Look::default() };
        loop {
            let page = look(&mut streams, request, BEGIN_US);
            offsets.push(page.messages.iter().map(|one| one.position.offset).collect());
            assert!(!page.gap);
            match page.next {
                Some(next) if reverse => request.before = Some(next),
                Some(next) => request.after = Some(next),
                None => break,
            }
        }
        match reverse {
            false => assert_eq!(offsets, [vec![2, 3], vec![4], vec![5], vec![6, 7], vec![8, 9]]),
            true => assert_eq!(offsets, [vec![9, 8], vec![7, 6], vec![5], vec![4, 3], vec![2]]),
        }
    }
}

#[test]
fn a_gap_is_where_something_after_may_be_gone() {
    let mut streams = Streams::new(limits(), all(rule(2, 300_000, 86_400_000)));
    for _ in 0..4 {
        publish(&mut streams, "1", BEGIN_US);
    }
    let mut check = |after: Option<(u64, u64)>, messages: usize, gap: bool| {
        let after = after.map(|(epoch, offset)| Position { epoch, offset });
        let page = look(&mut streams, Look { after, limit: 10, ..Look::default() }, BEGIN_US);
        assert_eq!((page.messages.len(), page.gap), (messages, gap), "{after:?}");
    };
    check(None, 2, false);
    check(Some((BEGIN_US, 4)), 0, false);
    check(Some((BEGIN_US, 3)), 1, false);
    check(Some((BEGIN_US, 2)), 2, false);
    check(Some((BEGIN_US, 1)), 2, true);
    check(Some((BEGIN_US, 0)), 2, true);
    check(Some((BEGIN_US - 1, 9)), 2, true);
    // From the future: it is of a stream that is not there any more.
    check(Some((BEGIN_US, 5)), 0, true);
    check(Some((BEGIN_US + 1, 0)), 0, true);
}

#[test]
fn a_version_must_be_above_those_retained() {
    let mut streams = Streams::new(limits(), all(rule(2, 300_000, 86_400_000)));
    let mut publish = |version: Option<u64>| {
        let entry = Entry::new(b"", 7, version, None);
        matches!(streams.publish(CHAT, entry, || 0, BEGIN_US), Published::Kept(_))
    };
    assert!(publish(Some(5)));
    assert!(!publish(Some(5)));
    assert!(!publish(Some(4)));
    assert!(publish(None));
    assert!(!publish(Some(4)), "5 is retained");
    assert!(publish(None));
    assert!(publish(Some(4)), "5 is not retained any more");
}

#[test]
fn a_channel_that_lost_its_history_lost_its_stream_for_good() {
    let rule = rule(100, 300_000, 86_400_000);
    let mut streams = streams();
    let position = publish(&mut streams, "1", BEGIN_US);
    publish(&mut streams, "2", BEGIN_US);
    streams.set_rules(Arc::new(|_| None), BEGIN_US + 1_000);
    streams.set_rules(all(rule), BEGIN_US + 2_000);
    // Not one stream was checked between the two.
    let resumed = from(&mut streams, position, BEGIN_US + 3_000);
    assert_eq!(resumed.reason, Some(Reason::Epoch));
    streams.set_rules(Arc::new(|_| None), BEGIN_US + 4_000);
    let now_us = BEGIN_US + 5_000;
    assert_eq!(streams.publish(CHAT, entry("3"), || 0, now_us), Published::NoHistory);
    assert_eq!(streams.resume(CHAT, &Resume::default(), || 0, now_us), None);
    assert_eq!(streams.history(CHAT, &Look::default(), || 0, now_us), None);
}

#[test]
fn smaller_sizes_trim_for_good() {
    let large = rule(100, 300_000, 86_400_000);
    let mut streams = streams();
    for number in 0..10 {
        publish(&mut streams, "1", BEGIN_US + number * 1_000_000);
    }
    let now_us = BEGIN_US + 9_000_000;
    streams.set_rules(all(rule(5, 300_000, 86_400_000)), now_us);
    streams.set_rules(all(large), now_us);
    assert_eq!(streams.length(CHAT, now_us), Some(5));
    streams.set_rules(all(rule(100, 2_000, 86_400_000)), now_us);
    streams.set_rules(all(large), now_us + 1_000_000);
    assert_eq!(streams.length(CHAT, now_us + 9_000_000), Some(2));
    assert!(streams.apply_rules(now_us, 100).is_done);
}

#[test]
fn the_answers_to_commands_of_redis_begin_no_stream() {
    let mut streams = streams();
    let unbounded = (Bound::Unbounded, Bound::Unbounded);
    assert_eq!(streams.range(CHAT, unbounded.0, unbounded.1, None, false, BEGIN_US), None);
    assert_eq!(streams.length(CHAT, BEGIN_US), None);
    assert_eq!(streams.info(CHAT, BEGIN_US), None);
    assert_eq!(streams.last_position(CHAT, BEGIN_US), None);
    assert_eq!(streams.totals().streams, 0);
}

#[test]
fn applied_rules_free_memory_and_the_resolvers_before_them() {
    let before = Arc::new(());
    let held = before.clone();
    let first = rule(100, 300_000, 86_400_000);
    let resolver = move |_: &[u8]| Some(first).filter(|_| Arc::strong_count(&held) > 0);
    let mut streams = Streams::new(limits(), Arc::new(resolver));
    for number in 0..1_000 {
        let name = format!("chat.{number}");
        streams.publish(name.as_bytes(), entry("1"), || 1, BEGIN_US);
    }
    let ends = |name: &[u8]| !name.ends_with(b"7");
    streams.set_rules(Arc::new(move |name| ends(name).then_some(first)), BEGIN_US);
    assert_eq!(Arc::strong_count(&before), 2);
    let mut calls = 0;
    while !streams.apply_rules(BEGIN_US, 100).is_done {
        calls += 1;
    }
    assert!(calls > 10);
    assert_eq!(streams.totals().streams, 900);
    assert_eq!(Arc::strong_count(&before), 1);
}
