//! The server and the credentials: the flags that all client commands share.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use rustls::pki_types::ServerName;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use tokio_tungstenite::tungstenite::http::{HeaderValue, Uri};

use crate::tls::TrustArgs;
use switchyard_config::file::{self, SETTINGS_BYTES_MAX};
use switchyard_protocol::json::SUBPROTOCOL;
use switchyard_server::door::http::handshake::WEBSOCKET_PATH;

/// The flags for the server and the credentials.
#[derive(Debug, Clone, Args)]
#[command(group = clap::ArgGroup::new("secret").args(["token", "token_file"]).multiple(true))]
pub struct EndpointArgs {
    /// The server's WebSocket, as ws://HOST:PORT/PATH, or wss://… for TLS; without a path, /ws.
    #[arg(
        long,
        value_name = "URL",
        env = "SWITCHYARD_URL",
        hide_env_values = true,
        default_value = "ws://127.0.0.1:8080/ws"
    )]
    pub url: Url,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub trust: TrustArgs,

    /// The token, or the password of `--user`. Prefer the environment variable: other users of this
    /// machine can read flags.
    #[arg(long, value_name = "TOKEN", env = "SWITCHYARD_TOKEN", hide_env_values = true)]
    pub token: Option<String>,

    /// A file with the token. It is read for each connection, so that the token can be replaced
    /// before it expires. Overrides --token.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// How the token is sent.
    #[arg(long, value_name = "HOW", default_value = "url")]
    pub token_by: TokenBy,

    /// The user that the password belongs to; both are sent with AUTH.
    #[arg(long, value_name = "NAME", requires = "secret")]
    pub user: Option<String>,
}

/// How a client sends its token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TokenBy {
    /// In the URL, as ?token=...
    Url,
    /// In the header `Authorization: Bearer ...`
    Header,
    /// With AUTH, once connected.
    Auth,
}

/// The address of a server's WebSocket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// `HOST:PORT`, for name resolution.
    pub authority: String,
    /// The name or address in the server's certificate; none: it is connected to without TLS.
    pub tls_name: Option<ServerName<'static>>,
    path_and_query: String,
}

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Url, String> {
        let wanted = |why: &str| format!("{why}; give ws://HOST:PORT/PATH, or wss:// for TLS");
        let uri: Uri = text.parse().map_err(|error| wanted(&format!("not a URL: {error}")))?;
        let (port, is_tls) = match uri.scheme_str() {
            Some("ws") => (80, false),
            Some("wss") => (443, true),
            Some(scheme) => return Err(wanted(&format!("{scheme}:// is not spoken here"))),
            None => return Err(wanted("it has no scheme")),
        };
        let host = uri.host().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| wanted("it names no host"))?;
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err("a user and password do not belong in the URL; see --user".to_owned());
        }
        let path_and_query = match uri.path_and_query().map_or("/", |path| path.as_str()) {
            "/" => WEBSOCKET_PATH.to_owned(),
            query if query.starts_with("/?") => {
                format!("{WEBSOCKET_PATH}{}", query.trim_start_matches('/'))
            }
            path_and_query => path_and_query.to_owned(),
        };
        let tls_name = is_tls.then(|| host.trim_matches(['[', ']']).to_owned());
        let tls_name = tls_name.map(ServerName::try_from).transpose();
        let tls_name = tls_name.map_err(|_| wanted("no certificate can have this host"))?;
        let authority = format!("{host}:{}", uri.port_u16().unwrap_or(port));
        Ok(Url { authority, tls_name, path_and_query })
    }
}

impl Url {
    fn scheme(&self) -> &'static str {
        if self.tls_name.is_some() { "wss" } else { "ws" }
    }
}

impl std::fmt::Display for Url {
    /// Without the query, which may contain secrets.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = self.path_and_query.split('?').next().unwrap_or_default();
        write!(formatter, "{}://{}{path}", self.scheme(), self.authority)
    }
}

