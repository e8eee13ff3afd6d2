//! The users that a rule in the settings applies to: a user's name, or a word for a group of
//! users.

/// Which users a rule speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserSelector {
    /// All connections, with or without a user.
    Any,
    /// Connections with a user.
    Authenticated,
    /// Connections without a user.
    Anonymous,
    /// The user of this name.
    User(String),
}

impl UserSelector {
    /// Reads one.
    ///
    /// # Errors
    ///
    /// It is neither a name nor a known word.
    pub fn read(text: &str) -> Result<Self, String> {
        match text {
            "*" => Ok(Self::Any),
            "@authenticated" => Ok(Self::Authenticated),
            "@anonymous" => Ok(Self::Anonymous),
            name => read_user_name(name).map(Self::User),
        }
    }

    /// Whether it speaks of this user; none: of a connection without one.
    pub fn matches(&self, user: Option<&str>) -> bool {
        match self {
            Self::Any => true,
            Self::Authenticated => user.is_some(),
            Self::Anonymous => user.is_none(),
            Self::User(name) => user == Some(name),
        }
    }
}

/// Reads the name of a user.
///
/// # Errors
///
/// It is empty, or would be read as one of the words.
pub fn read_user_name(name: &str) -> Result<String, String> {
    match name {
        "" => Err("the name of a user is empty".to_owned()),
        "anonymous" | "authenticated" => Err(format!(
            "`{name}` would be a user of that name; the word for connections is \"@{name}\"",
        )),
        _ if name == "*" || name.starts_with('@') => Err(format!(
            "`{name}` is no user; known words are \"*\", \"@authenticated\" and \"@anonymous\"",
        )),
        name => Ok(name.to_owned()),
    }
}
