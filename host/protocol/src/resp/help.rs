//! The replies to the HELP sub-commands.
//!
//! PUBSUB has all the sub-commands of Redis, so its help is that of Redis. The other containers
//! list what is supported.

use super::reply::ReplyWriter;

/// `PUBSUB HELP`
pub const PUBSUB: &[&str] = &[
    "CHANNELS [<pattern>]",
    "    Return the currently active channels matching a <pattern> (default: '*').",
    "NUMPAT",
    "    Return number of subscriptions to patterns.",
    "NUMSUB [<channel> ...]",
    "    Return the number of subscribers for the specified channels, excluding",
    "    pattern subscriptions(default: no channels).",
    "SHARDCHANNELS [<pattern>]",
    "    Return the currently active shard level channels matching a <pattern> (default: '*').",
    "SHARDNUMSUB [<shardchannel> ...]",
    "    Return the number of subscribers for the specified shard level channel(s)",
];

/// `CLIENT HELP`
pub const CLIENT: &[&str] = &[
    "CACHING (YES|NO)",
    "    Say whether the keys of the next command are cached.",
    "GETREDIR",
    "    Return the ID of the client to which invalidations are redirected.",
    "GETNAME",
    "    Return the name of the current connection.",
    "ID",
    "    Return the ID of the current connection.",
    "INFO",
    "    Return information about the current client connection.",
    "KILL <ip:port>",
    "    Close the connection from <ip:port>.",
    "KILL <option> <value> [<option> <value> [...]]",
    "    Close connections. Options are:",
    "    * ADDR <ip:port>, ID <client-id>, MAXAGE <seconds>, USER <username>",
    "    * SKIPME (YES|NO)",
    "      Skip the current connection (default: yes).",
    "    * TYPE (NORMAL|MASTER|REPLICA|PUBSUB)",
    "LIST [options ...]",
    "    Return information about client connections. Options:",
    "    * TYPE (NORMAL|MASTER|REPLICA|PUBSUB)",
    "      Return clients of specified type.",
    "REPLY (ON|OFF|SKIP)",
    "    Control the replies sent to the current connection.",
    "SETNAME <name>",
    "    Assign the name <name> to the current connection.",
    "SETINFO <option> <value>",
    "    Set client meta attr. Options are:",
    "    * LIB-NAME: the client lib name.",
    "    * LIB-VER: the client lib version.",
    "TRACKING (ON|OFF) [REDIRECT <id>] [BCAST] [PREFIX <prefix> [...]]",
    "         [OPTIN] [OPTOUT] [NOLOOP]",
    "    Control client-side caching.",
    "TRACKINGINFO",
    "    Report the client-side caching of the current connection.",
    "UNBLOCK <clientid> [TIMEOUT|ERROR]",
    "    End the waiting of a client.",
    "UNPAUSE",
    "    End a pause of all clients.",
    "NO-EVICT (ON|OFF)",
    "    Protect current client connection from eviction.",
    "NO-TOUCH (ON|OFF)",
    "    Will not touch LRU/LFU stats when this mode is on.",
];

/// `CONFIG HELP`
pub const CONFIG: &[&str] = &[
    "GET <pattern>",
    "    Return parameters matching the glob-like <pattern> and their values.",
    "SET <directive> <value>",
    "    Set the configuration <directive> to <value>.",
    "RESETSTAT",
    "    Reset statistics reported by the INFO command.",
    "REWRITE",
    "    Rewrite the configuration file.",
];

/// `COMMAND HELP`
pub const COMMAND: &[&str] = &[
    "(no subcommand)",
    "    Return details about all commands.",
    "GETKEYS <full-command>",
    "    Return the keys of a full command.",
    "GETKEYSANDFLAGS <full-command>",
    "    Return the keys of a full command, and how it uses them.",
    "COUNT",
    "    Return the total number of commands in this server.",
    "LIST",
    "    Return a list of all commands in this server.",
    "INFO [<command-name> ...]",
    "    Return details about multiple commands.",
    "    If no command names are given, details for all commands are returned.",
    "DOCS [<command-name> ...]",
    "    Return documentation details about multiple commands.",
    "    If no command names are given, documentation details for all",
    "    commands are returned.",
];

/// `XINFO HELP`
pub const XINFO: &[&str] =
    &["STREAM <key> [FULL [COUNT <count>]", "    Show information about the stream."];

/// `SCRIPT HELP`
pub const SCRIPT: &[&str] = &[
    "EXISTS <sha1> [<sha1> ...]",
    "    Say which scripts EVALSHA knows.",
    "FLUSH [ASYNC|SYNC]",
    "    Forget all scripts.",
    "KILL",
    "    End the script that runs.",
    "LOAD <script>",
    "    Remember a script without running it.",
];

/// `ACL HELP`
pub const ACL: &[&str] = &["WHOAMI", "    Return the user of the current connection."];

/// `SLOWLOG HELP`
pub const SLOWLOG: &[&str] = &[
    "GET [<count>]",
    "    Return slow commands.",
    "LEN",
    "    Return how many there are.",
    "RESET",
    "    Forget them.",
];

/// `MEMORY HELP`
pub const MEMORY: &[&str] = &[
    "PURGE",
    "    Free memory that keys no longer use.",
    "USAGE <key> [SAMPLES <count>]",
    "    Return how much memory a key uses.",
];

/// `MODULE HELP`
pub const MODULE: &[&str] = &["LIST", "    Return a list of loaded modules."];

/// `LATENCY HELP`
pub const LATENCY: &[&str] = &[
    "GRAPH <event>",
    "    Draw slow events of one kind.",
    "HISTORY <event>",
    "    Return slow events of one kind.",
    "LATEST",
    "    Return the last slow events.",
    "RESET [<event> ...]",
    "    Forget slow events.",
];

/// Writes the help of a container, whose name is repeated as the client wrote it: `lines` between
/// the lines that all containers have.
pub fn write(reply: &mut ReplyWriter<'_>, container: &str, lines: &[&str]) {
    let container = container.to_ascii_uppercase();
    reply.array(lines.len() + 3);
    reply.simple(&format!("{container} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:"));
    for line in lines {
        reply.simple(line);
    }
    reply.simple("HELP");
    reply.simple("    Print this help.");
}

#[cfg(test)]
mod tests {
    use super::super::RespVersion;
    use super::*;

    #[test]
    fn has_redis_first_and_last_lines() {
        let mut out = Vec::new();
        write(&mut ReplyWriter::new(&mut out, RespVersion::Resp3), "pubsub", PUBSUB);
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with(
            "*14\r\n+PUBSUB <subcommand> [<arg> [value] [opt] ...]. Subcommands are:\r\n+CHANNELS"
        ));
        assert!(text.ends_with("\r\n+HELP\r\n+    Print this help.\r\n"));
        assert_eq!(text.lines().count(), 15);
    }
}
