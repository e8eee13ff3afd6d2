//! Bounds for commands that take any number of arguments, and tighter ones for those that reply for
//! each of them: COMMAND INFO, COMMAND DOCS, CONFIG GET and INFO.
//!
//! Redis has no such bounds. There the client's query buffer bounds the request, and its clients
//! are trusted; here one request of 16 MiB, which has over two million arguments, would occupy a
//! worker for up to a second, or cause a reply of a gigabyte.

use guest_core::glob;

use switchyard_protocol::resp::Arguments;
use switchyard_protocol::resp::commands::CommandId;
use switchyard_types::command::{LIMIT, Refusal};

/// More than there are commands, settings and sections.
const WORDS_MAX: usize = 1_000;

/// Longer than the name of any command, setting or section.
const WORD_BYTES_MAX: usize = 1 << 10;

/// What matching the patterns of one CONFIG GET may cost, in steps of a few nanoseconds.
const STEPS_MAX: u64 = 1_000_000;

/// Checks how many arguments a command has, before it is executed or queued. `names_max`: how many
/// names, keys or channels it may have.
///
/// # Errors
///
/// There are too many.
pub(super) fn check_size(
    id: CommandId,
    arguments: Arguments<'_>,
    names_max: usize,
) -> Result<(), Refusal> {
    let names = match id {
        CommandId::Subscribe
        | CommandId::Psubscribe
        | CommandId::Ssubscribe
        | CommandId::Unsubscribe
        | CommandId::Punsubscribe
        | CommandId::Sunsubscribe
        | CommandId::Watch => arguments.skip(1),
        CommandId::PubsubNumsub | CommandId::PubsubShardnumsub => arguments.skip(2),
        // As many IDs as channels, after the options, which may be said more than once.
        CommandId::Xread => return check_names(arguments.len() / 2, names_max.max(WORDS_MAX)),
        // Keys, the payload and channels.
        CommandId::Eval | CommandId::Evalsha => arguments.skip(3),
        _ => return check_count(arguments.skip(2)),
    };
    check_names(names.len(), names_max)
}

/// Checks how many names, keys or channels a command has.
///
/// # Errors
///
/// There are too many.
pub(super) fn check_names(count: usize, names_max: usize) -> Result<(), Refusal> {
    match count > names_max {
        true => {
            let message = format!("{count} names in one command; there may be {names_max}");
            Err(Refusal::new(LIMIT, message))
        }
        false => Ok(()),
    }
}

/// Checks the arguments after the name of a command.
///
/// # Errors
///
/// There are too many, or one is too long.
pub(super) fn check(words: Arguments<'_>) -> Result<(), Refusal> {
    check_count(words)?;
    match words.iter().find(|word| word.len() > WORD_BYTES_MAX) {
        Some(word) => {
            let message = format!("a word of {} bytes; it may have {WORD_BYTES_MAX}", word.len());
            Err(Refusal::new(LIMIT, message))
        }
        None => Ok(()),
    }
}

fn check_count(words: Arguments<'_>) -> Result<(), Refusal> {
    if words.len() > WORDS_MAX {
        let message = format!("{} words in one command; there may be {WORDS_MAX}", words.len());
        return Err(Refusal::new(LIMIT, message));
    }
    Ok(())
}

/// Checks arguments that are patterns for these names.
///
/// # Errors
///
/// As for `check`, or matching them would take too long.
pub(super) fn check_patterns<'a>(
    patterns: Arguments<'_>,
    names: impl Iterator<Item = &'a str>,
) -> Result<(), Refusal> {
    check(patterns)?;
    let (count, longest) =
        names.fold((0, 0), |(count, longest), name| (count + 1, name.len().max(longest)));
    let steps: u64 = patterns.iter().map(|pattern| glob::steps_max(pattern, longest)).sum();
    match steps.saturating_mul(count) > STEPS_MAX {
        true => Err(Refusal::new(LIMIT, "matching these patterns would take too long".to_owned())),
        false => Ok(()),
    }
}
