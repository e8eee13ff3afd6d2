//! The store on a real disk: restarts, crashes, damaged files, directories that cannot be used.
//!
//! A crash is a copy of the directory while the store runs: that is what a process that was killed
//! leaves.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use support::Histories;
use switchyard_history::{
    Claim, Claims, Entry, HistoryRule, Look, Position, Published, Reason, Resume,
};
use switchyard_history_store::{Memory, OpenError, Options, Store};
use switchyard_types::command;

const CLOSE_TIME: Duration = Duration::from_secs(60);

fn rule(messages: usize) -> HistoryRule {
    HistoryRule { messages, age_ms: 3_600_000, idle_ms: 3_600_000 }
}

fn options(directory: &Path) -> Options {
    let flush_time = Duration::from_millis(1);
    Options { directory: directory.to_owned(), flush_time, batch_bytes_max: 4 << 10 }
}

fn open(directory: &Path, messages: usize) -> (Arc<Histories>, Store) {
    let histories = Histories::new(rule(messages));
    let store = Store::open(options(directory), histories.clone()).expect("it opens");
    (histories, store)
}

fn publish(histories: &Histories, channel: &str, payload: &str) -> Position {
    let entry = Entry::new(payload.as_bytes(), 7, None, None);
    let mut streams = histories.streams.lock();
    let published = streams.publish(channel.as_bytes(), entry, || 0, histories.now_us());
    let kept = match published {
        Published::Kept(position) => Some(position),
        Published::Stale | Published::NoHistory => None,
    };
    kept.expect("it is retained")
}

fn history(histories: &Histories, channel: &str) -> Vec<(Position, String)> {
    let look = Look { limit: 1_000, ..Look::default() };
    let mut streams = histories.streams.lock();
    let page = streams.history(channel.as_bytes(), &look, || 0, histories.now_us());
    let messages = page.expect("a history").messages.into_iter();
    let text = |entry: &Entry| String::from_utf8(entry.payload().to_vec()).expect("text");
    messages.map(|message| (message.position, text(&message.entry))).collect()
}

fn resume(histories: &Histories, channel: &str, position: Position) -> Result<usize, Reason> {
    let resume = Resume { position: Some(position), ..Resume::default() };
    let mut streams = histories.streams.lock();
    let resumed = streams.resume(channel.as_bytes(), &resume, || 0, histories.now_us());
    let resumed = resumed.expect("a history");
    resumed.reason.map_or(Ok(resumed.messages.len()), Err)
}

