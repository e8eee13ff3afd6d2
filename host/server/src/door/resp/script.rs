//! EVAL, EVALSHA and SCRIPT, for the one script that is served: a loop of publications.
//!
//! It is executed one publication after the other, in slices, and ends at the first that fails, as
//! in Redis.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use sha1::{Digest, Sha1};

use super::{Resp, reply};
use crate::session::Session;
use crate::session::at_backplane::PublishedLater;
use switchyard_protocol::resp::commands::{CommandId, CommandSpec};
use switchyard_protocol::resp::{Arguments, Script, errors, parse_integer};
use switchyard_types::command::{Ending, Publication, Refusal, Space, Verb};

/// How many spellings of the script a connection may have loaded. When there are more, its oldest
/// is forgotten, and the client sends EVAL again.
const SCRIPTS_MAX: usize = 8;

/// The SHA-1 of a script's text.
type ScriptDigest = [u8; 20];

/// The scripts that EVALSHA knows: those that connections loaded, by EVAL or SCRIPT LOAD, and still
/// hold. A client usually has several connections, so each may execute what another one loaded; but
/// what one does, SCRIPT FLUSH included, removes nothing that another one holds.
#[derive(Debug, Default)]
pub struct Scripts {
    known: Mutex<HashMap<ScriptDigest, Holders>>,
}

#[derive(Debug)]
struct Holders {
    script: Script,
    connections: usize,
}

impl Scripts {
    fn get(&self, digest: &[u8]) -> Option<Script> {
        let digest = parse_digest(digest)?;
        Some(self.known.lock().get(&digest)?.script)
    }
}

/// The scripts that one connection holds.
pub(super) struct LoadedScripts {
    shared: Arc<Scripts>,
    own: VecDeque<ScriptDigest>,
}

impl LoadedScripts {
    pub(super) fn new(shared: Arc<Scripts>) -> LoadedScripts {
        LoadedScripts { shared, own: VecDeque::new() }
    }

    /// Adds a script. Returns its digest, in hexadecimal digits.
    fn add(&mut self, text: &[u8], script: Script) -> String {
        let digest: ScriptDigest = Sha1::digest(text).into();
        if !self.own.contains(&digest) {
            if self.own.len() >= SCRIPTS_MAX {
                self.forget_oldest();
            }
            self.own.push_back(digest);
            let mut known = self.shared.known.lock();
            known.entry(digest).or_insert(Holders { script, connections: 0 }).connections += 1;
        }
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn forget_oldest(&mut self) {
        let Some(digest) = self.own.pop_front() else { return };
        if let Entry::Occupied(mut holders) = self.shared.known.lock().entry(digest) {
            holders.get_mut().connections -= 1;
            if holders.get().connections == 0 {
                holders.remove();
            }
        }
    }

    fn forget_all(&mut self) {
        while !self.own.is_empty() {
            self.forget_oldest();
        }
    }
}

impl Drop for LoadedScripts {
    fn drop(&mut self) {
        self.forget_all();
    }
}

/// The digest that these hexadecimal digits, in any case, stand for.
fn parse_digest(digits: &[u8]) -> Option<ScriptDigest> {
    let digits: &[u8; 40] = digits.try_into().ok()?;
    let mut digest = ScriptDigest::default();
    let (pairs, _) = digits.as_chunks::<2>();
    for (byte, [high, low]) in digest.iter_mut().zip(pairs) {
        let value = |digit: &u8| char::from(*digit).to_digit(16);
        *byte = (value(high)? << 4 | value(low)?) as u8;
    }
    Some(digest)
}

/// A script in progress. Commands after it wait.
pub(super) struct RunningScript {
    verb: Verb,
    digest: String,
    stops_at_error: bool,
    line: usize,
    payload: Vec<u8>,
    channels: std::vec::IntoIter<Vec<u8>>,
    is_first: bool,
    /// A publication that the backplane carries out.
    under_way: Option<PublishedLater>,
    /// Whether CLIENT REPLY SKIP came before it.
    is_skipped: bool,
    /// Whether the reply is one of its own, and not a part of that to EXEC.
    holds_replies: bool,
}

/// How far a publication of a script is.
enum Publishing {
    /// It was published, to so many receivers.
    Done(u64),
    /// The backplane carries it out.
    UnderWay(PublishedLater),
}

impl RunningScript {
    /// The memory of its arguments, in bytes.
    pub(super) fn heap_bytes(&self) -> usize {
        let channels: usize = self.channels.as_slice().iter().map(Vec::capacity).sum();
        self.payload.capacity() + channels + self.channels.len() * size_of::<Vec<u8>>()
    }
}

impl Resp {
    /// EVAL and EVALSHA.
    pub(super) fn eval(
        &mut self,
        spec: &CommandSpec,
        arguments: Arguments<'_>,
        session: &mut Session,
    ) {
        let word = |place| arguments.get(place).unwrap_or_default();
        let keys = match parse_integer(word(2)) {
            None => return self.error(session, errors::NOT_AN_INTEGER),
            Some(keys) if keys > arguments.len() as i64 - 3 => {
                return self.error(session, errors::TOO_MANY_KEYS);
            }
            Some(keys) => match usize::try_from(keys) {
                Err(_) => return self.error(session, errors::NEGATIVE_KEYS),
                Ok(keys) => keys,
            },
        };
        let found = match spec.id {
            CommandId::Evalsha => self
                .info
                .scripts
                .get(word(1))
                .map(|script| (String::from_utf8_lossy(word(1)).to_ascii_lowercase(), script)),
            _ => Script::parse(word(1)).map(|script| (self.scripts.add(word(1), script), script)),
        };
        let Some((digest, Script::PublishToAll { stops_at_error, line })) = found else {
            return self.error(
                session,
                match spec.id {
                    CommandId::Evalsha => errors::NO_SCRIPT,
                    _ => errors::SCRIPT_NOT_SERVED,
                },
            );
        };
        let values = arguments.skip(3 + keys);
        let channels: Vec<Vec<u8>> = values.iter().skip(1).map(<[u8]>::to_vec).collect();
        let holds_replies = session.hold_replies();
        self.script = Some(Box::new(RunningScript {
            verb: super::verb(spec),
            digest,
            stops_at_error,
            line,
            payload: values.get(0).unwrap_or_default().to_vec(),
            channels: channels.into_iter(),
            is_first: true,
            under_way: None,
            is_skipped: self.skips_this,
            holds_replies,
        }));
        self.publish_more(session);
    }

