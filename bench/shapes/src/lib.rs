//! For the benchmark: the hooks of a plugin that looks at the first byte of each name and payload
//! and lets everything through, with its arguments in several shapes.

use bindings::bench::shapes::types::{Decision, Denial, Extra, Refusal, Verdict};
use bindings::exports::bench::shapes::{carried, flat, nested, optional, plain, sparse};
use guest_heap as _;

#[allow(missing_docs, unsafe_code, clippy::all, clippy::restriction, reason = "generated")]
mod bindings {
    wit_bindgen::generate!({ path: "wit", world: "shapes" });

    #[cfg(target_family = "wasm")]
    export!(Shapes with_types_in self);
    #[cfg(target_family = "wasm")]
    use super::Shapes;
}

struct Shapes;

/// Looks at both, so that neither is optimised away.
fn verdict(name: &[u8], payload: &[u8]) -> Verdict {
    match (name.first(), payload.first()) {
        (Some(0), Some(0)) => Verdict::Absorb(0),
        _ => Verdict::Continue,
    }
}

fn refusal(name: &[u8]) -> Option<Refusal> {
    let is_bad = name.first() == Some(&0);
    is_bad.then(|| Refusal { code: "BAD".to_owned(), message: String::new() })
}

impl plain::Guest for Shapes {
    fn on_access(requests: Vec<plain::Request>) -> Vec<Option<Refusal>> {
        let name = |request: &plain::Request| match &request.action {
            plain::Action::Subscribe(name) | plain::Action::Psubscribe(name) => {
                refusal(name.as_bytes())
            }
            plain::Action::Publish(intent) => refusal(intent.channel.as_bytes()),
        };
        requests.iter().map(name).collect()
    }

    fn on_publish(submissions: Vec<plain::Submission>) -> Vec<Verdict> {
        let look = |it: &plain::Submission| {
            verdict(it.publication.channel.as_bytes(), &it.publication.payload)
        };
        submissions.iter().map(look).collect()
    }
}

impl nested::Guest for Shapes {
    fn on_publish(submissions: Vec<nested::Submission>) -> Vec<Verdict> {
        let look = |it: &nested::Submission| {
            verdict(it.publication.channel.as_bytes(), &it.publication.payload)
        };
        submissions.iter().map(look).collect()
    }
}

impl optional::Guest for Shapes {
    fn on_publish(submissions: Vec<optional::Submission>) -> Vec<Verdict> {
        let look = |it: &optional::Submission| {
            verdict(it.publication.channel.as_bytes(), &it.publication.payload)
        };
        submissions.iter().map(look).collect()
    }
}

impl flat::Guest for Shapes {
    fn on_access(names: Vec<u8>, requests: Vec<flat::Request>) -> Vec<Option<Refusal>> {
        let mut start = 0;
        let look = |it: &flat::Request| {
            let name = names.get(start..it.name_end as usize).unwrap_or_default();
            start = it.name_end as usize;
            refusal(name)
        };
        requests.iter().map(look).collect()
    }

    fn on_publish(
        bytes: Vec<u8>,
        submissions: Vec<flat::Submission>,
        _tags: Vec<flat::Tag>,
    ) -> Vec<Verdict> {
        let mut start = 0;
        let look = |it: &flat::Submission| {
            let (middle, end) = (it.channel_end as usize, it.payload_end as usize);
            let channel = bytes.get(start..middle).unwrap_or_default();
            start = end;
            verdict(channel, bytes.get(middle..end).unwrap_or_default())
        };
        submissions.iter().map(look).collect()
    }
}

fn decide(number: usize, name: &[u8], payload: &[u8]) -> Option<Decision> {
    match verdict(name, payload) {
        Verdict::Continue => None,
        verdict => Some(Decision { submission: number as u32, verdict }),
    }
}

fn deny(number: usize, name: &[u8]) -> Option<Denial> {
    Some(Denial { request: number as u32, refusal: refusal(name)? })
}

impl sparse::Guest for Shapes {
    fn on_access(requests: Vec<sparse::Request>) -> Vec<Denial> {
        let look = |(number, request): (usize, &sparse::Request)| match &request.action {
            sparse::Action::Subscribe(name) | sparse::Action::Psubscribe(name) => {
                deny(number, name.as_bytes())
            }
            sparse::Action::Publish(intent) => deny(number, intent.channel.as_bytes()),
        };
        requests.iter().enumerate().filter_map(look).collect()
    }

    fn on_publish(submissions: Vec<sparse::Submission>, _extras: Vec<Extra>) -> Vec<Decision> {
        let all = submissions.iter().enumerate();
        all.filter_map(|(number, it)| decide(number, it.channel.as_bytes(), &it.payload)).collect()
    }
}

impl carried::Guest for Shapes {
    fn on_access(requests: Vec<carried::Request>) -> Vec<Denial> {
        let mut name = "";
        let mut denials = Vec::new();
        for (number, request) in requests.iter().enumerate() {
            name = request.name.as_deref().unwrap_or(name);
            denials.extend(deny(number, name.as_bytes()));
        }
        denials
    }

    fn on_publish(submissions: Vec<carried::Submission>, _extras: Vec<Extra>) -> Vec<Decision> {
        let mut channel = "";
        let mut decisions = Vec::new();
        for (number, submission) in submissions.iter().enumerate() {
            channel = submission.channel.as_deref().unwrap_or(channel);
            decisions.extend(decide(number, channel.as_bytes(), &submission.payload));
        }
        decisions
    }
}
