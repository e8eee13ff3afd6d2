//! CLIENT TRACKING: client-side caching, which clients enable when they connect.
//!
//! There are no keys, so nothing is ever invalidated; what is kept is what the client reads back.

use std::collections::BTreeSet;

use super::transaction::Scope;
use super::{Resp, reply};
use crate::session::Session;
use switchyard_protocol::resp::commands::CommandId;
use switchyard_protocol::resp::{Arguments, errors, parse_integer};
use switchyard_types::command::{LIMIT, Refusal};

/// What the prefixes of one connection may have together, in bytes, each with an addition for its
/// entry. Redis has no such limit.
const PREFIX_BYTES_MAX: usize = 4 << 10;
const PREFIX_BYTES: usize = 64;

/// The state that a client set.
#[derive(Debug, Default)]
pub(super) struct Tracking {
    mode: Mode,
    noloop: bool,
    /// Whether CLIENT CACHING was the last command but for others of CLIENT.
    is_caching: bool,
    redirect: i64,
    prefixes: BTreeSet<Vec<u8>>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Mode {
    #[default]
    Default,
    Broadcast,
    OptIn,
    OptOut,
}

/// The options of CLIENT TRACKING.
#[derive(Default)]
struct Options {
    redirect: i64,
    broadcast: bool,
    opt_in: bool,
    opt_out: bool,
    noloop: bool,
    prefixes: Vec<Vec<u8>>,
}

impl Options {
    fn read(arguments: Arguments<'_>, session: &Session) -> Result<Options, Vec<u8>> {
        let mut options = Options::default();
        let mut words = arguments.skip(3).iter();
        while let Some(word) = words.next() {
            match word.to_ascii_lowercase().as_slice() {
                b"redirect" if words.len() > 0 => {
                    if options.redirect != 0 {
                        return Err(errors::TRACKING_REDIRECTS.to_vec());
                    }
                    let id = words.next().and_then(parse_integer);
                    let id = id.ok_or_else(|| errors::NOT_AN_INTEGER.to_vec())?;
                    let connections = session.services.hub.connections();
                    if u64::try_from(id).ok().and_then(|id| connections.get(id)).is_none() {
                        return Err(errors::TRACKING_REDIRECT_UNKNOWN.to_vec());
                    }
                    options.redirect = id;
                }
                b"prefix" if words.len() > 0 => {
                    options.prefixes.extend(words.next().map(<[u8]>::to_vec))
                }
                b"bcast" => options.broadcast = true,
                b"optin" => options.opt_in = true,
                b"optout" => options.opt_out = true,
                b"noloop" => options.noloop = true,
                _ => return Err(errors::SYNTAX.to_vec()),
            }
        }
        Ok(options)
    }

    fn mode(&self) -> Mode {
        match (self.broadcast, self.opt_in, self.opt_out) {
            (true, ..) => Mode::Broadcast,
            (_, true, _) => Mode::OptIn,
            (_, _, true) => Mode::OptOut,
            _ => Mode::Default,
        }
    }

    /// Checks the options against each other and against the state until now.
    fn check(&self, before: Option<&Tracking>) -> Result<(), Vec<u8>> {
        let mode = before.map(|before| before.mode);
        let error = match self {
            _ if !self.broadcast && !self.prefixes.is_empty() => errors::TRACKING_PREFIX,
            _ if mode.is_some_and(|mode| (mode == Mode::Broadcast) != self.broadcast) => {
                errors::TRACKING_BROADCAST_CHANGED
            }
            _ if self.broadcast && (self.opt_in || self.opt_out) => {
                errors::TRACKING_BROADCAST_AND_OPTION
            }
            _ if self.opt_in && self.opt_out => errors::TRACKING_BOTH_OPTIONS,
            _ if self.opt_in && mode == Some(Mode::OptOut)
                || self.opt_out && mode == Some(Mode::OptIn) =>
            {
                errors::TRACKING_OPTION_CHANGED
            }
            _ => return self.check_prefixes(before),
        };
        Err(error.to_vec())
    }

