//! The mapping of channels to NATS subjects, and back without loss.
//!
//! The dots of a channel are the dots of its subject, so that the channel `news.world` is the
//! subject `news.world` to every program on that NATS. Bytes that a subject cannot contain are
//! written as `%XX` in hexadecimal, and an empty token as `%-`. A subject that `subject` never
//! returns belongs to no channel. Shard channels are a separate tree under `%shard`, which no
//! channel begins with.
//!
//! A pattern becomes the narrowest wildcard that covers it. NATS matches whole tokens only; the
//! engine does the rest of the matching.

use guest_core::glob;

use switchyard_types::command::Space;

/// An empty token.
const EMPTY_TOKEN: &str = "%-";
/// The first token of shard channels.
const SHARD_TREE: &str = "%shard";

/// The subject of a channel, under a prefix of whole tokens; the prefix may be
/// empty.
pub fn subject(prefix: &str, space: Space, channel: &[u8]) -> String {
    let mut subject = root(prefix, space);
    write_tokens(channel, &mut subject);
    subject
}

/// The channel of a subject; none where `subject` does not return this subject for any channel.
pub fn channel(prefix: &str, written: &str) -> Option<(Space, Vec<u8>)> {
    let rest = match prefix {
        "" => written,
        prefix => written.strip_prefix(prefix)?.strip_prefix('.')?,
    };
    let (space, tokens) =
        match rest.strip_prefix(SHARD_TREE).and_then(|rest| rest.strip_prefix('.')) {
            Some(tokens) => (Space::ShardChannels, tokens),
            None => (Space::Channels, rest),
        };
    let mut channel = Vec::with_capacity(tokens.len());
    for (place, token) in tokens.split('.').enumerate() {
        if place > 0 {
            channel.push(b'.');
        }
        if token != EMPTY_TOKEN {
            read_token(token, &mut channel)?;
        }
    }
    // Each channel has exactly one subject.
    (subject(prefix, space, &channel) == written).then_some((space, channel))
}

/// The narrowest wildcard that covers the subjects of all channels that a pattern
/// matches.
pub fn wildcard(prefix: &str, pattern: &[u8]) -> String {
    let mut subject = root(prefix, Space::Channels);
    let mut token = Vec::new();
    let mut is_any_token = false;
    let mut is_first = true;
    let mut rest = pattern;
    loop {
        let (element, after) = element(rest);
        match element {
            Element::Byte(b'.') | Element::End => {
                if is_any_token {
                    subject.push('*');
                } else {
                    write_token(&token, is_first, &mut subject);
                }
                if element == Element::End {
                    return subject;
                }
                subject.push('.');
                token.clear();
                (is_any_token, is_first) = (false, false);
            }
            Element::Byte(byte) => token.push(byte),
            Element::WithinToken => is_any_token = true,
            // From this point on the number of tokens is open, except for the dots that follow.
            Element::AcrossTokens => {
                let mut rest = after;
                loop {
                    let (element, after) = self::element(rest);
                    match element {
                        Element::Byte(b'.') => subject.push_str("*."),
                        Element::End => break,
                        _ => {}
                    }
                    rest = after;
                }
                subject.push('>');
                return subject;
            }
        }
        rest = after;
    }
}

/// What an element of a pattern can match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    Byte(u8),
    /// A byte that is no dot.
    WithinToken,
    /// Bytes that may include dots.
    AcrossTokens,
    End,
}

/// The first element of a pattern, and the rest, by the rules of `guest_core::glob`.
fn element(pattern: &[u8]) -> (Element, &[u8]) {
    match pattern {
        [] => (Element::End, pattern),
        [b'*' | b'?', rest @ ..] => (Element::AcrossTokens, rest),
        [b'\\', byte, rest @ ..] => (Element::Byte(*byte), rest),
        [b'[', inner @ ..] => {
            let mut rest = inner.strip_prefix(b"^").unwrap_or(inner);
            loop {
                rest = match rest {
                    [] => break,
                    [b'\\', _, rest @ ..] => rest,
                    [b']', after @ ..] => {
                        rest = after;
                        break;
                    }
                    [_, b'-', _, rest @ ..] | [_, rest @ ..] => rest,
                };
            }
            let class = pattern.get(..pattern.len() - rest.len()).unwrap_or_default();
            match glob::matches(class, b".") {
                true => (Element::AcrossTokens, rest),
                false => (Element::WithinToken, rest),
            }
        }
        [byte, rest @ ..] => (Element::Byte(*byte), rest),
    }
}

fn root(prefix: &str, space: Space) -> String {
    let mut subject = String::with_capacity(64);
    if !prefix.is_empty() {
        subject.push_str(prefix);
        subject.push('.');
    }
    if space == Space::ShardChannels {
        subject.push_str(SHARD_TREE);
        subject.push('.');
    }
    subject
}

fn write_tokens(name: &[u8], subject: &mut String) {
    for (place, token) in name.split(|byte| *byte == b'.').enumerate() {
        if place > 0 {
            subject.push('.');
        }
        write_token(token, place == 0, subject);
    }
}

fn write_token(token: &[u8], is_first: bool, subject: &mut String) {
    if token.is_empty() {
        subject.push_str(EMPTY_TOKEN);
    }
    // Trees that NATS and its clients reserve: `$SYS`, `$JS`, and the inboxes for responses.
    let is_foreign = is_first && (token.starts_with(b"$") || token == b"_INBOX");
    let mut is_start = true;
    for chunk in token.utf8_chunks() {
        for character in chunk.valid().chars() {
            let is_plain = match character {
                '%' | '*' | '>' => false,
                _ if is_foreign && is_start => false,
                _ => !character.is_whitespace() && !character.is_control(),
            };
            is_start = false;
            if is_plain {
                subject.push(character);
            } else {
                character.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| escape(byte, subject));
            }
        }
        is_start &= chunk.invalid().is_empty();
        chunk.invalid().iter().for_each(|byte| escape(*byte, subject));
    }
}

