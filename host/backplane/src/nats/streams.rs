//! The JetStream streams that histories and keys are in.
//!
//! There is one stream for each size of histories: up to 1, 10, 100 messages for each channel, and so
//! on. A rule uses the smallest one that is large enough, and the reader counts exactly. So most
//! changes of a rule keep the channel in its stream, and nodes that reload one after another agree
//! on it. A further stream has the keys. Each channel is one token below the tree of its stream; NATS
//! republishes what is stored under the plain subject of the channel, with the name of the stream,
//! the sequence and the one before it.
//!
//! The name of a stream ends with the time of its creation, which is the epoch of its positions. A
//! stream that was deleted or lost comes back under another name. So does one that went back, by a
//! restored backup or a lost disk write: the nodes know the last message that they received of a
//! stream, and replace a stream that ends before it, or has another message in its place. They
//! cannot see it if all of them have been started again since, or if that message has expired.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::jetstream::context::{ContextBuilder, RequestErrorKind};
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{Config, DiscardPolicy, Info, Republish, StorageType};
use async_nats::jetstream::{Context, ErrorCode};
use async_nats::{Client, HeaderMap};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::{OWN_TREE, failed, own_subject, subjects};
use crate::LinkError;
use switchyard_types::command::Space;
use switchyard_types::history::HistoryRule;

/// The header with the publishing node and the number of what was stored.
pub(super) const APPEND: &str = "Switchyard-Append";
/// Stands for a dot of a channel's subject where that is one token. No subject of a channel
/// contains it.
const DOT: &str = "%_";
/// How often a stream is looked for while other nodes create it.
const ATTEMPTS: usize = 8;
/// The streams in which the last message is remembered; there are seven for each prefix.
const SEEN_MAX: usize = 64;

/// Which stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Class {
    /// Histories of so many messages at most: a power of ten.
    History(usize),
    /// Keys of publications.
    Keys,
}

impl Class {
    /// The stream for channels with this rule.
    pub fn of(rule: HistoryRule) -> Class {
        let mut messages = 1;
        while messages < rule.messages {
            messages *= 10;
        }
        Class::History(messages)
    }

    /// All that hold histories.
    pub fn histories() -> impl Iterator<Item = Class> {
        (0..6).map(|power| Class::History(10_usize.pow(power)))
    }

    fn name(self) -> String {
        match self {
            Class::History(messages) => format!("history-{messages}"),
            Class::Keys => "keys".to_owned(),
        }
    }
}

/// What a stream must provide at least.
#[derive(Debug, Clone, Copy)]
pub(super) struct Needs {
    /// How long messages are kept.
    pub age: Duration,
    /// How long publications with the same key are recognized.
    pub key_time: Duration,
}

impl Needs {
    /// Messages are kept for twice the idle time, so that anchors and the last message of a quiet
    /// channel outlive what they are needed for.
    pub fn of(rule: HistoryRule, key_time: Duration) -> Needs {
        let age = Duration::from_millis(rule.idle_ms.saturating_mul(2));
        Needs { age: age.max(key_time), key_time }
    }

    pub fn of_keys(key_time: Duration) -> Needs {
        Needs { age: key_time, key_time }
    }
}

/// A stream.
#[derive(Debug)]
pub(super) struct Known {
    pub name: String,
    pub epoch: u64,
    age: Duration,
    key_time: Duration,
}

/// The last messages that this process received, by stream: the sequence, and what identifies it.
#[derive(Debug, Default)]
pub(crate) struct Seen(Mutex<HashMap<String, (u64, String)>>);

impl Seen {
    pub fn note(&self, stream: &str, sequence: u64, identity: &str) {
        let mut seen = self.0.lock();
        if let Some(last) = seen.get_mut(stream) {
            if last.0 < sequence {
                last.0 = sequence;
                last.1.clear();
                last.1.push_str(identity);
            }
        } else {
            if seen.len() >= SEEN_MAX {
                seen.clear();
            }
            seen.insert(stream.to_owned(), (sequence, identity.to_owned()));
        }
    }
}

/// The streams over one connection.
#[derive(Clone)]
pub(super) struct Streams {
    pub context: Context,
    prefix: Arc<str>,
    replicas: usize,
    known: Arc<Mutex<HashMap<Class, Arc<Known>>>>,
    /// Held while a stream is looked for or created.
    creating: Arc<tokio::sync::Mutex<()>>,
    seen: Arc<Seen>,
}

