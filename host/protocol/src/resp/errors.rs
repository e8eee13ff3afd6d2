//! The error replies of Redis, with its exact text.
//!
//! Each text starts with its code and is passed to `ReplyWriter::error`, which also removes line
//! breaks that come from a request. Errors that break the protocol are in `ProtocolError`, those of
//! looking up a command in `commands::CommandError`.

/// Credentials that are not accepted.
pub const WRONG_CREDENTIALS: &[u8] =
    b"WRONGPASS invalid username-password pair or user is disabled.";

/// Any command but AUTH, HELLO, QUIT and RESET before authentication.
pub const AUTHENTICATION_REQUIRED: &[u8] = b"NOAUTH Authentication required.";

/// HELLO without AUTH before authentication.
pub const HELLO_UNAUTHENTICATED: &[u8] = b"NOAUTH HELLO must be called with the client already \
    authenticated, otherwise the HELLO <proto> AUTH <user> <pass> option can be used to \
    authenticate the client and select the RESP protocol version at the same time";

/// AUTH where no plugin authenticates.
pub const AUTHENTICATION_NOT_CONFIGURED: &[u8] = b"ERR AUTH <password> called without any \
    password configured for the default user. Are you sure your configuration is correct?";

/// Contradictory arguments.
pub const SYNTAX: &[u8] = b"ERR syntax error";

/// An invalid number.
pub const NOT_AN_INTEGER: &[u8] = b"ERR value is not an integer or out of range";

/// A number of more than 32 bits where Redis has no more.
pub const NOT_A_SHORT_INTEGER: &[u8] =
    b"ERR value is out of range, value must between -2147483648 and 2147483647";

/// `HELLO 4`.
pub const PROTOCOL_VERSION_UNSUPPORTED: &[u8] = b"NOPROTO unsupported protocol version";

/// `HELLO x`.
pub const PROTOCOL_VERSION_INVALID: &[u8] =
    b"ERR Protocol version is not an integer or out of range";

/// A connection name with a byte that is not printable ASCII, in CLIENT SETNAME
/// and HELLO SETNAME.
pub const CLIENT_NAME_INVALID: &[u8] =
    b"ERR Client names cannot contain spaces, newlines or special characters.";

/// A connection name or attribute over a limit that Redis does not have.
pub fn client_name_too_long(bytes: usize, bytes_max: usize) -> Vec<u8> {
    format!("ERR {bytes} bytes; there may be {bytes_max} (limits.name_bytes_max)").into_bytes()
}

/// CLIENT LIST ID with an invalid id.
pub const CLIENT_ID_INVALID: &[u8] = b"ERR Invalid client ID";

/// SELECT of a database that does not exist.
pub const DATABASE_OUT_OF_RANGE: &[u8] = b"ERR DB index is out of range";

/// The connection limit is reached; the connection is closed after this.
pub const TOO_MANY_CONNECTIONS: &[u8] = b"ERR max number of clients reached";

/// MULTI inside MULTI.
pub const MULTI_NESTED: &[u8] = b"ERR MULTI calls can not be nested";

/// WATCH inside MULTI.
pub const WATCH_IN_MULTI: &[u8] = b"ERR WATCH inside MULTI is not allowed";

/// EXEC without MULTI.
pub const EXEC_WITHOUT_MULTI: &[u8] = b"ERR EXEC without MULTI";

/// DISCARD without MULTI.
pub const DISCARD_WITHOUT_MULTI: &[u8] = b"ERR DISCARD without MULTI";

/// EXEC after a command that was refused instead of queued.
pub const TRANSACTION_ABORTED: &[u8] =
    b"EXECABORT Transaction discarded because of previous errors.";

/// EXEC that is itself refused, with the text of that error.
pub fn exec_refused(error: &[u8]) -> Vec<u8> {
    // Redis writes its most frequent code nowhere but at the beginning of a reply.
    let error = error.strip_prefix(b"ERR ").unwrap_or(error);
    quoting("EXECABORT Transaction discarded because of: ", error, "")
}

/// More commands in a transaction than the server keeps, which Redis does not limit.
pub fn transaction_too_long(commands_max: usize) -> Vec<u8> {
    format!(
        "ERR more than {commands_max} commands in a transaction (limits.transaction_commands_max)"
    )
    .into_bytes()
}

