//! Whether a payload fits the schemas of its channel.
//!
//! A payload is parsed once, and only when a rule looks at its channel. How large
//! and how deep it may be is known before a schema is applied, and how much work the
//! schema is for it (`work`): one that is too much for a call is refused.

use jsonschema::Validator;
use plugin_kit::refused::Refused;
use serde_json::Value;

use crate::document;
use crate::work::{self, Work};

/// The settings, ready for use.
#[derive(Debug)]
pub struct Rules {
    /// All must be kept that look at a channel.
    pub rules: Vec<Rule>,
    /// What becomes of what is published where no rule looks.
    pub unmatched: Unmatched,
    /// How large a payload may be that is checked.
    pub payload_bytes_max: usize,
    /// How deep arrays and objects may stand in one another.
    pub depth_max: usize,
    /// How many checks one call may make.
    pub checks_max: f64,
}

/// What becomes of what is published where no rule looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unmatched {
    /// It passes.
    #[default]
    Allow,
    /// It is refused.
    Reject,
}

/// One schema, and where it holds.
#[derive(Debug)]
pub struct Rule {
    /// What it is called.
    pub name: String,
    /// Globs: it holds on channels that match one.
    pub channels: Vec<String>,
    /// What must fit.
    pub schema: Validator,
    /// How much work that is.
    pub work: Work,
}

/// How many bytes are parsed in the time of a check.
const BYTES_PER_CHECK: f64 = 8.0;

impl Rules {
    /// Whether each of these, channel and payload, may be published; they came in
    /// one call. When there is not enough time for all, the largest are refused.
    pub fn check_all(&self, submissions: &[(&str, &[u8])]) -> Vec<Result<(), Refused>> {
        let mut checks_left = self.checks_max;
        let mut order: Vec<_> = submissions.iter().enumerate().collect();
        order.sort_by_key(|(_, (_, payload))| payload.len());
        let checked = order.into_iter().map(|(place, (channel, payload))| {
            (place, self.check(channel, payload, &mut checks_left))
        });
        let mut checked: Vec<_> = checked.collect();
        checked.sort_by_key(|(place, _)| *place);
        checked.into_iter().map(|(_, result)| result).collect()
    }

    fn check(&self, channel: &str, payload: &[u8], checks_left: &mut f64) -> Result<(), Refused> {
        let mut rules = self.rules.iter().filter(|rule| rule.looks_at(channel)).peekable();
        if rules.peek().is_none() {
            return match self.unmatched {
                Unmatched::Allow => Ok(()),
                Unmatched::Reject => {
                    Err(rejected("no schema is known for this channel".to_owned()))
                }
            };
        }
        if payload.len() > self.payload_bytes_max {
            return Err(Refused {
                code: "TOOLARGE",
                message: format!(
                    "the payload has {} bytes; what is checked may have {}",
                    payload.len(),
                    self.payload_bytes_max
                ),
            });
        }
        // What this payload alone takes.
        let mut own = 0.0;
        self.spend(payload.len() as f64 / BYTES_PER_CHECK, &mut own, checks_left)?;
        let document =
            document::read(payload).map_err(|error| rejected(format!("not JSON: {error}")))?;
        if !is_within(&document, self.depth_max) {
            let message = format!("the JSON is more than {} levels deep", self.depth_max);
            return Err(rejected(message));
        }
        let places = work::places(&document);
        rules.try_for_each(|rule| {
            self.spend(work::checks(&places, &rule.work.valid), &mut own, checks_left)?;
            if rule.schema.is_valid(&document) {
                return Ok(());
            }
            let checks = work::checks(&places, &rule.work.explained);
            Err(match self.spend(checks, &mut own, checks_left) {
                Ok(()) => rule.explain(&document),
                Err(_) => rejected(format!(
                    "the payload does not fit; where is not said, because that takes too long \
                     (schema {})",
                    rule.name
                )),
            })
        })
    }

