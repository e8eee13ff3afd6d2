//! For tests: a plugin that sends HTTP requests as configured by its input, and reports the
//! results.
//!
//! It requests the URL behind `ask=` in the path of a client that connects, the secret of
//! AUTH, the name of a channel that is published on and a payload, where they are URLs. `N*URL`
//! sends N requests. Two words are no URLs: `sleep` waits for a minute, and `spin` for ever.

use std::hint::black_box;
use std::sync::OnceLock;
use std::time::Duration;

use bindings::exports::switchyard::pubsub::access::{self, Action, Denial, Request};
use bindings::exports::switchyard::pubsub::admission::{self, Client, Credentials, Welcome};
use bindings::exports::switchyard::pubsub::lifecycle;
use bindings::exports::switchyard::pubsub::messages::{
    self, Change, Decision, PublishVerdict, Submission,
};
use bindings::switchyard::pubsub::attributes;
use bindings::switchyard::pubsub::types::{ConnectionId, Extras, Origin, Refusal};
use plugin_ask::Url;
use plugin_kit::items::{Named, named};
use serde::Deserialize;

#[allow(missing_docs, unsafe_code, clippy::all, clippy::restriction, reason = "generated")]
mod bindings {
    wit_bindgen::generate!({
        path: "../../../../wit",
        inline: "
            package switchyard:tests;
            world asker {
                include switchyard:pubsub/gatekeeper@0.2.0;
                include switchyard:pubsub/transformer@0.2.0;
            }
        ",
        world: "switchyard:tests/asker",
        generate_all,
    });

    #[cfg(target_family = "wasm")]
    export!(Asker with_types_in self);
    #[cfg(target_family = "wasm")]
    use super::Asker;
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// Stands before what it says.
    name: String,
    /// Requested by `init`, which refuses with what came of it.
    init: Option<String>,
}

static SETTINGS: OnceLock<Settings> = OnceLock::new();

struct Asker;

/// What came of asking, in words; none: it is nothing to ask for.
fn ask(what: &str) -> Option<Result<String, String>> {
    match what {
        "sleep" => std::thread::sleep(Duration::from_secs(60)),
        "spin" => loop {
            black_box(());
        },
        _ => {}
    }
    let (times, url) = match what.split_once('*') {
        Some((times, url)) => (times.parse().ok()?, url),
        None => (1, what),
    };
    let url = Url::parse(url)?;
    let mut said = Ok(String::new());
    for _ in 0..times {
        said = plugin_ask::get(&url, &[])
            .map_err(|error| error.to_string())
            .map(|answer| format!("{} {}", answer.status, String::from_utf8_lossy(&answer.body)));
        if said.is_err() {
            break;
        }
    }
    let name = SETTINGS.get().map(|settings| settings.name.as_str()).unwrap_or_default();
    Some(said.map(|said| format!("{name}{said}")).map_err(|said| format!("{name}{said}")))
}

fn unavailable(message: String) -> Refusal {
    Refusal { code: "UNAVAILABLE".to_owned(), message }
}

fn admit(connection: ConnectionId, what: &str) -> Result<bool, Refusal> {
    match ask(what) {
        None => Ok(false),
        Some(Ok(said)) if said.contains("200 ") => {
            let noted = attributes::set(connection, "said", Some(&said));
            noted.map(|()| true).map_err(|_| unavailable("no room".to_owned()))
        }
        Some(Ok(said)) => Err(Refusal { code: "NOPERM".to_owned(), message: said }),
        Some(Err(error)) => Err(unavailable(error)),
    }
}

impl lifecycle::Guest for Asker {
    fn init(settings: String) -> Result<(), String> {
        let settings: Settings =
            serde_json::from_str(&settings).map_err(|error| error.to_string())?;
        let init = settings.init.clone();
        SETTINGS.get_or_init(|| settings);
        match init.as_deref().and_then(ask) {
            None => Ok(()),
            Some(Ok(said) | Err(said)) => Err(said),
        }
    }
}

impl admission::Guest for Asker {
    fn on_connect(connection: ConnectionId, client: Client) -> Result<Welcome, Refusal> {
        if let Some((_, what)) = client.path.split_once("ask=") {
            admit(connection, what)?;
        }
        Ok(Welcome { subscriptions: vec![] })
    }

    fn on_authenticate(
        connection: ConnectionId,
        credentials: Credentials,
    ) -> Result<Option<Welcome>, Refusal> {
        let is_admitted = admit(connection, &credentials.secret)?;
        Ok(is_admitted.then(|| Welcome { subscriptions: vec![] }))
    }

    fn on_disconnect(_connection: ConnectionId) {}
}

impl access::Guest for Asker {
    fn on_access(requests: Vec<Request>) -> Vec<Denial> {
        let decide = |item: Named<'_, Request>| {
            let Action::Publish(_) = item.item.action else { return None };
            let (Ok(said) | Err(said)) = ask(item.name)?;
            Some(Denial { position: item.position, refusal: unavailable(said) })
        };
        named(&requests, |request| request.name.as_deref()).filter_map(decide).collect()
    }
}

impl messages::Guest for Asker {
    /// A payload `said` becomes what was noted of the connection.
    fn on_publish(submissions: Vec<Submission>, _extras: Vec<Extras>) -> Vec<Decision> {
        let decide = |(position, submission): (u32, &Submission)| {
            let said = match (submission.payload.as_slice(), &submission.origin) {
                (b"said", Origin::Connection(connection)) => attributes::get(*connection, "said"),
                (url, _) => ask(&String::from_utf8_lossy(url)).map(|(Ok(said) | Err(said))| said),
            };
            let payload = Some(said?.into_bytes());
            let change = Change { channel: None, payload, tags: None };
            Some(Decision { position, verdict: PublishVerdict::Replace(change) })
        };
        (0..).zip(&submissions).filter_map(decide).collect()
    }
}