/// The commands of a transaction have more bytes than the server keeps, which Redis does not limit.
pub fn transaction_too_large(bytes_max: usize) -> Vec<u8> {
    format!(
        "ERR more than {bytes_max} bytes in a transaction; it may have as many as one request \
         (resp.request_bytes_max)"
    )
    .into_bytes()
}

/// A command for nodes of a Redis cluster.
pub const CLUSTER_DISABLED: &[u8] = b"ERR This instance has cluster support disabled";

/// EVAL with more keys than arguments.
pub const TOO_MANY_KEYS: &[u8] = b"ERR Number of keys can't be greater than number of args";

/// `EVAL … -1`.
pub const NEGATIVE_KEYS: &[u8] = b"ERR Number of keys can't be negative";

/// EVALSHA of an unknown script.
pub const NO_SCRIPT: &[u8] = b"NOSCRIPT No matching script. Please use EVAL.";

/// EVAL or SCRIPT LOAD of a script that is not the one that is served.
pub const SCRIPT_NOT_SERVED: &[u8] =
    b"ERR no script is run here, except one that publishes to all \
    channels of ARGV: for i = 2, #ARGV do redis.call('publish', ARGV[i], ARGV[1]) end";

/// `SCRIPT FLUSH x`.
pub const SCRIPT_FLUSH_MODE: &[u8] = b"ERR SCRIPT FLUSH only support SYNC|ASYNC option";

/// SCRIPT KILL.
pub const NO_SCRIPT_RUNS: &[u8] = b"NOTBUSY No scripts in execution right now.";

/// An error of a command of a script, with the script's digest and the line of the command.
pub fn in_script(error: &[u8], digest: &str, line: usize) -> Vec<u8> {
    quoting("", error, &format!(" script: {digest}, on @user_script:{line}."))
}

/// `WAIT 0 x`.
pub const TIMEOUT_INVALID: &[u8] = b"ERR timeout is not an integer or out of range";

/// `WAIT 0 -1`.
pub const TIMEOUT_NEGATIVE: &[u8] = b"ERR timeout is negative";

/// `XREAD BLOCK 9223372036854775807 …`.
pub const TIMEOUT_OUT_OF_RANGE: &[u8] = b"ERR timeout is out of range";

/// A text that is no ID of an entry of a stream.
pub const STREAM_ID_INVALID: &[u8] = b"ERR Invalid stream ID specified as stream command argument";

/// XRANGE from after the last possible ID.
pub const INTERVAL_START_INVALID: &[u8] = b"ERR invalid start ID for the interval";

/// XRANGE to before the first possible ID.
pub const INTERVAL_END_INVALID: &[u8] = b"ERR invalid end ID for the interval";

/// XREAD with another number of IDs than of streams.
pub const UNBALANCED_STREAMS: &[u8] = b"ERR Unbalanced 'xread' list of streams: for each stream \
    key an ID, '+', or '$' must be specified.";

/// `XREAD GROUP …`.
pub const GROUP_WITHOUT_READGROUP: &[u8] =
    b"ERR The GROUP option is only supported by XREADGROUP. You called XREAD instead.";

/// `XREAD NOACK …`.
pub const NOACK_WITHOUT_READGROUP: &[u8] =
    b"ERR The NOACK option is only supported by XREADGROUP. You called XREAD instead.";

/// `XREAD STREAMS a >`.
pub const GROUP_ID_WITHOUT_READGROUP: &[u8] = b"ERR The > ID can be specified only when calling \
    XREADGROUP using the GROUP <group> <consumer> option.";

/// XADD with anything else than the ID `*` and the field `payload`.
pub const APPEND_FORM: &[u8] = b"ERR XADD is served in one form: XADD channel * payload BYTES";

/// `SLOWLOG GET x`.
pub const SLOWLOG_COUNT: &[u8] = b"ERR count should be greater than or equal to -1";

/// CLIENT KILL of an address that no client has.
pub const NO_SUCH_CLIENT: &[u8] = b"ERR No such client";

/// `CLIENT KILL ID 0`.
pub const KILL_ID: &[u8] = b"ERR client-id should be greater than 0";

/// `CLIENT KILL MAXAGE x`.
pub const KILL_AGE: &[u8] = b"ERR maxage is not an integer or out of range";

