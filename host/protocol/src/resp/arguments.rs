//! The requests of one read, as positions in the buffer.
//!
//! A [`Burst`] holds no bytes of its own except those of inline requests, which have to be
//! unescaped. The caller owns it and reuses it for every read. It stores positions instead of
//! slices, so that it outlives the buffer that it was filled from; it returns slices when the
//! buffer is passed again.

/// For how many arguments an empty burst keeps memory. A burst that held more frees the rest, so
/// that a large request does not use memory until the connection ends.
const PLACES_KEPT_MAX: usize = 256;

/// The same for the bytes of inline requests.
const BYTES_KEPT_MAX: usize = 4 * 1024;

/// The position of an argument, relative to the first byte of its request.
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub(super) start: usize,
    pub(super) length: usize,
}

/// The complete requests at the front of a read buffer.
///
/// Until it is cleared it belongs to that buffer, which may grow at its end and must not change
/// before that.
#[derive(Default)]
pub struct Burst {
    requests: Vec<Place>,
    spans: Vec<Span>,
    unescaped: Vec<u8>,
    consumed: usize,
}

/// The position of a request.
struct Place {
    source: Source,
    first_span: usize,
    spans: usize,
    /// The start of the next one in the read buffer.
    end: usize,
}

enum Source {
    /// In the read buffer, from this byte on.
    Buffer(usize),
    /// In `unescaped`, from this byte on.
    Unescaped(usize),
}

impl Burst {
    /// How many requests there are.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// How many bytes of the buffer the requests use, with ignored bytes between them. The caller
    /// removes them from the front of the buffer when it clears the burst.
    pub fn consumed(&self) -> usize {
        self.consumed
    }

    /// The requests in order, each with its end. `buffer` is the one that they were parsed from.
    pub fn requests_and_ends<'a>(
        &'a self,
        buffer: &'a [u8],
    ) -> impl ExactSizeIterator<Item = (Arguments<'a>, usize)> {
        self.requests.iter().map(move |place| (self.arguments(place, buffer), place.end))
    }

    /// The requests without their ends.
    pub fn requests<'a>(
        &'a self,
        buffer: &'a [u8],
    ) -> impl ExactSizeIterator<Item = Arguments<'a>> {
        self.requests_and_ends(buffer).map(|(arguments, _)| arguments)
    }

    /// The request that was parsed last.
    #[cfg(test)]
    pub fn last<'a>(&'a self, buffer: &'a [u8]) -> Option<Arguments<'a>> {
        self.requests.last().map(|place| self.arguments(place, buffer))
    }

    /// Removes the requests and keeps a limited amount of memory.
    pub fn clear(&mut self) {
        self.requests.clear();
        self.requests.shrink_to(PLACES_KEPT_MAX);
        clear_spans(&mut self.spans);
        self.unescaped.clear();
        self.unescaped.shrink_to(BYTES_KEPT_MAX);
        self.consumed = 0;
    }

    /// Adds a request of `bytes` bytes, whose arguments are in the buffer.
    pub(super) fn push_borrowed(&mut self, bytes: usize, spans: &[Span]) {
        self.push(Source::Buffer(self.consumed), bytes, spans);
    }

    /// Adds a request of `bytes` bytes, whose arguments are in `unescaped` from `start` on.
    pub(super) fn push_unescaped(&mut self, bytes: usize, start: usize, spans: &[Span]) {
        self.push(Source::Unescaped(start), bytes, spans);
    }

    /// Skips bytes that hold no request.
    pub(super) fn ignore(&mut self, bytes: usize) {
        self.consumed += bytes;
    }

    /// The bytes of inline requests, for appending the next one.
    pub(super) fn unescaped_mut(&mut self) -> &mut Vec<u8> {
        &mut self.unescaped
    }

    /// The memory held, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.requests.capacity() * size_of::<Place>()
            + self.spans.capacity() * size_of::<Span>()
            + self.unescaped.capacity()
    }

    fn push(&mut self, source: Source, bytes: usize, spans: &[Span]) {
        self.consumed += bytes;
        self.requests.push(Place {
            source,
            first_span: self.spans.len(),
            spans: spans.len(),
            end: self.consumed,
        });
        self.spans.extend_from_slice(spans);
    }

    fn arguments<'a>(&'a self, place: &Place, buffer: &'a [u8]) -> Arguments<'a> {
        let bytes = match place.source {
            Source::Buffer(start) => buffer.get(start..),
            Source::Unescaped(start) => self.unescaped.get(start..),
        };
        let spans = self.spans.get(place.first_span..place.first_span + place.spans);
        Arguments { bytes: bytes.unwrap_or_default(), spans: spans.unwrap_or_default() }
    }
}

/// Empties `spans` and frees the memory of a large request.
pub(super) fn clear_spans(spans: &mut Vec<Span>) {
    spans.clear();
    spans.shrink_to(PLACES_KEPT_MAX);
}

/// The arguments of one request, the command's name being the first. A request
/// has at least one.
#[derive(Clone, Copy)]
pub struct Arguments<'a> {
    bytes: &'a [u8],
    spans: &'a [Span],
}

impl<'a> Arguments<'a> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there is none; only after [`Arguments::skip`].
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// One of them.
    pub fn get(&self, index: usize) -> Option<&'a [u8]> {
        self.spans.get(index).map(|span| span.of(self.bytes))
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &'a [u8]> + Clone + use<'a> {
        let bytes = self.bytes;
        self.spans.iter().map(move |span| span.of(bytes))
    }

    /// The arguments after the first `count`.
    pub fn skip(&self, count: usize) -> Arguments<'a> {
        Arguments { bytes: self.bytes, spans: self.spans.get(count..).unwrap_or_default() }
    }
}

impl Span {
    /// The argument; `bytes` start where its request starts.
    pub(super) fn of(self, bytes: &[u8]) -> &[u8] {
        bytes.get(self.start..self.start + self.length).unwrap_or_default()
    }
}
