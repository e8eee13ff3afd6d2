//! Writes docs/plugins/reference.md, which the build script made of `wit/`.
//! `make wit-reference` runs it.

use std::path::Path;

/// The page, as the doc comments are now.
const PAGE: &str = include_str!(concat!(env!("OUT_DIR"), "/reference.md"));

fn main() -> std::io::Result<()> {
    std::fs::write(place(), PAGE)
}

fn place() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/plugins/reference.md")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_up_to_date() -> std::io::Result<()> {
        let written = std::fs::read_to_string(place())?;
        assert!(written == PAGE, "wit/ has changed: run `make wit-reference`");
        Ok(())
    }

    #[test]
    fn everything_has_a_comment() {
        // A heading is followed by its code and then by words.
        let items = PAGE.split("\n### ").skip(1);
        for item in items {
            let words = item.split("```").last().unwrap_or_default();
            assert!(words.contains(". ") || words.trim_end().ends_with('.'), "no words: {item}");
        }
    }
}