/// The epochs of this process rise, whatever the clock does.
static EPOCH: AtomicU64 = AtomicU64::new(0);

/// The payload of a request without one.
#[derive(Serialize)]
struct Nothing {}

/// A request that JetStream answered with an error, or not at all.
pub(super) enum ApiError {
    Code(ErrorCode, String),
    Link(LinkError),
}

impl From<ApiError> for LinkError {
    fn from(error: ApiError) -> LinkError {
        match error {
            // "not enabled" and "not enabled for account".
            ApiError::Code(ErrorCode(10039 | 10076), said) => LinkError::NoJetStream(said),
            ApiError::Code(_, said) => failed(format!("JetStream: {said}")),
            ApiError::Link(problem) => problem,
        }
    }
}

impl Streams {
    pub fn new(
        client: Client,
        prefix: &str,
        replicas: usize,
        answer_time: Duration,
        seen: Arc<Seen>,
    ) -> Streams {
        let context = ContextBuilder::new().timeout(answer_time).build(client);
        Streams {
            context,
            prefix: prefix.into(),
            replicas,
            known: Arc::default(),
            creating: Arc::default(),
            seen,
        }
    }

    /// Checks that the account has JetStream.
    pub async fn probe(&self) -> Result<(), LinkError> {
        #[derive(Deserialize)]
        struct Account {}
        self.api::<Account>("INFO", &Nothing {}).await?;
        Ok(())
    }

    /// The subject that publications on a channel are stored under.
    pub fn subject(&self, class: Class, channel: &[u8]) -> String {
        match class {
            Class::History(_) => own_subject(&self.prefix, &tree(class, &token(channel))),
            Class::Keys => own_subject(&self.prefix, &format!("once.{}", token(channel))),
        }
    }

    /// The subject of a channel's anchors.
    pub fn anchors(&self, class: Class, channel: &[u8]) -> String {
        own_subject(&self.prefix, &format!("anchor.{}.{}", class.name(), token(channel)))
    }

    /// The subject of the answer to a publication.
    pub fn answer(&self, hash: &str) -> String {
        own_subject(&self.prefix, &format!("answer.{hash}"))
    }

    /// A stream that provides what is needed; it is created or changed where necessary. Limits are
    /// only raised: another node may need more.
    pub async fn get(&self, class: Class, needs: Needs) -> Result<Arc<Known>, LinkError> {
        let is_enough =
            |known: &Arc<Known>| known.age >= needs.age && known.key_time >= needs.key_time;
        let known = || self.known.lock().get(&class).filter(|known| is_enough(known)).cloned();
        if let Some(known) = known() {
            return Ok(known);
        }
        let _alone = self.creating.lock().await;
        if let Some(known) = known() {
            return Ok(known);
        }
        for _ in 0..ATTEMPTS {
            let Some(info) = self.find_or_create(class, needs).await? else { continue };
            let mut config = info.config;
            let Some(epoch) = self.epoch(class, &config.name) else {
                let name = config.name;
                return Err(failed(format!(
                    "the JetStream stream {name} has the subjects {OWN_TREE}.>, which are for nodes"
                )));
            };
            EPOCH.fetch_max(epoch, Ordering::Relaxed);
            if config.max_age < needs.age || config.duplicate_window < needs.key_time {
                config.max_age = config.max_age.max(needs.age);
                config.duplicate_window = config.duplicate_window.max(needs.key_time);
                self.api::<Info>(&format!("STREAM.UPDATE.{}", config.name), &config).await?;
            }
            let Config { name, max_age: age, duplicate_window: key_time, .. } = config;
            let known = Arc::new(Known { name, epoch, age, key_time });
            self.known.lock().insert(class, known.clone());
            return Ok(known);
        }
        Err(failed(format!("no JetStream stream for {} could be created", class.name())))
    }

    /// A stream that exists already.
    pub async fn existing(&self, class: Class) -> Result<Option<Arc<Known>>, LinkError> {
        if let Some(known) = self.known.lock().get(&class) {
            return Ok(Some(known.clone()));
        }
        let Some(name) = self.find(class).await? else { return Ok(None) };
        let Some(epoch) = self.epoch(class, &name) else { return Ok(None) };
        let nothing = Duration::ZERO;
        Ok(Some(Arc::new(Known { name, epoch, age: nothing, key_time: nothing })))
    }

