//! What a component says of itself.

use wasmparser::{Parser, Payload};

/// Longer ones are none.
const VERSION_BYTES_MAX: usize = 64;

/// The version that a component gives itself: the custom section `version`, as
/// `wasm-tools metadata add --version` writes it, of the component or else of a
/// module in it.
pub fn own_version(bytes: &[u8]) -> Option<String> {
    let mut depth = 0_u32;
    let mut inner = None;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.ok()? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::CustomSection(section) if section.name() == "version" => {
                let version = text(section.data());
                if depth == 0 {
                    return version;
                }
                inner = inner.or(version);
            }
            _ => {}
        }
    }
    inner
}

fn text(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    let is_fit = !text.is_empty() && text.len() <= VERSION_BYTES_MAX;
    (is_fit && !text.contains(char::is_control)).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An empty component with a custom section.
    fn component(name: &str, content: &str) -> Vec<u8> {
        let mut bytes = b"\0asm\x0d\0\x01\0\0".to_vec();
        bytes.push((1 + name.len() + content.len()) as u8);
        bytes.push(name.len() as u8);
        bytes.extend(name.bytes().chain(content.bytes()));
        bytes
    }

    #[test]
    fn a_version_is_read_and_nothing_else_is_taken_for_one() {
        assert_eq!(own_version(&component("version", "1.2.3")).as_deref(), Some("1.2.3"));
        assert_eq!(own_version(&component("versions", "1.2.3")), None);
        assert_eq!(own_version(&component("version", "1\n2")), None);
        assert_eq!(own_version(&component("version", "")), None);
        assert_eq!(own_version(b"\0asm\x0d\0\x01\0\0\x09"), None);
    }
}
