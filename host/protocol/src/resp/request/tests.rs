//! Parser tests. Each input is parsed in one piece, and byte by byte with the same result.

use super::super::arguments::Arguments;
use super::super::fuzzing::transcript;
use super::*;

const SETTLED: Authentication = Authentication::Settled;

/// Renders what was read: the requests, their arguments separated by bars, and
/// how it ended.
fn read(limits: RequestLimits, authentication: Authentication, input: &[u8]) -> String {
    let whole = transcript(limits, authentication, input, &[]);
    let bytes: Vec<_> = (1..input.len()).collect();
    assert_eq!(whole, transcript(limits, authentication, input, &bytes));
    let mut text = String::new();
    for request in &whole.requests {
        let words: Vec<_> = request.iter().map(|word| word.escape_ascii().to_string()).collect();
        text += &format!("[{}] ", words.join("|"));
    }
    text + &match whole.end {
        Outcome::Complete => "complete".to_owned(),
        Outcome::Incomplete { .. } if whole.bytes_left == 0 => "end".to_owned(),
        Outcome::Incomplete { bytes_missing_min } => format!("missing {bytes_missing_min}"),
        Outcome::Refused(error) => match error.reply() {
            Some(reply) => String::from_utf8_lossy(&reply).into_owned(),
            None => "closed".to_owned(),
        },
    }
}

#[track_caller]
fn check(input: impl AsRef<[u8]>, expected: &str) {
    assert_eq!(read(RequestLimits::default(), SETTLED, input.as_ref()), expected);
}

#[track_caller]
fn check_owed(input: impl AsRef<[u8]>, expected: &str) {
    assert_eq!(read(RequestLimits::default(), Authentication::Owed, input.as_ref()), expected);
}

#[test]
fn multibulk() {
    check(b"*1\r\n$4\r\nPING\r\n", "[PING] end");
    check(b"*2\r\n$4\r\nECHO\r\n$2\r\n\r\n\r\n", r"[ECHO|\r\n] end");
    check(b"*2\r\n$4\r\nECHO\r\n$3\r\n\0\xff\n\r\n", r"[ECHO|\x00\xff\n] end");
    check(b"*1\r\n$0\r\n\r\n", "[] end");
    check(b"*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nQUIT\r\n", "[PING] [QUIT] end");
}

#[test]
fn ignored_requests() {
    check(b"*0\r\n*-1\r\n*-10\r\nPING\r\n", "[PING] end");
    check(b"*-9223372036854775808\r\n", "end");
    check(b"\r\n\n \t\r\nPING\n", "[PING] end");
    check(b"\r\n*1\r\n$4\r\nPING\r\n\n", "[PING] end");
}

#[test]
fn the_end_of_an_argument_is_not_verified() {
    check(b"*1\r\n$4\r\nPINGxxPING\r\n", "[PING] [PING] end");
    check(b"*1\rx$4\rxPINGxx", "[PING] end");
}

#[test]
fn inline() {
    check(b"PING\r\n", "[PING] end");
    check(b"  publish\tnews \"a b\\n\"\n", r"[publish|news|a b\n] end");
    check(b"PING\r\nPING x\r\n", "[PING] [PING|x] end");
    check(b"\"\"\n", "[] end");
    check(b"a *1\r\n", "[a|*1] end");
    check(b"GET / HTTP/1.1\r\n", "[GET|/|HTTP/1.1] end");
    let quotes = "ERR Protocol error: unbalanced quotes in request";
    check(b"PING\r\nPING \"a\r\nPING\r\n", &format!("[PING] {quotes}"));
    check(b"PING 'a'b\r\n", quotes);
    check(b"\"\n", quotes);
}

#[test]
fn says_how_much_is_missing() {
    check(b"", "end");
    check(b"P", "missing 1");
    check(b"*", "missing 1");
    check(b"*1\r", "missing 1");
    check(b"*1\r\n$", "missing 1");
    check(b"*1\r\n$4\r", "missing 1");
    check(b"*1\r\n$4\r\n", "missing 6");
    check(b"*1\r\n$4\r\nPIN", "missing 3");
    check(b"*1\r\n$4\r\nPING\r", "missing 1");
    check(b"*1\r\n$536870912\r\n", "missing 536870914");
    check(b"*2147483647\r\n$1\r\n", "missing 3");
    check(b"PING\r\n*1\r\n$4\r\nPING", "[PING] missing 2");
}