    /// The stream may be gone: it is looked for again.
    pub fn forget(&self, known: &Known) {
        self.known.lock().retain(|_, other| other.name != known.name);
    }

    /// The sequence of the last message.
    pub async fn last_sequence(&self, known: &Known) -> Result<u64, LinkError> {
        let info: Info = self.api(&format!("STREAM.INFO.{}", known.name), &Nothing {}).await?;
        Ok(info.state.last_sequence)
    }

    /// None: another node has changed something at the same time.
    async fn find_or_create(&self, class: Class, needs: Needs) -> Result<Option<Info>, LinkError> {
        let Some(name) = self.find(class).await? else {
            let config = self.config(class, needs);
            let created = self.api(&format!("STREAM.CREATE.{}", config.name), &config).await;
            return match created {
                Ok(info) => {
                    info!(stream = config.name, "a JetStream stream was created");
                    Ok(Some(info))
                }
                Err(ApiError::Code(code, said)) if code == ErrorCode::STREAM_SUBJECT_OVERLAP => {
                    // Another node's, if it has a name as this one.
                    match self.find(class).await? {
                        Some(_) => Ok(None),
                        None => Err(failed(format!("JetStream: {said}"))),
                    }
                }
                Err(error) => Err(error.into()),
            };
        };
        // Before the request: what arrives after its answer is not in the answer.
        let seen = self.seen.0.lock().get(&name).cloned();
        let info: Info = match self.api(&format!("STREAM.INFO.{name}"), &Nothing {}).await {
            Err(ApiError::Code(code, _)) if code == ErrorCode::STREAM_NOT_FOUND => return Ok(None),
            info => info?,
        };
        if let Some(seen) = seen
            && self.went_back(&info, seen).await?
        {
            warn!(stream = name, "a JetStream stream has lost messages: a new one is created");
            #[derive(Deserialize)]
            struct Deleted {}
            match self.api::<Deleted>(&format!("STREAM.DELETE.{name}"), &Nothing {}).await {
                Err(ApiError::Code(code, _)) if code == ErrorCode::STREAM_NOT_FOUND => {}
                deleted => {
                    let Deleted {} = deleted?;
                }
            }
            return Ok(None);
        }
        Ok(Some(info))
    }

    /// The name of the stream with these subjects.
    async fn find(&self, class: Class) -> Result<Option<String>, LinkError> {
        #[derive(Serialize)]
        struct Asked {
            subject: String,
        }
        #[derive(Deserialize)]
        struct Names {
            streams: Option<Vec<String>>,
        }
        let subject = self.subjects(class).into_iter().next().unwrap_or_default();
        let names: Names = self.api("STREAM.NAMES", &Asked { subject }).await?;
        Ok(names.streams.unwrap_or_default().into_iter().next())
    }

    /// Whether the stream lacks a message that this process has received.
    async fn went_back(
        &self,
        info: &Info,
        (sequence, identity): (u64, String),
    ) -> Result<bool, LinkError> {
        let name = &info.config.name;
        if info.state.last_sequence < sequence {
            return Ok(true);
        }
        let stream = self.context.get_stream_no_info(name).await.map_err(failed)?;
        // If it has expired, nothing can be said.
        let Ok(message) = stream.get_raw_message(sequence).await else { return Ok(false) };
        Ok(identity_of(&message.headers) != identity)
    }

    fn subjects(&self, class: Class) -> Vec<String> {
        let own = |name: &str| own_subject(&self.prefix, name);
        match class {
            Class::History(_) => {
                let anchors = format!("anchor.{}.*", class.name());
                vec![own(&tree(class, "*")), own(&anchors)]
            }
            Class::Keys => vec![own("once.*"), own("answer.*")],
        }
    }

