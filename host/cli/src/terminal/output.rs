//! Standard output: lines with colours for a terminal, lines of JSON for a program.
//!
//! Published messages are untrusted text, so control characters in them are not printed to a
//! terminal.

use std::fmt::Display;
use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use clap::Args;
use serde::Serialize;

/// The flag that selects the audience of the output.
#[derive(Debug, Clone, Copy, Args)]
pub struct OutputArgs {
    /// Prints one JSON object per line, which is the default if standard output is not a terminal.
    #[arg(long)]
    pub json: bool,
}

impl OutputArgs {
    /// The audience: a program if `--json` is given or standard output is no terminal.
    pub fn audience(self) -> Audience {
        if self.json || !io::stdout().is_terminal() { Audience::Program } else { Audience::Person }
    }
}

/// The format of standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// A person at a terminal.
    Person,
    /// A program, or a file.
    Program,
}

/// Standard output. Output is buffered until it is flushed.
pub struct Output {
    /// The format.
    pub audience: Audience,
    stream: BufWriter<AutoStream<Stdout>>,
}

impl Output {
    /// Standard output for this audience. A terminal gets colours, unless `NO_COLOR` is set or
    /// it supports none.
    pub fn new(audience: Audience) -> Output {
        let choice = match audience {
            Audience::Person => AutoStream::choice(&io::stdout()),
            // Not even if CLICOLOR_FORCE is set: the output would not be JSON.
            Audience::Program => ColorChoice::Never,
        };
        Output { audience, stream: BufWriter::new(AutoStream::new(io::stdout(), choice)) }
    }

    /// Writes a line with colours of [`Style`].
    ///
    /// # Errors
    ///
    /// Standard output is closed.
    pub fn line(&mut self, line: impl Display) -> io::Result<()> {
        writeln!(self.stream, "{line}")
    }

    /// Writes a line of JSON.
    ///
    /// # Errors
    ///
    /// Standard output is closed.
    pub fn json(&mut self, object: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.stream, object)?;
        self.stream.write_all(b"\n")
    }

    /// Flushes the output.
    ///
    /// # Errors
    ///
    /// Standard output is closed.
    pub fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Whether this error only means that the reader closed the pipe, as `head` does.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let of_io = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    error.downcast_ref::<io::Error>().is_some_and(of_io)
}

/// Less important text.
pub const DIM: Style = Style::new().dimmed();

/// Some text in a style.
pub fn styled(style: Style, text: impl Display) -> impl Display {
    std::fmt::from_fn(move |formatter| write!(formatter, "{style}{text}{style:#}"))
}

/// A colour for a name: the same one for the same name.
pub fn colour_of(name: &str) -> Style {
    // Without red, which means an error, and without yellow, a warning.
    const COLOURS: [AnsiColor; 6] = [
        AnsiColor::Cyan,
        AnsiColor::Green,
        AnsiColor::Magenta,
        AnsiColor::Blue,
        AnsiColor::BrightCyan,
        AnsiColor::BrightMagenta,
    ];
    let sum = name.bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31) + usize::from(byte));
    let colour = COLOURS.get(sum % COLOURS.len()).copied();
    Style::new().fg_color(colour.map(Into::into))
}

/// Text without anything that a terminal would interpret: control characters, and marks that change
/// the direction of writing, are replaced by their escapes. A tab stays.
pub fn harmless(text: &str) -> impl Display {
    std::fmt::from_fn(move |formatter| {
        let mut rest = text;
        while let Some(at) = rest.find(is_obeyed) {
            let (shown, behind) = rest.split_at(at);
            let mut behind = behind.chars();
            let escaped = behind.next().into_iter().flat_map(char::escape_default);
            write!(formatter, "{shown}")?;
            escaped.into_iter().try_for_each(|character| write!(formatter, "{character}"))?;
            rest = behind.as_str();
        }
        write!(formatter, "{rest}")
    })
}

fn is_obeyed(character: char) -> bool {
    let is_direction = matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    (character.is_control() && character != '\t') || is_direction
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_shown_nothing_that_it_would_obey() {
        let check = |text, expected| assert_eq!(harmless(text).to_string(), expected);
        check("plain ünïcode\t🦀", "plain ünïcode\t🦀");
        check("a\u{1b}[31mb", "a\\u{1b}[31mb");
        check("two\r\nlines", "two\\r\\nlines");
        check("\u{9b}2J", "\\u{9b}2J");
        check("\u{202e}txt", "\\u{202e}txt");
        check("", "");
    }

    #[test]
    fn a_name_keeps_its_colour() {
        assert_eq!(colour_of("news"), colour_of("news"));
        assert!((0..20).any(|n| colour_of(&n.to_string()) != colour_of("news")));
    }
}