    fn spend(&self, checks: f64, own: &mut f64, checks_left: &mut f64) -> Result<(), Refused> {
        *own += checks;
        if checks <= *checks_left {
            *checks_left -= checks;
            return Ok(());
        }
        if *own > self.checks_max {
            let message = format!(
                "checking the payload may take {own:.0} checks; {:.0} are the most",
                self.checks_max
            );
            return Err(Refused { code: "TOOLARGE", message });
        }
        let message = "too much was published at once to check all of it; try again".to_owned();
        Err(Refused { code: "UNAVAILABLE", message })
    }
}

impl Rule {
    fn looks_at(&self, channel: &str) -> bool {
        let matches =
            |glob: &String| guest_core::glob::matches(glob.as_bytes(), channel.as_bytes());
        self.channels.iter().any(matches)
    }

    /// Where and why a document does not fit.
    fn explain(&self, document: &Value) -> Refused {
        let Err(error) = self.schema.validate(document) else {
            return rejected(format!("the payload does not fit (schema {})", self.name));
        };
        let path = error.instance_path().to_string();
        let at = if path.is_empty() { "the payload" } else { &path };
        // Without the value itself: its publisher knows it, and it may be long.
        rejected(format!("{at}: {} (schema {})", error.masked(), self.name))
    }
}

fn rejected(message: String) -> Refused {
    Refused { code: "REJECTED", message }
}

