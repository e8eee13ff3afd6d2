//! The recipes of `docs/plugins/cookbook.md`, executed: each `toml` block is a plugin's file, named
//! in its first line, and the `text` block is a conversation with a server that has exactly these
//! plugins.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::support::server::Engine;
use crate::transcript::play_text;

/// One recipe.
#[derive(Debug, Default, PartialEq)]
struct Recipe<'a> {
    title: &'a str,
    plugins: Vec<(&'a str, &'a str)>,
    conversation: &'a str,
}

fn recipes(page: &str) -> Result<Vec<Recipe<'_>>> {
    let sections = page.split("\n## ").skip(1).map(|section| {
        let title = section.lines().next().unwrap_or_default();
        let mut recipe = Recipe { title, ..Recipe::default() };
        for block in section.split("\n```").skip(1).step_by(2) {
            let (kind, text) = block.split_once('\n').context("an empty block")?;
            match kind {
                "toml" => {
                    let first = text.lines().next().unwrap_or_default();
                    let name = first.strip_prefix("# ").and_then(|n| n.strip_suffix(".toml"));
                    let name = name.with_context(|| format!("{title}: not a name: {first}"))?;
                    recipe.plugins.push((name, text));
                }
                "text" => recipe.conversation = text,
                _ => bail!("{title}: a block of {kind}"),
            }
        }
        Ok(recipe)
    });
    sections.collect()
}

#[tokio::test]
async fn every_recipe_does_what_its_page_says() -> Result<()> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/plugins/cookbook.md");
    let page = std::fs::read_to_string(page)?;
    let recipes = recipes(&page)?;
    ensure!(recipes.len() >= 5, "only {} recipes were found", recipes.len());
    for Recipe { title, plugins, conversation } in recipes {
        ensure!(!plugins.is_empty() && conversation.lines().count() > 4, "{title} is not whole");
        play_text(title, conversation, Engine::Component, &plugins).await?;
    }
    Ok(())
}

#[test]
fn a_page_is_parsed() -> Result<()> {
    let page = "# Page\n\n## One\n\n```toml\n# 10-acl.toml\na = 1\n```\n\nWords.\n\n```text\nx> y\n\
                ```\n\n## Two\n";
    let one = Recipe {
        title: "One",
        plugins: vec![("10-acl", "# 10-acl.toml\na = 1")],
        conversation: "x> y",
    };
    assert_eq!(recipes(page)?, [one, Recipe { title: "Two", ..Recipe::default() }]);
    assert!(recipes("\n## One\n```toml\na = 1\n```\n").is_err());
    Ok(())
}