/// Waits until so many messages were written.
fn written(store: &Store, messages: u64) {
    while store.status().messages < messages {
        std::thread::yield_now();
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("it is read") {
        let path = entry.expect("an entry").path();
        let to = to.join(path.file_name().expect("a name"));
        match path.is_dir() {
            true => copy(&path, &to),
            false => drop(fs::copy(&path, &to).expect("it is copied")),
        }
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("it is read").map(|it| it.expect("it").path());
    let mut files: Vec<PathBuf> =
        entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect();
    files.sort();
    files
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("it is read");
    let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    entries.map(|entry| name(entry.expect("an entry"))).collect()
}

#[test]
fn after_a_clean_stop_everything_goes_on() {
    let home = tempfile::tempdir().expect("a directory");
    let directory = home.path().join("history");
    let mut expected = Vec::new();
    let mut position = None;
    for round in 0..3 {
        let (histories, store) = open(&directory, 50);
        assert!(!store.status().read.is_damaged);
        if let Some(position) = position {
            assert_eq!(history(&histories, "chat"), expected);
            assert_eq!(resume(&histories, "chat", position), Ok(0));
        }
        for number in 0..30 {
            let payload = format!("{round}.{number}");
            let at = publish(&histories, "chat", &payload);
            expected.push((at, payload));
            position = Some(at);
        }
        expected.drain(..expected.len().saturating_sub(50));
        let key: &[(&[u8], &[u8])] = &[(b"chat", b"key")];
        let mut keys = histories.keys.lock();
        let claims = keys.claim(key, histories.now_us());
        let answer = command::Published { deliveries: 3, position, is_stale: true };
        match round {
            0 => assert_eq!(claims, Claims::Claimed(vec![Claim::New])),
            _ => {
                let Claims::Claimed(claims) = claims else { panic!("nothing is pending") };
                let [Claim::Done(first)] = &claims[..] else { panic!("{claims:?}") };
                assert_eq!((first.deliveries, first.is_stale), (3, true));
            }
        }
        keys.finish(b"chat", b"key", answer, histories.now_us());
        drop(keys);
        store.close(CLOSE_TIME).expect("it closes");
    }
    let epochs: Vec<u64> = expected.iter().map(|(position, _)| position.epoch).collect();
    assert!(epochs.windows(2).all(|pair| pair[0] == pair[1]), "one epoch");
}

#[test]
fn after_a_crash_what_was_written_is_there_and_epochs_are_new() {
    let home = tempfile::tempdir().expect("a directory");
    let (first, second) = (home.path().join("first"), home.path().join("second"));
    let (histories, store) = open(&first, 50);
    let positions: Vec<Position> =
        (0..20).map(|number| publish(&histories, "chat", &number.to_string())).collect();
    written(&store, 20);
    copy(&first, &second);
    let expected = history(&histories, "chat");
    store.close(CLOSE_TIME).expect("it closes");

    let (again, store) = open(&second, 50);
    assert_eq!(history(&again, "chat"), expected);
    for position in &positions {
        assert_eq!(resume(&again, "chat", *position), Err(Reason::Epoch));
    }
    let new = publish(&again, "chat", "new");
    assert!(new.epoch > positions[0].epoch && new.offset == 1);
    assert_eq!(store.status().read.renewed, 1);
    store.close(CLOSE_TIME).expect("it closes");
    // That stop was clean: both epochs are there, and the second goes on.
    let (again, store) = open(&second, 50);
    assert_eq!(history(&again, "chat").len(), 21);
    assert_eq!(resume(&again, "chat", Position { offset: 0, ..new }), Ok(1));
    assert_eq!(publish(&again, "chat", "newer").offset, 2);
    store.close(CLOSE_TIME).expect("it closes");
}

#[test]
fn what_ended_and_what_was_trimmed_is_not_on_disk() {
    let home = tempfile::tempdir().expect("a directory");
    let (histories, store) = open(home.path(), 5);
    for number in 0..100 {
        for channel in ["kept", "purged"] {
            publish(&histories, channel, &number.to_string());
        }
        written(&store, number);
    }
    histories.streams.lock().purge(b"purged", histories.now_us());
    store.close(CLOSE_TIME).expect("it closes");
    let (again, store) = open(home.path(), 50);
    assert_eq!((store.status().read.continued, store.status().read.messages), (1, 5));
    let payloads = history(&again, "kept").into_iter().map(|(_, payload)| payload);
    assert!(payloads.eq((95..100).map(|number| number.to_string())));
    store.close(CLOSE_TIME).expect("it closes");
}

#[test]
fn a_damaged_file_never_gives_what_was_not_published() {
    let seed = std::env::var("SWITCHYARD_STORE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("repeat it with SWITCHYARD_STORE_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let home = tempfile::tempdir().expect("a directory");
    let (crashed, clean) = (home.path().join("crashed"), home.path().join("clean"));
    let (histories, store) = open(&clean, 40);
    let mut published: BTreeMap<Position, (String, String)> = BTreeMap::new();
    for number in 0..2_000 {
        let channel = format!("chat.{}", rng.u8(..20));
        let payload = format!("{channel} {number} {}", "x".repeat(rng.usize(..400)));
        published.insert(publish(&histories, &channel, &payload), (channel, payload));
    }
    written(&store, 500);
    copy(&clean, &crashed);
    let last = histories.streams.lock().last_epoch();
    store.close(CLOSE_TIME).expect("it closes");
    drop(histories);
    let (mut damaged, mut lost) = (0, 0);
    for round in 0..60 {
        let directory = home.path().join(format!("round-{round}"));
        let is_clean = rng.bool();
        copy(if is_clean { &clean } else { &crashed }, &directory);
        let mut files = files(&directory);
        files.retain(|file| file.metadata().is_ok_and(|metadata| metadata.len() > 0));
        let file = &files[rng.usize(..files.len())];
        let mut bytes = fs::read(file).expect("it is read");
        // The logs are long and mostly empty: half of the damage is where something is.
        let filled = bytes.iter().rposition(|byte| *byte != 0).map_or(1, |at| at + 1);
        let end = if rng.bool() { filled } else { bytes.len() };
        match rng.u8(..3) {
            0 => (0..rng.usize(1..10)).for_each(|_| bytes[rng.usize(..end)] ^= 1 << rng.u8(..8)),
            1 => bytes.truncate(rng.usize(..end)),
            _ => {
                let at = rng.usize(..end);
                let to = (at + rng.usize(1..5_000)).min(end);
                bytes[at..to].fill_with(|| rng.u8(..));
            }
        }
        fs::write(file, &bytes).expect("it is written");
        let context = format!("round {round}, {}", file.display());
        let (histories, store) = open(&directory, 40);
        let read = store.status().read;
        damaged += u32::from(read.is_damaged);
        let mut messages = 0;
        for number in 0..20 {
            let channel = format!("chat.{number}");
            let before = history(&histories, &channel);
            messages += before.len();
            for (position, payload) in &before {
                let of = published.get(position).expect(&context);
                assert_eq!(of, &(channel.clone(), payload.clone()), "{context}");
            }
            let run = before.windows(2).all(|pair| {
                let [(one, _), (next, _)] = pair else { return false };
                one.epoch == next.epoch && one.offset + 1 == next.offset
            });
            assert!(run, "{context}");
            // No position comes back with other content.
            let new = publish(&histories, &channel, "new");
            assert!(!published.contains_key(&new), "{context}: {new:?}");
            assert!(is_clean || new.epoch > last, "{context}: {new:?}");
        }
        lost += u32::from(messages == 0);
        store.close(CLOSE_TIME).expect(&context);
        // What was set aside is not read again, and nothing else is damaged.
        let (histories, store) = open(&directory, 40);
        assert!(!store.status().read.is_damaged, "{context}");
        assert!(
            (0..20).all(|it| !history(&histories, &format!("chat.{it}")).is_empty()),
            "{context}"
        );
        store.close(CLOSE_TIME).expect(&context);
        fs::remove_dir_all(&directory).expect("it is removed");
    }
    println!("{damaged} of 60 were damaged, {lost} had nothing left");
}

#[test]
fn a_directory_that_cannot_be_used_is_an_error_that_names_it() {
    let home = tempfile::tempdir().expect("a directory");
    let refused = |directory: &Path| {
        let Err(error) = Store::open(options(directory), Histories::new(rule(5))) else {
            panic!("it is refused")
        };
        assert!(error.to_string().contains(&directory.display().to_string()), "{error}");
        error
    };
    let file = home.path().join("file");
    fs::write(&file, "text").expect("it is written");
    assert!(matches!(refused(&file), OpenError::NotADirectory(_)));
    assert!(matches!(
        refused(&home.path().join("no/such")),
        OpenError::Io { action: "create", .. }
    ));
    let used = home.path().join("used");
    let (_histories, store) = open(&used, 5);
    assert!(matches!(refused(&used), OpenError::Locked(_)));
    store.close(CLOSE_TIME).expect("it closes");
}

#[test]
fn files_of_another_version_are_set_aside() {
    let home = tempfile::tempdir().expect("a directory");
    let (histories, store) = open(home.path(), 5);
    publish(&histories, "chat", "old");
    store.close(CLOSE_TIME).expect("it closes");
    let state = home.path().join("state");
    let text = fs::read_to_string(&state).expect("it is read");
    fs::write(&state, text.replace("history 1", "history 2")).expect("it is written");
    let (histories, store) = open(home.path(), 5);
    assert_eq!(history(&histories, "chat"), []);
    let names = names(home.path());
    for kept in ["state.damaged-", "database.damaged-"] {
        assert!(names.iter().any(|name| name.starts_with(kept)), "{names:?}");
    }
    store.close(CLOSE_TIME).expect("it closes");
}

#[test]
fn a_store_that_lost_its_files_while_it_runs_writes_all_again() {
    let home = tempfile::tempdir().expect("a directory");
    let (histories, store) = open(home.path(), 5);
    publish(&histories, "chat", "one");
    written(&store, 1);
    let database = home.path().join("database");
    fs::rename(&database, home.path().join("away")).expect("it is renamed");
    // Files that are open go on; what is missing is noticed at the next start at the latest.
    publish(&histories, "chat", "two");
    let closed = store.close(CLOSE_TIME);
    fs::rename(home.path().join("away"), &database).ok();
    drop((histories, closed));
    let (histories, store) = open(home.path(), 5);
    let payloads = history(&histories, "chat").into_iter().map(|(_, payload)| payload);
    assert!(["one", "two"].into_iter().map(str::to_owned).take(payloads.len()).eq(payloads));
    store.close(CLOSE_TIME).expect("it closes");
}
