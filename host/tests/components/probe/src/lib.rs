//! For tests: a plugin with every hook, which does what its settings say. What
//! they may say stands in `settings`.

pub mod settings;

pub mod stamp;

use std::cell::Cell;
use std::hint::black_box;
use std::sync::OnceLock;

use bindings::exports::switchyard::pubsub::access::{self, Denial, Request};
use bindings::exports::switchyard::pubsub::admission::{self, Client, Credentials, Welcome};
use bindings::exports::switchyard::pubsub::deliveries::{self, DeliverVerdict, Delivery};
use bindings::exports::switchyard::pubsub::lifecycle;
use bindings::exports::switchyard::pubsub::messages::{self, Change, PublishVerdict, Submission};
use bindings::exports::switchyard::pubsub::snapshot::{self, RestoreError};
use bindings::switchyard::pubsub::types::{ConnectionId, Extras, Origin, Refusal};
use bindings::switchyard::pubsub::{attributes, counters, log};
use plugin_kit::items::{Named, named};
use settings::{Action, Init, Narrow, Restore, Save, Settings};

#[allow(missing_docs, unsafe_code, clippy::all, clippy::restriction, reason = "generated")]
mod bindings {
    wit_bindgen::generate!({ path: "../../../../wit", world: "middleware" });

    #[cfg(target_family = "wasm")]
    export!(Probe with_types_in self);
    #[cfg(target_family = "wasm")]
    use super::Probe;
}

/// How long a counter lives: longer than any test.
const COUNTER_TTL_MS: u64 = 3_600_000;

static SETTINGS: OnceLock<Settings> = OnceLock::new();

thread_local! {
    /// The last number given out: what `save` and `restore` carry.
    static NUMBER: Cell<u64> = const { Cell::new(0) };
}

struct Probe;

fn settings() -> &'static Settings {
    SETTINGS.get().expect("the host calls `init` before all else")
}

impl lifecycle::Guest for Probe {
    fn init(settings: String) -> Result<(), String> {
        let settings = Settings::read(&settings)?;
        match settings.init {
            Init::Ok => {
                SETTINGS.get_or_init(|| settings);
                Ok(())
            }
            Init::Error => Err("the probe was configured to refuse".to_owned()),
            Init::LongError => Err("configured to refuse ".repeat(100_000)),
            Init::Trap => trap(),
            Init::Loop => stall(),
        }
    }
}

impl admission::Guest for Probe {
    fn on_connect(connection: ConnectionId, client: Client) -> Result<Welcome, Refusal> {
        let actions = settings().on_connect.triggered_by(&client.path);
        admit(connection, actions).map(|(_, welcome)| welcome)
    }

    fn on_authenticate(
        connection: ConnectionId,
        credentials: Credentials,
    ) -> Result<Option<Welcome>, Refusal> {
        let actions = settings().on_authenticate.triggered_by(&credentials.secret);
        admit(connection, actions).map(|(allowed, welcome)| allowed.then_some(welcome))
    }

    fn on_disconnect(_connection: ConnectionId) {
        settings().on_disconnect.triggered_by("").for_each(act);
    }
}

/// Whether the settings say to allow it, and what it begins with.
fn admit<'a>(
    connection: ConnectionId,
    actions: impl Iterator<Item = &'a Action>,
) -> Result<(bool, Welcome), Refusal> {
    let mut allowed = false;
    let mut subscriptions = vec![];
    for action in actions {
        match action {
            Action::Allow => allowed = true,
            Action::Refuse { code, message } => return Err(refusal(code, message)),
            Action::Note { key, value } => {
                attributes::set(connection, key, Some(value)).expect("a test notes little");
            }
            Action::Subscribe(channel) => subscriptions.push(channel.clone()),
            action => act(action),
        }
    }
    Ok((allowed, Welcome { subscriptions }))
}

