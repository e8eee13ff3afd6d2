//! The incremental request parser.
//!
//! The parser gets all bytes that have arrived and returns the next complete request, or that more
//! bytes are needed, or why the input is invalid. It remembers its position, so a large request
//! that arrives in many pieces is parsed once. It copies no argument, and allocates for bytes that
//! arrived, never for a declared length. The split of the bytes into reads makes no difference:
//! limits are checked as if the bytes had arrived one by one.

use super::arguments::{Burst, Span, clear_spans};
use super::inline;
use super::integer::parse_integer;
use super::limits::{Authentication, RequestLimits};
use super::protocol_error::ProtocolError;

/// The CRLF after an argument. Redis skips two bytes without checking them, and so does this.
const BULK_END_BYTES: usize = 2;

/// The minimum of the limits on a line and a request. Parts that are parsed without checking these
/// two limits are shorter.
const LIMIT_BYTES_MIN: usize = 64;

/// Parses the requests of one connection.
pub struct RequestParser {
    limits: RequestLimits,
    /// The start of the current line or argument, relative to the start of the request. Not zero
    /// once the number of arguments is known.
    position: usize,
    /// How many bytes from `position` on are known not to end the line.
    scanned: usize,
    /// How many arguments are missing.
    lacking: usize,
    /// The length of the next argument, once it is known.
    length: Option<usize>,
    /// The complete arguments.
    spans: Vec<Span>,
}

/// The result of the parser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// One more request is in the burst.
    Complete,
    /// The bytes after the burst are not a complete request, or there are none.
    Incomplete {
        /// At least this many bytes are missing. For an argument this is the length that its sender
        /// declared, so it is a hint for the next read and no reason to allocate.
        bytes_missing_min: usize,
    },
    /// The request is malformed. The connection must be closed, after a reply if the error has one.
    /// Parsing again returns the same error.
    Refused(ProtocolError),
}

/// The result of parsing, except for an error.
enum Step {
    Complete,
    Ignored,
    /// With the hint.
    Incomplete(usize),
}

impl RequestParser {
    /// A parser for a new connection. A limit below 64 bytes for a line or a request is raised to
    /// 64.
    pub fn new(limits: RequestLimits) -> RequestParser {
        RequestParser {
            limits: RequestLimits {
                inline_bytes_max: limits.inline_bytes_max.max(LIMIT_BYTES_MIN),
                request_bytes_max: limits.request_bytes_max.max(LIMIT_BYTES_MIN),
                ..limits
            },
            position: 0,
            scanned: 0,
            lacking: 0,
            length: None,
            spans: Vec::new(),
        }
    }

    /// Parses one more request after those that are in `burst`.
    ///
    /// `buffer` starts where it started when the burst was last cleared, and has only grown since.
    /// To get all requests, call this until the outcome is not `Complete`. While authentication is
    /// required, execute each request before the next call, because it may be the one that
    /// authenticates.
    pub fn parse(
        &mut self,
        buffer: &[u8],
        authentication: Authentication,
        burst: &mut Burst,
    ) -> Outcome {
        loop {
            let request = buffer.get(burst.consumed()..).unwrap_or_default();
            let step = match request.first() {
                None => Ok(Step::Incomplete(1)),
                Some(b'*') => self.read_multibulk(request, authentication, burst),
                Some(_) => self.read_inline(request, burst),
            };
            match step {
                Ok(Step::Complete) => return Outcome::Complete,
                Ok(Step::Ignored) => {}
                Ok(Step::Incomplete(bytes_missing_min)) => {
                    return Outcome::Incomplete { bytes_missing_min };
                }
                Err(error) => return Outcome::Refused(error),
            }
        }
    }

