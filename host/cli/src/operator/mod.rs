//! The command-line client of the admin API.

mod api;
mod show;

use std::io::{self, BufRead, Write};
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cli::operate::{
    AdminArgs, ComponentArgs, ConnectionsArgs, DisconnectArgs, EngineCommand, HistoryCommand,
    LogArgs, NodesArgs, PlaceArgs, PluginCommand, PubsubCommand, TopChannelsArgs, WantedArgs,
    WhichArgs,
};
pub use api::OperatorError;
use api::{Api, Method};
use switchyard_admin::admin::view::{
    ChannelsView, ClosedView, ConnectionView, ConnectionsView, CountsView, EngineView, LogBody,
    LogView, MoveBody, OfferBody, PatternsView, PluginView, PluginsView, PurgedView, ReloadBody,
    SwapView, TraceLine,
};
use switchyard_config::file::{self, COMPONENT_BYTES_MAX, SETTINGS_BYTES_MAX};

/// Runs a command for plugins.
///
/// # Errors
///
/// There is no server, it refused, or the arguments are invalid.
pub fn plugin(command: PluginCommand) -> Result<(), OperatorError> {
    match command {
        PluginCommand::Ls { admin } => {
            get(&admin, "/v1/plugins", |plugins: &PluginsView| show::plugins(plugins))
        }
        PluginCommand::Show { plugin, admin } => {
            let path = format!("/v1/plugins/{}", segment(&plugin));
            get(&admin, &path, |plugin: &PluginView| show::plugin(plugin))
        }
        PluginCommand::Load { slot, component, config, admin } => {
            let body = offer(component, config.as_deref())?;
            change(&admin, Method::Post, &format!("/v1/plugins/{}", segment(&slot)), Some(&body))
        }
        PluginCommand::Swap { plugin, component, config, fresh, admin } => {
            let body = OfferBody { fresh, ..offer(component, config.as_deref())? };
            let path = format!("/v1/plugins/{}/swap", segment(&plugin));
            change(&admin, Method::Post, &path, Some(&body))
        }
        PluginCommand::Rollback { plugin, admin } => {
            let path = format!("/v1/plugins/{}/rollback", segment(&plugin));
            change(&admin, Method::Post, &path, None::<&()>)
        }
        PluginCommand::Move { plugin, place: PlaceArgs { before, after, to }, admin } => {
            let path = format!("/v1/plugins/{}/move", segment(&plugin));
            change(&admin, Method::Post, &path, Some(&MoveBody { before, after, to }))
        }
        PluginCommand::Rm { plugin, admin } => {
            let path = format!("/v1/plugins/{}", segment(&plugin));
            change(&admin, Method::Delete, &path, None::<&()>)
        }
        PluginCommand::Reload { plugin, config, fresh, admin } => {
            let path = format!("/v1/plugins/{}/reload", segment(&plugin));
            let config = config.as_deref().map(read_text).transpose()?;
            change(&admin, Method::Post, &path, Some(&ReloadBody { config, fresh }))
        }
        PluginCommand::Trace { wanted, count, admin } => trace(&wanted, count, &admin),
    }
}

/// Runs a command for the engine.
///
/// # Errors
///
/// There is no server, it refused, or the arguments are invalid.
pub fn engine(command: EngineCommand) -> Result<(), OperatorError> {
    match command {
        EngineCommand::Show { admin } => {
            get(&admin, "/v1/engine", |engine: &EngineView| show::engine(engine))
        }
        EngineCommand::Swap { component, admin } => {
            let body = offer(component, None)?;
            change(&admin, Method::Post, "/v1/engine/swap", Some(&body))
        }
        EngineCommand::Rollback { admin } => {
            change(&admin, Method::Post, "/v1/engine/rollback", None::<&()>)
        }
    }
}

/// Lists the channels with the most subscribers, and what channels retain.
///
/// # Errors
///
/// The server is not reachable, or it refused.
pub fn channels_top(args: &TopChannelsArgs) -> Result<(), OperatorError> {
    let TopChannelsArgs { limit, admin } = args;
    let api = Api::new(admin)?;
    let mut answers = serde_json::Map::new();
    for (key, path) in
        [("top", "/v1/pubsub/top"), ("history", "/v1/history"), ("presence", "/v1/presence")]
    {
        let answer = api.ask(Method::Get, &format!("{path}?limit={limit}"), None)?;
        let answer = serde_json::from_slice(&answer).map_err(OperatorError::Unreadable)?;
        answers.insert(key.to_owned(), answer);
    }
    let answer = serde_json::to_vec(&answers).map_err(OperatorError::Unreadable)?;
    print(admin, &answer, |view: &show::ChannelsTop| show::channels_top(view))
}

