//! JSON Web Tokens, signed by another library than the one that verifies them, and their keys in
//! the form that settings have.

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use serde_json::{Value, json};

/// The secret that signs all HS256 tokens.
pub const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// A key of `plugins/jwt-auth/tests/keys/`.
macro_rules! key {
    ($name:literal) => {
        include_str!(concat!("../../../plugins/jwt-auth/tests/keys/", $name, ".pem"))
    };
}

/// A token with these claims. A claim such as `"now+60"` is a time.
pub fn token(algorithm: &str, kid: Option<&str>, claims: &Value) -> Result<String> {
    let header = match kid {
        Some(kid) => json!({"typ": "JWT", "alg": algorithm, "kid": kid}),
        None => json!({"typ": "JWT", "alg": algorithm}),
    };
    let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let signed = format!("{}.{}", part(&header), part(&with_times(claims.clone())?));
    let signature = sign(algorithm, signed.as_bytes())?;
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

/// A public key: `rsa`, `p256` or `ed25519`.
pub fn public(name: &str) -> Result<&'static str> {
    Ok(match name {
        "rsa" => key!("rsa.pub"),
        "p256" => key!("p256.pub"),
        "ed25519" => key!("ed25519.pub"),
        _ => bail!("no such key: {name}"),
    })
}

/// Replaces the text between `<<` and `>>` in a line:
///
/// - `<<HS256 {"sub":"alice","exp":"now+60"}>>`, a token; `kid=…` may follow the algorithm
/// - `<<pem rsa>>`, a public key as it is written in a JSON string
pub fn fill(line: &str) -> Result<String> {
    let mut filled = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("<<") {
        let (words, after) = after.split_once(">>").context("`<<` without `>>`")?;
        filled.push_str(before);
        filled.push_str(&filling(words).with_context(|| words.to_owned())?);
        rest = after;
    }
    Ok(filled + rest)
}

fn filling(words: &str) -> Result<String> {
    let (first, rest) = words.split_once(' ').context("one word alone")?;
    if first == "pem" {
        return Ok(public(rest)?.replace('\n', "\\n"));
    }
    let (kid, claims) = match rest.strip_prefix("kid=").and_then(|rest| rest.split_once(' ')) {
        Some((kid, claims)) => (Some(kid), claims),
        None => (None, rest),
    };
    token(first, kid, &serde_json::from_str(claims)?)
}

fn with_times(claims: Value) -> Result<Value> {
    Ok(match claims {
        Value::String(text) => match text.strip_prefix("now") {
            Some(seconds) => {
                let now = std::time::UNIX_EPOCH.elapsed()?.as_secs();
                now.checked_add_signed(seconds.parse()?).context("so early")?.into()
            }
            None => text.into(),
        },
        Value::Object(members) => {
            let members = members.into_iter().map(|(key, value)| Ok((key, with_times(value)?)));
            Value::Object(members.collect::<Result<_>>()?)
        }
        other => other,
    })
}

fn sign(algorithm: &str, signed: &[u8]) -> Result<Vec<u8>> {
    let random = SystemRandom::new();
    Ok(match algorithm {
        "HS256" => {
            let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
            hmac::sign(&key, signed).as_ref().to_vec()
        }
        "RS256" => {
            let key =
                RsaKeyPair::from_pkcs8(&der(key!("rsa"))?).ok().context("the key of RS256")?;
            let mut signature = vec![0; key.public().modulus_len()];
            key.sign(&RSA_PKCS1_SHA256, &random, signed, &mut signature).ok().context("no sign")?;
            signature
        }
        "ES256" => {
            let key = der(key!("p256"))?;
            let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key, &random);
            let key = key.ok().context("the key of ES256")?;
            key.sign(&random, signed).ok().context("no sign")?.as_ref().to_vec()
        }
        "EdDSA" => {
            let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der(key!("ed25519"))?);
            key.ok().context("the key of EdDSA")?.sign(signed).as_ref().to_vec()
        }
        // An unsigned token.
        "none" => Vec::new(),
        _ => bail!("no such algorithm: {algorithm}"),
    })
}

fn der(pem: &str) -> Result<Vec<u8>> {
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    ensure!(!body.is_empty(), "the key is empty");
    Ok(STANDARD.decode(body)?)
}

#[test]
fn what_stands_between_the_marks_is_put_in() -> Result<()> {
    assert_eq!(fill("alice> [1,\"PING\"]")?, "alice> [1,\"PING\"]");
    let filled = fill(r#"a<<none kid=x {"sub":"a","exp":7}>>b"#)?;
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","kid":"x","typ":"JWT"}"#);
    let claims = URL_SAFE_NO_PAD.encode(r#"{"exp":7,"sub":"a"}"#);
    assert_eq!(filled, format!("a{header}.{claims}.b"));
    assert!(fill("<<pem rsa>>")?.starts_with("-----BEGIN PUBLIC KEY-----\\nMII"));
    for wrong in ["<<pem rsa", "<<pem x>>", "<<HS256>>", "<<XS256 {}>>", "<<HS256 {>>"] {
        assert!(fill(wrong).is_err(), "{wrong}");
    }
    Ok(())
}
