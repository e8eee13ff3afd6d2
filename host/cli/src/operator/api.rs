//! Requests to the admin API.

use std::io::{self, BufReader, Read};
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;
use ureq::http::{Request, Response, header};
use ureq::{Agent, Body};

use crate::cli::operate::AdminArgs;
use crate::tls;
use switchyard_admin::admin::view::ErrorView;

/// The source of the token.
const TOKEN_VARIABLE: &str = "SWITCHYARD_ADMIN_TOKEN";

/// The timeout of connecting to the server.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// The timeout of the start of a response: compiling the largest plugins takes long.
const ANSWER_TIME: Duration = Duration::from_secs(300);
/// The maximum size of a response.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Why a command failed.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the messages say what they are")]
pub enum OperatorError {
    #[error(
        "--admin is \"{0}\", but must be a URL such as http://127.0.0.1:8081 or https://HOST:PORT"
    )]
    BadUrl(String),
    #[error("{0}")]
    Trust(String),
    #[error("{TOKEN_VARIABLE} is no token: it has what cannot stand in a header")]
    BadToken,
    #[error("cannot read {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error(
        "no server answers at {url}: {problem}. Is it running, and is this its admin address \
         (--admin)? The server prints it as its last http:// line"
    )]
    Unreachable { url: String, problem: String },
    #[error("{}", describe(.0))]
    Refused(Box<ErrorView>),
    #[error(
        "the server requires a token: {0}. Set {TOKEN_VARIABLE} to one of those in its \
         admin.tokens_file or SWITCHYARD_ADMIN_TOKENS"
    )]
    Unauthorised(String),
    #[error("HTTP {status} is no answer of Switchyard's admin API: {body}")]
    NotSwitchyard { status: u16, body: String },
    #[error("the answer is not what this version understands: {0}; --json shows it")]
    Unreadable(serde_json::Error),
    #[error("the answer broke off: {0}")]
    BrokeOff(io::Error),
    #[error("cannot write: {0}")]
    Output(io::Error),
}

impl OperatorError {
    /// Whether the command line is the cause, independent of the server.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            OperatorError::BadUrl(_)
                | OperatorError::Trust(_)
                | OperatorError::BadToken
                | OperatorError::File { .. }
        )
    }
}

fn describe(view: &ErrorView) -> String {
    let ErrorView { code: _, message, step, plugin, file } = view;
    let mut words = String::new();
    if let Some(step) = step {
        words += &format!("{step}: ");
    }
    if let Some(plugin) = plugin {
        words += &format!("plugin {plugin}: ");
    }
    words += message;
    if let Some(file) = file {
        words += &format!(" ({file})");
    }
    words
}

/// The HTTP method of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "HTTP documents them")]
pub enum Method {
    Get,
    Post,
    Put,
    Delete,
}

/// A server's admin API.
pub struct Api {
    url: String,
    token: Option<String>,
    agent: Agent,
}

impl Api {
    /// The API that the flags name. No request is sent yet.
    pub fn new(args: &AdminArgs) -> Result<Api, OperatorError> {
        let AdminArgs { admin: url, trust, json: _ } = args;
        let bad = || OperatorError::BadUrl(url.to_owned());
        let trimmed = url.trim_end_matches('/');
        let authority = trimmed
            .strip_prefix("http://")
            .or_else(|| trimmed.strip_prefix("https://"))
            .ok_or_else(bad)?;
        if authority.is_empty() || authority.contains(['/', '?', '#', '@']) {
            return Err(bad());
        }
        let token = std::env::var(TOKEN_VARIABLE).ok().filter(|token| !token.is_empty());
        if token.as_ref().is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(OperatorError::BadToken);
        }
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .tls_config(trust.for_http(trimmed).map_err(OperatorError::Trust)?)
            // The token must reach only the server, so no proxy is used.
            .proxy(None)
            .max_redirects(0)
            .timeout_connect(Some(CONNECT_TIME))
            .timeout_recv_response(Some(ANSWER_TIME))
            .build()
            .into();
        Ok(Api { url: trimmed.to_owned(), token, agent })
    }

    /// Sends a request, with a JSON body if there is one, and returns the response if the status is
    /// a success.
    pub fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Vec<u8>, OperatorError> {
        let response = self.send(method, path, body)?;
        let status = response.status().as_u16();
        let mut bytes = Vec::new();
        response
            .into_body()
            .into_reader()
            .take(ANSWER_BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(OperatorError::BrokeOff)?;
        match status {
            200..=299 => Ok(bytes),
            _ => Err(refused(status, &bytes)),
        }
    }

    /// A streamed response.
    pub fn stream(&self, path: &str) -> Result<impl io::BufRead + use<>, OperatorError> {
        let response = self.send(Method::Get, path, None)?;
        let status = response.status().as_u16();
        let mut reader = BufReader::new(response.into_body().into_reader());
        if (200..300).contains(&status) {
            return Ok(reader);
        }
        let mut bytes = Vec::new();
        let read = reader.by_ref().take(ANSWER_BYTES_MAX).read_to_end(&mut bytes);
        read.map_err(OperatorError::BrokeOff)?;
        Err(refused(status, &bytes))
    }

    fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Response<Body>, OperatorError> {
        let name = match method {
            Method::Get => "GET",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Delete => "DELETE",
        };
        let mut request = Request::builder().method(name).uri(format!("{}{path}", self.url));
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let bad = |_| OperatorError::BadUrl(self.url.clone());
        let sent = match (method, body) {
            (Method::Post | Method::Put, body) => {
                let request = request.header(header::CONTENT_TYPE, "application/json");
                self.agent.run(request.body(body.unwrap_or_default()).map_err(bad)?)
            }
            (Method::Get | Method::Delete, _) => self.agent.run(request.body(()).map_err(bad)?),
        };
        sent.map_err(|error| {
            let mut problem = error.to_string();
            problem.push_str(tls::advice(&problem).unwrap_or_default());
            OperatorError::Unreachable { url: self.url.clone(), problem }
        })
    }
}

fn refused(status: u16, body: &[u8]) -> OperatorError {
    match serde_json::from_slice::<ErrorView>(body) {
        Ok(view) if status == 401 => OperatorError::Unauthorised(view.message),
        Ok(view) => OperatorError::Refused(Box::new(view)),
        Err(_) => {
            let body = String::from_utf8_lossy(body);
            let body = switchyard_types::close::clip(body.trim(), 200).to_owned();
            OperatorError::NotSwitchyard { status, body }
        }
    }
}