/// Runs a command for histories.
///
/// # Errors
///
/// The server is not reachable, or it refused.
pub fn history(command: HistoryCommand) -> Result<(), OperatorError> {
    let HistoryCommand::Purge { channel, admin } = command;
    let path = format!("/v1/history{}", query([("channel", channel)].into_iter()));
    let answer = Api::new(&admin)?.ask(Method::Delete, &path, None)?;
    print(&admin, &answer, |purged: &PurgedView| match purged.purged {
        1 => "1 message was dropped\n".to_owned(),
        messages => format!("{messages} messages were dropped\n"),
    })
}

/// Lists connections, shows one, or closes it.
///
/// # Errors
///
/// The server is not reachable, or it refused.
pub fn connections(args: &ConnectionsArgs) -> Result<(), OperatorError> {
    let ConnectionsArgs { connection, close, after, limit, which, admin } = args;
    let Some(id) = connection else {
        let numbers = [("after", *after), ("limit", limit.map(|limit| limit as u64))];
        let numbers =
            numbers.into_iter().filter_map(|(key, value)| Some((key, value?.to_string())));
        let path = format!("/v1/connections{}", query(conditions(which).chain(numbers)));
        return get(admin, &path, |connections: &ConnectionsView| show::connections(connections));
    };
    let path = format!("/v1/connections/{id}");
    if !close {
        return get(admin, &path, |connection: &ConnectionView| show::connection(connection));
    }
    close_one(admin, *id)
}

/// Closes connections: one, or all that meet the conditions, in several requests if there are
/// many.
///
/// # Errors
///
/// The server is not reachable, or it refused.
pub fn disconnect(args: &DisconnectArgs) -> Result<(), OperatorError> {
    let DisconnectArgs { connection, which, admin } = args;
    if let Some(id) = connection {
        return close_one(admin, *id);
    }
    let api = Api::new(admin)?;
    let path = format!("/v1/connections{}", query(conditions(which)));
    let mut closed = 0;
    loop {
        let answer = api.ask(Method::Delete, &path, None)?;
        let view: ClosedView =
            serde_json::from_slice(&answer).map_err(OperatorError::Unreadable)?;
        closed += view.closed;
        if !view.has_more || view.closed == 0 {
            let whole = ClosedView { closed, has_more: view.has_more };
            let answer = serde_json::to_vec(&whole).unwrap_or(answer);
            return print(admin, &answer, |whole: &ClosedView| match whole.closed {
                1 => "1 connection was closed\n".to_owned(),
                closed => format!("{closed} connections were closed\n"),
            });
        }
    }
}

fn close_one(admin: &AdminArgs, id: u64) -> Result<(), OperatorError> {
    let api = Api::new(admin)?;
    let closed = api.ask(Method::Delete, &format!("/v1/connections/{id}"), None)?;
    print(admin, &closed, |closed: &ConnectionView| {
        format!("connection {} was closed\n", closed.id)
    })
}

/// The conditions as parameters of a request.
fn conditions(which: &WhichArgs) -> impl Iterator<Item = (&'static str, String)> {
    let WhichArgs { user, address, name } = which;
    let conditions = [("user", user), ("address", address), ("name", name)];
    conditions.map(|(key, value)| Some((key, value.clone()?))).into_iter().flatten()
}

/// Prints subscriptions.
///
/// # Errors
///
/// The server is not reachable, or it cannot report them.
pub fn pubsub(command: PubsubCommand) -> Result<(), OperatorError> {
    let flags = |shard: bool, all: bool| {
        let flags = [("shard", shard), ("all", all)].into_iter().filter(|(_, is_set)| *is_set);
        flags.map(|(key, _)| (key, "true".to_owned()))
    };
    match command {
        PubsubCommand::Channels { matching, shard, nodes: NodesArgs { all, admin } } => {
            let parameters = matching.map(|glob| ("matching", glob)).into_iter();
            let path = format!("/v1/pubsub/channels{}", query(parameters.chain(flags(shard, all))));
            get(&admin, &path, |channels: &ChannelsView| show::channels(channels))
        }
        PubsubCommand::Numsub { channels, shard, nodes: NodesArgs { all, admin } } => {
            let parameters = channels.into_iter().map(|channel| ("channel", channel));
            let path = format!("/v1/pubsub/numsub{}", query(parameters.chain(flags(shard, all))));
            get(&admin, &path, |counts: &CountsView| show::subscribers(counts))
        }
        PubsubCommand::Numpat { nodes: NodesArgs { all, admin } } => {
            let path = format!("/v1/pubsub/numpat{}", query(flags(false, all)));
            get(&admin, &path, |patterns: &PatternsView| show::patterns(patterns))
        }
    }
}

