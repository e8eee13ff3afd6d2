//! The items of a call, in which a name that is that of the item before is left out.

/// An item with its position and its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named<'a, T> {
    /// Its position in the list.
    pub position: u32,
    /// Its name, or the name of the item before it if it has none.
    pub name: &'a str,
    /// The item itself.
    pub item: &'a T,
}

/// All items of a list, in order. `name_of` is the name that an item has itself; none: that of the
/// item before it. Before the first name it is empty.
pub fn named<'a, T>(
    items: &'a [T],
    name_of: impl Fn(&'a T) -> Option<&'a str>,
) -> impl Iterator<Item = Named<'a, T>> {
    let mut name = "";
    (0..).zip(items).map(move |(position, item)| {
        name = name_of(item).unwrap_or(name);
        Named { position, name, item }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_left_out_is_that_of_the_item_before() {
        let check = |names: &[Option<&'static str>], expected: &[&str]| {
            let found: Vec<_> = named(names, |name| *name).collect();
            let names_found: Vec<_> = found.iter().map(|named| named.name).collect();
            assert_eq!(names_found, expected, "{names:?}");
            assert!(found.iter().zip(0..).all(|(named, position)| named.position == position));
            assert!(found.iter().zip(names).all(|(named, name)| named.item == name));
        };
        check(&[], &[]);
        check(&[Some("a")], &["a"]);
        check(&[Some("a"), None, None, Some("b"), None], &["a", "a", "a", "b", "b"]);
        check(&[Some("a"), Some(""), None], &["a", "", ""]);
        check(&[None, Some("a"), None], &["", "a", "a"]);
    }

    #[test]
    fn a_name_is_carried_from_one_part_of_the_list_to_the_next() {
        let names = [Some("a"), None, None];
        let mut all = named(&names, |name| *name);
        let first: Vec<_> = all.by_ref().take(1).map(|named| named.name).collect();
        let rest: Vec<_> = all.map(|named| (named.position, named.name)).collect();
        assert_eq!((first, rest), (vec!["a"], vec![(1, "a"), (2, "a")]));
    }
}
