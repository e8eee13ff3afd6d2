//! The answer to a publication with a key, as the backplane remembers it.

use switchyard_types::command::Published;

/// Writes how the publication ended, its position, and its deliveries.
pub fn write(answer: &Published) -> String {
    let Published { deliveries, position, is_stale } = answer;
    let position = position.map(|position| position.to_string()).unwrap_or_default();
    let how = if *is_stale { "stale" } else { "kept" };
    format!("{how} {position} {deliveries}")
}

/// Reads what `write` or `append.lua` wrote. None: it is something else.
pub fn read(text: &str) -> Option<Published> {
    let parts: Vec<&str> = text.split(' ').collect();
    let [how, position, deliveries] = parts[..] else { return None };
    let is_stale = how == "stale";
    Some(Published {
        deliveries: if is_stale { 0 } else { deliveries.parse().ok()? },
        position: match position {
            "" => None,
            text => Some(text.parse().ok()?),
        },
        is_stale,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use switchyard_types::position::Position;

    #[test]
    fn what_is_remembered_of_a_publication_is_read_again() {
        let position = Some(Position { epoch: 1_764_340_000_000_000, offset: 7 });
        let kept = Published { deliveries: 3, position, is_stale: false };
        assert_eq!(read("kept 1764340000000000-7 3"), Some(kept));
        let plain = Published { deliveries: 2, position: None, is_stale: false };
        assert_eq!(read("plain  2"), Some(plain));
        let stale = Published { deliveries: 0, position: None, is_stale: true };
        assert_eq!(read("stale  2"), Some(stale));
        for answer in [kept, plain, stale] {
            assert_eq!(read(&write(&answer)), Some(answer));
        }
        for other in ["", "kept 7 3", "kept 1-1", "kept 1-1 x", "kept 1-1 3 4"] {
            assert_eq!(read(other), None, "{other:?}");
        }
    }
}