    fn read_multibulk(
        &mut self,
        request: &[u8],
        authentication: Authentication,
        burst: &mut Burst,
    ) -> Result<Step, ProtocolError> {
        if self.position == 0 {
            let Some(line) = self.number_line(request, b'*', ProtocolError::CountTooBig)? else {
                return Ok(Step::Incomplete(1));
            };
            self.lacking = self.count(line, authentication)?;
            self.pass(line.bytes);
            if self.lacking == 0 {
                burst.ignore(self.position);
                self.restart();
                return Ok(Step::Ignored);
            }
        }
        while self.lacking > 0 {
            if self.length.is_none() {
                let Some(line) = self.number_line(request, b'$', ProtocolError::LengthTooBig)?
                else {
                    return Ok(Step::Incomplete(1));
                };
                self.length = Some(self.length(line, authentication)?);
                self.pass(line.bytes);
            }
            let length = self.length.unwrap_or_default();
            let end = self.position + length + BULK_END_BYTES;
            if request.len() < end {
                return Ok(Step::Incomplete(end - request.len()));
            }
            self.spans.push(Span { start: self.position, length });
            self.position = end;
            self.length = None;
            self.lacking -= 1;
        }
        refuse_http(request, &self.spans)?;
        burst.push_borrowed(self.position, &self.spans);
        self.restart();
        Ok(Step::Complete)
    }

    fn read_inline(&mut self, request: &[u8], burst: &mut Burst) -> Result<Step, ProtocolError> {
        let Some(line) = self.line(request, b'\n', ProtocolError::InlineTooBig)? else {
            return Ok(Step::Incomplete(1));
        };
        let bytes = line.len() + 1;
        let unescaped = burst.unescaped_mut();
        let start = unescaped.len();
        // A CR before the LF is white space like any other. A line that was rejected before may
        // have left arguments.
        self.spans.clear();
        inline::split(line, unescaped, &mut self.spans)?;
        refuse_http(unescaped.get(start..).unwrap_or_default(), &self.spans)?;
        let step = if self.spans.is_empty() {
            burst.ignore(bytes);
            Step::Ignored
        } else {
            burst.push_unescaped(bytes, start, &self.spans);
            Step::Complete
        };
        self.restart();
        Ok(step)
    }

    /// The line at `position`, which must hold a marker and a number; `None` if its end has not
    /// arrived yet.
    fn number_line(
        &mut self,
        request: &[u8],
        marker: u8,
        too_big: ProtocolError,
    ) -> Result<Option<NumberLine>, ProtocolError> {
        let rest = request.get(self.position..).unwrap_or_default();
        if let Some(line) = short_number_line(rest, marker) {
            return Ok(Some(line));
        }
        let Some(line) = self.line(request, b'\r', too_big)? else {
            return Ok(None);
        };
        let number = match line {
            [found, digits @ ..] if *found == marker => parse_integer(digits),
            // On an empty line this is the CR that ends it.
            _ => {
                let found = line.first().copied().unwrap_or(b'\r');
                return Err(ProtocolError::DollarExpected { found });
            }
        };
        Ok(Some(NumberLine { number, bytes: line.len() + 2 }))
    }

