//! The keys, and which of them a token is checked with.
//!
//! Each key belongs to one algorithm, by the settings and never by the token: a
//! token that names another is refused before anything is computed, so that a
//! public key is never used as a secret. A token is checked with one key at
//! most, so that no client can make the plugin exceed its budget.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::Value;

/// How short a secret may be: as long as the hash (RFC 7518, 3.2).
const SECRET_BYTES_MIN: usize = 32;

/// How short an RSA modulus may be (RFC 7518, 3.3), and how long the crate takes it.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// One key.
#[derive(Debug)]
pub struct Key {
    /// Its id, if it has one.
    pub kid: Option<String>,
    /// The only algorithm that it is used with.
    pub algorithm: Algorithm,
    /// The key itself.
    pub decoding: DecodingKey,
}

/// All keys.
#[derive(Debug, Default)]
pub struct Keys(Vec<Key>);

/// A key as it stands in the settings.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawKey {
    algorithm: RawAlgorithm,
    kid: Option<String>,
    secret: Option<String>,
    secret_base64: Option<String>,
    pem: Option<String>,
}

#[derive(Clone, Copy, Deserialize)]
enum RawAlgorithm {
    HS256,
    RS256,
    ES256,
    EdDSA,
}

impl Keys {
    /// Adds a key.
    ///
    /// # Errors
    ///
    /// There is a key with the same algorithm and the same `kid`.
    pub fn add(&mut self, key: Key) -> Result<(), String> {
        let is_same = |known: &Key| (known.algorithm, &known.kid) == (key.algorithm, &key.kid);
        if self.0.iter().any(is_same) {
            let what = match &key.kid {
                Some(kid) => format!("the `kid` {kid:?}"),
                None => "no `kid`".to_owned(),
            };
            return Err(format!(
                "two keys for {:?} have {what}; a token is checked with one key only",
                key.algorithm
            ));
        }
        self.0.push(key);
        Ok(())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The key for a token with this header: the one of its `kid`, or the only
    /// one of the algorithm that could be meant.
    pub fn choose(&self, algorithm: Algorithm, kid: Option<&str>) -> Option<&Key> {
        let fitting = || self.0.iter().filter(|key| key.algorithm == algorithm);
        if let Some(kid) = kid {
            let named = fitting().find(|key| key.kid.as_deref() == Some(kid));
            return named.or_else(|| fitting().find(|key| key.kid.is_none()));
        }
        let mut fitting = fitting();
        fitting.next().filter(|_| fitting.next().is_none())
    }
}

/// Reads one key.
///
/// # Errors
///
/// What is wrong with it.
pub fn read(raw: RawKey) -> Result<Key, String> {
    let (algorithm, decoding) = match (raw.algorithm, raw.secret, raw.secret_base64, raw.pem) {
        (RawAlgorithm::HS256, Some(secret), None, None) => {
            (Algorithm::HS256, read_secret(secret.as_bytes())?)
        }
        (RawAlgorithm::HS256, None, Some(secret), None) => {
            let read = STANDARD.decode(&secret).or_else(|_| URL_SAFE_NO_PAD.decode(&secret));
            let secret = read.map_err(|error| format!("`secret_base64` is not Base64: {error}"))?;
            (Algorithm::HS256, read_secret(&secret)?)
        }
        (RawAlgorithm::HS256, ..) => {
            return Err("HS256 takes either a `secret` or a `secret_base64`".to_owned());
        }
        (RawAlgorithm::RS256, None, None, Some(pem)) => {
            (Algorithm::RS256, read_pem(&pem, "an RSA", DecodingKey::from_rsa_pem)?)
        }
        (RawAlgorithm::ES256, None, None, Some(pem)) => {
            (Algorithm::ES256, read_pem(&pem, "a P-256", DecodingKey::from_ec_pem)?)
        }
        (RawAlgorithm::EdDSA, None, None, Some(pem)) => {
            (Algorithm::EdDSA, read_pem(&pem, "an Ed25519", DecodingKey::from_ed_pem)?)
        }
        _ => return Err("RS256, ES256 and EdDSA take a `pem`, a public key".to_owned()),
    };
    // By way of a JWK, for one place that looks at what is inside.
    let jwk = Jwk::from_decoding_key(&decoding, Some(algorithm))
        .map_err(|_| format!("the `pem` holds no public key for {algorithm:?}"))?;
    let (_, decoding) = read_parameters(&jwk)?.ok_or(format!("no key for {algorithm:?}"))?;
    Ok(Key { kid: raw.kid, algorithm, decoding })
}

/// What a JWKS holds.
#[derive(Debug, Default)]
pub struct Jwks {
    /// The keys that can be used.
    pub keys: Vec<Key>,
    /// Which of the others should be looked at, and why: they were meant for tokens.
    pub left_out: Vec<String>,
}

/// Reads a JWKS, given as a table or as its JSON text. A key that cannot be used is
/// left out (RFC 7517, 5): a provider may publish what it likes beside the one that
/// tokens are signed with.
///
/// # Errors
///
/// It is none, or none of its keys can be used.
pub fn read_jwks(jwks: Value) -> Result<Jwks, String> {
    let jwks = match jwks {
        Value::String(text) => serde_json::from_str(&text).map_err(|error| error.to_string())?,
        table => table,
    };
    let Some(members) = jwks.get("keys").and_then(Value::as_array) else {
        return Err("has no array `keys`".to_owned());
    };
    let mut read = Jwks::default();
    for (number, member) in (1..).zip(members) {
        let kid = member.get("kid").and_then(Value::as_str);
        let name = kid.map_or(format!("key {number}"), |kid| format!("key {number} ({kid})"));
        match read_jwk(member) {
            Ok(Some(key)) => read.keys.push(key),
            // Not for tokens.
            Ok(None) => {}
            Err(why) => read.left_out.push(format!("{name} cannot be used: {why}")),
        }
    }
    match (read.keys.is_empty(), read.left_out.first()) {
        (false, _) => Ok(read),
        (true, None) => Err("holds no key for HS256, RS256, ES256 or EdDSA".to_owned()),
        (true, Some(why)) => {
            Err(format!("holds no usable key for HS256, RS256, ES256 or EdDSA: {why}"))
        }
    }
}

/// Reads one key of a JWKS; none when it is for something else.
fn read_jwk(member: &Value) -> Result<Option<Key>, String> {
    // Before the rest is looked at, which may be of a kind that is not known here.
    let is_for_else = |name: &str, right: &str| {
        let value = member.get(name).and_then(Value::as_str);
        value.is_some_and(|value| value != right)
    };
    if is_for_else("use", "sig") {
        return Ok(None);
    }
    let known = ["RSA", "EC", "OKP", "oct"];
    let kind = member.get("kty").and_then(Value::as_str).unwrap_or_default();
    if !known.contains(&kind) {
        return Ok(None);
    }
    let jwk = Jwk::deserialize(member).map_err(|error| error.to_string())?;
    let is_sig = |used: &PublicKeyUse| *used == PublicKeyUse::Signature;
    let verifies = |operations: &Vec<KeyOperations>| operations.contains(&KeyOperations::Verify);
    if !jwk.common.public_key_use.as_ref().is_none_or(is_sig)
        || !jwk.common.key_operations.as_ref().is_none_or(verifies)
    {
        return Ok(None);
    }
    let key = read_parameters(&jwk)?;
    let kid = jwk.common.key_id.clone();
    Ok(key.map(|(algorithm, decoding)| Key { kid, algorithm, decoding }))
}

/// The key and its algorithm; none when it is for one that we do not speak.
fn read_parameters(jwk: &Jwk) -> Result<Option<(Algorithm, DecodingKey)>, String> {
    let unreadable = |error: jsonwebtoken::errors::Error| format!("cannot be read: {error}");
    let decode = |text: &str| {
        URL_SAFE_NO_PAD.decode(text).map_err(|error| format!("is not Base64url: {error}"))
    };
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::OctetKey(key) => {
            read_secret(&decode(&key.value)?)?;
            Algorithm::HS256
        }
        AlgorithmParameters::RSA(key) => {
            let modulus = decode(&key.n)?;
            let zeros = modulus.iter().take_while(|byte| **byte == 0).count();
            let leading = modulus.get(zeros).map_or(0, |byte| byte.leading_zeros() as usize);
            let bits = (modulus.len() - zeros) * 8 - leading;
            if !RSA_BITS.contains(&bits) {
                return Err(format!(
                    "the RSA key has {bits} bits; it takes {} to {}",
                    RSA_BITS.start(),
                    RSA_BITS.end()
                ));
            }
            Algorithm::RS256
        }
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
            if [&key.x, &key.y].map(|part| decode(part)).iter().any(|part| !is_of_32_bytes(part)) {
                return Err("`x` and `y` of a P-256 key have 32 bytes each".to_owned());
            }
            Algorithm::ES256
        }
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            if !is_of_32_bytes(&decode(&key.x)) {
                return Err("`x` of an Ed25519 key has 32 bytes".to_owned());
            }
            Algorithm::EdDSA
        }
        _ => return Ok(None),
    };
    if jwk.common.key_algorithm.is_some_and(|named| named != algorithm.into()) {
        return Ok(None);
    }
    DecodingKey::from_jwk(jwk).map(|decoding| Some((algorithm, decoding))).map_err(unreadable)
}

fn is_of_32_bytes(part: &Result<Vec<u8>, String>) -> bool {
    part.as_ref().is_ok_and(|part| part.len() == 32)
}

fn read_secret(secret: &[u8]) -> Result<DecodingKey, String> {
    match secret.len() {
        length if length < SECRET_BYTES_MIN => Err(format!(
            "the secret has {length} bytes; HS256 takes {SECRET_BYTES_MIN} at least, or it could be \
             guessed from a token"
        )),
        _ => Ok(DecodingKey::from_secret(secret)),
    }
}

fn read_pem(
    pem: &str,
    what: &str,
    read: impl Fn(&[u8]) -> jsonwebtoken::errors::Result<DecodingKey>,
) -> Result<DecodingKey, String> {
    // Public keys only: what leads to a private one has no place in a config file
    // of a server that checks tokens.
    if pem.contains("PRIVATE KEY") {
        return Err("the `pem` is a private key; give it the public one".to_owned());
    }
    read(pem.trim().as_bytes()).map_err(|error| {
        format!("the `pem` is not {what} public key (-----BEGIN PUBLIC KEY-----): {error}")
    })
}
