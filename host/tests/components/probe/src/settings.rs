//! The behaviours that the probe is configured with.
//!
//! For each hook one behaviour or a list of them, carried out in order. A
//! behaviour is an action, `"panic"` or `{"absorb": 3}`, with or without the
//! conditions `channels` (globs) and `trigger` (text that must occur) beside
//! it: `{"panic": true, "trigger": "boom"}`. An action or a condition that means
//! nothing to a hook is refused, so that a test does not wait for an effect that never comes.

use serde::Deserialize;
use serde_json::{Map, Value};

/// All settings.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// What `init` does, with settings that can be read.
    pub init: Init,
    /// Triggers look at the path.
    pub on_connect: Behaviours,
    /// Triggers look at the secret. Without `allow`: not mine to judge.
    pub on_authenticate: Behaviours,
    /// Knows no triggers.
    pub on_disconnect: Behaviours,
    /// Triggers look at the name.
    pub on_access: Behaviours,
    /// Triggers look at the payload.
    pub on_publish: Behaviours,
    /// Triggers look at the payload.
    pub on_deliver: Behaviours,
    /// What `save` does.
    pub save: Save,
    /// What `restore` does.
    pub restore: Restore,
}

/// What `init` does.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the words say it")]
pub enum Init {
    #[default]
    Ok,
    Error,
    /// With words of 2 MiB.
    LongError,
    Trap,
    Loop,
}

/// What `save` does.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the words say it")]
pub enum Save {
    #[default]
    Ok,
    Trap,
    Loop,
}

/// What `restore` does.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the words say it")]
pub enum Restore {
    #[default]
    Ok,
    Unsupported,
    Corrupt,
    Trap,
}

/// What a hook does, in order.
#[derive(Debug, Default, Deserialize)]
#[serde(try_from = "Value")]
pub struct Behaviours(Vec<Behaviour>);

/// An action and when to take it.
#[derive(Debug)]
struct Behaviour {
    channels: Option<Vec<String>>,
    trigger: Option<String>,
    action: Action,
}

/// The behaviours of a hook.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// Nothing; in `on_authenticate`: vouches for the credentials.
    Allow,
    /// Panics.
    Panic,
    /// Never returns.
    Loop,
    /// Takes memory until there is none.
    Alloc,
    /// Refuses.
    Refuse {
        /// The refusal's code.
        code: String,
        /// The refusal's message.
        message: String,
    },
    /// Appends `@` and the build's stamp to the payload.
    Stamp,
    /// Appends `#` and a number that rises with each payload of the instance,
    /// from 1; `save` hands it on.
    Number,
    /// Adds one to a counter; appends `=` and its value to the payload, where
    /// there is one.
    Count(String),
    /// The same with a counter that is forgotten; appends `=full` where there is no
    /// room for one.
    CountFor {
        /// Its key.
        key: String,
        /// In how many milliseconds.
        ttl_ms: u64,
    },
    /// Appends `:` and the attribute's value to the payload.
    Show(String),
    /// Appends this many bytes to the payload.
    Grow(usize),
    /// Says that this many received it.
    Absorb(u64),
    /// Publishes on this channel.
    Rename(String),
    /// Delivers to these only.
    Narrow(Narrow),
    /// Sets an attribute of the connection.
    Note {
        /// Its key.
        key: String,
        /// Its value.
        value: String,
    },
    /// Writes to the host's log.
    Log(String),
    /// Writes to standard output and to standard error.
    Print(String),
    /// Decides about one item more than there are.
    WrongCount,
    /// Refuses what was allowed before and is only checked again.
    RefuseRecheck,
    /// Gives the client this subscription to begin with.
    Subscribe(String),
    /// Sets a tag.
    Tag,
    /// Appends the position and what the publication carries besides.
    ShowExtras,
}

/// The recipients that a publication is narrowed to.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Narrow {
    /// No recipient.
    None,
    /// To the first recipient.
    First,
}

