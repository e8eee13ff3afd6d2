//! Where in a JSON document a JSON pointer (RFC 6901) leads, as spans of its
//! bytes.
//!
//! Nothing is parsed into values: what is found is cut out of the text, and the
//! rest stays as it was written. `document` says whether the payload is a JSON
//! document at all, so what walks through it here relies on that and has no
//! errors of its own. A key that occurs twice is found twice: which one a
//! subscriber will read is for its parser to say.

use std::iter;
use std::ops::Range;

use crate::document::is_document;

/// A way through a document: keys of objects and indices of arrays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer {
    tokens: Vec<Token>,
}

/// One step of the way.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Token {
    key: String,
    /// None when it cannot be one: they are written without leading zeros.
    index: Option<usize>,
}

impl Pointer {
    /// Reads a pointer as RFC 6901 writes it: `/card/number`, with `~1` for a
    /// slash and `~0` for a tilde in a key. The empty pointer leads to the whole
    /// document.
    pub fn parse(text: &str) -> Result<Self, String> {
        let tokens = match text.strip_prefix('/') {
            Some(tokens) => tokens.split('/').map(Token::parse).collect::<Option<_>>(),
            None if text.is_empty() => Some(vec![]),
            None => return Err(format!("the pointer `{text}` does not begin with `/`")),
        };
        match tokens {
            Some(tokens) => Ok(Self { tokens }),
            None => Err(format!(
                "the pointer `{text}` has a `~` that is neither `~0` (a tilde) nor `~1` (a slash)"
            )),
        }
    }

    /// Whether it leads to the whole document.
    pub fn is_whole(&self) -> bool {
        self.tokens.is_empty()
    }

    /// How often a payload is read to follow it.
    pub fn readings(&self) -> usize {
        self.tokens.len() + 2
    }

    /// Where the values stand that it leads to, in rising order. Empty when the
    /// payload is no JSON document.
    pub fn values_in(&self, payload: &[u8]) -> Vec<Range<usize>> {
        follow(&self.tokens, payload)
    }

    /// Where to cut to take those values out and leave a JSON document: a member
    /// goes with its key, and one comma too many with it. Empty for the whole
    /// document, which would leave none.
    pub fn members_in(&self, payload: &[u8]) -> Vec<Range<usize>> {
        let Some((last, before_last)) = self.tokens.split_last() else {
            return vec![];
        };
        let containers = follow(before_last, payload);
        let cuts = containers.iter().flat_map(|container| cuts(last, payload, container));
        cuts.collect()
    }
}

fn follow(tokens: &[Token], payload: &[u8]) -> Vec<Range<usize>> {
    if !is_document(payload) {
        return vec![];
    }
    let document = after_punctuation(payload);
    let whole = position(payload, document)..position(payload, after_value(document));
    tokens.iter().fold(vec![whole], |values, token| {
        let items = values.iter().flat_map(|value| items(payload, value));
        items.filter(|item| item.name.is(token)).map(|item| item.value).collect()
    })
}

/// Where to cut to take what has this name out of a container. Those at its
/// front go with the comma behind them, all others with the one before.
fn cuts(token: &Token, payload: &[u8], container: &Range<usize>) -> Vec<Range<usize>> {
    let mut cuts = vec![];
    let mut front: Option<Range<usize>> = None;
    let mut kept_any = false;
    let mut end_before = container.start;
    for item in items(payload, container) {
        if !item.name.is(token) {
            cuts.extend(front.take().map(|front| front.start..item.whole.start));
            kept_any = true;
        } else if kept_any {
            cuts.push(end_before..item.whole.end);
        } else {
            let start = front.map_or(item.whole.start, |front| front.start);
            front = Some(start..item.whole.end);
        }
        end_before = item.whole.end;
    }
    cuts.extend(front);
    cuts
}

impl Token {
    /// Takes `~0` and `~1` for what they stand for; none when there is another
    /// `~`.
    fn parse(text: &str) -> Option<Self> {
        let mut after_tildes = text.split('~').skip(1);
        let is_escaped = after_tildes.all(|after| after.starts_with(['0', '1']));
        let index = text.parse().ok().filter(|index: &usize| index.to_string() == text);
        is_escaped.then(|| Self { key: text.replace("~1", "/").replace("~0", "~"), index })
    }
}

/// A member of an object or an element of an array.
struct Item<'a> {
    name: Name<'a>,
    /// From its key, if it has one, to its end.
    whole: Range<usize>,
    value: Range<usize>,
}

/// What an item is called.
enum Name<'a> {
    /// A key, as it is written, quotes and escapes included.
    Key(&'a [u8]),
    Index(usize),
}

