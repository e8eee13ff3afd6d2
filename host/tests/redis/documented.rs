//! The page about Redis clients says which commands work and which are refused. It must be true.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};

use crate::client::RespClient;
use crate::support::server::Launch;
use crate::value::Value;

const PAGE: &str = include_str!("../../../docs/redis.md");

/// The commands in the first column of the table below this heading.
fn commands(heading: &str) -> Result<Vec<Vec<&'static str>>> {
    let (_, section) = PAGE.split_once(heading).context("there is no such heading")?;
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.filter_map(|row| row.split('|').nth(1));
    let commands = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    Ok(commands.map(|command| command.split(' ').collect()).collect())
}

/// Whether the server has this command, whatever it says of the missing arguments.
async fn is_known(client: &mut RespClient, command: &[&str]) -> Result<bool> {
    let name = command.join("|");
    let reply = client.call(&["COMMAND", "INFO", &name]).await?;
    let Value::Aggregate(_, infos) = &reply else { bail!("{name}: {reply}") };
    let is_described = infos.first() != Some(&Value::NullBulk);
    // QUIT, SUBSCRIBE and the like have an effect, so they are not sent.
    if is_described {
        return Ok(true);
    }
    let reply = client.call(command).await?;
    let Value::Error(text) = &reply else { bail!("{name} is not described and answers {reply}") };
    let is_unknown =
        text.starts_with(b"ERR unknown command '") || text.starts_with(b"ERR unknown subcommand '");
    ensure!(is_unknown, "{name} is not described and answers {reply}");
    Ok(false)
}

#[tokio::test]
async fn what_the_page_lists_works_and_what_it_refuses_is_unknown() -> Result<()> {
    let server = Launch::default().start().await?;
    let mut client = RespClient::connect(server.resp_address().await?).await?;
    let works = commands("\n## What works\n")?;
    let refused = commands("\n## What is refused\n")?;
    ensure!(works.len() > 80 && refused.len() > 30, "the tables are not read");
    for command in &works {
        ensure!(is_known(&mut client, command).await?, "{} is unknown", command.join(" "));
    }
    for command in &refused {
        ensure!(!is_known(&mut client, command).await?, "{} is known", command.join(" "));
    }
    // Nothing is missing on the page.
    let listed: BTreeSet<String> =
        works.iter().map(|command| command.join("|").to_ascii_lowercase()).collect();
    let reply = client.call(&["COMMAND", "LIST"]).await?;
    let Value::Aggregate(_, names) = reply else { bail!("{reply}") };
    for name in names {
        let Value::Bulk(name) = name else { bail!("{name} is no name") };
        let name = String::from_utf8(name)?;
        let is_container = listed.iter().any(|other| other.starts_with(&format!("{name}|")));
        let is_listed = listed.contains(&name) || is_container || name.starts_with("cluster|");
        ensure!(is_listed, "the page does not list {name}");
    }
    drop(client);
    server.stop().await
}