    /// The line at `position`, without the byte that ends it; `None` if its end has not arrived
    /// yet. After a CR one more byte must have arrived, LF or not.
    ///
    /// A NUL hides the bytes after it, because Redis searches for the end of a line as in a C
    /// string: the line then only ends at the limit.
    fn line<'a>(
        &mut self,
        request: &'a [u8],
        end: u8,
        too_big: ProtocolError,
    ) -> Result<Option<&'a [u8]>, ProtocolError> {
        let rest = request.get(self.position..).unwrap_or_default();
        let room = self.limits.request_bytes_max.saturating_sub(self.position);
        let (bytes_max, too_big) = if self.limits.inline_bytes_max <= room {
            (self.limits.inline_bytes_max, too_big)
        } else {
            (room, ProtocolError::RequestTooBig)
        };
        let within = rest.get(..=bytes_max).unwrap_or(rest);
        let unseen = within.get(self.scanned..).unwrap_or_default();
        let stop = unseen.iter().position(|&byte| byte == end || byte == 0);
        self.scanned += stop.unwrap_or(unseen.len());
        if within.get(self.scanned) == Some(&end) {
            let bytes = self.scanned + if end == b'\r' { 2 } else { 1 };
            if bytes > room {
                return Err(ProtocolError::RequestTooBig);
            }
            return Ok(rest.get(..self.scanned).filter(|_| bytes <= rest.len()));
        }
        if rest.len() > bytes_max { Err(too_big) } else { Ok(None) }
    }

    /// The number of arguments in a line such as `*3`.
    fn count(
        &self,
        line: NumberLine,
        authentication: Authentication,
    ) -> Result<usize, ProtocolError> {
        let number = line.number.ok_or(ProtocolError::CountInvalid)?;
        let count = usize::try_from(number.max(0)).unwrap_or(usize::MAX);
        if count > self.limits.arguments_max {
            return Err(ProtocolError::CountInvalid);
        }
        if authentication == Authentication::Owed
            && count > self.limits.unauthenticated_arguments_max
        {
            return Err(ProtocolError::UnauthenticatedCount);
        }
        Ok(count)
    }

    /// The length of the argument after a line such as `$7`. An argument that does not fit into the
    /// request any more is rejected before it arrives.
    fn length(
        &self,
        line: NumberLine,
        authentication: Authentication,
    ) -> Result<usize, ProtocolError> {
        let length = line
            .number
            .and_then(|number| usize::try_from(number).ok())
            .filter(|length| *length <= self.limits.bulk_bytes_max)
            .ok_or(ProtocolError::LengthInvalid)?;
        if authentication == Authentication::Owed
            && length > self.limits.unauthenticated_bulk_bytes_max
        {
            return Err(ProtocolError::UnauthenticatedLength);
        }
        let room = self.limits.request_bytes_max.saturating_sub(self.position + line.bytes);
        if length.saturating_add(BULK_END_BYTES) > room {
            return Err(ProtocolError::RequestTooBig);
        }
        Ok(length)
    }

    /// Moves to the end of a line.
    fn pass(&mut self, bytes: usize) {
        self.position += bytes;
        self.scanned = 0;
    }

    /// Resets for the next request.
    fn restart(&mut self) {
        self.position = 0;
        self.scanned = 0;
        clear_spans(&mut self.spans);
    }

    /// The memory held, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.spans.capacity() * size_of::<Span>()
    }

    /// The memory held for an incomplete request with some arguments, in bytes.
    pub fn unfinished_bytes(&self) -> usize {
        if self.spans.is_empty() { 0 } else { self.spans.capacity() * size_of::<Span>() }
    }
}

/// A line such as `*3` or `$128`.
#[derive(Clone, Copy)]
struct NumberLine {
    /// `None` if it is not a number.
    number: Option<i64>,
    /// Including its end.
    bytes: usize,
}

/// Parses the common form of a line: a positive number of a few digits, completely received.
/// Returns `None` for any other line, valid or not. The general parser decides then, and takes
/// about twice the time.
fn short_number_line(rest: &[u8], marker: u8) -> Option<NumberLine> {
    const DIGITS_MAX: usize = 7;
    let (&[found, first], behind) = rest.split_first_chunk()?;
    if found != marker || !matches!(first, b'1'..=b'9') {
        return None;
    }
    let mut number = i64::from(first - b'0');
    for (digits, byte) in behind.iter().take(DIGITS_MAX).enumerate() {
        match byte {
            b'0'..=b'9' => number = number * 10 + i64::from(byte - b'0'),
            b'\r' if behind.len() > digits + 1 => {
                return Some(NumberLine { number: Some(number), bytes: 2 + digits + 2 });
            }
            _ => return None,
        }
    }
    None
}

/// Rejects a request that starts with an HTTP method or with the header name that all HTTP requests
/// have: web pages can make browsers send those to ports that do not speak HTTP. As in Redis, the
/// comparison ends at a NUL.
fn refuse_http(bytes: &[u8], spans: &[Span]) -> Result<(), ProtocolError> {
    let name = spans.first().map(|span| span.of(bytes)).unwrap_or_default();
    let is = |word: &[u8]| {
        name.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word))
            && name.get(word.len()).is_none_or(|byte| *byte == 0)
    };
    if is(b"post") || is(b"host:") { Err(ProtocolError::CrossProtocol) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
