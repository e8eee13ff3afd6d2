//! The names and the writing of the notes that several plugins keep on a
//! connection, so that one that authenticates is understood by one that
//! authorises.

/// The user of the connection.
pub const USER: &str = "user";

/// The roles of that user: a JSON array of strings.
pub const ROLES: &str = "roles";

/// While it is set, the server takes nothing from the connection but credentials.
pub const AUTH_REQUIRED: &str = "auth-required";

/// When the server closes the connection, unless it is moved or removed before: seconds
/// since 1970.
pub const EXPIRES_AT: &str = "expires-at";

/// What belongs to the identity of a connection besides the user: a plugin that authenticates it anew
/// removes those that it does not set, because they may be another plugin's. The last one is what
/// jwt-auth stores of a token.
pub const OF_IDENTITY: [&str; 3] = [ROLES, EXPIRES_AT, "jwt-auth"];

/// The roles in a note. What is no JSON array of strings names none.
pub fn roles_in(note: &str) -> Vec<String> {
    serde_json::from_str(note).unwrap_or_default()
}

/// The note of these roles.
pub fn note_of_roles(roles: &[String]) -> String {
    serde_json::Value::from(roles).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_come_back_as_they_went() {
        let roles = ["admin".to_owned(), "a \"b\",c".to_owned()];
        assert_eq!(roles_in(&note_of_roles(&roles)), roles);
        for invalid in ["", "admin", "[1]", "{}", "null", "[\"a\""] {
            assert!(roles_in(invalid).is_empty(), "{invalid}");
        }
    }
}