impl EndpointArgs {
    /// The upgrade request.
    ///
    /// # Errors
    ///
    /// The token cannot be read, or is not valid in a header.
    pub fn request(&self) -> Result<Request, String> {
        let token = self.token()?;
        let Url { authority, path_and_query, .. } = &self.url;
        let mut url = format!("{}://{authority}{path_and_query}", self.url.scheme());
        let token = token.as_deref().filter(|_| self.user.is_none());
        if let (Some(token), TokenBy::Url) = (token, self.token_by) {
            let query = form_urlencoded::Serializer::new(String::new())
                .append_pair("token", token)
                .finish();
            url.push(if url.contains('?') { '&' } else { '?' });
            url.push_str(&query);
        }
        let mut request = url.into_client_request().map_err(|error| error.to_string())?;
        let headers = request.headers_mut();
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
        if let (Some(token), TokenBy::Header) = (token, self.token_by) {
            let mut value = HeaderValue::try_from(format!("Bearer {token}"))
                .map_err(|_| "the token has characters that no header may have".to_owned())?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        Ok(request)
    }

    /// The arguments of AUTH. None: AUTH is not sent.
    ///
    /// # Errors
    ///
    /// The token cannot be read.
    pub fn credentials(&self) -> Result<Option<Vec<String>>, String> {
        let Some(token) = self.token()? else { return Ok(None) };
        Ok(match &self.user {
            Some(user) => Some(vec![user.clone(), token]),
            None if self.token_by == TokenBy::Auth => Some(vec![token]),
            None => None,
        })
    }

    fn token(&self) -> Result<Option<String>, String> {
        let Some(file) = &self.token_file else { return Ok(self.token.clone()) };
        match file::read_text_input(file, SETTINGS_BYTES_MAX) {
            Ok(token) => Ok(Some(token.trim().to_owned())),
            Err(error) => Err(format!("cannot read the token in {}: {error}", file.display())),
        }
    }
}

/// Resolves the address of a server. There may be several.
///
/// # Errors
///
/// The name is not known.
pub async fn resolve(authority: &str) -> std::io::Result<Vec<SocketAddr>> {
    Ok(tokio::net::lookup_host(authority).await?.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(url: &str, token_by: TokenBy) -> EndpointArgs {
        let url = url.parse().unwrap();
        let trust = TrustArgs::default();
        let token = Some("a&b".to_owned());
        EndpointArgs { url, trust, token, token_file: None, token_by, user: None }
    }

    #[test]
    fn a_url_says_where_and_nothing_secret() {
        let check = |text: &str, expected: &str| {
            let shown = text.parse::<Url>().map(|url| url.to_string());
            assert_eq!(shown.as_deref(), Ok(expected), "{text}");
        };
        check("ws://127.0.0.1:8080", "ws://127.0.0.1:8080/ws");
        check("ws://127.0.0.1:8080/", "ws://127.0.0.1:8080/ws");
        check("ws://here/there?token=s3cret", "ws://here:80/there");
        check("ws://[::1]:1/?a=b", "ws://[::1]:1/ws");
        check("wss://here", "wss://here:443/ws");
        check("wss://[::1]:8443/x?token=s3cret", "wss://[::1]:8443/x");
        for nonsense in [
            "",
            "here",
            "http://here/ws",
            "ws://",
            "ws:///ws",
            "ws://me:pass@here/",
            "rediss://here",
        ] {
            assert!(nonsense.parse::<Url>().is_err(), "{nonsense}");
        }
    }

    #[test]
    fn a_token_is_shown_in_one_way() {
        let by_url = endpoint("ws://here/ws?x=y", TokenBy::Url);
        assert_eq!(by_url.request().unwrap().uri().query(), Some("x=y&token=a%26b"));
        assert_eq!(by_url.credentials(), Ok(None));

        let by_header = endpoint("ws://here", TokenBy::Header);
        let request = by_header.request().unwrap();
        assert_eq!(request.uri().query(), None);
        assert_eq!(request.headers().get(AUTHORIZATION).unwrap(), "Bearer a&b");
        assert_eq!(by_header.credentials(), Ok(None));

        let by_auth = endpoint("ws://here", TokenBy::Auth);
        assert_eq!(by_auth.request().unwrap().uri().query(), None);
        assert_eq!(by_auth.credentials(), Ok(Some(vec!["a&b".to_owned()])));

        let of_user =
            EndpointArgs { user: Some("alice".to_owned()), ..endpoint("ws://here", TokenBy::Url) };
        assert_eq!(of_user.request().unwrap().uri().query(), None);
        assert_eq!(of_user.credentials(), Ok(Some(vec!["alice".to_owned(), "a&b".to_owned()])));
    }
}
