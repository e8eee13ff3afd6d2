//! From the text that `init` is given to what was written in the settings.
//! Errors are one line for the operator, and say where.

use serde::de::DeserializeOwned;
use serde_json::Value;

/// Reads settings, a JSON object, into what mirrors them.
///
/// # Errors
///
/// What is wrong, in one line.
pub fn read<Raw: DeserializeOwned>(settings: &str) -> Result<Raw, String> {
    // By way of a value: what reads text directly ends its words with a line
    // and column of a document that the operator never sees.
    let settings: Value = serde_json::from_str(settings).map_err(|error| error.to_string())?;
    Raw::deserialize(settings).map_err(|error| error.to_string())
}

/// Reads each of a list, counted from 1, by way of what mirrors it.
///
/// # Errors
///
/// What is wrong with the first that is not right: `rule 2: …`.
pub fn read_each<Raw: DeserializeOwned, T>(
    what: &str,
    items: Vec<Value>,
    read: impl Fn(Raw, usize) -> Result<T, String>,
) -> Result<Vec<T>, String> {
    let items = (1..).zip(items).map(|(number, item)| {
        let raw = Raw::deserialize(item).map_err(|error| error.to_string());
        let item = raw.and_then(|raw| read(raw, number));
        item.map_err(|error| format!("{what} {number}: {error}"))
    });
    items.collect()
}

/// A number that must be within a range.
///
/// # Errors
///
/// Says which setting, and the range.
pub fn within(name: &str, number: u64, least: u64, most: u64) -> Result<u64, String> {
    match (least..=most).contains(&number) {
        true => Ok(number),
        false => Err(format!("`{name}` is {number}; it goes from {least} to {most}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_where_and_what() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Raw {
            rules: Vec<Value>,
        }
        assert_eq!(read::<Raw>("{").unwrap_err(), "EOF while parsing an object at line 1 column 1");
        assert_eq!(read::<Raw>("{}").unwrap_err(), "missing field `rules`");
        let raw: Raw = read(r#"{"rules": [1, "x"]}"#).unwrap();
        let rules = read_each("rule", raw.rules, |number: u8, _| Ok(number));
        assert!(rules.unwrap_err().starts_with("rule 2: invalid type: string \"x\""));
        assert_eq!(within("rate", 3, 1, 3), Ok(3));
        assert_eq!(within("rate", 0, 1, 3).unwrap_err(), "`rate` is 0; it goes from 1 to 3");
    }
}
