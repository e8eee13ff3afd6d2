//! AUTH: passes credentials to the plugins, and applies their decision.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use super::{Session, Waiting, WriteReply};
use switchyard_hub::connections::expiries;
use switchyard_middleware::admission::{AdmissionProgress, Step};
use switchyard_middleware::chain::Chain;
use switchyard_types::close::CloseReason;
use switchyard_types::command::{Credentials, LIMIT, Refusal, Reply, TOOLARGE, Tag, Verb};

/// The largest token that a client needs.
const CREDENTIALS_BYTES_MAX: usize = 16 << 10;

/// How many bytes of replies a client that must authenticate may leave unread: replies are longer
/// than commands, and the server must not have to hold them.
const UNREAD_BYTES_MAX: usize = 64 << 10;

/// Credentials that plugins verify off the data path.
pub(super) struct Authenticating {
    /// The tag of the command; none: the door replies.
    tag: Option<Tag>,
    asking: Pin<Box<dyn Future<Output = Result<(), Refusal>> + Send>>,
    /// None: still pending.
    answer: Option<Result<(), Refusal>>,
}

impl Authenticating {
    /// Waits for the result.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.answer.is_none() {
            self.answer = Some(ready!(self.asking.as_mut().poll(context)));
        }
        Poll::Ready(())
    }
}

impl Session {
    /// Whether a plugin authenticates.
    pub fn has_authentication(&self) -> bool {
        self.services.middleware.chain().has_admission()
    }

    /// Whether the connection must authenticate before it may do anything else.
    #[inline]
    pub fn must_authenticate(&self) -> bool {
        self.connection.must_authenticate()
    }

    /// Whether the client must authenticate and does not read its replies: until it does, it is not
    /// read from either.
    #[inline]
    pub fn has_unread_replies(&self) -> bool {
        self.must_authenticate()
            && self.replies.len() + self.connection.outbox.bytes() > UNREAD_BYTES_MAX
    }

    /// Closes the connection after the replies so far, for this reason.
    pub fn end_after_reply(&mut self, reason: CloseReason) {
        self.ending.get_or_insert(reason);
    }

    /// The reason to close the connection after the replies so far, if the last command gave one.
    pub fn take_ending(&mut self) -> Option<CloseReason> {
        self.ending.take()
    }

    /// Calls the chain to check credentials. An error: a plugin refuses them, or no plugin accepts
    /// them. None: a plugin is called off the data path; until `authenticated` has the result, the
    /// authentication is pending.
    pub fn authenticate(&mut self, credentials: Credentials) -> Option<Result<(), Refusal>> {
        let services = self.services.clone();
        self.check_credentials(&services.middleware.chain(), credentials, None)
    }

    /// The result of an authentication that was pending, once.
    #[inline]
    pub fn authenticated(&mut self) -> Option<Result<(), Refusal>> {
        match self.waiting {
            Some(Waiting::Credentials(_)) => self.take_answer(),
            _ => None,
        }
    }

    fn take_answer(&mut self) -> Option<Result<(), Refusal>> {
        let authenticating = self.take_settled(|authenticating| authenticating.tag.is_none())?;
        let answer = authenticating.answer?;
        self.settle(&answer);
        Some(answer)
    }

    /// The pending authentication, if its result is known and this holds.
    fn take_settled(
        &mut self,
        is_wanted: impl Fn(&Authenticating) -> bool,
    ) -> Option<Box<Authenticating>> {
        let is_settled = |waiting: &mut Waiting| match waiting {
            Waiting::Credentials(settled) => settled.answer.is_some() && is_wanted(settled),
            _ => false,
        };
        match self.waiting.take_if(is_settled)? {
            Waiting::Credentials(authenticating) => Some(authenticating),
            _ => None,
        }
    }

    /// Replies to a pending AUTH, if its result is known.
    pub(super) fn finish_authenticating(&mut self, write: &impl WriteReply) {
        if let Some(authenticating) =
            self.take_settled(|authenticating| authenticating.tag.is_some())
            && let Authenticating { tag: Some(tag), answer: Some(answer), .. } = *authenticating
        {
            self.settle(&answer);
            let done = answer.map(|()| write.write(tag, &Reply::Ok, &mut self.replies));
            self.is_done(Verb::Auth, tag, done, write);
        }
    }

    pub(super) fn check_credentials(
        &mut self,
        chain: &Chain,
        credentials: Credentials,
        tag: Option<Tag>,
    ) -> Option<Result<(), Refusal>> {
        let bytes = credentials.secret.len() + credentials.user.as_ref().map_or(0, String::len);
        if bytes > CREDENTIALS_BYTES_MAX {
            return Some(Err(Refusal::new(
                TOOLARGE,
                format!("credentials of {bytes} bytes; there may be {CREDENTIALS_BYTES_MAX}"),
            )));
        }
        let mut attempt = None;
        if chain.has_admission() {
            attempt = self.services.auth_attempts.begin(&self.connection);
            if attempt.is_none() {
                self.ending = Some(CloseReason::AuthFlood);
                return Some(Err(too_many_attempts()));
            }
        }
        self.connection.begin_authenticating();
        let (id, mut progress) = (self.connection.id, AdmissionProgress::default());
        match chain.authenticate(id, &credentials, &mut progress) {
            Step::Settled(answer) => {
                if let Some(attempt) = attempt {
                    attempt.settled(&answer);
                }
                self.settle(&answer);
                Some(answer)
            }
            Step::Apart(plugin) => {
                let middleware = self.services.middleware.clone();
                let asking = Box::pin(async move {
                    let answer = middleware.authenticate(id, credentials, progress, plugin).await;
                    if let Some(attempt) = attempt {
                        attempt.settled(&answer);
                    }
                    answer
                });
                let authenticating = Authenticating { tag, asking, answer: None };
                self.waiting = Some(Waiting::Credentials(Box::new(authenticating)));
                None
            }
        }
    }

    /// Accepted credentials may have expired already; then the connection is closed after the
    /// reply.
    fn settle(&mut self, answer: &Result<(), Refusal>) {
        if answer.is_ok() {
            self.connection.accept_credentials();
            if self.connection.is_expired() {
                self.ending = Some(expiries::expired());
            }
        }
    }
}

fn too_many_attempts() -> Refusal {
    Refusal::new(LIMIT, "too many failed attempts (limits.auth_attempts_per_minute_max)")
}
