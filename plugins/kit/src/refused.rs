//! Why something was refused, before it is put into the contract's words.

/// Why something was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// A word for programs.
    pub code: &'static str,
    /// A line for people.
    pub message: String,
}

impl Refused {
    /// The user of the connection is not known.
    pub fn unknown(message: impl Into<String>) -> Self {
        Self { code: "NOAUTH", message: message.into() }
    }

    /// What it showed was good once.
    pub fn expired(message: impl Into<String>) -> Self {
        Self { code: "EXPIRED", message: message.into() }
    }
}
