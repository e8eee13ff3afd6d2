//! From a token to the identity of its bearer, or to why it is not believed.

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Header, Validation};
use plugin_kit::refused::Refused;
use serde_json::{Map, Value};

use crate::grant::Grant;
use crate::keys::Keys;

/// How long a token may be.
const TOKEN_BYTES_MAX: usize = 8192;

/// How many patterns a claim may hold.
const PATTERNS_MAX: usize = 64;

/// What a token must satisfy.
#[derive(Debug)]
pub struct Verifier {
    /// With which keys it may be signed.
    pub keys: Keys,
    /// The permitted issuers (`iss`). Empty: any issuer whose signature is valid.
    pub issuers: Vec<String>,
    /// The permitted audiences (`aud`). Empty: the audience is not checked.
    pub audiences: Vec<String>,
    /// How far clocks may be apart.
    pub leeway_s: u64,
    /// The claims that it must have.
    pub required_claims: Vec<String>,
    /// What its claims become.
    pub mapping: Mapping,
}

/// Which claim becomes what.
#[derive(Debug)]
pub struct Mapping {
    /// The user of the bearer.
    pub user: Claim,
    /// What roles it has.
    pub roles: Claim,
    /// Attributes by their names.
    pub attributes: Vec<(String, Claim)>,
    /// The patterns of channels that it may listen to.
    pub subscribe: Claim,
    /// The patterns of channels that it may publish on.
    pub publish: Claim,
}

/// Where a claim is: its name, or a JSON pointer to where it stands in another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim(pub String);

/// The identity of the bearer of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its user.
    pub user: String,
    /// Its roles, if the token speaks of roles.
    pub roles: Option<Vec<String>>,
    /// What else is noted of it; none: what was noted is removed.
    pub attributes: Vec<(String, Option<String>)>,
    /// What the token lets it do.
    pub grant: Grant,
}

/// Whether this has the form of a token. Whatever has not is for others.
pub fn is_token(secret: &str) -> bool {
    let mut parts = secret.split('.');
    let parts = [parts.next(), parts.next(), parts.next(), parts.next()];
    matches!(parts, [Some(header), Some(claims), Some(_), None]
        if !header.is_empty() && !claims.is_empty())
}

impl Verifier {
    /// The identity of the bearer of this token.
    ///
    /// # Errors
    ///
    /// The token is not believed, or does not say.
    pub fn verify(&self, token: &str) -> Result<Identity, Refused> {
        if token.len() > TOKEN_BYTES_MAX {
            let message = format!("the token is longer than {TOKEN_BYTES_MAX} bytes");
            return Err(Refused::unknown(message));
        }
        let header = jsonwebtoken::decode_header(token)
            .map_err(|_| Refused::unknown("the token's header cannot be read"))?;
        let claims = self.claims_of(token, &header)?;
        self.identity(&claims)
    }

    fn claims_of(&self, token: &str, header: &Header) -> Result<Map<String, Value>, Refused> {
        // None of the extensions that a token may insist on is known here.
        if header.crit.is_some() {
            return Err(Refused::unknown("the token insists on an extension (`crit`)"));
        }
        let key = self.keys.choose(header.alg, header.kid.as_deref()).ok_or_else(|| {
            let kid = header.kid.as_deref().map_or("none".to_owned(), |kid| format!("{kid:?}"));
            Refused::unknown(format!("no key fits the token: {:?}, kid {kid}", header.alg))
        })?;
        let mut validation = Validation::new(key.algorithm);
        // See `check_times`.
        validation.validate_exp = false;
        validation.validate_aud = !self.audiences.is_empty();
        validation.required_spec_claims.clear();
        if !self.audiences.is_empty() {
            validation.set_audience(&self.audiences);
            validation.required_spec_claims.insert("aud".to_owned());
        }
        if !self.issuers.is_empty() {
            validation.set_issuer(&self.issuers);
            validation.required_spec_claims.insert("iss".to_owned());
        }
        let decoded = jsonwebtoken::decode::<Map<String, Value>>(token, &key.decoding, &validation);
        let claims = decoded.map(|token| token.claims).map_err(|error| refused(error.kind()))?;
        check_types(&claims)?;
        self.check_times(&claims, jsonwebtoken::get_current_timestamp())?;
        Ok(claims)
    }

    /// Whether the token holds at this time, by `exp` and `nbf` (RFC 7519, sections 4.1.4 and
    /// 4.1.5). The crate takes only times from 1970 on that fit 64 bits.
    fn check_times(&self, claims: &Map<String, Value>, now: u64) -> Result<(), Refused> {
        let at = |name: &str| claims.get(name).and_then(Value::as_f64);
        let (now, leeway) = (now as f64, self.leeway_s as f64);
        if at("exp").is_some_and(|exp| exp + leeway < now) {
            return Err(Refused::expired("the token expired"));
        }
        if at("nbf").is_some_and(|nbf| nbf - leeway > now) {
            return Err(Refused::unknown("the token does not hold yet (`nbf`)"));
        }
        Ok(())
    }

