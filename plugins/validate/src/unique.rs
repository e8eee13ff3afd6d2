//! The keyword `uniqueItems`, in place of the one of the crate.
//!
//! That one puts items into a hash table whose hashes are easy to make collide:
//! `[1,[2]]` and `[[1],2]` have one, and so have numbers that are one double. An
//! array of such items then costs its length squared. Here they are sorted: see
//! [`crate::work`] for what that costs.

use std::fmt::{self, Write};

use jsonschema::{Keyword, ValidationError, paths::Location};
use serde_json::{Map, Value};

/// What the crate makes of the keyword.
///
/// # Errors
///
/// None: the meta-schema holds it to be a boolean.
pub fn keyword<'a>(
    _: &'a Map<String, Value>,
    value: &'a Value,
    _: Location,
) -> Result<Box<dyn for<'i> Keyword<'i>>, ValidationError<'a>> {
    Ok(Box::new(UniqueItems { is_required: value == &Value::Bool(true) }))
}

struct UniqueItems {
    is_required: bool,
}

impl<'i> Keyword<'i> for UniqueItems {
    fn validate(&self, instance: &'i Value) -> Result<(), ValidationError<'i>> {
        match Keyword::is_valid(self, instance) {
            true => Ok(()),
            false => Err(ValidationError::custom("value has items that are equal")),
        }
    }

    fn is_valid(&self, instance: &'i Value) -> bool {
        match instance {
            Value::Array(items) if self.is_required && items.len() > 1 => {
                let mut text = String::new();
                let mut ends = vec![];
                for item in items {
                    write(item, &mut text);
                    ends.push(text.len());
                }
                let starts = std::iter::once(0).chain(ends.iter().copied());
                let mut written: Vec<_> =
                    starts.zip(&ends).map(|(start, end)| text.get(start..*end)).collect();
                written.sort_unstable();
                written.array_windows().all(|[one, next]| one != next)
            }
            _ => true,
        }
    }
}

/// Writes equal values in one way, and others in others. As JSON Schema has it,
/// numbers are equal by their value and objects whatever the order of their keys.
fn write(value: &Value, text: &mut String) {
    match value {
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < 1e18 => {
                // Exact within these bounds.
                append(text, float as i64);
            }
            _ => append(text, number),
        },
        Value::Array(items) => {
            text.push('[');
            for item in items {
                write(item, text);
                text.push(',');
            }
            text.push(']');
        }
        Value::Object(members) => {
            text.push('{');
            let sorted: std::collections::BTreeMap<_, _> = members.iter().collect();
            for (key, value) in sorted {
                append(text, Value::from(key.as_str()));
                write(value, text);
                text.push(',');
            }
            text.push('}');
        }
        Value::Null | Value::Bool(_) | Value::String(_) => append(text, value),
    }
}

fn append(text: &mut String, what: impl fmt::Display) {
    write!(text, "{what}").expect("a String takes all there is");
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn items_are_unique_or_not() {
        let check = |items: Value, expected: bool| {
            let found = Keyword::is_valid(&UniqueItems { is_required: true }, &items);
            assert_eq!(found, expected, "{items}");
        };
        check(json!([]), true);
        check(json!([1, 2, "1", true, null, [1], {"a": 1}]), true);
        check(json!([1, 1.0]), false);
        check(json!([0, -0.0]), false);
        check(json!([1e17, 100_000_000_000_000_000_u64]), false);
        check(json!([9_007_199_254_740_992_u64, 9_007_199_254_740_993_u64]), true);
        check(json!([{"a": 1, "b": [2]}, {"b": [2.0], "a": 1}]), false);
        check(json!([[1, [2]], [[1], 2]]), true);
        check(json!([["a,"], ["a", ""]]), true);
        check(json!({"a": 1}), true);
    }
}