    fn config(&self, class: Class, needs: Needs) -> Config {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = now.as_micros() as u64;
        let previous = EPOCH.fetch_max(now, Ordering::Relaxed);
        let epoch = now.max(previous + 1);
        EPOCH.fetch_max(epoch, Ordering::Relaxed);
        let subjects = self.subjects(class);
        let plain = format!("{{{{split(1,{DOT})}}}}");
        let destination = match &*self.prefix {
            "" => plain,
            prefix => format!("{prefix}.{plain}"),
        };
        let messages = match class {
            // One more than is sent: a position is known as long as everything after it is.
            Class::History(messages) => messages as i64 + 1,
            Class::Keys => 1,
        };
        Config {
            name: format!("{}-{epoch}", self.stem(class)),
            description: Some("Switchyard: histories of channels, keys of publications".to_owned()),
            republish: subjects.first().map(|source| Republish {
                source: source.clone(),
                destination,
                headers_only: false,
            }),
            subjects,
            max_messages_per_subject: messages,
            max_age: needs.age,
            duplicate_window: needs.key_time,
            discard: DiscardPolicy::Old,
            storage: StorageType::File,
            num_replicas: self.replicas,
            ..Config::default()
        }
    }

    /// What the name of a stream begins with.
    fn stem(&self, class: Class) -> String {
        stem(&self.prefix, &class.name())
    }

    fn epoch(&self, class: Class, name: &str) -> Option<u64> {
        name.strip_prefix(&self.stem(class))?.strip_prefix('-')?.parse().ok()
    }

    async fn api<T: DeserializeOwned>(
        &self,
        subject: &str,
        payload: &impl Serialize,
    ) -> Result<T, ApiError> {
        let answer: Result<Response<T>, _> =
            self.context.request(subject.to_owned(), payload).await;
        match answer {
            Ok(Response::Ok(answer)) => Ok(answer),
            Ok(Response::Err { error }) => {
                Err(ApiError::Code(error.error_code(), error.to_string()))
            }
            Err(error) if error.kind() == RequestErrorKind::NoResponders => Err(ApiError::Link(
                LinkError::NoJetStream("the server has not enabled it".to_owned()),
            )),
            Err(error) => Err(ApiError::Link(failed(format!("JetStream: {error}")))),
        }
    }
}

/// The epoch of a stream that holds histories under this prefix; none: it is another stream.
pub(super) fn history_epoch(prefix: &str, stream: &str) -> Option<u64> {
    let (class, epoch) = stream.strip_prefix(&stem(prefix, "history-"))?.split_once('-')?;
    class.parse::<usize>().ok()?;
    epoch.parse().ok()
}

/// The epoch of one of the nodes' streams.
pub(super) fn epoch_of(stream: &str) -> Option<u64> {
    stream.rsplit_once('-')?.1.parse().ok()
}

/// What distinguishes a stored message from others.
pub(super) fn identity_of(headers: &HeaderMap) -> &str {
    headers.get(APPEND).map_or("", |header| header.as_str())
}

fn stem(prefix: &str, class: &str) -> String {
    let plain: String = prefix
        .chars()
        .map(|character| if character.is_ascii_alphanumeric() { character } else { '_' })
        .take(32)
        .collect();
    // Prefixes that differ only in what a name of a stream cannot contain differ in their checksum.
    format!("switchyard-{plain}-{:08x}-{class}", crc32fast::hash(prefix.as_bytes()))
}

fn tree(class: Class, token: &str) -> String {
    format!("{}.{token}", class.name())
}

/// The subject of a channel as one token.
fn token(channel: &[u8]) -> String {
    subjects::subject("", Space::Channels, channel).replace('.', DOT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_uses_the_smallest_stream_that_is_large_enough() {
        for (messages, expected) in
            [(1, 1), (2, 10), (10, 10), (11, 100), (10_001, 100_000), (100_000, 100_000)]
        {
            let rule = HistoryRule { messages, age_ms: 1, idle_ms: 1 };
            assert_eq!(Class::of(rule), Class::History(expected), "{messages}");
            assert!(Class::histories().any(|class| class == Class::of(rule)), "{messages}");
        }
    }

    #[test]
    fn the_name_of_a_stream_has_its_epoch() {
        let name = format!("{}-1764340000000000", stem("a.b", "history-100"));
        assert_eq!(history_epoch("a.b", &name), Some(1_764_340_000_000_000));
        assert_eq!(history_epoch("a_b", &name), None);
        assert_eq!(history_epoch("", &name), None);
        let keys = format!("{}-1764340000000000", stem("a.b", "keys"));
        assert_eq!(history_epoch("a.b", &keys), None);
    }

    #[test]
    fn a_channel_is_one_token() {
        assert_eq!(token(b"news.world"), "news%_world");
        assert_eq!(token(b"a..b%_c"), "a%_%-%_b%25_c");
    }
}
