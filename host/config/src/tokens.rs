//! The operators: names, and the tokens that authenticate them.
//!
//! Tokens are stored as hashes, so that they cannot be shown by mistake, and compared in constant
//! time.

use std::fmt;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// The source of tokens unless the config names a file.
pub const TOKENS_VARIABLE: &str = "SWITCHYARD_ADMIN_TOKENS";

/// Shorter ones can be guessed.
const TOKEN_BYTES_MIN: usize = 16;
/// A longer `Bearer` header is invalid.
const TOKEN_BYTES_MAX: usize = 1 << 10;
/// Each token is compared at each request.
const TOKENS_MAX: usize = 100;

/// What the log and the API call other initiators of a change than the holders of tokens.
pub const RESERVED_NAMES: [&str; 5] = ["start", "file", "signal", "parked", "local"];

/// Named tokens.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Tokens(Vec<(Arc<str>, [u8; 32])>);

impl Tokens {
    /// Parses `NAME:TOKEN`, one per line or separated by commas. Lines that begin with `#` are
    /// comments.
    ///
    /// # Errors
    ///
    /// The error names the problem, and never the token.
    pub fn parse(text: &str) -> Result<Tokens, String> {
        let mut tokens = Tokens::default();
        let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
        for (number, entry) in lines.flat_map(|line| line.split(',')).map(str::trim).enumerate() {
            if entry.is_empty() {
                continue;
            }
            let number = number + 1;
            let (name, token) =
                entry.split_once(':').ok_or_else(|| format!("token {number} is not NAME:TOKEN"))?;
            let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            if name.is_empty() || name.len() > 64 || !name.chars().all(is_word) {
                return Err(format!(
                    "the name of token {number} is not 1 to 64 letters, digits, '-', '_' and '.'"
                ));
            }
            if RESERVED_NAMES.contains(&name) {
                return Err(format!("no token can be called {name}, which means something else"));
            }
            if tokens.0.iter().any(|(other, _)| **other == *name) {
                return Err(format!("two tokens are called {name}"));
            }
            if token.len() < TOKEN_BYTES_MIN
                || token.len() > TOKEN_BYTES_MAX
                || !token.bytes().all(|byte| byte.is_ascii_graphic())
            {
                return Err(format!(
                    "the token {name} is not {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX} visible \
                     characters"
                ));
            }
            if tokens.0.len() == TOKENS_MAX {
                return Err(format!("there may be {TOKENS_MAX} tokens"));
            }
            tokens.0.push((name.into(), Sha256::digest(token).into()));
        }
        Ok(tokens)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The name of this token. Compares it with all tokens in any case.
    pub fn name_of(&self, token: &[u8]) -> Option<Arc<str>> {
        let shown: [u8; 32] = Sha256::digest(token).into();
        let mut found = None;
        for (name, known) in &self.0 {
            if bool::from(known.ct_eq(&shown)) {
                found = Some(name.clone());
            }
        }
        found
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_a_name_and_its_secret_is_not_shown() {
        let text = "# operators\nops:0123456789abcdef, ci:fedcba9876543210\n\n";
        let tokens = Tokens::parse(text).expect("valid");
        assert_eq!(tokens.name_of(b"fedcba9876543210").as_deref(), Some("ci"));
        assert_eq!(tokens.name_of(b"0123456789abcdef").as_deref(), Some("ops"));
        assert_eq!(tokens.name_of(b"0123456789abcdeF"), None);
        assert_eq!(tokens.name_of(b""), None);
        assert_eq!(format!("{tokens:?}"), r#"["ops", "ci"]"#);
    }

    #[test]
    fn what_is_no_list_of_tokens_is_refused_without_showing_them() {
        for (text, expected) in [
            ("0123456789abcdef", "not NAME:TOKEN"),
            (":0123456789abcdef", "the name of token 1"),
            ("a b:0123456789abcdef", "the name of token 1"),
            ("ops:0123", "not 16 to"),
            ("ops:0123456789 abcdef", "not 16 to"),
            ("file:0123456789abcdef", "no token can be called file"),
            ("a:0123456789abcdef,a:0123456789abcdef", "two tokens are called a"),
        ] {
            let problem = Tokens::parse(text).expect_err(text);
            assert!(problem.contains(expected) && !problem.contains("0123"), "{problem}");
        }
        assert!(Tokens::parse("").is_ok_and(|tokens| tokens.is_empty()));
    }
}
