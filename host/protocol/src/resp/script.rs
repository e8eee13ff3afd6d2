//! The scripts that EVAL serves: a loop that publishes one payload to several channels.
//!
//! That is how Laravel's Redis broadcaster publishes:
//!
//! ```lua
//! for i = 2, #ARGV do
//!   redis.call('publish', ARGV[i], ARGV[1])
//! end
//! ```
//!
//! A script is compared token by token, so that spaces, comments, quotes, semicolons, the name of the
//! variable and the case of the command make no difference. That takes fewer lines than a parser of
//! Lua would take to read the tree of one, and needs no other crate.

/// How long a script may be that is served, in bytes: far more than the loop needs. A longer one is
/// not read, because comparing it would take long.
const SCRIPT_BYTES_MAX: usize = 4 << 10;

/// What a script does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Script {
    /// Publishes `ARGV[1]` to the channels `ARGV[2]` and following.
    PublishToAll {
        /// Whether it ends at the first publication that fails (`redis.call`); otherwise it ignores
        /// failures (`redis.pcall`).
        stops_at_error: bool,
        /// The line of the call, from 1, which Redis adds to the error.
        line: usize,
    },
}

impl Script {
    /// What this text does; none: it is none of the scripts that are served.
    pub fn parse(text: &[u8]) -> Option<Script> {
        if text.len() > SCRIPT_BYTES_MAX {
            return None;
        }
        let mut tokens = Tokens { rest: text, line: 1 };
        let expect = |tokens: &mut Tokens<'_>, expected: &[&str]| {
            expected.iter().all(|word| tokens.next() == Some(Token::Plain(word.as_bytes())))
        };
        let is_for = expect(&mut tokens, &["for"]);
        let Some(Token::Plain(variable)) = tokens.next().filter(|_| is_for) else { return None };
        if !is_name(variable)
            || !expect(&mut tokens, &["=", "2", ",", "#", "ARGV", "do", "redis", "."])
        {
            return None;
        }
        let stops_at_error = match tokens.next() {
            Some(Token::Plain(b"call")) => true,
            Some(Token::Plain(b"pcall")) => false,
            _ => return None,
        };
        let line = tokens.line;
        let is_publish = expect(&mut tokens, &["("])
            && matches!(tokens.next(), Some(Token::Text(name)) if name.eq_ignore_ascii_case(b"publish"))
            && expect(&mut tokens, &[",", "ARGV", "["])
            && tokens.next() == Some(Token::Plain(variable))
            && expect(&mut tokens, &["]", ",", "ARGV", "[", "1", "]", ")"]);
        if !is_publish {
            return None;
        }
        let mut end = tokens.next();
        if end == Some(Token::Plain(b";")) {
            end = tokens.next();
        }
        let mut after = tokens.next();
        if after == Some(Token::Plain(b";")) {
            after = tokens.next();
        }
        (end == Some(Token::Plain(b"end")) && after.is_none())
            .then_some(Script::PublishToAll { stops_at_error, line })
    }
}

/// A token of Lua.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    /// A name, a number, or one character.
    Plain(&'a [u8]),
    /// What is between quotes, without escapes.
    Text(&'a [u8]),
    /// Not a token of any script that is served.
    Other,
}

struct Tokens<'a> {
    rest: &'a [u8],
    /// The line of the last token.
    line: usize,
}

impl<'a> Tokens<'a> {
    /// The next token; none: the text ends.
    fn next(&mut self) -> Option<Token<'a>> {
        self.skip_space();
        let first = *self.rest.first()?;
        if matches!(first, b'\'' | b'"') {
            let inside = self.take(1, |byte| byte != first && !matches!(byte, b'\\' | b'\n'));
            let is_closed = self.rest.first() == Some(&first);
            self.rest = self.rest.get(1..).unwrap_or_default();
            return Some(if is_closed { Token::Text(inside) } else { Token::Other });
        }
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if is_word(first) {
            return Some(Token::Plain(self.take(0, is_word)));
        }
        let (token, rest) = self.rest.split_at(1);
        self.rest = rest;
        Some(Token::Plain(token))
    }

    /// Skips white space and comments of one line. Long comments are no part of what is served.
    fn skip_space(&mut self) {
        loop {
            let space = self.take(0, |byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | 11 | 12));
            self.line += space.iter().filter(|byte| **byte == b'\n').count();
            if !self.rest.starts_with(b"--") || self.rest.starts_with(b"--[") {
                return;
            }
            self.take(0, |byte| byte != b'\n');
        }
    }

    /// The bytes from `start` on to which the condition applies. They are removed, and those before
    /// them.
    fn take(&mut self, start: usize, applies: impl Fn(u8) -> bool) -> &'a [u8] {
        let rest = self.rest.get(start..).unwrap_or_default();
        let length = rest.iter().position(|byte| !applies(*byte)).unwrap_or(rest.len());
        let (found, rest) = rest.split_at(length);
        self.rest = rest;
        found
    }
}

