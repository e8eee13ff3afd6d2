//! The declaration in a component's custom section.

use wasmparser::{ComponentTypeRef, Parser, Payload};

/// Longer versions are ignored.
const VERSION_BYTES_MAX: usize = 64;

/// The names of a component's imports and exports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interfaces {
    /// What it imports, except for types.
    pub imports: Vec<String>,
    /// What it exports.
    pub exports: Vec<String>,
}

impl Interfaces {
    /// Those of the component with these bytes, without compiling it.
    ///
    /// # Errors
    ///
    /// The bytes are not a component; the error is a message.
    pub fn of(bytes: &[u8]) -> Result<Interfaces, String> {
        super::check_kind(bytes)?;
        let mut found = Interfaces::default();
        let mut depth = 0_u32;
        for payload in Parser::new(0).parse_all(bytes) {
            match payload.map_err(described)? {
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) => depth = depth.saturating_sub(1),
                Payload::ComponentImportSection(imports) if depth == 0 => {
                    for import in imports {
                        let import = import.map_err(described)?;
                        if !matches!(import.ty, ComponentTypeRef::Type(_)) {
                            found.imports.push(import.name.name.to_owned());
                        }
                    }
                }
                Payload::ComponentExportSection(exports) if depth == 0 => {
                    for export in exports {
                        found.exports.push(export.map_err(described)?.name.name.to_owned());
                    }
                }
                _ => {}
            }
        }
        Ok(found)
    }
}

fn described(error: wasmparser::BinaryReaderError) -> String {
    error.to_string().replace('\n', " ")
}

/// The version of a component: its custom section `version`, as `wasm-tools metadata add --version`
/// writes it, or else that of a module in it.
pub fn own_version(bytes: &[u8]) -> Option<String> {
    text(custom_section(bytes, "version")?)
}

/// The content of the custom section of this name: that of the component, else the
/// first one of a module or component in it. None: there is no such section, or the
/// bytes cannot be parsed.
pub fn custom_section<'a>(bytes: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let mut depth = 0_u32;
    let mut inner = None;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.ok()? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::CustomSection(section) if section.name() == name => {
                if depth == 0 {
                    return Some(section.data());
                }
                inner = inner.or(Some(section.data()));
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
    fn only_a_valid_version_section_is_read() {
        assert_eq!(own_version(&component("version", "1.2.3")).as_deref(), Some("1.2.3"));
        assert_eq!(own_version(&component("versions", "1.2.3")), None);
        assert_eq!(own_version(&component("version", "1\n2")), None);
        assert_eq!(own_version(&component("version", "")), None);
        assert_eq!(own_version(b"\0asm\x0d\0\x01\0\0\x09"), None);
    }

    #[test]
    fn a_section_of_the_component_comes_before_one_of_a_module_in_it() {
        // A module with a custom section, as a section of a component.
        let mut module = b"\0asm\x01\0\0\0\0\x06\x04nameX".to_vec();
        let mut nested = b"\0asm\x0d\0\x01\0\x01".to_vec();
        nested.push(module.len() as u8);
        nested.append(&mut module);
        assert_eq!(custom_section(&nested, "name"), Some(&b"X"[..]));
        nested.extend(b"\0\x06\x04nameY");
        assert_eq!(custom_section(&nested, "name"), Some(&b"Y"[..]));
        assert_eq!(custom_section(&nested, "other"), None);
    }
}
