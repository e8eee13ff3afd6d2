//! The subject of rules: a connection, described by its attributes.

use std::collections::BTreeMap;

/// What is known of the connection that requests an action.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// Its user; none for an anonymous connection.
    pub user: Option<String>,
    /// Its roles.
    pub roles: Vec<String>,
    /// The notes that patterns have places for, by their names.
    pub attributes: BTreeMap<String, String>,
}

/// What a place in a pattern stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placeholder {
    /// The name of the user: `{user}`, or `{sub}` as the claim is called.
    User,
    /// The note of this name.
    Attribute(String),
}

impl Subject {
    /// An anonymous connection, or one that belongs to a user without roles.
    pub fn user(name: Option<&str>) -> Self {
        Self { user: name.map(str::to_owned), ..Self::default() }
    }

    /// What stands in this place for it; none when it has nothing of the kind.
    pub fn value_of(&self, placeholder: &Placeholder) -> Option<&str> {
        match placeholder {
            Placeholder::User => self.user.as_deref(),
            Placeholder::Attribute(name) => self.attributes.get(name).map(String::as_str),
        }
    }
}

impl Placeholder {
    /// What stands between braces, as the settings have it.
    pub fn read(word: &str, attributes: &[String]) -> Option<Self> {
        match word {
            "user" | "sub" => Some(Self::User),
            name if attributes.iter().any(|known| known == name) => {
                Some(Self::Attribute(name.to_owned()))
            }
            _ => None,
        }
    }
}