impl Name<'_> {
    fn is(&self, token: &Token) -> bool {
        match *self {
            Self::Key(written) if written.contains(&b'\\') => {
                serde_json::from_slice::<String>(written).is_ok_and(|key| key == token.key)
            }
            Self::Key(written) => {
                matches!(written, [_, key @ .., _] if key == token.key.as_bytes())
            }
            Self::Index(index) => token.index == Some(index),
        }
    }
}

/// What an object or array holds, in order. Nothing for any other value.
fn items<'a>(payload: &'a [u8], value: &Range<usize>) -> impl Iterator<Item = Item<'a>> {
    let mut rest = payload.get(value.clone()).unwrap_or_default();
    let is_object = rest.starts_with(b"{");
    rest = match rest {
        [b'{' | b'[', ..] => payload.get(value.start + 1..).unwrap_or_default(),
        _ => &[],
    };
    let mut indices = 0..;
    iter::from_fn(move || {
        let start = after_punctuation(rest);
        if matches!(start, [] | [b'}' | b']', ..]) {
            return None;
        }
        let (name, value) = if is_object {
            let after_key = after_string(start);
            let key = start.strip_suffix(after_key)?;
            (Name::Key(key), after_punctuation(after_key))
        } else {
            (Name::Index(indices.next()?), start)
        };
        rest = after_value(value);
        let end = position(payload, rest);
        Some(Item {
            name,
            whole: position(payload, start)..end,
            value: position(payload, value)..end,
        })
    })
}

/// Where in the payload a rest of it begins.
fn position(payload: &[u8], rest: &[u8]) -> usize {
    payload.len() - rest.len()
}

/// What follows white space, a comma or a colon.
fn after_punctuation(rest: &[u8]) -> &[u8] {
    let is_punctuation = |byte: &&u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | b',' | b':');
    let length = rest.iter().take_while(is_punctuation).count();
    rest.split_at(length).1
}

/// What follows the value that stands here.
fn after_value(rest: &[u8]) -> &[u8] {
    match rest {
        [b'"', ..] => after_string(rest),
        [b'{' | b'[', ..] => after_container(rest),
        _ => {
            let is_end =
                |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | b',' | b'}' | b']');
            let length = rest.iter().position(is_end).unwrap_or(rest.len());
            rest.split_at(length).1
        }
    }
}

fn after_container(rest: &[u8]) -> &[u8] {
    let is_mark = |byte: &u8| matches!(byte, b'"' | b'{' | b'[' | b'}' | b']');
    let mut rest = rest;
    let mut depth = 0_usize;
    loop {
        let (mark, tail) = from_first(rest, is_mark);
        rest = match mark.first() {
            Some(b'"') => after_string(mark),
            _ => tail,
        };
        match mark.first() {
            Some(b'{' | b'[') => depth += 1,
            Some(b'}' | b']') if depth > 1 => depth -= 1,
            Some(b'"') => {}
            _ => return rest,
        }
    }
}

fn after_string(rest: &[u8]) -> &[u8] {
    let mut rest = rest.get(1..).unwrap_or_default();
    loop {
        let (mark, tail) = from_first(rest, |byte| matches!(byte, b'"' | b'\\'));
        rest = match mark.first() {
            Some(b'\\') => tail.get(1..).unwrap_or_default(),
            _ => return tail,
        };
    }
}

