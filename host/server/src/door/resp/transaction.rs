//! MULTI, EXEC and DISCARD.
//!
//! Commands between MULTI and EXEC are checked, counted and queued. EXEC executes them as if they
//! came one after the other, in slices as any pipeline, and their replies are sent as one. WATCH
//! has no effect, because there are no keys that could change.

use super::{Flow, REQUESTS_MAX, Resp};
use crate::session::Session;
use switchyard_protocol::resp::commands::{CommandId, CommandSpec};
use switchyard_protocol::resp::{Arguments, Burst, RequestQueue, errors};
use switchyard_types::command::{Ending, Verb};

/// The commands since MULTI.
#[derive(Default)]
pub(super) struct Transaction {
    queue: RequestQueue,
    /// Whether a command was refused instead of queued, so that EXEC refuses all.
    is_aborted: bool,
}

/// What executes commands now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// The connection, as they come.
    Connection,
    /// An EXEC.
    Exec {
        /// How many commands it has.
        commands: usize,
    },
}

impl Resp {
    /// Whether the command is queued instead of executed.
    pub(super) fn is_queued(&self, spec: &CommandSpec) -> bool {
        self.transaction.is_some() && !spec.is_never_queued()
    }

    /// Queues a command that may be executed.
    pub(super) fn queue(
        &mut self,
        spec: &CommandSpec,
        arguments: Arguments<'_>,
        session: &mut Session,
    ) {
        if self.is_too_fast(spec.name, session) {
            return;
        }
        let commands_max = session.services.limits.transaction_commands_max();
        let bytes_max = self.limits.request_bytes_max;
        let Some(transaction) = &mut self.transaction else { return };
        if !transaction.is_aborted {
            if transaction.queue.len() >= commands_max {
                let text = errors::transaction_too_long(commands_max);
                return self.refuse_command(None, &text, session);
            }
            transaction.queue.push(arguments);
            if transaction.queue.bytes() > bytes_max {
                let text = errors::transaction_too_large(bytes_max);
                return self.refuse_command(None, &text, session);
            }
        }
        self.reply(session, |reply| reply.simple("QUEUED"));
    }

    /// EXEC will refuse the transaction, if there is one: a command was refused.
    pub(super) fn abort_transaction(&mut self) {
        if let Some(transaction) = &mut self.transaction {
            transaction.is_aborted = true;
            transaction.queue = RequestQueue::default();
        }
    }

    /// Refuses a command before it is executed or queued.
    pub(super) fn refuse_command(
        &mut self,
        id: Option<CommandId>,
        text: &[u8],
        session: &mut Session,
    ) {
        if id == Some(CommandId::Exec) {
            self.transaction = None;
            return self.error(session, &errors::exec_refused(text));
        }
        self.abort_transaction();
        self.error(session, text);
    }

    /// MULTI, DISCARD, WATCH and UNWATCH.
    pub(super) fn transaction(&mut self, id: CommandId, session: &mut Session) {
        match id {
            CommandId::Multi if self.transaction.is_some() => {
                return self.error(session, errors::MULTI_NESTED);
            }
            CommandId::Multi => self.transaction = Some(Box::default()),
            CommandId::Discard if self.transaction.take().is_none() => {
                return self.error(session, errors::DISCARD_WITHOUT_MULTI);
            }
            CommandId::Watch if self.transaction.is_some() => {
                return self.error(session, errors::WATCH_IN_MULTI);
            }
            _ => {}
        }
        self.ok(session);
    }

    /// EXEC: executes what is queued, until the time budget is exhausted.
    pub(super) fn exec(&mut self, session: &mut Session) -> Flow {
        let transaction = match self.is_too_fast("exec", session) {
            true => None,
            false => match self.transaction.take() {
                Some(transaction) if !transaction.is_aborted => Some(transaction),
                Some(_) => {
                    self.error(session, errors::TRANSACTION_ABORTED);
                    None
                }
                None => {
                    self.error(session, errors::EXEC_WITHOUT_MULTI);
                    None
                }
            },
        };
        let Some(transaction) = transaction else {
            self.is_done(Verb::Exec, session);
            return Flow::Continue;
        };
        let _held = session.hold_replies();
        self.reply(session, |reply| reply.array(transaction.queue.len()));
        let commands = transaction.queue.len();
        self.scope = Scope::Exec { commands };
        self.executing = Some(Box::new(transaction.queue));
        self.go_on_with_exec(session)
    }

    /// Executes the rest of an EXEC, if there is one and no reply is pending, until the time budget
    /// is exhausted.
    pub(super) fn go_on_with_exec(&mut self, session: &mut Session) -> Flow {
        if self.is_reply_pending(session) {
            return Flow::Continue;
        }
        let Some(mut queue) = self.executing.take() else { return Flow::Continue };
        let mut flow = Flow::Continue;
        let mut burst = Burst::default();
        while !queue.is_empty() && matches!(flow, Flow::Continue) {
            burst.clear();
            let bytes = queue.parse(REQUESTS_MAX, &mut burst);
            let done;
            (done, flow) = self.execute(&burst, bytes, session);
            queue.remove(done);
            if session.is_budget_exhausted() || self.is_reply_pending(session) {
                break;
            }
        }
        let goes_on = matches!(flow, Flow::Continue) && !session.connection.outbox.is_closing();
        if goes_on && (!queue.is_empty() || self.is_reply_pending(session)) {
            self.executing = Some(queue);
            return flow;
        }
        self.scope = Scope::Connection;
        self.end_skip();
        self.end_caching();
        session.release_replies();
        session.services.stats.record_command(Verb::Exec, Ending::Ok, 1);
        flow
    }

    /// How many commands the transaction has that is executed now, as CLIENT LIST shows it; -1:
    /// there is none.
    pub(super) fn queued_commands(&self) -> i64 {
        match self.scope {
            Scope::Connection => -1,
            Scope::Exec { commands } => commands as i64,
        }
    }

    /// The memory of what is queued, in bytes.
    pub(super) fn queued_bytes(&self) -> usize {
        let waiting = self.transaction.as_ref().map_or(0, |it| it.queue.memory());
        let waiting = waiting + self.script.as_ref().map_or(0, |script| script.heap_bytes());
        waiting + self.executing.as_ref().map_or(0, |queue| queue.memory())
    }
}
