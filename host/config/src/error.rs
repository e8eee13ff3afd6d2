//! Configuration errors: the key, the problem, and the valid values.

use std::net::SocketAddr;
use std::path::PathBuf;

use thiserror::Error;

use crate::TOKENS_VARIABLE;

/// Why the configuration is invalid.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the config file {path}")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that the config names could not be read.
    #[error("{key}: cannot read {path}")]
    UnreadableFile {
        /// The key of the setting.
        key: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that the config names does not contain what it should.
    #[error("{key}: {path}: {problem}")]
    BadFile {
        /// The key of the setting.
        key: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// The tokens in the environment are invalid.
    #[error("{TOKENS_VARIABLE} in the environment: {0}")]
    BadVariable(String),
    /// The file is not TOML, or has an unknown key.
    #[error("{path}: {problem}")]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// Line, column and problem, in one line.
        problem: String,
    },
    /// Anybody could operate the server.
    #[error(
        "admin.listen is {listen}, which others can reach, so tokens are required: name a file \
         of them in admin.tokens_file, or set {TOKENS_VARIABLE} to NAME:TOKEN; or listen on \
         127.0.0.1, or not at all (\"off\")"
    )]
    Open {
        /// The listening address.
        listen: SocketAddr,
    },
    /// A value is invalid.
    #[error("{key} is {value}, but must be {expected}")]
    OutOfRange {
        /// The key of the setting.
        key: &'static str,
        /// The value.
        value: String,
        /// The valid values.
        expected: String,
    },
    /// A channel rule is invalid.
    #[error("rule {number} of [[channels]]: {key} is {value}, but must be {expected}")]
    BadRule {
        /// The number of the rule, from 1.
        number: usize,
        /// The key of the setting.
        key: &'static str,
        /// The value.
        value: String,
        /// The valid values.
        expected: String,
    },
    /// Other machines could connect, and no plugin decides about connects.
    #[error(
        "{key} is {address}, which other machines reach, and no plugin decides who may connect: \
         load one that exports `admission`, such as acl, with --plugins; or listen on 127.0.0.1; \
         or let everybody in with --open-to-all (security.open_to_all = true)"
    )]
    Unprotected {
        /// The key of the setting.
        key: &'static str,
        /// The problem.
        address: SocketAddr,
    },
}