/// The hook that executes an action.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Hook {
    Connect,
    Authenticate,
    Disconnect,
    Access,
    Publish,
    Deliver,
}

impl Settings {
    /// Reads the settings, a JSON object. An error is one line.
    pub fn read(settings: &str) -> Result<Self, String> {
        let settings: Self = serde_json::from_str(settings).map_err(|error| error.to_string())?;
        let Self {
            on_connect,
            on_authenticate,
            on_disconnect,
            on_access,
            on_publish,
            on_deliver,
            ..
        } = &settings;
        for (hook, behaviours) in [
            (Hook::Connect, on_connect),
            (Hook::Authenticate, on_authenticate),
            (Hook::Disconnect, on_disconnect),
            (Hook::Access, on_access),
            (Hook::Publish, on_publish),
            (Hook::Deliver, on_deliver),
        ] {
            let mut behaviours = behaviours.0.iter();
            if let Some(behaviour) =
                behaviours.find(|behaviour| !behaviour.means_something_to(hook))
            {
                return Err(format!("{hook:?} cannot do {behaviour:?}"));
            }
        }
        Ok(settings)
    }
}

impl Behaviours {
    /// What to do with something on a channel. `text` is what triggers look at.
    pub fn on(&self, channel: &str, text: &[u8]) -> impl Iterator<Item = &Action> {
        let applies = |behaviour: &&Behaviour| {
            behaviour.is_for_channel(channel) && behaviour.is_triggered_by(text)
        };
        self.0.iter().filter(applies).map(|behaviour| &behaviour.action)
    }

    /// What to do where there is no channel.
    pub fn triggered_by(&self, text: &str) -> impl Iterator<Item = &Action> {
        self.on("", text.as_bytes())
    }
}

impl Behaviour {
    fn is_for_channel(&self, channel: &str) -> bool {
        let matches =
            |glob: &String| guest_core::glob::matches(glob.as_bytes(), channel.as_bytes());
        self.channels.as_ref().is_none_or(|globs| globs.iter().any(matches))
    }

    fn is_triggered_by(&self, text: &[u8]) -> bool {
        self.trigger.as_ref().is_none_or(|trigger| {
            trigger.is_empty()
                || text.windows(trigger.len()).any(|window| window == trigger.as_bytes())
        })
    }

    fn means_something_to(&self, hook: Hook) -> bool {
        use Hook::{Access, Authenticate, Connect, Deliver, Disconnect, Publish};
        let conditions_do = (self.channels.is_none() || [Access, Publish, Deliver].contains(&hook))
            && (self.trigger.is_none() || hook != Disconnect);
        let action_does = match self.action {
            Action::Allow | Action::Panic | Action::Loop | Action::Alloc => true,
            Action::Count(_) | Action::Log(_) | Action::Print(_) => true,
            Action::Refuse { .. } => ![Disconnect, Deliver].contains(&hook),
            Action::Note { .. } => [Connect, Authenticate].contains(&hook),
            Action::WrongCount => [Access, Publish, Deliver].contains(&hook),
            Action::Stamp | Action::Number | Action::Grow(_) => [Publish, Deliver].contains(&hook),
            Action::CountFor { .. } => hook == Publish,
            Action::Show(_) | Action::Absorb(_) | Action::Rename(_) => hook == Publish,
            Action::Narrow(_) => hook == Deliver,
            Action::RefuseRecheck => hook == Access,
            Action::Subscribe(_) => [Connect, Authenticate].contains(&hook),
            Action::Tag => hook == Publish,
            Action::ShowExtras => [Publish, Deliver].contains(&hook),
        };
        conditions_do && action_does
    }
}

impl TryFrom<Value> for Behaviours {
    type Error = serde_json::Error;

    fn try_from(value: Value) -> Result<Self, Self::Error> {
        let behaviours = match value {
            Value::Array(behaviours) => behaviours,
            behaviour => vec![behaviour],
        };
        let behaviours = behaviours.into_iter().map(Behaviour::try_from);
        behaviours.collect::<Result<_, _>>().map(Self)
    }
}