#[test]
fn numbers_are_strict() {
    for count in ["", "+1", "01", " 1", "1 ", "-", "-0", "1x", "2147483648", "9223372036854775808"]
    {
        check(format!("*{count}\r\n"), "ERR Protocol error: invalid multibulk length");
    }
    for length in ["", "-1", "+1", "01", "00", "1 ", "x", "536870913", "9223372036854775808"] {
        check(format!("*1\r\n${length}\r\n"), "ERR Protocol error: invalid bulk length");
    }
}

#[test]
fn an_argument_starts_with_its_length() {
    check(b"*1\r\nPING\r\n", "ERR Protocol error: expected '$', got 'P'");
    check(b"*1\r\n:1\r\n", "ERR Protocol error: expected '$', got ':'");
    check(b"*1\r\n\xff\r\n", "ERR Protocol error: expected '$', got '\u{fffd}'");
    // The encoder makes a space of it.
    check(b"*1\r\n\r\n", "ERR Protocol error: expected '$', got '\r'");
    // Not before the end of the line is there.
    check(b"*1\r\nPING", "missing 1");
    check(b"PING\r\n*1\r\nx\r\nPING\r\n", "[PING] ERR Protocol error: expected '$', got 'x'");
}

#[test]
fn lines_have_a_limit() {
    let long = |start: &str, bytes: usize, end: &str| {
        let fill = "x".repeat(bytes - start.len());
        format!("{start}{fill}{end}")
    };
    // A line may have 65,536 bytes before its end arrives.
    let inline = "ERR Protocol error: too big inline request";
    check(long("", 65_536, ""), "missing 1");
    check(long("", 65_537, ""), inline);
    check(long("", 65_537, "\n"), inline);
    check(long("a ", 65_536, "\n"), &format!("[a|{}] end", "x".repeat(65_534)));
    let count = "ERR Protocol error: too big mbulk count string";
    check(long("*", 65_536, ""), "missing 1");
    check(long("*", 65_537, ""), count);
    check(long("*", 65_537, "\r\n"), count);
    check(long("*", 65_536, "\r\n"), "ERR Protocol error: invalid multibulk length");
    let length = "ERR Protocol error: too big bulk count string";
    check(long("*1\r\n", 65_540, ""), "missing 1");
    check(long("*1\r\n", 65_541, ""), length);
    check(long("*1\r\n$", 65_541, "\r\n"), length);
    check(long("*1\r\n$", 65_540, "\r\n"), "ERR Protocol error: invalid bulk length");
}

#[test]
fn a_nul_hides_the_end_of_its_line() {
    check(b"PI\0NG\r\nPING\r\n", "missing 1");
    check(b"*1\0\r\nPING\r\n", "missing 1");
    check(b"*1\r\n$4\0\r\nPING\r\n", "missing 1");
    check(
        [b"\0\n".as_slice(), &[b'x'; 65_535]].concat(),
        "ERR Protocol error: too big inline request",
    );
    // Within an argument it is a byte like others.
    check(b"*1\r\n$1\r\n\0\r\n", r"[\x00] end");
}

#[test]
fn limits_before_authentication() {
    check_owed(b"*10\r\n", "missing 1");
    check_owed(b"*11\r\n", "ERR Protocol error: unauthenticated multibulk length");
    check_owed(b"*1\r\n$16384\r\n", "missing 16386");
    check_owed(b"*1\r\n$16385\r\n", "ERR Protocol error: unauthenticated bulk length");
    // Errors that do not depend on authentication come first.
    check_owed(b"*2147483648\r\n", "ERR Protocol error: invalid multibulk length");
    check_owed(b"*1\r\n$536870913\r\n", "ERR Protocol error: invalid bulk length");
    check_owed(b"a b c d e f g h i j k\n", "[a|b|c|d|e|f|g|h|i|j|k] end");
}

#[test]
fn limits_of_the_server() {
    let limits = RequestLimits {
        bulk_bytes_max: 100,
        arguments_max: 3,
        request_bytes_max: 200,
        ..RequestLimits::default()
    };
    let check = |input: String, expected: &str| {
        assert_eq!(read(limits, SETTLED, input.as_bytes()), expected);
    };
    check("*3\r\n".into(), "missing 1");
    check("*4\r\n".into(), "ERR Protocol error: invalid multibulk length");
    check("*1\r\n$100\r\n".into(), "missing 102");
    check("*1\r\n$101\r\n".into(), "ERR Protocol error: invalid bulk length");
    // 112 bytes, which leave 88.
    let first = format!("*2\r\n$100\r\n{}\r\n", "x".repeat(100));
    check(format!("{first}$81\r\n"), "missing 83");
    check(format!("{first}$82\r\n"), "closed");
    check(format!("{first}{}", "x".repeat(88)), "missing 1");
    check(format!("{first}{}", "x".repeat(89)), "closed");
    check("x".repeat(200), "missing 1");
    check("x".repeat(201), "closed");
    check(format!("{}\n", "x".repeat(199)), &format!("[{}] end", "x".repeat(199)));
    check(format!("{}\n", "x".repeat(200)), "closed");
}