    fn identity(&self, claims: &Map<String, Value>) -> Result<Identity, Refused> {
        let missing = |name: &str| Refused::unknown(format!("the token has no claim `{name}`"));
        for name in &self.required_claims {
            Claim(name.clone()).of(claims).ok_or_else(|| missing(name))?;
        }
        let Mapping { user, roles, attributes, subscribe, publish } = &self.mapping;
        let name = user.of(claims).ok_or_else(|| missing(&user.0))?;
        let name = text_of(name).filter(|name| !name.is_empty());
        let noted = |(key, claim): &(String, Claim)| {
            (key.clone(), claim.of(claims).map(|value| text_of(value).unwrap_or(value.to_string())))
        };
        Ok(Identity {
            user: name.ok_or_else(|| user.is_odd("the name of a user"))?,
            roles: roles.of(claims).map(|value| roles.words_in(value)).transpose()?,
            attributes: attributes.iter().map(noted).collect(),
            grant: Grant {
                ends: claims.get("exp").and_then(Value::as_f64).map(|exp| exp.round() as u64),
                subscribe: subscribe.patterns_in(claims)?,
                publish: publish.patterns_in(claims)?,
            },
        })
    }
}

impl Claim {
    /// Its value; `null` is none.
    fn of<'a>(&self, claims: &'a Map<String, Value>) -> Option<&'a Value> {
        self.as_written(claims).filter(|value| !value.is_null())
    }

    /// Its value.
    fn as_written<'a>(&self, claims: &'a Map<String, Value>) -> Option<&'a Value> {
        match self.0.strip_prefix('/') {
            None => claims.get(&self.0),
            Some(rest) => {
                let (first, rest) = rest.split_once('/').unwrap_or((rest, ""));
                let first = first.replace("~1", "/").replace("~0", "~");
                let rest = if rest.is_empty() { String::new() } else { format!("/{rest}") };
                claims.get(&first).and_then(|value| value.pointer(&rest))
            }
        }
    }

    /// The members of a list of strings, or the words of one string, as in the
    /// claim `scope`.
    fn words_in(&self, value: &Value) -> Result<Vec<String>, Refused> {
        match value {
            Value::String(words) => Ok(words.split_whitespace().map(str::to_owned).collect()),
            Value::Array(members) => {
                let members = members.iter().map(|member| member.as_str().map(str::to_owned));
                members.collect::<Option<_>>().ok_or_else(|| self.is_odd("a list of strings"))
            }
            _ => Err(self.is_odd("a list of strings")),
        }
    }

    /// The patterns of a claim that restricts; none: there is no such claim. `null` is refused: it would
    /// allow everything.
    fn patterns_in(&self, claims: &Map<String, Value>) -> Result<Option<Vec<String>>, Refused> {
        let Some(value) = self.as_written(claims) else {
            return Ok(None);
        };
        let patterns = self.words_in(value)?;
        match patterns.len() {
            count if count > PATTERNS_MAX => Err(Refused::unknown(format!(
                "the token's claim `{}` has {count} patterns; {PATTERNS_MAX} are the most",
                self.0
            ))),
            _ => Ok(Some(patterns)),
        }
    }

    fn is_odd(&self, expected: &str) -> Refused {
        Refused::unknown(format!("the token's claim `{}` is not {expected}", self.0))
    }
}

/// A string as it is, a number in digits.
fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Whether the registered claims are what RFC 7519 says they are. The crate takes
/// an `iss` that is a list, and looks at claims only where they are to be checked.
fn check_types(claims: &Map<String, Value>) -> Result<(), Refused> {
    let check = |name: &str, expected: &str, is_right: fn(&Value) -> bool| match claims
        .get(name)
        .is_none_or(is_right)
    {
        true => Ok(()),
        false => Err(Refused::unknown(format!("the token's claim `{name}` is not {expected}"))),
    };
    check("iss", "one string", Value::is_string)?;
    // Some issuers number their users.
    check("sub", "one string or whole number", |sub| {
        sub.is_string() || sub.is_u64() || sub.is_i64()
    })?;
    check("aud", "a string or a list of strings", |aud| match aud {
        Value::Array(members) => members.iter().all(Value::is_string),
        other => other.is_string(),
    })?;
    ["exp", "nbf", "iat"].iter().try_for_each(|name| check(name, "a number", Value::is_number))
}

fn refused(kind: &ErrorKind) -> Refused {
    Refused::unknown(words(kind))
}

fn words(kind: &ErrorKind) -> String {
    match kind {
        ErrorKind::InvalidIssuer => "the token's issuer (`iss`) is not believed here".to_owned(),
        ErrorKind::InvalidAudience => "the token is meant for others (`aud`)".to_owned(),
        ErrorKind::InvalidSignature => "the token's signature is not right".to_owned(),
        ErrorKind::MissingRequiredClaim(name) => format!("the token has no claim `{name}`"),
        _ => "the token cannot be read".to_owned(),
    }
}