/// Whether arrays and objects stand no deeper in one another. What was parsed is
/// at most 128 deep.
fn is_within(value: &Value, depth: usize) -> bool {
    let is_within = |member: &Value| is_within(member, depth - 1);
    match value {
        Value::Array(_) | Value::Object(_) if depth == 0 => false,
        Value::Array(members) => members.iter().all(is_within),
        Value::Object(members) => members.values().all(is_within),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::settings;

    fn check(settings: &Value, channel: &str, payload: &str, expected: Result<(), &str>) {
        let rules = match settings::read(&settings.to_string()) {
            Ok(rules) => rules,
            Err(error) => panic!("{settings}: {error}"),
        };
        let found = rules.check_all(&[(channel, payload.as_bytes())]).remove(0);
        let found = found.map_err(|Refused { code, message }| format!("{code} {message}"));
        assert_eq!(found, expected.map_err(str::to_owned), "{channel} {payload}");
    }

    fn orders() -> Value {
        json!({"rules": [{
            "name": "order",
            "channels": ["orders", "orders.*"],
            "schema": {
                "type": "object",
                "required": ["id", "items"],
                "additionalProperties": false,
                "properties": {
                    "id": {"type": "string", "pattern": "^[0-9]{4}$"},
                    "mail": {"type": "string", "format": "email"},
                    "items": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/item"}},
                },
                "$defs": {"item": {
                    "type": "object",
                    "required": ["sum"],
                    "properties": {"sum": {"type": "number", "exclusiveMinimum": 0}},
                }},
            },
        }]})
    }

    #[test]
    fn a_payload_is_valid_or_its_error_names_the_place() {
        let orders = orders();
        let check = |payload: Value, expected| {
            check(&orders, "orders.eu", &payload.to_string(), expected);
        };
        check(json!({"id": "0001", "items": [{"sum": 1.5}]}), Ok(()));
        check(
            json!({"id": "0001", "items": [{"sum": 1}, {"sum": "x"}]}),
            Err("REJECTED /items/1/sum: value is not of type \"number\" (schema order)"),
        );
        check(
            json!({"id": "0001", "items": [{"sum": 0}]}),
            Err("REJECTED /items/0/sum: value is less than or equal to the minimum of 0 (schema \
                 order)"),
        );
        check(
            json!({"id": "1", "items": [{"sum": 1}]}),
            Err("REJECTED /id: value does not match \"^[0-9]{4}$\" (schema order)"),
        );
        check(
            json!({"id": "0001", "mail": "me", "items": [{"sum": 1}]}),
            Err("REJECTED /mail: value is not a \"email\" (schema order)"),
        );
        check(
            json!({"id": "0001"}),
            Err("REJECTED the payload: \"items\" is a required property (schema order)"),
        );
    }

    #[test]
    fn only_json_of_some_size_and_depth_is_checked() {
        let mut settings = orders();
        settings["payload_bytes_max"] = 40.into();
        settings["depth_max"] = 2.into();
        let ok = r#"{"id":"0001","items":[]}"#;
        check(&settings, "news", "no JSON, and no rule asks for it, however long it is", Ok(()));
        let why = "REJECTED not JSON: expected ident at line 1 column 2";
        check(&settings, "orders", "no JSON", Err(why));
        let why = "REJECTED /items: value has less than 1 item (schema order)";
        check(&settings, "orders", ok, Err(why));
        let why = "REJECTED the JSON is more than 2 levels deep";
        check(&settings, "orders", "[[[]]]", Err(why));
        let why = "TOOLARGE the payload has 41 bytes; what is checked may have 40";
        check(&settings, "orders", &format!("{ok:41}"), Err(why));
        let deep = format!("{}{}", "[".repeat(1000), "]".repeat(1000));
        let roomy = json!({"rules": [{"name": "a", "channels": ["*"], "schema": true}]});
        let why = "REJECTED not JSON: recursion limit exceeded at line 1 column 128";
        check(&roomy, "a", &deep, Err(why));
    }

    #[test]
    fn every_rule_that_looks_must_be_kept() {
        let settings = json!({
            "unmatched": "reject",
            "rules": [
                {"name": "all", "channels": ["a.*"], "schema": {"type": "object"}},
                {"name": "some", "channels": ["a.b"], "schema": "{\"required\": [\"x\"]}"},
            ],
        });
        check(&settings, "a.a", "{}", Ok(()));
        check(&settings, "a.b", r#"{"x": null}"#, Ok(()));
        let why = "REJECTED the payload: \"x\" is a required property (schema some)";
        check(&settings, "a.b", "{}", Err(why));
        let why = "REJECTED the payload: value is not of type \"object\" (schema all)";
        check(&settings, "a.b", "[]", Err(why));
        check(&settings, "c", "{}", Err("REJECTED no schema is known for this channel"));
    }

    /// Schemas that apply themselves twice at each level of a payload. Each payload is
    /// decided, and in no time.
    #[test]
    fn exponential_work_is_not_done() {
        let nested = |levels: usize| format!("{}0{}", "[".repeat(levels), "]".repeat(levels));
        let tree = json!({"items": {"$ref": "#/$defs/tree"}});
        for keyword in ["anyOf", "oneOf", "allOf"] {
            let schema = json!({
                "$ref": "#/$defs/tree",
                "$defs": {"tree": {"type": "array", keyword: [tree, tree]}},
            });
            let rule = json!({"name": "a", "channels": ["a"], "schema": schema});
            let settings = json!({"rules": [rule], "depth_max": 127});
            let Ok(rules) = settings::read(&settings.to_string()) else {
                panic!("{settings} is refused");
            };
            for levels in [1, 4, 31, 126] {
                let payload = nested(levels);
                let began = std::time::Instant::now();
                let found = rules.check_all(&[("a", payload.as_bytes()), ("b", b"")]);
                assert!(found[0].is_err() && found[1].is_ok(), "{keyword} {levels}: {found:?}");
                assert!(began.elapsed().as_secs() < 2, "{keyword} {levels} took long");
            }
        }
    }

    #[test]
    fn a_payload_that_may_be_too_much_work_is_refused_and_others_are_checked() {
        let rule = json!({"name": "a", "channels": ["*"], "schema": {"items": {"type": "number"}}});
        let settings = json!({"rules": [rule], "checks_max": 1_000});
        let Ok(rules) = settings::read(&settings.to_string()) else {
            panic!("{settings} is refused");
        };
        let large = json!(vec![1; 5_000]).to_string();
        let some = json!(vec![1; 400]).to_string();
        let payloads =
            [("a", large.as_bytes()), ("a", b"[1]"), ("a", some.as_bytes()), ("a", b"[\"\"]")];
        let found = rules.check_all(&payloads);
        let codes: Vec<_> = found.iter().map(|it| it.as_ref().err().map(|it| it.code)).collect();
        assert_eq!(codes, [Some("TOOLARGE"), None, None, Some("REJECTED")]);
        let twice = [("a", some.as_bytes()), ("a", some.as_bytes())];
        let found = rules.check_all(&twice);
        assert!(found.iter().any(|it| it.as_ref().is_err_and(|it| it.code == "UNAVAILABLE")));
    }

    /// Trying it again would not help.
    #[test]
    fn a_single_payload_is_never_refused_as_unavailable() {
        let mut rules = rules_of(&json!({"items": {"type": "number"}}));
        rules.checks_max = 1_000.0;
        let codes = (1..1_200).map(|count| code_of(&rules, &json!(vec![1; count]).to_string()));
        let mut codes: Vec<_> = codes.collect();
        codes.dedup();
        assert_eq!(codes, [None, Some("TOOLARGE")]);
    }

    /// Each array writes down what is in it, with all that is in that.
    #[test]
    fn unique_items_cost_what_is_in_them() {
        let schema = json!({"uniqueItems": true, "items": {"$ref": "#"}});
        let rule = json!({"name": "a", "channels": ["*"], "schema": schema});
        let settings = json!({"rules": [rule], "depth_max": 127});
        let Ok(rules) = settings::read(&settings.to_string()) else {
            panic!("{settings} is refused");
        };
        let numbers = json!((0..1_000).collect::<Vec<_>>()).to_string();
        let deep = format!("{}{numbers}{}", "[".repeat(100), "]".repeat(100));
        let code = |payload: &str| match rules.check_all(&[("a", payload.as_bytes())]).first() {
            Some(Err(refused)) => Some(refused.code),
            _ => None,
        };
        assert_eq!(code(&numbers), None);
        assert_eq!(code(&deep), Some("TOOLARGE"));
    }

    fn rules_of(schema: &Value) -> Rules {
        let rule = json!({"name": "a", "channels": ["*"], "schema": schema});
        match settings::read(&json!({"rules": [rule]}).to_string()) {
            Ok(rules) => rules,
            Err(error) => panic!("{error}"),
        }
    }

    fn code_of(rules: &Rules, payload: &str) -> Option<&'static str> {
        let found = rules.check_all(&[("a", payload.as_bytes())]).remove(0);
        found.err().map(|refused| refused.code)
    }

    /// A name, a schema, and a payload of about so many bytes.
    type Kind = (&'static str, Value, Box<dyn Fn(usize) -> String>);

    /// Schemas that take long for some payloads below 64 KiB, and those payloads.
    fn laborious() -> Vec<Kind> {
        fn repeated(what: &str) -> Box<dyn Fn(usize) -> String> {
            let what = what.to_owned();
            Box::new(move |bytes| {
                let count = bytes / (what.len() + 1);
                format!("[{}]", vec![what.as_str(); count].join(","))
            })
        }
        fn text(what: &str) -> Box<dyn Fn(usize) -> String> {
            let what = what.to_owned();
            Box::new(move |bytes| format!("\"{}\"", what.repeat(bytes / what.len())))
        }
        // One letter or another, without an order.
        let random = |bytes: usize| {
            let mut state = 1_u64;
            let letter = |_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                if state >> 40 & 1 == 0 { 'a' } else { 'b' }
            };
            (0..bytes).map(letter).collect::<String>()
        };
        let names = |count: usize| (0..count).map(|at| format!("name{at}")).collect::<Vec<_>>();
        let keys = move |count: usize, value: Value| {
            let members = names(count).into_iter().map(|name| (name, value.clone()));
            Value::Object(members.collect())
        };
        let prefix: Vec<usize> = (0..50).collect();
        let lists: Vec<Value> = (0..250).map(|last| json!([prefix, last])).collect();
        let objects: Vec<Value> =
            (0..100).map(|last| json!({"a": {"b": 1, "c": "x"}, "z": last})).collect();
        let long = "x".repeat(1_000);
        let texts: Vec<Value> =
            (0..200).map(|at| json!(format!("{long}{at:03}"))).chain([Value::from(1)]).collect();
        let word = json!({"pattern": "\\b[0-9]{16}\\b"});
        let thrash = "[ab]*a[ab]{14}c";
        vec![
            ("word", word.clone(), text("1é ")),
            (
                "words",
                json!({"items": {"not": word}}),
                repeated(&json!("1é ".repeat(60)).to_string()),
            ),
            (
                "thrash",
                json!({"pattern": thrash}),
                Box::new(move |bytes| format!("\"{}\"", random(bytes))),
            ),
            (
                "thrash of many",
                json!({"items": {"not": {"pattern": thrash}}}),
                Box::new(move |bytes| {
                    let all = random(bytes);
                    let texts = all.as_bytes().chunks(200).map(String::from_utf8_lossy);
                    json!(texts.collect::<Vec<_>>()).to_string()
                }),
            ),
            (
                "backwards",
                json!({"pattern": "c[ab]{14}a[ab]*$"}),
                Box::new(move |bytes| format!("\"{}\"", random(bytes))),
            ),
            (
                "names",
                json!({"patternProperties": {thrash: true}}),
                Box::new(move |bytes| format!("{{\"{}\":1}}", random(bytes))),
            ),
            (
                "property names",
                json!({"propertyNames": {"pattern": thrash}}),
                Box::new(move |bytes| format!("{{\"{}\":1}}", random(bytes))),
            ),
            (
                "many patterns",
                json!({"items": {"patternProperties": Value::Object(
                    names(60).into_iter().map(|it| (format!("[0-9]x{it}"), true.into())).collect()
                )}}),
                repeated(r#"{"abcdefgh":1,"bcdefgha":1}"#),
            ),
            (
                "dependentRequired",
                json!({"items": {"dependentRequired": keys(60, json!(["a"]))}}),
                repeated("{}"),
            ),
            (
                "dependencies",
                json!({
                    "$schema": "http://json-schema.org/draft-07/schema#",
                    "items": {"dependencies": keys(300, json!(["a"]))},
                }),
                repeated("{}"),
            ),
            (
                "properties",
                json!({"items": {"properties": keys(100, json!({"type": "string"}))}}),
                repeated(r#"{"a":1}"#),
            ),
            (
                "unevaluated",
                json!({"items": {
                    "properties": keys(100, json!({"type": "string"})),
                    "unevaluatedProperties": true,
                }}),
                repeated(r#"{"a":1,"b":1,"c":1}"#),
            ),
            (
                "required",
                json!({"items": {"required": names(200)}}),
                Box::new(move |bytes| {
                    let full = keys(200, 1.into());
                    let full = full.to_string();
                    format!("[{}]", vec![full.as_str(); bytes / full.len()].join(","))
                }),
            ),
            (
                "required of little",
                json!({"items": {"not": {"anyOf": [
                    {"required": names(200)},
                    {"required": ["b"]},
                ]}}}),
                repeated(r#"{"a":1}"#),
            ),
            ("lists", json!({"items": {"not": {"enum": lists}}}), {
                let payload = json!([prefix, 250]).to_string();
                repeated(&payload)
            }),
            ("objects", json!({"items": {"not": {"enum": objects}}}), {
                let payload = json!({"a": {"b": 1, "c": "x"}, "z": 100}).to_string();
                repeated(&payload)
            }),
            (
                "numbers",
                json!({"items": {"not": {"enum": (0..500).collect::<Vec<_>>()}}}),
                repeated("501"),
            ),
            ("texts", json!({"items": {"not": {"enum": texts}}}), {
                repeated(&json!(format!("{long}yyy")).to_string())
            }),
            ("const", json!({"items": {"not": {"const": prefix}}}), {
                let mut other = prefix.clone();
                other[49] = 0;
                repeated(&json!(other).to_string())
            }),
        ]
    }

    #[test]
    fn what_takes_long_is_refused() {
        let mut wrong = vec![];
        for (name, schema, payload) in laborious() {
            let found = code_of(&rules_of(&schema), &payload(60 << 10));
            // Of these no payload takes long.
            let is_quick = ["const", "required"].contains(&name);
            if !is_quick && found != Some("TOOLARGE") {
                wrong.push(format!("{name}: {found:?}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    /// A schema as they are, and payloads as they are.
    #[test]
    fn common_schemas_are_far_below_the_limit() {
        let mut properties = serde_json::Map::new();
        let mut item = serde_json::Map::new();
        for at in 0..30 {
            let schema = match at % 5 {
                0 => json!({"type": "string", "pattern": "^[a-z0-9-]{1,64}$"}),
                1 => json!({"enum": (0..20).map(|it| format!("state-{it}")).collect::<Vec<_>>()}),
                2 => json!({"type": "string", "format": "date-time"}),
                3 => json!({"type": "number", "minimum": 0}),
                _ => json!({"type": "string", "minLength": 1, "maxLength": 200}),
            };
            let value = match at % 5 {
                0 => json!("abc-123"),
                1 => json!("state-7"),
                2 => json!("2026-01-02T03:04:05Z"),
                3 => json!(7),
                _ => json!("some words of a text"),
            };
            properties.insert(format!("property-{at}"), schema);
            item.insert(format!("property-{at}"), value);
        }
        let required: Vec<_> = properties.keys().take(10).collect();
        let one = json!({
            "type": "object",
            "required": required,
            "properties": properties,
            "patternProperties": {"^x-[a-z]+$": {"type": "string"}},
            "additionalProperties": false,
        });
        let mut rules = rules_of(&json!({"type": "array", "items": one}));
        rules.checks_max /= 4.0;
        let payload = json!(vec![item; 5]).to_string();
        assert!(payload.len() > 4_000, "{}", payload.len());
        assert_eq!(code_of(&rules, &payload), None);
        let item = json!({
            "type": "object",
            "required": ["sum"],
            "properties": {"sum": {"type": "number", "minimum": 0}, "name": {"type": "string"}},
        });
        let schema = json!({
            "type": "object",
            "required": ["id", "items"],
            "additionalProperties": false,
            "properties": {
                "id": {"type": "string", "pattern": "^[0-9]{4,10}$"},
                "items": {"type": "array", "items": {"$ref": "#/$defs/item"}},
            },
            "$defs": {"item": item},
        });
        let items = vec![json!({"sum": 1.5, "name": "a thing of some kind"}); 1_400];
        let payload = json!({"id": "123456", "items": items}).to_string();
        assert_eq!(code_of(&rules_of(&schema), &payload), None);
    }

    /// A regex that takes exponential time elsewhere.
    #[test]
    fn patterns_take_linear_time() {
        let schema = json!({"type": "string", "pattern": "^(a+)+$"});
        let settings = json!({"rules": [{"name": "a", "channels": ["*"], "schema": schema}]});
        let payload = format!("\"{}!\"", "a".repeat(50_000));
        let why = "REJECTED the payload: value does not match \"^(a+)+$\" (schema a)";
        check(&settings, "a", &payload, Err(why));
    }
}
