//! From what the operator wrote to what holds; the only place that says no to
//! it, and says where and what would be right.

use std::collections::BTreeMap;

use plugin_kit::credentials;
use plugin_kit::notes::{AUTH_REQUIRED, EXPIRES_AT, ROLES, USER};
use plugin_kit::settings;
use serde::Deserialize;
use serde_json::Value;

use crate::keys::{self, Keys};
use crate::verify::{Claim, Mapping, Verifier};

/// The settings, ready for use.
#[derive(Debug)]
pub struct Settings {
    /// What a token must satisfy.
    pub verifier: Verifier,
    /// What a connection without a token may do.
    pub without_token: WithoutToken,
    /// Whether AUTH is a place for a token.
    pub takes_auth: bool,
    /// How far clocks may be apart.
    pub leeway_s: u64,
    /// What the operator should know: keys that are not used.
    pub warnings: Vec<String>,
    from: Vec<From>,
    query_parameter: String,
    subprotocol_prefix: String,
}

/// What a connection without a token may do.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum WithoutToken {
    /// Not even connect, where it could have shown one.
    Refuse,
    /// Nothing until it has shown one.
    #[default]
    Wait,
    /// What other plugins let it do.
    Allow,
}

/// A place for a token.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum From {
    Header,
    Query,
    Subprotocol,
    Auth,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawSettings {
    keys: Vec<Value>,
    jwks: Option<Value>,
    issuers: Vec<String>,
    audiences: Vec<String>,
    leeway_s: u64,
    required_claims: Vec<String>,
    without_token: WithoutToken,
    from: Vec<From>,
    query_parameter: String,
    subprotocol_prefix: String,
    user_claim: String,
    roles_claim: String,
    attributes: BTreeMap<String, String>,
    subscribe_claim: String,
    publish_claim: String,
}

impl Default for RawSettings {
    fn default() -> Self {
        let text = str::to_owned;
        Self {
            keys: vec![],
            jwks: None,
            issuers: vec![],
            audiences: vec![],
            leeway_s: 60,
            required_claims: vec![text("exp")],
            without_token: WithoutToken::default(),
            from: vec![From::Header, From::Query, From::Subprotocol, From::Auth],
            query_parameter: text("token"),
            subprotocol_prefix: text("bearer."),
            user_claim: text("sub"),
            roles_claim: text("roles"),
            attributes: BTreeMap::new(),
            subscribe_claim: text("subscribe"),
            publish_claim: text("publish"),
        }
    }
}

impl Settings {
    /// The token that a client shows when it connects, in the first place that
    /// has one.
    pub fn token_of(&self, path: &str, headers: &[(String, Vec<u8>)]) -> Option<String> {
        self.from.iter().find_map(|place| match place {
            From::Header => credentials::in_authorization(headers),
            From::Query => credentials::in_query(path, &self.query_parameter),
            From::Subprotocol => credentials::in_subprotocols(headers, &self.subprotocol_prefix),
            From::Auth => None,
        })
    }
}

/// Reads the settings, a JSON object. An error is one line for the operator.
pub fn read(settings: &str) -> Result<Settings, String> {
    let raw: RawSettings = settings::read(settings)?;
    let mut all = Keys::default();
    let mut warnings = vec![];
    for key in settings::read_each("key", raw.keys, |key, _| keys::read(key))? {
        all.add(key)?;
    }
    if let Some(jwks) = raw.jwks {
        let in_jwks = |error: String| format!("jwks: {error}");
        let jwks = keys::read_jwks(jwks).map_err(in_jwks)?;
        warnings.extend(jwks.left_out.into_iter().map(in_jwks));
        for key in jwks.keys {
            // Of two keys with the same algorithm and `kid` the first counts.
            warnings.extend(all.add(key).err().map(in_jwks));
        }
    }
    if all.is_empty() {
        return Err("names no key; give it `keys` or `jwks`, for example: [[settings.keys]] \
                    algorithm = \"RS256\" pem = \"-----BEGIN PUBLIC KEY-----…\""
            .to_owned());
    }
    if raw.from.is_empty() {
        return Err(
            "`from` is empty; places are \"header\", \"query\", \"subprotocol\" and \"auth\""
                .to_owned(),
        );
    }
    let leeway_s = settings::within("leeway_s", raw.leeway_s, 0, 600)?;
    let claim = |setting: &str, name: String| match name.as_str() {
        "" => Err(format!("`{setting}` is empty; it takes the name of a claim")),
        _ => Ok(Claim(name)),
    };
    let attributes = raw.attributes.into_iter().map(|(key, name)| match key.as_str() {
        USER | ROLES | AUTH_REQUIRED | EXPIRES_AT | "jwt-auth" | "" => {
            Err(format!("attributes: `{key}` is set otherwise, or no name; choose another"))
        }
        _ => claim(&format!("attributes.{key}"), name).map(|claim| (key, claim)),
    });
    let mapping = Mapping {
        attributes: attributes.collect::<Result<_, _>>()?,
        user: claim("user_claim", raw.user_claim)?,
        roles: claim("roles_claim", raw.roles_claim)?,
        subscribe: claim("subscribe_claim", raw.subscribe_claim)?,
        publish: claim("publish_claim", raw.publish_claim)?,
    };
    Ok(Settings {
        verifier: Verifier {
            keys: all,
            issuers: raw.issuers,
            audiences: raw.audiences,
            leeway_s,
            required_claims: raw.required_claims,
            mapping,
        },
        without_token: raw.without_token,
        takes_auth: raw.from.contains(&From::Auth),
        leeway_s,
        warnings,
        from: raw.from,
        query_parameter: raw.query_parameter,
        subprotocol_prefix: raw.subprotocol_prefix,
    })
}