impl TryFrom<Value> for Behaviour {
    type Error = serde_json::Error;

    fn try_from(value: Value) -> Result<Self, Self::Error> {
        let mut parts = match value {
            Value::String(action) => Map::from_iter([(action, Value::Null)]),
            value => Map::deserialize(value)?,
        };
        let channels = parts.remove("channels").map(Vec::deserialize).transpose()?;
        let trigger = parts.remove("trigger").map(String::deserialize).transpose()?;
        // What is left is the action; one that needs no words is just true.
        for words in parts.values_mut() {
            if *words == Value::Bool(true) {
                *words = Value::Null;
            }
        }
        let action = Action::deserialize(Value::Object(parts))?;
        Ok(Self { channels, trigger, action })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(settings: &str) -> Settings {
        match Settings::read(settings) {
            Ok(settings) => settings,
            Err(error) => panic!("{settings}: {error}"),
        }
    }

    #[test]
    fn behaviours_are_carried_out_in_order_where_they_apply() {
        let check = |behaviours: &str, channel: &str, payload: &str, expected: &str| {
            let settings = read(&format!(r#"{{"on_publish": {behaviours}}}"#));
            let found: Vec<_> = settings.on_publish.on(channel, payload.as_bytes()).collect();
            assert_eq!(format!("{found:?}"), expected, "{behaviours} {channel} {payload}");
        };
        check(r#""panic""#, "a", "x", "[Panic]");
        check(r#"{"loop": true}"#, "a", "x", "[Loop]");
        check(r#"{"absorb": 3}"#, "a", "x", "[Absorb(3)]");
        check(r#"["stamp", {"number": true}]"#, "a", "x", "[Stamp, Number]");
        check(r#"[]"#, "a", "x", "[]");
        let refuse = r#"{"refuse": {"code": "C", "message": "m"}, "channels": ["a*", "b"]}"#;
        let refused = r#"[Refuse { code: "C", message: "m" }]"#;
        check(refuse, "a1", "x", refused);
        check(refuse, "b", "x", refused);
        check(refuse, "b1", "x", "[]");
        let panic = r#"{"panic": true, "trigger": "boom"}"#;
        check(panic, "a", "a boom b", "[Panic]");
        check(panic, "boom", "a b", "[]");
        let both = r#"{"alloc": true, "trigger": "boom", "channels": ["a"]}"#;
        check(both, "a", "boom", "[Alloc]");
        check(both, "b", "boom", "[]");
        check(both, "a", "b", "[]");
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for settings in [
            r#"{"on_publsh": "panic"}"#,
            r#"{"init": "maybe"}"#,
            r#"{"on_publish": "panik"}"#,
            r#"{"on_publish": {"panic": false}}"#,
            r#"{"on_publish": {"panic": true, "absorb": 1}}"#,
            r#"{"on_publish": {"panic": true, "triger": "x"}}"#,
            r#"{"on_publish": {"trigger": "x"}}"#,
            r#"{"on_publish": {"refuse": {"code": "C"}}}"#,
            r#"{"on_publish": {"refuse": {"code": "C", "message": "m", "by": "me"}}}"#,
            r#"{"on_publish": {"narrow": "first"}}"#,
            r#"{"on_deliver": {"refuse": {"code": "C", "message": "m"}}}"#,
            r#"{"on_connect": "stamp"}"#,
            r#"{"on_deliver": {"count_for": {"key": "a", "ttl_ms": 1}}}"#,
            r#"{"on_connect": {"panic": true, "channels": ["a"]}}"#,
            r#"{"on_disconnect": {"panic": true, "trigger": "a"}}"#,
        ] {
            assert!(Settings::read(settings).is_err(), "{settings}");
        }
        read("{}");
        read(r#"{"save": "loop", "restore": "unsupported", "on_deliver": {"narrow": "none"}}"#);
    }
}