    /// Each prefix is compared with each other one, so their size is checked first.
    fn check_prefixes(&self, before: Option<&Tracking>) -> Result<(), Vec<u8>> {
        let existing = before.map(|before| &before.prefixes);
        let all = existing.into_iter().flatten().chain(&self.prefixes);
        let bytes: usize = all.map(|prefix| prefix.len() + PREFIX_BYTES).sum();
        if bytes > PREFIX_BYTES_MAX {
            let message = format!(
                "prefixes of {bytes} bytes, {PREFIX_BYTES} for each included; there may be \
                 {PREFIX_BYTES_MAX}"
            );
            return Err(reply::error(&Refusal::new(LIMIT, message)));
        }
        let overlap = |one: &[u8], other: &[u8]| one.starts_with(other) || other.starts_with(one);
        for (place, prefix) in self.prefixes.iter().enumerate() {
            let mut all = existing.into_iter().flatten();
            if let Some(other) = all.find(|other| overlap(prefix, other)) {
                return Err(errors::prefix_overlaps(prefix, "an existing", other));
            }
            let mut rest = self.prefixes.iter().skip(place + 1);
            if let Some(other) = rest.find(|other| overlap(prefix, other)) {
                return Err(errors::prefix_overlaps(prefix, "another provided", other));
            }
        }
        Ok(())
    }
}

impl Resp {
    /// CLIENT TRACKING, TRACKINGINFO, GETREDIR and CACHING.
    pub(super) fn tracking(
        &mut self,
        id: CommandId,
        arguments: Arguments<'_>,
        session: &mut Session,
    ) {
        match id {
            CommandId::ClientTracking => match self.track(arguments, session) {
                Ok(()) => self.ok(session),
                Err(text) => self.error(session, &text),
            },
            CommandId::ClientCaching => match self.cache(arguments.get(2).unwrap_or_default()) {
                Ok(()) => self.ok(session),
                Err(text) => self.error(session, text),
            },
            CommandId::ClientGetredir => {
                let redirect = self.tracking.as_ref().map_or(-1, |tracking| tracking.redirect);
                self.reply(session, |reply| reply.integer(redirect));
            }
            _ => self.tracking_info(session),
        }
    }

    fn track(&mut self, arguments: Arguments<'_>, session: &Session) -> Result<(), Vec<u8>> {
        let options = Options::read(arguments, session)?;
        let switch = arguments.get(2).unwrap_or_default();
        if switch.eq_ignore_ascii_case(b"off") {
            self.tracking = None;
            return Ok(());
        }
        if !switch.eq_ignore_ascii_case(b"on") {
            return Err(errors::SYNTAX.to_vec());
        }
        options.check(self.tracking.as_deref())?;
        let mut prefixes = self.tracking.take().map(|before| before.prefixes).unwrap_or_default();
        let mode = options.mode();
        if mode == Mode::Broadcast && options.prefixes.is_empty() {
            prefixes.insert(Vec::new());
        }
        prefixes.extend(options.prefixes);
        self.tracking = Some(Box::new(Tracking {
            mode,
            noloop: options.noloop,
            is_caching: false,
            redirect: options.redirect,
            prefixes,
        }));
        Ok(())
    }

    fn cache(&mut self, switch: &[u8]) -> Result<(), &'static [u8]> {
        let tracking = self.tracking.as_mut().ok_or(errors::CACHING_WITHOUT_TRACKING)?;
        let (mode, otherwise) = match switch.to_ascii_lowercase().as_slice() {
            b"yes" => (Mode::OptIn, errors::CACHING_YES),
            b"no" => (Mode::OptOut, errors::CACHING_NO),
            _ => return Err(errors::SYNTAX),
        };
        tracking.is_caching = tracking.mode == mode;
        if tracking.is_caching { Ok(()) } else { Err(otherwise) }
    }

    fn tracking_info(&self, session: &mut Session) {
        let off = Tracking { redirect: -1, ..Tracking::default() };
        let tracking = self.tracking.as_deref().unwrap_or(&off);
        let mut flags = vec![if self.tracking.is_some() { "on" } else { "off" }];
        flags.extend(match tracking.mode {
            Mode::Default => None,
            Mode::Broadcast => Some("bcast"),
            Mode::OptIn => Some("optin"),
            Mode::OptOut => Some("optout"),
        });
        if tracking.is_caching {
            let is_in = tracking.mode == Mode::OptIn;
            flags.push(if is_in { "caching-yes" } else { "caching-no" });
        }
        if tracking.noloop {
            flags.push("noloop");
        }
        self.reply(session, |reply| {
            reply.map(3);
            reply.bulk(b"flags");
            reply.set(flags.len());
            flags.iter().for_each(|flag| reply.bulk(flag.as_bytes()));
            reply.bulk(b"redirect");
            reply.integer(tracking.redirect);
            reply.bulk(b"prefixes");
            reply.array(tracking.prefixes.len());
            tracking.prefixes.iter().for_each(|prefix| reply.bulk(prefix));
        });
    }

    /// A command other than CLIENT is complete: the effect of CLIENT CACHING ends, unless commands
    /// follow that belong to the same transaction.
    pub(super) fn end_caching(&mut self) {
        if self.scope == Scope::Connection
            && self.transaction.is_none()
            && let Some(tracking) = &mut self.tracking
        {
            tracking.is_caching = false;
        }
    }
}
