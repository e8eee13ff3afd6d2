//! The tags of a publication: a JSON object of texts in the server, a list of pairs to plugins.

use std::collections::BTreeMap;

use switchyard_types::history::TAGS_BYTES_MAX;

/// Names and values.
pub(super) type Texts = Vec<(String, String)>;

/// The tags as plugins get them, by name.
pub(super) fn tags_as_texts(tags: Option<&[u8]>) -> Texts {
    let tags = tags.and_then(|json| serde_json::from_slice::<BTreeMap<String, String>>(json).ok());
    tags.into_iter().flatten().collect()
}

/// The tags that a plugin set, as the server keeps them; empty: none.
///
/// # Errors
///
/// A name occurs twice, or they are too large. The error is a message.
pub(super) fn tags_as_json(tags: Texts) -> Result<Box<[u8]>, String> {
    if tags.is_empty() {
        return Ok(Box::default());
    }
    let bytes: usize = tags.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > TAGS_BYTES_MAX {
        return Err(format!("it set tags of {bytes} bytes; there may be {TAGS_BYTES_MAX}"));
    }
    let mut by_name = BTreeMap::new();
    for (name, value) in tags {
        if by_name.insert(name.clone(), value).is_some() {
            return Err(format!("it set the tag {name:?} twice"));
        }
    }
    let json = serde_json::to_vec(&by_name).map_err(|problem| problem.to_string())?;
    Ok(json.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(tags: &[(&str, &str)]) -> Texts {
        tags.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn tags_are_the_same_after_json() {
        let tags = texts(&[("a", "\"1\""), ("b", "")]);
        let json = tags_as_json(tags.clone()).expect("they are tags");
        assert_eq!(&*json, br#"{"a":"\"1\"","b":""}"#);
        assert_eq!(tags_as_texts(Some(&json)), tags);
        assert_eq!(tags_as_json(Vec::new()).as_deref(), Ok(&b""[..]));
    }

    #[test]
    fn tags_that_occur_twice_or_are_too_large_are_refused() {
        assert!(tags_as_json(texts(&[("a", "1"), ("a", "2")])).is_err());
        assert!(tags_as_json(texts(&[("a", &"x".repeat(TAGS_BYTES_MAX))])).is_err());
    }
}