fn is_name(word: &[u8]) -> bool {
    const RESERVED: [&[u8]; 4] = [b"ARGV", b"redis", b"do", b"end"];
    word.first().is_some_and(|first| first.is_ascii_alphabetic() || *first == b'_')
        && !RESERVED.contains(&word)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As in laravel/framework, with the line breaks of PHP's heredoc.
    const LARAVEL: &str = "for i = 2, #ARGV do\n  redis.call('publish', ARGV[i], ARGV[1])\nend";

    fn served(stops_at_error: bool, line: usize) -> Option<Script> {
        Some(Script::PublishToAll { stops_at_error, line })
    }

    #[test]
    fn the_loop_is_recognised_however_it_is_written() {
        for (text, line) in [
            (LARAVEL, 2),
            ("for i = 2, #ARGV do\r\n\tredis.call('publish', ARGV[i], ARGV[1])\r\nend\r\n", 2),
            ("for i=2,#ARGV do redis.call('publish',ARGV[i],ARGV[1]) end", 1),
            (
                "\n-- all channels\nfor _n2 = 2 , # ARGV do\n redis . call ( \"PUBLISH\" , ARGV [ _n2 ] , ARGV [ 1 ] ) ; end ;\n--",
                4,
            ),
        ] {
            assert_eq!(Script::parse(text.as_bytes()), served(true, line), "{text}");
        }
        let ignoring = LARAVEL.replace("call", "pcall");
        assert_eq!(Script::parse(ignoring.as_bytes()), served(false, 2));
    }

    #[test]
    fn nothing_else_is() {
        for text in [
            "",
            "return 1",
            "for",
            "for i = 1, #ARGV do redis.call('publish', ARGV[i], ARGV[1]) end",
            "for i = 2, #KEYS do redis.call('publish', ARGV[i], ARGV[1]) end",
            "for i = 2, #ARGV do redis.call('publish', ARGV[j], ARGV[1]) end",
            "for i = 2, #ARGV do redis.call('publish', ARGV[i], ARGV[2]) end",
            "for i = 2, #ARGV do redis.call('set', ARGV[i], ARGV[1]) end",
            "for i = 2, #ARGV do redis.call(publish, ARGV[i], ARGV[1]) end",
            "for i = 2, #ARGV do redis.call('publish', ARGV[i], ARGV[1]) end return 1",
            "for i = 2, #ARGV do redis.call('publish', ARGV[i], ARGV[1])",
            "for i = 2, #ARGV do redis.call('publish', ARGV[i], ARGV[1] end",
            "for ARGV = 2, #ARGV do redis.call('publish', ARGV[ARGV], ARGV[1]) end",
            "for i = 2, #ARGV do redis.call('publish, ARGV[i], ARGV[1]) end",
            "--[[ for i = 2, #ARGV do redis.call('publish', ARGV[i], ARGV[1]) end",
            "local x = 1 for i = 2, #ARGV do redis.call('publish', ARGV[i], ARGV[1]) end",
        ] {
            assert_eq!(Script::parse(text.as_bytes()), None, "{text}");
        }
        let long = format!("{LARAVEL}{}", " ".repeat(SCRIPT_BYTES_MAX));
        assert_eq!(Script::parse(long.as_bytes()), None);
        for end in 0..LARAVEL.len() {
            let part = LARAVEL.as_bytes().get(..end).unwrap_or_default();
            assert_eq!(Script::parse(part), None, "{end}");
        }
    }
}