/// Prints or changes the log filter.
///
/// # Errors
///
/// There is no server, or it refused.
pub fn log(args: &LogArgs) -> Result<(), OperatorError> {
    let LogArgs { filter, follow, unfollow, admin } = args;
    if filter.is_none() && follow.is_empty() && unfollow.is_empty() {
        return get(admin, "/v1/log", |log: &LogView| show::log(log));
    }
    let body =
        LogBody { filter: filter.clone(), follow: follow.clone(), unfollow: unfollow.clone() };
    let body = serde_json::to_vec(&body).expect("it is JSON");
    let answer = Api::new(admin)?.ask(Method::Put, "/v1/log", Some(body))?;
    print(admin, &answer, |log: &LogView| show::log(log))
}

fn get<T: DeserializeOwned>(
    admin: &AdminArgs,
    path: &str,
    table: impl FnOnce(&T) -> String,
) -> Result<(), OperatorError> {
    let answer = Api::new(admin)?.ask(Method::Get, path, None)?;
    print(admin, &answer, table)
}

fn change(
    admin: &AdminArgs,
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
) -> Result<(), OperatorError> {
    let body = body.map(|body| serde_json::to_vec(body).expect("it is JSON"));
    let answer = Api::new(admin)?.ask(method, path, body)?;
    print(admin, &answer, |swap: &SwapView| show::swap(swap))
}

fn print<T: DeserializeOwned>(
    admin: &AdminArgs,
    answer: &[u8],
    table: impl FnOnce(&T) -> String,
) -> Result<(), OperatorError> {
    if admin.json {
        return write_out(&[answer, b"\n"].concat());
    }
    let view = serde_json::from_slice(answer).map_err(OperatorError::Unreadable)?;
    write_out(table(&view).as_bytes())
}

/// Writes to standard output. A closed pipe is no error: a reader such as `head` may stop early.
fn write_out(bytes: &[u8]) -> Result<(), OperatorError> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(OperatorError::Output(error))
        }
        _ => Ok(()),
    }
}

fn trace(wanted: &WantedArgs, count: Option<u64>, admin: &AdminArgs) -> Result<(), OperatorError> {
    let WantedArgs { connection, channel } = wanted;
    let parameters = [
        ("connection", connection.map(|id| id.to_string())),
        ("channel", channel.clone()),
        ("count", count.map(|count| count.to_string())),
    ];
    let parameters = parameters.into_iter().filter_map(|(key, value)| Some((key, value?)));
    let lines = Api::new(admin)?.stream(&format!("/v1/trace{}", query(parameters)))?;
    for line in lines.lines() {
        let line = line.map_err(OperatorError::BrokeOff)?;
        // Written to detect a closed pipe.
        if line.is_empty() {
            continue;
        }
        if admin.json {
            write_out(format!("{line}\n").as_bytes())?;
            continue;
        }
        let line = serde_json::from_str(&line).map_err(OperatorError::Unreadable)?;
        match line {
            TraceLine::Began => eprintln!("tracing; ctrl-c ends it"),
            TraceLine::Said(event) => write_out(show::trace_event(&event).as_bytes())?,
            TraceLine::Dropped { count } => {
                eprintln!("{count} lines were dropped, because they were not read fast enough");
            }
            TraceLine::Ended { why } => eprintln!("ended: {why}"),
        }
    }
    Ok(())
}

fn offer(component: ComponentArgs, config: Option<&Path>) -> Result<OfferBody, OperatorError> {
    let config = config.map(read_text).transpose()?;
    let (path, wasm) = match component {
        ComponentArgs { path: Some(path), .. } => (Some(path.display().to_string()), None),
        ComponentArgs { file: Some(file), .. } => {
            let bytes = file::read_input(&file, COMPONENT_BYTES_MAX)
                .map_err(|source| OperatorError::File { path: file, source })?;
            (None, Some(BASE64_STANDARD.encode(bytes)))
        }
        ComponentArgs { path: None, file: None } => unreachable!("one of them is required"),
    };
    Ok(OfferBody { path, wasm, config, fresh: false })
}

fn read_text(path: &Path) -> Result<String, OperatorError> {
    file::read_text_input(path, SETTINGS_BYTES_MAX)
        .map_err(|source| OperatorError::File { path: path.to_owned(), source })
}

/// A name as a segment of a path.
fn segment(name: &str) -> String {
    form_urlencoded::byte_serialize(name.as_bytes()).collect::<String>().replace('+', "%20")
}

fn query(pairs: impl Iterator<Item = (&'static str, String)>) -> String {
    let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
    if query.is_empty() { query } else { format!("?{query}") }
}