/// `CLIENT KILL MAXAGE 0`.
pub const KILL_AGE_MIN: &[u8] = b"ERR maxage should be greater than 0";

/// `CLIENT UNBLOCK 1 x`.
pub const UNBLOCK_REASON: &[u8] = b"ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR";

/// CLIENT TRACKING with two redirections.
pub const TRACKING_REDIRECTS: &[u8] = b"ERR A client can only redirect to a single other client";

/// CLIENT TRACKING with a redirection to a client that does not exist.
pub const TRACKING_REDIRECT_UNKNOWN: &[u8] =
    b"ERR The client ID you want redirect to does not exist";

/// `CLIENT TRACKING ON PREFIX a`.
pub const TRACKING_PREFIX: &[u8] = b"ERR PREFIX option requires BCAST mode to be enabled";

/// CLIENT TRACKING that changes BCAST.
pub const TRACKING_BROADCAST_CHANGED: &[u8] = b"ERR You can't switch BCAST mode on/off before \
    disabling tracking for this client, and then re-enabling it with a different mode.";

/// `CLIENT TRACKING ON BCAST OPTIN`.
pub const TRACKING_BROADCAST_AND_OPTION: &[u8] =
    b"ERR OPTIN and OPTOUT are not compatible with BCAST";

/// `CLIENT TRACKING ON OPTIN OPTOUT`.
pub const TRACKING_BOTH_OPTIONS: &[u8] = b"ERR You can't specify both OPTIN mode and OPTOUT mode";

/// CLIENT TRACKING that changes OPTIN to OPTOUT or back.
pub const TRACKING_OPTION_CHANGED: &[u8] = b"ERR You can't switch OPTIN/OPTOUT mode before \
    disabling tracking for this client, and then re-enabling it with a different mode.";

/// CLIENT TRACKING with a prefix that begins as another one, which is `existing` or provided as
/// well.
pub fn prefix_overlaps(prefix: &[u8], which: &str, other: &[u8]) -> Vec<u8> {
    let with = format!("' overlaps with {which} prefix '");
    let end = "'. Prefixes for a single client must not overlap.";
    [b"ERR Prefix '", c_string(prefix), with.as_bytes(), c_string(other), end.as_bytes()].concat()
}

/// CLIENT CACHING without tracking.
pub const CACHING_WITHOUT_TRACKING: &[u8] = b"ERR CLIENT CACHING can be called only when the \
    client is in tracking mode with OPTIN or OPTOUT mode enabled";

/// CLIENT CACHING YES without OPTIN.
pub const CACHING_YES: &[u8] =
    b"ERR CLIENT CACHING YES is only valid when tracking is enabled in OPTIN mode.";

/// CLIENT CACHING NO without OPTOUT.
pub const CACHING_NO: &[u8] =
    b"ERR CLIENT CACHING NO is only valid when tracking is enabled in OPTOUT mode.";

/// SSUBSCRIBE between MULTI and EXEC, where SUBSCRIBE and PSUBSCRIBE are executed.
pub const SSUBSCRIBE_IN_EXEC: &[u8] = b"ERR SSUBSCRIBE isn't allowed for a DENY BLOCKING client";

/// COMMAND GETKEYS of a command that does not exist.
pub const GETKEYS_UNKNOWN: &[u8] = b"ERR Invalid command specified";

/// COMMAND GETKEYS of a command without keys.
pub const GETKEYS_NONE: &[u8] = b"ERR The command has no key arguments";

/// COMMAND GETKEYS of a command whose arguments do not say where its keys are.
pub const GETKEYS_INVALID: &[u8] = b"ERR Invalid arguments specified for command";

/// COMMAND GETKEYS of a command with too few or too many arguments.
pub const GETKEYS_ARITY: &[u8] = b"ERR Invalid number of arguments specified for command";

/// CONFIG REWRITE.
pub const NO_CONFIG_FILE: &[u8] = b"ERR The server is running without a config file";

/// A command that the user has no permission for. `name` is its full name in lower case.
pub fn no_permission(user: Option<&str>, name: &str) -> Vec<u8> {
    let user = user.filter(|user| !user.is_empty()).unwrap_or("default");
    format!("NOPERM User {user} has no permissions to run the '{name}' command").into_bytes()
}

