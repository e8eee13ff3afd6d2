//! Finds what Rust source text imports.

/// What follows this root in paths: `module` for `crate::module::Type`, and `a` and `b` for
/// `crate::{a, b::C}`. Comments and unit tests are skipped.
pub fn after(text: &str, root: &str) -> Vec<String> {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code = lines.collect::<Vec<_>>().join("\n");
    let mut found = Vec::new();
    for (at, _) in code.match_indices(root) {
        let before = code.get(..at).unwrap_or_default();
        // `super::super::` is two levels up, `self::crate::` is none of this.
        if before.ends_with("::") || before.ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = code.get(at + root.len()..).unwrap_or_default();
        match rest.strip_prefix('{') {
            Some(group) => found.extend(names_in(group)),
            None => found.extend(name(rest)),
        }
    }
    found
}

/// The first names in a group, up to its closing brace.
fn names_in(group: &str) -> Vec<String> {
    let mut names = Vec::new();
    let (mut depth, mut is_first) = (0, true);
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => is_first = true,
            _ if depth == 0 && is_first && !character.is_whitespace() => {
                names.extend(group.get(at..).and_then(name));
                is_first = false;
            }
            _ => {}
        }
    }
    names
}

fn name(text: &str) -> Option<String> {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    text.get(..end).filter(|name| !name.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::after;

    #[test]
    fn paths_and_groups_are_found() {
        let text = "use crate::a::B;\nuse crate::{\n    c,\n    d::{E, F},\n    g,\n};\nfn f() { crate::h() }";
        assert_eq!(after(text, "crate::"), ["a", "c", "d", "g", "h"]);
    }

    #[test]
    fn comments_tests_and_other_roots_are_not() {
        let text = "// crate::a\nuse super::super::b;\nuse my_crate::c;\n#[cfg(test)]\nmod tests {\n    use crate::d;\n}\n";
        assert_eq!(after(text, "crate::"), [""; 0]);
        assert_eq!(after(text, "super::"), ["super"]);
    }
}