impl access::Guest for Probe {
    fn on_access(requests: Vec<Request>) -> Vec<Denial> {
        let mut one_too_many = false;
        let decide = |item: Named<'_, Request>| {
            for action in settings().on_access.on(item.name, item.name.as_bytes()) {
                match action {
                    Action::RefuseRecheck if !item.item.recheck => {}
                    Action::RefuseRecheck => {
                        let refusal = refusal("NOPERM", "it is checked again");
                        return Some(Denial { position: item.position, refusal });
                    }
                    Action::Refuse { code, message } => {
                        let refusal = refusal(code, message);
                        return Some(Denial { position: item.position, refusal });
                    }
                    Action::WrongCount => one_too_many = true,
                    action => act(action),
                }
            }
            None
        };
        let requested = named(&requests, |request| request.name.as_deref());
        let mut denials: Vec<_> = requested.filter_map(decide).collect();
        if one_too_many {
            let refusal = refusal("NOPERM", "there is no such request");
            denials.push(Denial { position: requests.len() as u32, refusal });
        }
        denials
    }
}

impl messages::Guest for Probe {
    fn on_publish(submissions: Vec<Submission>, extras: Vec<Extras>) -> Vec<messages::Decision> {
        let mut one_too_many = false;
        let decide = |Named { position, name, item }: Named<'_, Submission>| {
            let Submission { origin, payload: before, .. } = item;
            let (mut channel, mut payload) = (name.to_owned(), before.clone());
            let mut tags = None;
            let decision = |verdict| Some(messages::Decision { position, verdict });
            for action in settings().on_publish.on(name, before) {
                match action {
                    Action::Refuse { code, message } => {
                        return decision(PublishVerdict::Reject(refusal(code, message)));
                    }
                    Action::Absorb(receivers) => {
                        return decision(PublishVerdict::Absorb(*receivers));
                    }
                    Action::Rename(to) => channel.clone_from(to),
                    Action::Tag => tags = Some(vec![("by".to_owned(), "probe".to_owned())]),
                    Action::ShowExtras => {
                        payload.extend_from_slice(shown(&extras, position).as_bytes());
                    }
                    Action::Show(key) => {
                        let value = match origin {
                            Origin::Connection(connection) => attributes::get(*connection, key),
                            Origin::Token(_) | Origin::App(_) | Origin::Plugin(_) => None,
                        };
                        let value = value.unwrap_or_default();
                        payload.extend_from_slice(format!(":{value}").as_bytes());
                    }
                    Action::WrongCount => one_too_many = true,
                    action => act_on(action, &mut payload),
                }
            }
            let channel = (channel != name).then_some(channel);
            let payload = (payload != *before).then_some(payload);
            match (&channel, &payload, &tags) {
                (None, None, None) => None,
                _ => decision(PublishVerdict::Replace(Change { channel, payload, tags })),
            }
        };
        let submitted = named(&submissions, |submission| submission.channel.as_deref());
        let mut decisions: Vec<_> = submitted.filter_map(decide).collect();
        if one_too_many {
            let position = submissions.len() as u32;
            decisions.push(messages::Decision { position, verdict: PublishVerdict::Absorb(0) });
        }
        decisions
    }
}

impl deliveries::Guest for Probe {
    fn on_deliver(deliveries: Vec<Delivery>, extras: Vec<Extras>) -> Vec<deliveries::Decision> {
        let mut one_too_many = false;
        let decide = |Named { position, name, item }: Named<'_, Delivery>| {
            let Delivery { payload: before, recipients, position: retained_at, .. } = item;
            let mut payload = before.clone();
            let decision = |verdict| Some(deliveries::Decision { position, verdict });
            for action in settings().on_deliver.on(name, before) {
                match action {
                    Action::Narrow(Narrow::None) => {
                        return decision(DeliverVerdict::Narrow(vec![]));
                    }
                    Action::Narrow(Narrow::First) => {
                        let first = recipients.iter().copied().take(1);
                        return decision(DeliverVerdict::Narrow(first.collect()));
                    }
                    Action::WrongCount => one_too_many = true,
                    Action::ShowExtras => {
                        let retained_at = retained_at.as_deref().unwrap_or("nowhere");
                        let shown = format!(" at {retained_at}{}", shown(&extras, position));
                        payload.extend_from_slice(shown.as_bytes());
                    }
                    action => act_on(action, &mut payload),
                }
            }
            match payload == *before {
                true => None,
                false => decision(DeliverVerdict::Replace(payload)),
            }
        };
        let delivered = named(&deliveries, |delivery| delivery.channel.as_deref());
        let mut decisions: Vec<_> = delivered.filter_map(decide).collect();
        if one_too_many {
            let position = deliveries.len() as u32;
            let verdict = DeliverVerdict::Narrow(vec![]);
            decisions.push(deliveries::Decision { position, verdict });
        }
        decisions
    }
}

