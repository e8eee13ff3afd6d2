//! Expected messages: JSON with wildcards.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// JSON with wildcards.
#[derive(Debug, PartialEq)]
#[allow(missing_docs, reason = "docs/plugins/testing.md says what each is")]
pub enum Pattern {
    Anything,
    AnyString,
    AnyNumber,
    AnyDigits,
    Containing(String),
    Exactly(Value),
    Array { items: Vec<Pattern>, may_go_on: bool },
    AnyOrder(Vec<Pattern>),
    Object { members: Vec<(String, Pattern)>, may_go_on: bool },
}

impl Pattern {
    /// Parses a pattern.
    ///
    /// # Errors
    ///
    /// The syntax error.
    pub fn parse(text: &str) -> Result<Pattern> {
        let mut rest = text;
        let pattern = Pattern::parse_start(&mut rest)?;
        ensure!(rest.trim().is_empty(), "more than one value: {rest}");
        Ok(pattern)
    }

    /// Parses a prefix of `rest`, and removes it from `rest`.
    fn parse_start(rest: &mut &str) -> Result<Pattern> {
        for (word, pattern) in [
            ("*string", Pattern::AnyString),
            ("*number", Pattern::AnyNumber),
            ("*digits", Pattern::AnyDigits),
            ("*", Pattern::Anything),
        ] {
            if skip(rest, word) {
                return Ok(pattern);
            }
        }
        if skip(rest, "~") {
            return Ok(Pattern::Containing(json_start(rest)?));
        }
        if skip(rest, "@[") {
            let (items, may_go_on) = parse_members(rest, "]", Pattern::parse_start)?;
            ensure!(!may_go_on, "an array in any order has an end");
            return Ok(Pattern::AnyOrder(items));
        }
        if skip(rest, "[") {
            let (items, may_go_on) = parse_members(rest, "]", Pattern::parse_start)?;
            return Ok(Pattern::Array { items, may_go_on });
        }
        if skip(rest, "{") {
            let (members, may_go_on) = parse_members(rest, "}", |rest| {
                let key = json_start(rest)?;
                ensure!(skip(rest, ":"), "a colon is missing before {rest}");
                Ok((key, Pattern::parse_start(rest)?))
            })?;
            return Ok(Pattern::Object { members, may_go_on });
        }
        Ok(Pattern::Exactly(json_start(rest)?))
    }

    /// Whether this value matches.
    pub fn matches(&self, value: &Value) -> bool {
        match (self, value) {
            (Pattern::Anything, _) => true,
            (Pattern::AnyString, value) => value.is_string(),
            (Pattern::AnyNumber, value) => value.is_number(),
            (Pattern::AnyDigits, Value::String(text)) => {
                !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
            }
            (Pattern::Containing(words), Value::String(text)) => text.contains(words),
            (Pattern::Exactly(expected), value) => expected == value,
            (Pattern::Array { items, may_go_on }, Value::Array(values)) => {
                (items.len() == values.len() || *may_go_on && items.len() < values.len())
                    && items.iter().zip(values).all(|(item, value)| item.matches(value))
            }
            (Pattern::AnyOrder(items), Value::Array(values)) => {
                let mut left: Vec<_> = values.iter().collect();
                items.iter().all(|item| {
                    let at = left.iter().position(|value| item.matches(value));
                    at.map(|at| left.remove(at)).is_some()
                }) && left.is_empty()
            }
            (Pattern::Object { members, may_go_on }, Value::Object(values)) => {
                (members.len() == values.len() || *may_go_on && members.len() < values.len())
                    && members.iter().all(|(key, member)| {
                        values.get(key).is_some_and(|value| member.matches(value))
                    })
            }
            _ => false,
        }
    }
}

/// Parses the elements between brackets, after the opening one. Also returns whether `...` is the
/// last element.
fn parse_members<T>(
    rest: &mut &str,
    end: &str,
    parse: impl Fn(&mut &str) -> Result<T>,
) -> Result<(Vec<T>, bool)> {
    let mut members = Vec::new();
    while !skip(rest, end) {
        if !members.is_empty() {
            ensure!(skip(rest, ","), "a comma is missing before {rest}");
        }
        if skip(rest, "...") {
            ensure!(skip(rest, end), "`...` stands at the end");
            return Ok((members, true));
        }
        members.push(parse(rest)?);
    }
    Ok((members, false))
}

fn skip(rest: &mut &str, word: &str) -> bool {
    match rest.trim_start().strip_prefix(word) {
        Some(after) => {
            *rest = after;
            true
        }
        None => false,
    }
}

fn json_start<T: serde::de::DeserializeOwned>(rest: &mut &str) -> Result<T> {
    let mut values = serde_json::Deserializer::from_str(rest).into_iter();
    let value = values.next().with_context(|| format!("a value is missing: {rest}"))??;
    *rest = rest.get(values.byte_offset()..).unwrap_or_default();
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_what_they_say() -> Result<()> {
        let check = |pattern, value, expected| -> Result<()> {
            let matches = Pattern::parse(pattern)?.matches(&serde_json::from_str(value)?);
            assert_eq!(matches, expected, "{pattern} and {value}");
            Ok(())
        };
        check(r#"[1, "OK", *]"#, r#"[1,"OK",{"a":[2]}]"#, true)?;
        check(r#"[1,"OK"]"#, r#"[1,"OK",2]"#, false)?;
        check(r#"[1,...]"#, r#"[1,"OK",2]"#, true)?;
        check(r#"[1,2,...]"#, r#"[1]"#, false)?;
        check(r#"{"b":~"ell","a":*number}"#, r#"{"a":1,"b":"hello"}"#, true)?;
        check(r#"{"a":1}"#, r#"{"a":1,"b":2}"#, false)?;
        check(r#"{"a":1,...}"#, r#"{"a":1,"b":2}"#, true)?;
        check(r#"[*digits,*string]"#, r#"["007",""]"#, true)?;
        check(r#"*digits"#, r#""7a""#, false)?;
        check(r#"@["a","b"]"#, r#"["b","a"]"#, true)?;
        check(r#"@["a","b"]"#, r#"["b","a","a"]"#, false)?;
        check("1", "1.0", false)?;
        for wrong in ["[1", "[1 2]", "[..., 1]", "1 2", ""] {
            assert!(Pattern::parse(wrong).is_err(), "{wrong}");
        }
        Ok(())
    }
}
