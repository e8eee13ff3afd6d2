//! Fuzzing of the request parser.
//!
//! The checks need no second parser: the result does not depend on how the bytes were split into
//! reads, the hint of how many bytes are missing is never too large, an error is final, and memory
//! is only held for bytes that arrived.

use super::arguments::Burst;
use super::limits::{Authentication, RequestLimits};
use super::request::{Outcome, RequestParser};
use crate::fuzzing::{Syntax, Target, cuts_of, fingerprint};

/// The request parser.
pub const RESP: Target = Target {
    name: "resp",
    corpus,
    syntax: Syntax { tokens: TOKENS, several: [b"", b"", b""] },
    check: fuzz_request_parser,
    serve,
    // A vector that grows is in memory twice for a moment, and so is the buffer.
    heap_per_byte_max: 2 * MEMORY_PER_BYTE_MAX,
    heap_kept_max: 16 * 1024,
};

/// Memory that is held for each byte in the buffer. The worst case are inline requests of one byte,
/// which are two with the line break: a position, a span in a vector that has just doubled, and a
/// byte.
const MEMORY_PER_BYTE_MAX: usize = 80;

/// Memory that may be held with an empty buffer.
const MEMORY_KEPT_MAX: usize = 64 * 1024;

/// The caller's view of a connection.
#[derive(Debug, PartialEq, Eq)]
pub struct Transcript {
    /// The arguments of each request.
    pub requests: Vec<Vec<Vec<u8>>>,
    /// The result.
    pub end: Outcome,
    /// How many bytes are left in the buffer.
    pub bytes_left: usize,
}

/// Parses the input whole and in pieces and compares. The first byte chooses the
/// limits.
fn fuzz_request_parser(input: &[u8]) -> u64 {
    let Some((choice, input)) = input.split_first() else {
        return 0;
    };
    let (limits, authentication) = limits_of_choice(*choice);
    let whole = transcript(limits, authentication, input, &[]);
    cuts_of(input, |cuts| {
        let came = transcript(limits, authentication, input, cuts);
        assert_eq!(came, whole, "cut at {cuts:?}: {}", input.escape_ascii());
    });
    let lengths: Vec<_> =
        whole.requests.iter().take(3).map(|request| request.len().min(4)).collect();
    let end = match whole.end {
        Outcome::Complete | Outcome::Incomplete { .. } => None,
        Outcome::Refused(error) => Some(format!("{error:?}")),
    };
    let inline = input.first().is_some_and(|byte| *byte != b'*');
    fingerprint((lengths, end, inline, whole.bytes_left.min(1), choice % 8))
}

/// Parses it in pieces of a few sizes and keeps nothing.
fn serve(input: &[u8]) {
    let Some((choice, input)) = input.split_first() else {
        return;
    };
    let (limits, authentication) = limits_of_choice(*choice);
    for size in [1, 7, 100, usize::MAX] {
        let mut parser = RequestParser::new(limits);
        let mut burst = Burst::default();
        let mut buffer = Vec::new();
        for piece in input.chunks(size.min(input.len().max(1))) {
            buffer.extend_from_slice(piece);
            let outcome = loop {
                match parser.parse(&buffer, authentication, &mut burst) {
                    Outcome::Complete => {}
                    outcome => break outcome,
                }
            };
            buffer.drain(..burst.consumed());
            burst.clear();
            if matches!(outcome, Outcome::Refused(_)) {
                break;
            }
        }
    }
}

/// Parses the input as a server would: reads up to the next cut, removes all complete requests and
/// their bytes, and continues.
///
/// # Panics
///
/// If the parser violates its contract.
pub fn transcript(
    limits: RequestLimits,
    authentication: Authentication,
    input: &[u8],
    cuts: &[usize],
) -> Transcript {
    let mut parser = RequestParser::new(limits);
    let mut burst = Burst::default();
    let mut buffer = Vec::new();
    let mut requests = Vec::new();
    let mut end = Outcome::Incomplete { bytes_missing_min: 1 };
    let mut read = 0;
    let mut silent_until = 0;
    for cut in cuts.iter().copied().chain([input.len()]) {
        buffer.extend_from_slice(input.get(read..cut).unwrap_or_default());
        read = read.max(cut);
        end = loop {
            match parser.parse(&buffer, authentication, &mut burst) {
                Outcome::Complete => {}
                outcome => break outcome,
            }
        };
        let refused = matches!(end, Outcome::Refused(_));
        assert!(
            read >= silent_until || (burst.is_empty() && !refused),
            "announced nothing before byte {silent_until}"
        );
        if let Outcome::Incomplete { bytes_missing_min } = end {
            assert!(bytes_missing_min > 0, "nothing is missing, yet there is no request");
            silent_until = read.saturating_add(bytes_missing_min);
        }
        for arguments in burst.requests(&buffer) {
            assert!(!arguments.is_empty(), "a request without a name");
            requests.push(arguments.iter().map(<[u8]>::to_vec).collect());
        }
        let memory = parser.memory() + burst.memory();
        assert!(
            memory <= buffer.len() * MEMORY_PER_BYTE_MAX + MEMORY_KEPT_MAX,
            "{memory} bytes of memory for {} bytes",
            buffer.len()
        );
        let consumed = burst.consumed();
        burst.clear();
        buffer.drain(..consumed);
        if refused {
            assert_eq!(parser.parse(&buffer, authentication, &mut burst), end);
            assert_eq!((burst.len(), burst.consumed()), (0, 0));
            break;
        }
    }
    // After an error the rest does not count: how much of it was read depends on the cuts.
    let bytes_left = if matches!(end, Outcome::Refused(_)) { 0 } else { buffer.len() };
    Transcript { requests, end, bytes_left }
}