/// What an item carries besides its payload.
fn shown(extras: &[Extras], position: u32) -> String {
    let Some(Extras { key, version, tags, .. }) =
        extras.iter().find(|extras| extras.position == position)
    else {
        return String::new();
    };
    let mut shown = String::new();
    if let Some(key) = key {
        shown += &format!(" key {key}");
    }
    if let Some(version) = version {
        shown += &format!(" version {version}");
    }
    for (name, value) in tags {
        shown += &format!(" {name}={value}");
    }
    shown
}

impl snapshot::Guest for Probe {
    fn save() -> Vec<u8> {
        match settings().save {
            Save::Ok => format!("probe 1 {}", NUMBER.get()).into_bytes(),
            Save::Trap => trap(),
            Save::Loop => stall(),
        }
    }

    fn restore(state: Vec<u8>) -> Result<(), RestoreError> {
        match settings().restore {
            Restore::Ok => {
                let state = std::str::from_utf8(&state).ok();
                let number = state.and_then(|state| state.strip_prefix("probe 1 ")?.parse().ok());
                NUMBER.set(number.ok_or(RestoreError::Corrupt)?);
                Ok(())
            }
            Restore::Unsupported => Err(RestoreError::Unsupported),
            Restore::Corrupt => Err(RestoreError::Corrupt),
            Restore::Trap => trap(),
        }
    }
}

/// What can be done to any payload.
fn act_on(action: &Action, payload: &mut Vec<u8>) {
    match action {
        Action::Stamp => {
            payload.push(b'@');
            payload.extend_from_slice(stamp::digits());
        }
        Action::Number => {
            NUMBER.set(NUMBER.get() + 1);
            payload.extend_from_slice(format!("#{}", NUMBER.get()).as_bytes());
        }
        Action::Grow(bytes) => payload.resize(payload.len() + bytes, b'.'),
        Action::Count(key) => payload.extend_from_slice(format!("={}", count(key)).as_bytes()),
        Action::CountFor { key, ttl_ms } => {
            let count = counters::add(key, 1, *ttl_ms);
            let count = count.map_or("full".to_owned(), |count| count.value.to_string());
            payload.extend_from_slice(format!("={count}").as_bytes());
        }
        action => act(action),
    }
}

/// What can be done anywhere.
fn act(action: &Action) {
    match action {
        Action::Allow => {}
        Action::Panic => trap(),
        Action::Loop => stall(),
        Action::Alloc => take_all_memory(),
        Action::Log(text) => log::log(log::Level::Info, text),
        Action::Print(text) => {
            println!("{text}");
            eprintln!("{text}");
        }
        Action::Count(key) => {
            count(key);
        }
        action => unreachable!("{action:?} was refused by `init`"),
    }
}

fn count(key: &str) -> i64 {
    let count = counters::add(key, 1, COUNTER_TTL_MS);
    count.expect("a test counts little").value
}

fn refusal(code: &str, message: &str) -> Refusal {
    Refusal { code: code.to_owned(), message: message.to_owned() }
}

#[expect(clippy::panic, reason = "it is configured to")]
fn trap() -> ! {
    panic!("the probe was configured to panic");
}

fn stall() -> ! {
    loop {
        black_box(());
    }
}

fn take_all_memory() -> ! {
    let mut allocated = vec![];
    loop {
        // Ones, because zeros need not be written.
        allocated.push(black_box(vec![1_u8; 1 << 20]));
    }
}