/// A command with too few or too many arguments. `name` is its full name in
/// lower case (`pubsub|numpat`).
pub fn wrong_arity(name: &str) -> Vec<u8> {
    quoting("ERR wrong number of arguments for '", name.as_bytes(), "' command")
}

/// PUBSUB CHANNELS with more than one pattern: the only sub-command here whose
/// arity allows too many. The container is written in capitals.
pub fn wrong_subcommand_arity(container: &[u8], subcommand: &[u8]) -> Vec<u8> {
    let shown = cut(c_string(subcommand), 128);
    let text = "ERR unknown subcommand or wrong number of arguments for '";
    with_help(quoting(text, shown, "'"), container)
}

/// A sub-command that the container does not have.
pub fn unknown_subcommand(container: &[u8], subcommand: &[u8]) -> Vec<u8> {
    let shown = cut(c_string(subcommand), 128);
    with_help(quoting("ERR unknown subcommand '", shown, "'"), container)
}

/// A command that does not exist. Redis cuts the name at 128 bytes, and stops adding arguments when
/// it has 128 bytes of them, including quotes and spaces; the space after the last one stays.
pub fn unknown_command<'a>(name: &[u8], arguments: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut shown = Vec::new();
    for argument in arguments {
        let Some(room) = 128_usize.checked_sub(shown.len()).filter(|room| *room > 0) else {
            break;
        };
        shown.push(b'\'');
        shown.extend_from_slice(cut(c_string(argument), room));
        shown.extend_from_slice(b"' ");
    }
    let name = cut(c_string(name), 128);
    let mut text = quoting("ERR unknown command '", name, "', with args beginning with: ");
    text.extend_from_slice(&shown);
    text
}

/// A command that RESP2 does not allow while the connection is subscribed.
/// `name` is its full name in lower case.
pub fn not_while_subscribed(name: &str) -> Vec<u8> {
    quoting(
        "ERR Can't execute '",
        name.as_bytes(),
        "': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this \
         context",
    )
}

/// An unknown option of HELLO.
pub fn hello_option(option: &[u8]) -> Vec<u8> {
    quoting("ERR Syntax error in HELLO option '", c_string(option), "'")
}

/// CLIENT LIST TYPE with an unknown type.
pub fn client_type_unknown(kind: &[u8]) -> Vec<u8> {
    quoting("ERR Unknown client type '", c_string(kind), "'")
}

/// CLIENT KILL with a user that does not exist.
pub fn user_unknown(user: &[u8]) -> Vec<u8> {
    quoting("ERR No such user '", c_string(user), "'")
}

/// LATENCY GRAPH: there are no slow events.
pub fn latency_event_unknown(event: &[u8]) -> Vec<u8> {
    quoting("ERR No samples available for event '", c_string(event), "'")
}

/// An unknown attribute of CLIENT SETINFO.
pub fn client_attribute_unknown(attribute: &[u8]) -> Vec<u8> {
    quoting("ERR Unrecognized option '", c_string(attribute), "'")
}

/// A value with a byte that is not printable ASCII, in CLIENT SETINFO. The
/// attribute is written as it was given.
pub fn client_attribute_invalid(attribute: &[u8]) -> Vec<u8> {
    quoting("ERR ", c_string(attribute), " cannot contain spaces, newlines or special characters.")
}

/// An unknown setting of CONFIG SET.
pub fn config_set_unknown(setting: &[u8]) -> Vec<u8> {
    let text = "ERR Unknown option or number of arguments for CONFIG SET - '";
    quoting(text, c_string(setting), "'")
}

/// A setting that can be changed only by a restart.
pub fn config_set_immutable(setting: &[u8]) -> Vec<u8> {
    quoting(
        "ERR CONFIG SET failed (possibly related to argument '",
        c_string(setting),
        "') - can't set immutable config",
    )
}

/// Whether Redis accepts these bytes as the name of a connection or as an attribute of it:
/// printable ASCII without spaces. Empty is valid and removes the name. (Redis 7.2 stops at a NUL.)
pub fn is_client_name(name: &[u8]) -> bool {
    name.iter().all(u8::is_ascii_graphic)
}

fn quoting(before: &str, quoted: &[u8], after: &str) -> Vec<u8> {
    [before.as_bytes(), quoted, after.as_bytes()].concat()
}