fn escape(byte: u8, subject: &mut String) {
    subject.push('%');
    for half in [byte >> 4, byte & 15] {
        subject
            .extend(char::from_digit(u32::from(half), 16).map(|digit| digit.to_ascii_uppercase()));
    }
}

fn read_token(token: &str, channel: &mut Vec<u8>) -> Option<()> {
    let mut pieces = token.split('%');
    channel.extend_from_slice(pieces.next().unwrap_or_default().as_bytes());
    for piece in pieces {
        let (digits, rest) = piece.split_at_checked(2)?;
        channel.push(u8::from_str_radix(digits, 16).ok()?);
        channel.extend_from_slice(rest.as_bytes());
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPACES: [Space; 2] = [Space::Channels, Space::ShardChannels];

    /// Whether NATS delivers what is published on `subject` to a subscriber of `wildcard`.
    fn covers(wildcard: &str, subject: &str) -> bool {
        let mut tokens = subject.split('.');
        for wanted in wildcard.split('.') {
            match (wanted, tokens.next()) {
                (">", Some(_)) => return true,
                (_, None) => return false,
                ("*", Some(_)) => {}
                (wanted, Some(token)) if wanted == token => {}
                _ => return false,
            }
        }
        tokens.next().is_none()
    }

    /// Random bytes from a small alphabet, so that patterns match names.
    struct Random(u64);

    impl Random {
        fn below(&mut self, limit: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((self.0 >> 33) as usize) % limit
        }

        fn bytes(&mut self, alphabet: &[u8]) -> Vec<u8> {
            let length = self.below(7);
            (0..length).filter_map(|_| alphabet.get(self.below(alphabet.len())).copied()).collect()
        }
    }

    #[test]
    fn plain_names_are_their_own_subjects() {
        let check = |channel: &str, expected: &str| {
            assert_eq!(subject("", Space::Channels, channel.as_bytes()), expected);
        };
        check("news.world", "news.world");
        check("user:42", "user:42");
        check("grüße", "grüße");
        check("a$b.$c", "a$b.$c");
        check("", "%-");
        check("a..b.", "a.%-.b.%-");
        check("50%", "50%25");
        check("$JS.API.INFO", "%24JS.API.INFO");
        check("_INBOX.x", "%5FINBOX.x");
        check("_INBOXES", "_INBOXES");
        check("a b*c>d", "a%20b%2Ac%3Ed");
        check("line\r\nbreak\u{85}", "line%0D%0Abreak%C2%85");
        assert_eq!(subject("", Space::Channels, b"\xC3(\xFF"), "%C3(%FF");
        assert_eq!(subject("sy.one", Space::Channels, b"x"), "sy.one.x");
        assert_eq!(subject("sy", Space::ShardChannels, b"x"), "sy.%shard.x");
    }

    #[test]
    fn every_name_comes_back() {
        let mut random = Random(7);
        let mut seen = std::collections::HashMap::new();
        for _ in 0..20_000 {
            let name = random.bytes(b"ab.%$*> -2DE\n\0\xC3\xA9\xFF");
            for space in SPACES {
                for prefix in ["", "sy"] {
                    let written = subject(prefix, space, &name);
                    assert_eq!(channel(prefix, &written), Some((space, name.clone())), "{written}");
                    let before = seen.insert(written, (space, prefix, name.clone()));
                    assert!(before.is_none_or(|before| before == (space, prefix, name.clone())));
                }
            }
        }
    }

    #[test]
    fn what_no_channel_is_written_as_is_none() {
        for foreign in [
            "50%off", "a%2eb", "a%2Eb", "%C3%A9", "%", "%-x", "$SYS.x", "_INBOX.x", "a..b",
            "%shard",
        ] {
            assert_eq!(channel("", foreign), None, "{foreign}");
        }
        assert_eq!(channel("sy", "news"), None);
        assert_eq!(channel("sy", "sybil.news"), None);
    }

    #[test]
    fn patterns_become_the_narrowest_wildcards() {
        let check = |pattern: &str, expected: &str| {
            assert_eq!(wildcard("", pattern.as_bytes()), expected, "{pattern}");
        };
        check("news.*", "news.>");
        check("news.*.new", "news.*.>");
        check("*", ">");
        check("*.world", "*.>");
        check("user:*", ">");
        check("n?ws.x", "*.>");
        check("[ab]c.x", "*.x");
        check("x.[^ab]", "x.>");
        check("x.[^.]y.z", "x.*.z");
        check("x\\*.y", "x%2A.y");
        check("plain", "plain");
        check("", "%-");
        check("a.[x", "a.*");
        assert_eq!(wildcard("sy", b"news.*"), "sy.news.>");
    }

    #[test]
    fn a_wildcard_covers_all_that_its_pattern_matches() {
        let mut random = Random(11);
        let mut matched = 0;
        for _ in 0..300_000 {
            let pattern = random.bytes(b"a.b*?[]^-\\.*");
            let name = random.bytes(b"a.b.-]");
            if glob::matches(&pattern, &name) {
                matched += 1;
                let (wildcard, subject) =
                    (wildcard("", &pattern), subject("", Space::Channels, &name));
                assert!(covers(&wildcard, &subject), "{wildcard} {subject}");
            }
        }
        assert!(matched > 1_000, "only {matched} pairs matched");
    }
}
