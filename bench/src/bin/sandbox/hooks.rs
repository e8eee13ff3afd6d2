//! Plugins that ship, as the chain asks them, and what they decide natively:
//! their libraries called with the same settings.

use std::borrow::Cow;

use acl::acl::Acl;
use acl::rules::Operation;
use acl::subject::Subject;
use anyhow::{Result, ensure};
use bench::chain::Bench;
use bench::sides::{Comparison, compare, time};
use bench::table::{print_head, print_line};
use redact::rules::{Outcome, Rules};
use switchyard_middleware::chain::{Chain, Publication, PublishOutcome, Space};
use switchyard_middleware::items::Action;
use switchyard_wasm::Wasm;

use crate::NAMES_A_CALL;

/// The permissions of each user, as in `examples/plugins/10-acl.toml`.
const ACL: &str = r#"{"rules": [
    {"users": ["alice"], "subscribe": ["*"], "publish": ["*"]},
    {"users": ["*"], "effect": "deny", "subscribe": ["private.*"], "publish": ["private.*"]},
    {"users": ["*"], "subscribe": ["*"], "publish": ["*"]}
]}"#;

/// What must not be published, as in `examples/plugins/20-redact.toml`.
const REDACT: &str = r#"{"rules": [{
    "channels": ["*"],
    "regex": "(?:\\d\\p{Cf}*){4}(?:[\\s\\p{Pd}]?(?:\\d\\p{Cf}*){4}){3}",
    "no_digit_beside": true,
    "action": "mask",
    "with": "[card number]"
}]}"#;

/// A payload of 100 bytes that is looked at and left as it is.
const PAYLOAD: &str = "{\"from\":\"bob\",\"at\":1764000000,\
    \"text\":\"see you at the station in half an hour, I am the one in red\"}";

/// The user of the connection that asks: the last rule is the one that lets it.
const USER: &str = "bob";
const CHANNEL: &str = "room:000042:message";

/// How many actions or publications one batch asks about.
const NAMES_A_BATCH: usize = 3_200;

/// The plugins, and what calls them.
pub struct Hooks {
    acl: Chain,
    redact: Chain,
    bench: Bench,
}

impl Hooks {
    /// Compiles the plugins that `make components` leaves.
    pub fn load(wasm: &Wasm) -> Result<Hooks> {
        let bench = Bench::new(wasm)?;
        let user = Some(USER.to_owned());
        ensure!(bench.connection.set_attribute("user", user), "there is no room");
        Ok(Hooks {
            acl: bench.chain("", "acl", ACL)?,
            redact: bench.chain("", "redact", REDACT)?,
            bench,
        })
    }

    /// Of both components.
    pub fn versions(&self) -> String {
        let plugins = self.acl.plugins().iter().chain(self.redact.plugins());
        plugins.map(|plugin| plugin.identity.to_string()).collect::<Vec<_>>().join(", ")
    }

    /// Measures and prints all.
    pub fn measure(&self) -> Result<()> {
        print_head("hooks, ns a name");
        let native = acl::settings::read(ACL).map_err(anyhow::Error::msg)?;
        for names_a_call in [1, NAMES_A_CALL] {
            let comparison = self.measure_access(&native, names_a_call)?;
            print_line(&format!("on-access (acl), {names_a_call} a call"), &comparison);
        }
        let native = redact::settings::read(REDACT).map_err(anyhow::Error::msg)?;
        for names_a_call in [1, NAMES_A_CALL] {
            let comparison = self.measure_publish(&native, names_a_call)?;
            print_line(&format!("on-publish (redact, 100 B), {names_a_call} a call"), &comparison);
        }
        Ok(())
    }

    fn measure_access(&self, native: &Acl, names_a_call: usize) -> Result<Comparison> {
        let action = Action::Publish { channel: CHANNEL, payload_bytes: PAYLOAD.len() };
        let actions = vec![(self.bench.connection.id, action); names_a_call];
        // As the component does it, which queries the host for the user.
        let natively = || {
            let user = self.bench.connection.attribute("user");
            let subject = Subject { user, ..Subject::default() };
            let mut access = native.access_of(&subject);
            let mut decide = |_| access.decide(Operation::Publish(CHANNEL)).err();
            let decisions: Vec<_> = actions.iter().map(&mut decide).collect();
            decisions.iter().filter(|refused| refused.is_none()).count()
        };
        let by_component = || {
            let decisions = self.acl.access(&actions);
            decisions.iter().filter(|refused| refused.is_none()).count()
        };
        compare_hook(names_a_call, natively, by_component)
    }

    fn measure_publish(&self, native: &Rules, names_a_call: usize) -> Result<Comparison> {
        let publication = Publication::new(
            Space::Channels,
            Cow::Borrowed(CHANNEL.as_bytes()),
            Cow::Borrowed(PAYLOAD.as_bytes()),
        );
        let publications = vec![(self.bench.connection.id, publication); names_a_call];
        let natively = || {
            let publications = publications.clone();
            let requested: Vec<_> =
                publications.iter().map(|(_, one)| (CHANNEL, one.payload.as_ref())).collect();
            let outcomes: Vec<Outcome> = native.apply_all(&requested);
            outcomes.iter().filter(|outcome| **outcome == Outcome::Unchanged).count()
        };
        let by_component = || {
            let fates = self.redact.publish(publications.clone().into());
            let unchanged = |fate: &&PublishOutcome<'_>| {
                matches!(
                    fate,
                    PublishOutcome::Forward(Publication { payload: Cow::Borrowed(_), .. })
                )
            };
            fates.iter().filter(unchanged).count()
        };
        compare_hook(names_a_call, natively, by_component)
    }
}

/// Both answer how many of a call's names were let through as they are: all.
fn compare_hook(
    names_a_call: usize,
    natively: impl Fn() -> usize,
    by_component: impl Fn() -> usize,
) -> Result<Comparison> {
    let mut natively: &dyn Fn() -> usize = &natively;
    let mut by_component: &dyn Fn() -> usize = &by_component;
    compare([&mut natively, &mut by_component], NAMES_A_BATCH, |ask| {
        time(|| {
            (0..NAMES_A_BATCH / names_a_call).try_for_each(|_| {
                ensure!(ask() == names_a_call, "something was refused, changed or not answered");
                Ok(())
            })
        })
    })
}