fn with_help(mut text: Vec<u8>, container: &[u8]) -> Vec<u8> {
    text.extend_from_slice(b". Try ");
    text.extend(c_string(container).iter().map(u8::to_ascii_uppercase));
    text.extend_from_slice(b" HELP.");
    text
}

/// The part of an argument that Redis formats as a C string: everything before the first NUL.
pub(super) fn c_string(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn cut(bytes: &[u8], bytes_max: usize) -> &[u8] {
    bytes.get(..bytes_max).unwrap_or(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &[u8], expected: &str) {
        assert_eq!(String::from_utf8_lossy(text), expected);
    }

    fn unknown(name: &[u8], arguments: &[&[u8]]) -> Vec<u8> {
        unknown_command(name, arguments.iter().copied())
    }

    #[test]
    fn unknown_commands_show_what_was_typed() {
        check(&unknown(b"FOO", &[]), "ERR unknown command 'FOO', with args beginning with: ");
        check(
            &unknown(b"Foo", &[b"a", b"b c"]),
            "ERR unknown command 'Foo', with args beginning with: 'a' 'b c' ",
        );
        check(
            &unknown(b"fo\0o", &[b"a\0b", b""]),
            "ERR unknown command 'fo', with args beginning with: 'a' '' ",
        );
    }

    #[test]
    fn unknown_commands_are_cut() {
        let name = "n".repeat(128);
        let start = format!("ERR unknown command '{name}', with args beginning with: ");
        let long = vec![b'a'; 200];
        let check = |arguments: &[&[u8]], shown: String| {
            check(&unknown("n".repeat(129).as_bytes(), arguments), &format!("{start}{shown}"));
        };
        // One long argument leaves no room for the next.
        check(&[&long, b"b"], format!("'{}' ", "a".repeat(128)));
        // A short one takes its bytes and three more from what follows.
        check(&[b"bc", &long, b"d"], format!("'bc' '{}' ", "a".repeat(123)));
        // The last byte of space goes to the next argument; its quotes are added to that.
        check(&[&long[..124], b"bcd", b"e"], format!("'{}' 'b' ", "a".repeat(124)));
        check(&[&long[..125], b"bcd"], format!("'{}' ", "a".repeat(125)));
    }

    #[test]
    fn texts_with_names() {
        check(
            &wrong_arity("pubsub|numpat"),
            "ERR wrong number of arguments for 'pubsub|numpat' command",
        );
        check(
            &unknown_subcommand(b"pubSub", b"Foo"),
            "ERR unknown subcommand 'Foo'. Try PUBSUB HELP.",
        );
        check(
            &unknown_subcommand(b"client", &[b'x'; 200]),
            &format!("ERR unknown subcommand '{}'. Try CLIENT HELP.", "x".repeat(128)),
        );
        check(
            &wrong_subcommand_arity(b"pubsub", b"CHANNELS"),
            "ERR unknown subcommand or wrong number of arguments for 'CHANNELS'. Try PUBSUB HELP.",
        );
        check(
            &not_while_subscribed("client|id"),
            "ERR Can't execute 'client|id': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT \
             / RESET are allowed in this context",
        );
        check(&hello_option(b"FOO"), "ERR Syntax error in HELLO option 'FOO'");
        check(&client_attribute_unknown(b"foo"), "ERR Unrecognized option 'foo'");
        check(
            &client_attribute_invalid(b"lib-NAME"),
            "ERR lib-NAME cannot contain spaces, newlines or special characters.",
        );
        check(
            &config_set_unknown(b"foo"),
            "ERR Unknown option or number of arguments for CONFIG SET - 'foo'",
        );
        check(
            &config_set_immutable(b"bind"),
            "ERR CONFIG SET failed (possibly related to argument 'bind') - can't set immutable \
             config",
        );
    }

    #[test]
    fn texts_without_names() {
        check(
            AUTHENTICATION_NOT_CONFIGURED,
            "ERR AUTH <password> called without any password configured for the default user. Are \
             you sure your configuration is correct?",
        );
    }

    #[test]
    fn client_names() {
        for name in [b"".as_slice(), b"worker-1", b"!~"] {
            assert!(is_client_name(name), "{}", name.escape_ascii());
        }
        for name in [b" ".as_slice(), b"a b", b"a\n", b"\x7f", b"\xff", b"\0", b"a\0b"] {
            assert!(!is_client_name(name), "{}", name.escape_ascii());
        }
    }
}