/// The rest from the first byte that is wanted, and what follows that byte.
fn from_first(rest: &[u8], is_wanted: impl Fn(&u8) -> bool) -> (&[u8], &[u8]) {
    let start = rest.iter().position(is_wanted).unwrap_or(rest.len());
    let found = rest.split_at(start).1;
    (found, found.get(1..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Marks with `<>` what is found, and with nothing in place what is cut.
    fn check(pointer: &str, payload: &str, values: &str, without: &str) {
        let pointer = match Pointer::parse(pointer) {
            Ok(pointer) => pointer,
            Err(error) => panic!("{error}"),
        };
        let mut marked = payload.to_owned();
        for span in pointer.values_in(payload.as_bytes()).into_iter().rev() {
            marked.insert(span.end, '>');
            marked.insert(span.start, '<');
        }
        assert_eq!(marked, values, "{pointer:?}");
        let mut cut = payload.to_owned();
        for span in pointer.members_in(payload.as_bytes()).into_iter().rev() {
            cut.replace_range(span, "");
        }
        assert_eq!(cut, without, "{pointer:?}");
    }

    fn check_nothing(pointer: &str, payload: &str) {
        check(pointer, payload, payload, payload);
    }

    #[test]
    fn a_member_of_an_object() {
        check("/a", r#"{"a":1}"#, r#"{"a":<1>}"#, "{}");
        check("/a", r#"{"a":1,"b":2}"#, r#"{"a":<1>,"b":2}"#, r#"{"b":2}"#);
        check("/b", r#"{"a":1,"b":2}"#, r#"{"a":1,"b":<2>}"#, r#"{"a":1}"#);
        check("/b", r#"{"a":1,"b":2,"c":3}"#, r#"{"a":1,"b":<2>,"c":3}"#, r#"{"a":1,"c":3}"#);
        check(
            "/a",
            " { \"a\" :\t{ \"x\" : \"}\\\"]\" } ,\n \"b\" : [ 1.50e+3 ] } ",
            " { \"a\" :\t<{ \"x\" : \"}\\\"]\" }> ,\n \"b\" : [ 1.50e+3 ] } ",
            " { \"b\" : [ 1.50e+3 ] } ",
        );
        check("/a/b", r#"{"a":{"b":null}}"#, r#"{"a":{"b":<null>}}"#, r#"{"a":{}}"#);
        check("/é", r#"{"é":true}"#, r#"{"é":<true>}"#, "{}");
        check("/", r#"{"":"x"}"#, r#"{"":<"x">}"#, "{}");
        check_nothing("/a", r#"{"A":1,"aa":2,"":3}"#);
        check_nothing("/a", "{}");
        check_nothing("/a/b", r#"{"a":"b","b":1}"#);
    }

    #[test]
    fn an_element_of_an_array() {
        check("/0", "[1,2,3]", "[<1>,2,3]", "[2,3]");
        check("/1", "[1,2,3]", "[1,<2>,3]", "[1,3]");
        check("/2", "[1, 2 , 3 ]", "[1, 2 , <3> ]", "[1, 2 ]");
        check("/0", "[[]]", "[<[]>]", "[]");
        check("/1/a", r#"[0,{"a":[]}]"#, r#"[0,{"a":<[]>}]"#, "[0,{}]");
        check("/1", r#"{"1":0}"#, r#"{"1":<0>}"#, "{}");
        for pointer in ["/3", "/-", "/-1", "/+1", "/01", "/1.0", "/"] {
            check_nothing(pointer, "[1,2,3]");
        }
    }

    #[test]
    fn a_key_however_it_is_written_and_however_often() {
        check("/a~1b", r#"{"a/b":1}"#, r#"{"a/b":<1>}"#, "{}");
        check("/~01", r#"{"~1":1}"#, r#"{"~1":<1>}"#, "{}");
        check("/ab", r#"{"\u0061b":1}"#, r#"{"\u0061b":<1>}"#, "{}");
        check("/\"", r#"{"\"":1}"#, r#"{"\"":<1>}"#, "{}");
        check_nothing("/a", r#"{"\ud800":1}"#);
        check("/a", r#"{"\ud800":1,"a":2}"#, r#"{"\ud800":1,"a":<2>}"#, r#"{"\ud800":1}"#);
        let twice = r#"{"a":1,"a":2,"b":0,"a":3,"a":4}"#;
        check("/a", twice, r#"{"a":<1>,"a":<2>,"b":0,"a":<3>,"a":<4>}"#, r#"{"b":0}"#);
        check("/a", r#"{"a":1,"a":2}"#, r#"{"a":<1>,"a":<2>}"#, "{}");
        let twice = r#"{"a":{"b":1},"a":{"b":2,"c":3}}"#;
        check("/a/b", twice, r#"{"a":{"b":<1>},"a":{"b":<2>,"c":3}}"#, r#"{"a":{},"a":{"c":3}}"#);
    }

    #[test]
    fn a_whole_document() {
        check("", " [1] ", " <[1]> ", " [1] ");
        check("", "1", "<1>", "1");
    }

    #[test]
    fn what_is_no_json_has_nothing() {
        for payload in ["", "a", "{", r#"{"a":1"#, r#"{"a":1}}"#, r#"{"a":1,}"#, "{a:1}", "[01]"] {
            check_nothing("/a", payload);
            check_nothing("", payload);
        }
    }

    #[test]
    fn a_document_may_be_deep_and_need_not_be_utf_8_in_its_strings() {
        let Ok(pointer) = Pointer::parse("/a") else {
            panic!("no pointer");
        };
        let deep = format!(r#"{{"b":{}{},"a":1}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(pointer.values_in(deep.as_bytes()).len(), 1);
        assert_eq!(pointer.values_in(b"{\"b\":\"\xff\",\"a\":1}").len(), 1);
    }

    #[test]
    fn a_pointer_that_is_none() {
        let check = |text, expected: &str| match Pointer::parse(text) {
            Ok(pointer) => panic!("read {pointer:?}"),
            Err(error) => assert_eq!(error, expected),
        };
        check("a", "the pointer `a` does not begin with `/`");
        check(
            "/a~",
            "the pointer `/a~` has a `~` that is neither `~0` (a tilde) nor `~1` (a slash)",
        );
        check(
            "/~2",
            "the pointer `/~2` has a `~` that is neither `~0` (a tilde) nor `~1` (a slash)",
        );
    }
}
