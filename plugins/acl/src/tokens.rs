//! The user of each token.

use std::fmt;

use plugin_kit::credentials::equal_in_constant_time;

/// The users by their tokens.
#[derive(Clone, Default)]
pub struct Tokens {
    users_by_token: Vec<(String, String)>,
}

impl Tokens {
    /// Whether there are any. Without, no token belongs to this plugin.
    pub fn is_empty(&self) -> bool {
        self.users_by_token.is_empty()
    }

    /// Whose token it is. Looks at all of every token of the same length, so the
    /// time it takes tells nothing of how much of a guess was right.
    pub fn user_of(&self, token: &str) -> Option<&str> {
        let mut holder = None;
        for (known, user) in &self.users_by_token {
            if equal_in_constant_time(known.as_bytes(), token.as_bytes()) {
                holder = Some(user.as_str());
            }
        }
        holder
    }
}

impl FromIterator<(String, String)> for Tokens {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(tokens_and_users: I) -> Self {
        let users_by_token = tokens_and_users.into_iter().collect();
        Self { users_by_token }
    }
}

/// Tokens are secrets, so only their number is shown.
impl fmt::Debug for Tokens {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Tokens({})", self.users_by_token.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_names_its_user() {
        let of = |pairs: &[(&str, &str)]| {
            let owned = pairs.iter().map(|(token, user)| (token.to_string(), user.to_string()));
            owned.collect::<Tokens>()
        };
        let tokens = of(&[("s3cret", "alice"), ("t0ken", "bob")]);
        let check = |token, expected| assert_eq!(tokens.user_of(token), expected, "{token}");
        check("s3cret", Some("alice"));
        check("t0ken", Some("bob"));
        check("s3creT", None);
        check("S3cret", None);
        check("s3cre", None);
        check("s3cret ", None);
        check("", None);
        assert_eq!(Tokens::default().user_of(""), None);
        assert!(!format!("{tokens:?}").contains("s3cret"));
    }
}