#[test]
fn http_is_closed_without_a_word() {
    check(b"POST / HTTP/1.1\r\n", "closed");
    check(b"PING\r\nhost: localhost\r\nPING\r\n", "[PING] closed");
    check(b"*1\r\n$4\r\npOsT\r\n", "closed");
    check(b"*2\r\n$5\r\nHost:\r\n$1\r\na\r\n", "closed");
    check(b"*1\r\n$6\r\npost\0x\r\n", "closed");
    check(b"host a\npostx\npos\nECHO post\n", "[host|a] [postx] [pos] [ECHO|post] end");
}

#[test]
fn declared_sizes_take_no_memory() {
    let mut parser = RequestParser::new(RequestLimits::default());
    let mut burst = Burst::default();
    let input = b"*2147483647\r\n$536870912\r\nabc";
    parser.parse(input, SETTLED, &mut burst);
    assert_eq!(parser.memory() + burst.memory(), 0);
}

#[test]
fn memory_of_a_large_request_is_given_back() {
    let mut parser = RequestParser::new(RequestLimits::default());
    let mut burst = Burst::default();
    let input = [b"*100000\r\n".to_vec(), b"$1\r\nx\r\n".repeat(100_000)].concat();
    assert_eq!(parser.parse(&input, SETTLED, &mut burst), Outcome::Complete);
    assert_eq!(burst.last(&input).map(|arguments| arguments.len()), Some(100_000));
    assert!(burst.memory() > 1_000_000);
    burst.clear();
    assert!(parser.memory() + burst.memory() < 100_000);
}

#[test]
fn a_burst_outlives_its_buffer() {
    let mut parser = RequestParser::new(RequestLimits::default());
    let mut burst = Burst::default();
    let mut buffer = b"PING 'a b'\r\n*2\r\n$4\r\nECHO\r\n$1\r\nx\r\n*1\r\n$4\r\nPI".to_vec();
    while parser.parse(&buffer, SETTLED, &mut burst) == Outcome::Complete {}
    let requests = |burst: &Burst, buffer: &[u8]| -> Vec<Vec<Vec<u8>>> {
        let arguments = |request: Arguments<'_>| request.iter().map(<[u8]>::to_vec).collect();
        burst.requests(buffer).map(arguments).collect()
    };
    assert_eq!(requests(&burst, &buffer), [[b"PING".as_slice(), b"a b"], [b"ECHO", b"x"]]);
    // The buffer may grow, and move, while the burst is not cleared.
    buffer.extend_from_slice(b"NG\r\n");
    assert_eq!(parser.parse(&buffer, SETTLED, &mut burst), Outcome::Complete);
    assert_eq!(burst.len(), 3);
    assert_eq!(burst.consumed(), buffer.len());
    assert_eq!(requests(&burst, &buffer)[2], [b"PING"]);
    burst.clear();
    assert!(burst.is_empty());
    assert_eq!(
        parser.parse(b"", SETTLED, &mut burst),
        Outcome::Incomplete { bytes_missing_min: 1 }
    );
}

#[test]
fn arguments_are_got_by_position() {
    let mut parser = RequestParser::new(RequestLimits::default());
    let mut burst = Burst::default();
    parser.parse(b"a b c\n", SETTLED, &mut burst);
    let arguments = burst.last(b"").unwrap();
    assert_eq!(arguments.len(), 3);
    assert_eq!(arguments.get(1), Some(b"b".as_slice()));
    assert_eq!(arguments.get(3), None);
    assert_eq!(arguments.skip(2).iter().collect::<Vec<_>>(), [b"c"]);
    assert!(arguments.skip(3).is_empty());
    assert!(arguments.skip(4).is_empty());
}

#[test]
fn authentication_may_change_between_requests() {
    let mut parser = RequestParser::new(RequestLimits::default());
    let mut burst = Burst::default();
    let input = b"AUTH secret\r\n*11\r\n";
    assert_eq!(parser.parse(input, Authentication::Owed, &mut burst), Outcome::Complete);
    let outcome = parser.parse(input, SETTLED, &mut burst);
    assert_eq!(outcome, Outcome::Incomplete { bytes_missing_min: 1 });
}