/// Limits that are small enough to be reached.
fn limits_of_choice(choice: u8) -> (RequestLimits, Authentication) {
    let small = RequestLimits {
        inline_bytes_max: 64,
        bulk_bytes_max: 50,
        arguments_max: 20,
        request_bytes_max: 200,
        unauthenticated_arguments_max: 2,
        unauthenticated_bulk_bytes_max: 5,
    };
    let limits = match choice % 4 {
        0 => RequestLimits::default(),
        1 => small,
        2 => RequestLimits { request_bytes_max: 64, ..small },
        _ => RequestLimits { bulk_bytes_max: usize::MAX, ..small },
    };
    let owed = choice & 4 != 0;
    (limits, if owed { Authentication::Owed } else { Authentication::Settled })
}

/// Initial inputs, without the first byte, which selects the limits.
pub fn corpus() -> Vec<Vec<u8>> {
    let mut corpus: Vec<Vec<u8>> = [
        b"".as_slice(),
        b"PING\r\n",
        b"ping\n\r\n  \n\tPING x\r\n",
        b"publish \"a\\x41\\n\\\"b\" 'it\\'s'\r\n",
        b"PING \"\r\n",
        b"PING 'a'b\r\n",
        b"PI\0NG\r\nPING\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST / HTTP/1.1\r\n\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        b"*3\r\n$7\r\nPUBLISH\r\n$4\r\nnews\r\n$12\r\nhello\r\nworld\r\n",
        b"*3\r\n$9\r\nSUBSCRIBE\r\n$1\r\na\r\n$0\r\n\r\n*1\r\n$4\r\nQUIT\r\n",
        b"*1\r\n$4\r\nPINGxx*2\r?$4\rXECHO..$2\r!\r\n..",
        b"*0\r\n*-1\r\n*-10\r\n*1\r\n$4\r\nPING\r\n",
        b"*-9223372036854775808\r\nPING\r\n",
        b"*2147483647\r\n$536870912\r\nabc",
        b"*2147483648\r\n",
        b"*1\r\n$536870913\r\n",
        b"*+1\r\n",
        b"*01\r\n",
        b"* 1\r\n",
        b"*\r\n",
        b"*1x\r\n",
        b"*1\r\n$-1\r\n",
        b"*1\r\n$\r\n",
        b"*1\r\n$04\r\nPING\r\n",
        b"*1\r\n:4\r\n",
        b"*1\r\n\r\n",
        b"*1\r\nPING\r\n",
        b"*\x001\r\n",
        b"*11\r\n$4\r\nPING\r\n",
        b"*1\r\n$16385\r\n",
        b"*1\r\n$8\r\npost\0abc\r\n",
        b"*1\r\n$5\r\nhost:\r\n",
        b"*2\r\n$4\r\nECHO\r\n$1000\r\nx",
    ]
    .into_iter()
    .map(<[u8]>::to_vec)
    .collect();
    corpus.push([b"*100\r\n".to_vec(), b"$0\r\n\r\n".repeat(100)].concat());
    corpus.push(b"x y\n".repeat(100));
    corpus
}

/// The tokens of the protocol.
const TOKENS: &[&[u8]] = &[
    b"\r\n",
    b"\r",
    b"\n",
    b"\0",
    b"*",
    b"$",
    b"-",
    b"0",
    b"1",
    b"9",
    b"\"",
    b"'",
    b"\\",
    b" ",
    b"\\x4",
    b"post",
    b"host:",
    b"*1\r\n",
    b"*2\r\n",
    b"$1\r\n",
    b"$50\r\n",
    b"$51\r\n",
    b"*20\r\n",
    b"*21\r\n",
    b"2147483647",
    b"9223372036854775807",
    b"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
];

/// Requests as a client writes them.
#[cfg(test)]
fn encode(arguments: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", arguments.len()).into_bytes();
    for argument in arguments {
        bytes.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
        bytes.extend_from_slice(argument);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzzing::{Random, iterations};

    #[test]
    fn corpus_under_all_limits() {
        for input in corpus() {
            for choice in 0..8 {
                fuzz_request_parser(&[&[choice], &*input].concat());
            }
        }
    }

    #[test]
    fn what_clients_write_is_what_is_read() {
        let mut random = Random::from_environment();
        for _ in 0..iterations() {
            let mut requests = Vec::new();
            for _ in 0..random.index(4) {
                let mut arguments = vec![b"x".to_vec()];
                for _ in 0..random.index(30) {
                    let bytes_max = *random.pick(&[0, 1, 10, 300]);
                    let bytes = random.index(bytes_max + 1);
                    arguments.push((0..bytes).map(|_| random.index(256) as u8).collect());
                }
                requests.push(arguments);
            }
            let input: Vec<u8> = requests.iter().flat_map(|request| encode(request)).collect();
            let cuts = [random.index(input.len() + 1)];
            let limits = RequestLimits::default();
            let transcript = transcript(limits, Authentication::Settled, &input, &cuts);
            assert_eq!(transcript.requests, requests);
            assert_eq!(transcript.bytes_left, 0);
        }
    }
}
