//! Requests that are kept to be executed later, as MULTI does.

use super::arguments::{Arguments, Burst};
use super::integer::NumberLine;
use super::limits::{Authentication, RequestLimits};
use super::request::{Outcome, RequestParser};

/// Requests in the order in which they came, in one buffer: each as a client would send it again.
#[derive(Debug, Default)]
pub struct RequestQueue {
    bytes: Vec<u8>,
    /// The start of the first request that was not removed.
    start: usize,
    requests: usize,
}

impl RequestQueue {
    /// How many requests were appended.
    pub fn len(&self) -> usize {
        self.requests
    }

    /// Whether there is none, or all were removed.
    pub fn is_empty(&self) -> bool {
        self.start >= self.bytes.len()
    }

    /// The length of all requests, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The memory held, in bytes.
    pub fn memory(&self) -> usize {
        self.bytes.capacity()
    }

    /// Appends a request.
    pub fn push(&mut self, arguments: Arguments<'_>) {
        self.requests += 1;
        self.push_number(b'*', arguments.len());
        for argument in arguments.iter() {
            self.push_number(b'$', argument.len());
            self.bytes.extend_from_slice(argument);
            self.bytes.extend_from_slice(b"\r\n");
        }
    }

    fn push_number(&mut self, marker: u8, number: usize) {
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        self.bytes.extend_from_slice(NumberLine::new(marker, number).as_bytes());
    }

    /// The next requests, at most this many: they are appended to `burst`, and their positions are
    /// relative to the slice that this returns. They stay in the queue until `remove`.
    pub fn parse(&self, requests_max: usize, burst: &mut Burst) -> &[u8] {
        let rest = self.bytes.get(self.start..).unwrap_or_default();
        let mut parser = RequestParser::new(RequestLimits::default());
        for _ in 0..requests_max {
            match parser.parse(rest, Authentication::Settled, burst) {
                Outcome::Complete => {}
                Outcome::Incomplete { .. } | Outcome::Refused(_) => break,
            }
        }
        rest
    }

    /// Removes the first requests, which have this many bytes.
    pub fn remove(&mut self, bytes: usize) {
        self.start += bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(arguments: Arguments<'_>) -> Vec<Vec<u8>> {
        arguments.iter().map(<[u8]>::to_vec).collect()
    }

    #[test]
    fn requests_come_out_as_they_went_in() {
        let sent = b"ping \"a\\r\\nb\" ''\r\n*2\r\n$4\r\nECHO\r\n$3\r\n\0\r\n\r\nquit\n";
        let mut parser = RequestParser::new(RequestLimits::default());
        let mut burst = Burst::default();
        while parser.parse(sent, Authentication::Settled, &mut burst) == Outcome::Complete {}
        let mut queue = RequestQueue::default();
        for arguments in burst.requests(sent) {
            queue.push(arguments);
        }
        assert_eq!(queue.len(), 3);
        let expected: Vec<_> = burst.requests(sent).map(words).collect();

        let mut found = Vec::new();
        while !queue.is_empty() {
            let mut burst = Burst::default();
            let bytes = queue.parse(2, &mut burst);
            found.extend(burst.requests(bytes).map(words));
            let consumed = burst.consumed();
            queue.remove(consumed);
        }
        assert_eq!(found, expected);
    }
}