    /// Continues a script, if one is in progress, until the time budget is exhausted.
    pub(super) fn finish_script(&mut self, session: &mut Session) {
        let Some(script) = &self.script else { return };
        if script.under_way.is_some() {
            session.finish_publishing();
            if session.is_waiting() {
                return;
            }
        }
        let (is_skipped, verb) = (script.is_skipped, script.verb);
        // No command ran since, so all else is as it was.
        if is_skipped {
            self.skips_this = true;
        }
        self.ending.set(Ending::Ok);
        self.publish_more(session);
        if self.script.is_none() {
            self.is_done(verb, session);
        }
        if is_skipped {
            self.end_skip();
        }
    }

    fn publish_more(&mut self, session: &mut Session) {
        let Some(mut script) = self.script.take() else { return };
        let failure = loop {
            let published = match script.under_way.take() {
                Some(under_way) => under_way.result(),
                None => {
                    let Some(channel) = script.channels.next() else { break None };
                    match self.publish_for(&mut script, channel, session) {
                        Ok(Publishing::Done(receivers)) => Ok(receivers),
                        Ok(Publishing::UnderWay(under_way)) => {
                            script.under_way = Some(under_way);
                            self.script = Some(script);
                            return;
                        }
                        Err(refusal) => Err(refusal),
                    }
                }
            };
            match published {
                Err(refusal) if script.stops_at_error => break Some(refusal),
                _ => {}
            }
            if session.is_budget_exhausted() && !script.channels.as_slice().is_empty() {
                self.script = Some(script);
                return;
            }
        };
        match failure {
            None => self.reply(session, |reply| reply.null()),
            Some(refusal) => {
                let text = reply::error(&refusal);
                self.error(session, &errors::in_script(&text, &script.digest, script.line));
            }
        }
        if script.holds_replies {
            session.release_replies();
        }
    }

    /// Each publication counts for the rate, as if it came by itself; EVAL counted as the first.
    fn publish_for(
        &self,
        script: &mut RunningScript,
        channel: Vec<u8>,
        session: &mut Session,
    ) -> Result<Publishing, Refusal> {
        if !std::mem::take(&mut script.is_first) {
            session.pace("publish")?;
        }
        let payload = script.payload.as_slice().into();
        let publication = Publication::new(Space::Channels, channel.into(), payload);
        match session.publish_later(&publication) {
            Some(under_way) => Ok(Publishing::UnderWay(under_way)),
            None => session.publish_now(publication).map(Publishing::Done),
        }
    }

    /// SCRIPT and its sub-commands.
    pub(super) fn script(
        &mut self,
        id: CommandId,
        arguments: Arguments<'_>,
        session: &mut Session,
    ) {
        let word = arguments.get(2).unwrap_or_default();
        match id {
            CommandId::ScriptLoad => match Script::parse(word) {
                Some(script) => {
                    let digest = self.scripts.add(word, script);
                    self.reply(session, |reply| reply.bulk(digest.as_bytes()));
                }
                None => self.error(session, errors::SCRIPT_NOT_SERVED),
            },
            CommandId::ScriptExists => self.reply(session, |reply| {
                reply.array(arguments.len() - 2);
                for digest in arguments.skip(2).iter() {
                    reply.integer(self.info.scripts.get(digest).is_some().into());
                }
            }),
            CommandId::ScriptFlush => {
                let is_mode = |word: &[u8]| {
                    word.eq_ignore_ascii_case(b"SYNC") || word.eq_ignore_ascii_case(b"ASYNC")
                };
                match arguments.len() {
                    2 => {}
                    3 if is_mode(word) => {}
                    _ => return self.error(session, errors::SCRIPT_FLUSH_MODE),
                }
                self.scripts.forget_all();
                self.ok(session);
            }
            _ => self.error(session, errors::NO_SCRIPT_RUNS),
        }
    }
}
