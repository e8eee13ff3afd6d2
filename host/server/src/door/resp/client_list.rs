//! CLIENT LIST, a part at a time: there may be many thousand connections, and other tasks run in
//! between.

use std::sync::Arc;

use super::client::{Selection, describe_other};
use super::{Resp, Transport};
use crate::session::Session;
use switchyard_hub::connections::Connection;
use switchyard_types::command::{Ending, Verb};

/// How many connections are described before the budget is checked.
const CONNECTIONS_AT_ONCE: usize = 128;

/// A list in progress.
pub(super) struct ClientList {
    selection: Selection,
    rest: std::vec::IntoIter<Arc<Connection>>,
    lines: String,
    /// Whether CLIENT REPLY SKIP came before it.
    is_skipped: bool,
}

impl Resp {
    /// Starts a list. Over a WebSocket, which may come from a browser, the list contains only the
    /// client itself.
    pub(super) fn client_list(&mut self, selection: Selection, session: &mut Session) {
        let mut connections = match self.transport {
            Transport::Frames => vec![session.connection.clone()],
            Transport::Stream => session.services.hub.connections().opened_ones(),
        };
        connections.sort_unstable_by_key(|connection| connection.id);
        self.client_list = Some(Box::new(ClientList {
            selection,
            rest: connections.into_iter(),
            lines: String::new(),
            is_skipped: self.skips_this,
        }));
        self.describe_more(session);
    }

    /// Continues a list, if one is in progress, until the time budget is exhausted. Sends it when
    /// it is complete.
    pub(super) fn finish_client_list(&mut self, session: &mut Session) {
        let Some(list) = &self.client_list else { return };
        // No command ran since, so all else is as it was.
        let is_skipped = list.is_skipped;
        if is_skipped {
            self.skips_this = true;
        }
        self.ending.set(Ending::Ok);
        self.describe_more(session);
        if self.client_list.is_none() {
            self.is_done(Verb::Client, session);
        }
        if is_skipped {
            self.end_skip();
        }
    }

    fn describe_more(&mut self, session: &mut Session) {
        let Some(mut list) = self.client_list.take() else { return };
        let own = session.connection.id;
        loop {
            let ClientList { selection, rest, lines, .. } = &mut *list;
            for connection in rest.by_ref().take(CONNECTIONS_AT_ONCE) {
                if !selection.has(&connection) {
                    continue;
                }
                match connection.id == own {
                    true => lines.push_str(&self.describe("client|list", session)),
                    false => lines.push_str(&describe_other(&connection)),
                }
                lines.push('\n');
            }
            if rest.len() == 0 {
                return self.reply(session, |reply| reply.verbatim(list.lines.as_bytes()));
            }
            if session.is_budget_exhausted() {
                self.client_list = Some(list);
                return;
            }
        }
    }
}
