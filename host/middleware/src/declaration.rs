//! A plugin's declaration, which is read without an instance of it.
//!
//! The custom section `switchyard:plugin` holds a JSON object. It is static because it must also
//! apply when `init` fails: then there is no instance that could report it.

use serde::{Deserialize, Serialize};

use super::bindings::Hooks;

/// What happens while a plugin is not available.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrapPolicy {
    /// The item is refused.
    Closed,
    /// The plugin is skipped.
    Open,
}

impl TrapPolicy {
    /// As written in files and responses.
    pub fn name(self) -> &'static str {
        match self {
            TrapPolicy::Closed => "closed",
            TrapPolicy::Open => "open",
        }
    }
}

/// The name of the custom section.
pub const SECTION: &str = "switchyard:plugin";
/// The maximum length of the section.
const SECTION_BYTES_MAX: usize = 4 << 10;
/// The maximum length of a name or a version.
const WORD_BYTES_MAX: usize = 64;

/// The declaration of a component. Unknown keys are ignored, so that later versions may add some.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Declaration {
    /// The name that its author gave it.
    pub name: Option<String>,
    /// Its author's version.
    pub version: Option<String>,
    /// What happens to an item when it cannot decide; none: not declared.
    pub on_failure: Option<TrapPolicy>,
}

/// Where a plugin's policy comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicySource {
    /// Its `.toml` sets it.
    Config,
    /// The component declares it.
    Component,
    /// Neither: the default for its hooks.
    Default,
}

impl PolicySource {
    /// As text.
    pub fn words(self) -> &'static str {
        match self {
            PolicySource::Config => "by its .toml",
            PolicySource::Component => "declared by the component",
            PolicySource::Default => "by its hooks",
        }
    }
}

impl Declaration {
    /// Reads the section of a component; an empty declaration if it has none.
    ///
    /// # Errors
    ///
    /// The section is too long or malformed; the error is a message.
    pub fn of(component: &[u8]) -> Result<Declaration, String> {
        let Some(section) = switchyard_wasm::custom_section(component, SECTION) else {
            return Ok(Declaration::default());
        };
        if section.len() > SECTION_BYTES_MAX {
            return Err(format!(
                "the custom section {SECTION} has {} bytes, and may have {SECTION_BYTES_MAX}",
                section.len()
            ));
        }
        // Only an object, and no list of the members, which serde would accept too.
        let declaration =
            serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(section)
                .and_then(|members| Declaration::deserialize(serde_json::Value::Object(members)))
                .map_err(|json| format!("the custom section {SECTION}: {json}"))?;
        for (key, word) in [("name", &declaration.name), ("version", &declaration.version)] {
            let is_fit = |word: &String| {
                (1..=WORD_BYTES_MAX).contains(&word.len()) && !word.contains(char::is_control)
            };
            if !word.as_ref().is_none_or(is_fit) {
                return Err(format!(
                    "the custom section {SECTION}: {key} must have 1 to {WORD_BYTES_MAX} bytes \
                     and no control characters"
                ));
            }
        }
        Ok(declaration)
    }
}

/// The policy that applies, and its source: the operator's configuration, else the component's
/// declaration, else closed for a plugin that makes decisions and open for one that only sees
/// messages.
pub fn policy(
    configured: Option<TrapPolicy>,
    declared: &Declaration,
    hooks: Hooks,
) -> (TrapPolicy, PolicySource) {
    if let Some(policy) = configured {
        return (policy, PolicySource::Config);
    }
    if let Some(policy) = declared.on_failure {
        return (policy, PolicySource::Component);
    }
    let policy = match hooks.admission || hooks.access {
        true => TrapPolicy::Closed,
        false => TrapPolicy::Open,
    };
    (policy, PolicySource::Default)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An empty component with this custom section.
    fn component(content: &str) -> Vec<u8> {
        let mut bytes = b"\0asm\x0d\0\x01\0\0".to_vec();
        let length = 1 + SECTION.len() + content.len();
        bytes.extend([(length & 0x7f | 0x80) as u8, (length >> 7) as u8, SECTION.len() as u8]);
        bytes.extend(SECTION.bytes().chain(content.bytes()));
        bytes
    }

    #[test]
    fn what_a_component_declares_is_read_and_what_is_malformed_is_refused() {
        let read = |content: &str| Declaration::of(&component(content));
        let declared =
            read(r#"{"name": "redact", "version": "0.1.0", "on_failure": "closed", "later": 1}"#);
        assert_eq!(
            declared,
            Ok(Declaration {
                name: Some("redact".to_owned()),
                version: Some("0.1.0".to_owned()),
                on_failure: Some(TrapPolicy::Closed),
            })
        );
        assert_eq!(read("{}"), Ok(Declaration::default()));
        assert_eq!(Declaration::of(b"\0asm\x0d\0\x01\0"), Ok(Declaration::default()));
        for malformed in [
            "",
            "closed",
            "[]",
            r#"{"on_failure": "shut"}"#,
            r#"{"name": ""}"#,
            r#"{"version": "1\n2"}"#,
            &format!(r#"{{"later": "{}"}}"#, "x".repeat(SECTION_BYTES_MAX)),
        ] {
            let problem = read(malformed).expect_err(malformed);
            assert!(problem.contains(SECTION), "{problem}");
        }
    }

    #[test]
    fn the_operator_comes_before_the_author_and_the_author_before_the_hooks() {
        use TrapPolicy::{Closed, Open};
        let declared = |on_failure| Declaration { on_failure, ..Declaration::default() };
        let messages = Hooks { messages: true, ..Hooks::default() };
        let access = Hooks { access: true, ..messages };
        for (configured, on_failure, hooks, expected) in [
            (None, None, messages, (Open, PolicySource::Default)),
            (None, None, access, (Closed, PolicySource::Default)),
            (None, Some(Closed), messages, (Closed, PolicySource::Component)),
            (None, Some(Open), access, (Open, PolicySource::Component)),
            (Some(Open), Some(Closed), messages, (Open, PolicySource::Config)),
        ] {
            assert_eq!(policy(configured, &declared(on_failure), hooks), expected);
        }
    }
}
