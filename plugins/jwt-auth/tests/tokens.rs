//! Tokens, made here and shown to the plugin's own judgement.

#![expect(clippy::unwrap_used, clippy::panic, reason = "the helpers are of tests, too")]

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::jwk::{Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};
use jwt_auth::settings::{self, Settings, WithoutToken};
use jwt_auth::verify::{Identity, is_token};
use serde_json::{Value, json};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

const RSA: &str = include_str!("keys/rsa.pem");
const RSA_PUBLIC: &str = include_str!("keys/rsa.pub.pem");
const RSA_1024_PUBLIC: &str = include_str!("keys/rsa1024.pub.pem");
const P256: &str = include_str!("keys/p256.pem");
const P256_PUBLIC: &str = include_str!("keys/p256.pub.pem");
const P384_PUBLIC: &str = include_str!("keys/p384.pub.pem");
const ED25519: &str = include_str!("keys/ed25519.pem");
const ED25519_PUBLIC: &str = include_str!("keys/ed25519.pub.pem");

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn read(settings: &Value) -> Settings {
    settings::read(&settings.to_string()).unwrap_or_else(|error| panic!("{settings}: {error}"))
}

fn signing_key(algorithm: Algorithm) -> EncodingKey {
    let key = match algorithm {
        Algorithm::RS256 | Algorithm::RS384 => EncodingKey::from_rsa_pem(RSA.as_bytes()),
        Algorithm::ES256 => EncodingKey::from_ec_pem(P256.as_bytes()),
        Algorithm::EdDSA => EncodingKey::from_ed_pem(ED25519.as_bytes()),
        _ => Ok(EncodingKey::from_secret(SECRET.as_bytes())),
    };
    key.unwrap()
}

fn token(algorithm: Algorithm, kid: Option<&str>, claims: &Value) -> String {
    let header = Header { kid: kid.map(str::to_owned), ..Header::new(algorithm) };
    jsonwebtoken::encode(&header, claims, &signing_key(algorithm)).unwrap()
}

/// A token as the settings of `secret()` want it.
fn good(claims: Value) -> String {
    let mut all = json!({"sub": "alice", "exp": now() + 60});
    let all_claims = all.as_object_mut().unwrap();
    all_claims.extend(claims.as_object().unwrap().clone());
    // Here `null` stands for a claim that is left out.
    all_claims.retain(|_, claim| !claim.is_null());
    token(Algorithm::HS256, None, &all)
}

fn secret(more: Value) -> Settings {
    let mut all = json!({"keys": [{"algorithm": "HS256", "secret": SECRET}]});
    all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    read(&all)
}

fn check(settings: &Settings, token: &str, expected: Result<&str, &str>) -> Option<Identity> {
    let found = settings.verifier.verify(token);
    let words = found.as_ref().map(|identity| identity.user.as_str());
    assert_eq!(words.map_err(|refused| refused.message.as_str()), expected, "{token}");
    let code = if expected == Err("the token expired") { "EXPIRED" } else { "NOAUTH" };
    assert!(found.as_ref().err().is_none_or(|refused| refused.code == code));
    found.ok()
}

#[test]
fn each_algorithm_is_spoken() {
    let claims = json!({"sub": "alice", "exp": now() + 60});
    for (algorithm, key) in [
        (Algorithm::HS256, json!({"algorithm": "HS256", "secret": SECRET})),
        (
            Algorithm::HS256,
            json!({
                "algorithm": "HS256",
                "secret_base64": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
            }),
        ),
        (Algorithm::RS256, json!({"algorithm": "RS256", "pem": RSA_PUBLIC})),
        (Algorithm::ES256, json!({"algorithm": "ES256", "pem": P256_PUBLIC})),
        (Algorithm::EdDSA, json!({"algorithm": "EdDSA", "pem": ED25519_PUBLIC})),
    ] {
        let settings = read(&json!({"keys": [key]}));
        let good = token(algorithm, None, &claims);
        check(&settings, &good, Ok("alice"));
        // The same signature under other claims.
        let (header, rest) = good.split_once('.').unwrap();
        let (_, signature) = rest.split_once('.').unwrap();
        let other = token(algorithm, None, &json!({"sub": "root", "exp": now() + 60}));
        let forged = format!("{header}.{}.{signature}", other.split('.').nth(1).unwrap());
        check(&settings, &forged, Err("the token's signature is not right"));
    }
}

/// A public key is known to all: it must never be used as a secret, and a token
/// must not choose how it is checked.
#[test]
fn a_token_does_not_choose_its_algorithm() {
    let settings = read(&json!({"keys": [{"algorithm": "RS256", "pem": RSA_PUBLIC, "kid": "a"}]}));
    let claims = json!({"sub": "root", "exp": now() + 60});
    let confused = jsonwebtoken::encode(
        &Header { kid: Some("a".to_owned()), ..Header::new(Algorithm::HS256) },
        &claims,
        &EncodingKey::from_secret(RSA_PUBLIC.as_bytes()),
    );
    check(&settings, &confused.unwrap(), Err("no key fits the token: HS256, kid \"a\""));
    let longer = token(Algorithm::RS384, Some("a"), &claims);
    check(&settings, &longer, Err("no key fits the token: RS384, kid \"a\""));
    // {"alg":"none"}
    let unsigned = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJyb290In0.";
    check(&settings, unsigned, Err("the token's header cannot be read"));
    check(&secret(json!({})), unsigned, Err("the token's header cannot be read"));
}

#[test]
fn one_key_is_chosen_by_its_id() {
    let key = |algorithm: &str, kid, pem| json!({"algorithm": algorithm, "kid": kid, "pem": pem});
    let claims = json!({"sub": "alice", "exp": now() + 60});
    let of = |algorithm, kid| token(algorithm, kid, &claims);
    let settings = read(&json!({"keys": [
        {"algorithm": "HS256", "secret": SECRET, "kid": "new"},
        {"algorithm": "HS256", "secret": "another secret, as long as the hash", "kid": "old"},
        key("ES256", json!(null), P256_PUBLIC),
    ]}));
    check(&settings, &of(Algorithm::HS256, Some("new")), Ok("alice"));
    let message = "the token's signature is not right";
    check(&settings, &of(Algorithm::HS256, Some("old")), Err(message));
    let message = "no key fits the token: HS256, kid \"other\"";
    check(&settings, &of(Algorithm::HS256, Some("other")), Err(message));
    let message = "no key fits the token: HS256, kid none";
    check(&settings, &of(Algorithm::HS256, None), Err(message));
    // The only one of its algorithm, and it has no id.
    check(&settings, &of(Algorithm::ES256, None), Ok("alice"));
    check(&settings, &of(Algorithm::ES256, Some("any")), Ok("alice"));
}

#[test]
fn keys_come_from_a_jwks() {
    let jwk = |key: DecodingKey, algorithm, kid: &str, used_for| {
        let mut jwk = Jwk::from_decoding_key(&key, Some(algorithm)).unwrap();
        jwk.common.key_id = Some(kid.to_owned());
        jwk.common.public_key_use = used_for;
        serde_json::to_value(jwk).unwrap()
    };
    let rsa = || DecodingKey::from_rsa_pem(RSA_PUBLIC.as_bytes()).unwrap();
    let ec = || DecodingKey::from_ec_pem(P256_PUBLIC.as_bytes()).unwrap();
    let jwks = json!({"keys": [
        jwk(rsa(), Algorithm::RS256, "r", Some(PublicKeyUse::Signature)),
        jwk(rsa(), Algorithm::RS512, "r512", None),
        jwk(ec(), Algorithm::ES256, "e", None),
        jwk(ec(), Algorithm::ES256, "for encryption", Some(PublicKeyUse::Encryption)),
        {"kty": "AKP", "alg": "ML-DSA-44", "pub": "", "kid": "unknown"},
    ]});
    let claims = json!({"sub": "alice", "exp": now() + 60});
    for settings in [json!({"jwks": jwks}), json!({"jwks": jwks.to_string()})] {
        let settings = read(&settings);
        check(&settings, &token(Algorithm::RS256, Some("r"), &claims), Ok("alice"));
        check(&settings, &token(Algorithm::ES256, Some("e"), &claims), Ok("alice"));
        check(&settings, &token(Algorithm::ES256, None, &claims), Ok("alice"));
        let unfit = token(Algorithm::RS256, Some("r512"), &claims);
        check(&settings, &unfit, Err("no key fits the token: RS256, kid \"r512\""));
    }
}

#[test]
fn a_token_is_valid_for_a_time_and_an_audience() {
    let settings = secret(json!({
        "issuers": ["https://id.example.com"], "audiences": ["switchyard", "chat"], "leeway_s": 30,
    }));
    let claims = |more: Value| {
        let mut all = json!({"iss": "https://id.example.com", "aud": "chat"});
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        good(all)
    };
    check(&settings, &claims(json!({})), Ok("alice"));
    check(&settings, &claims(json!({"aud": ["x", "switchyard"]})), Ok("alice"));
    let message = "the token is meant for others (`aud`)";
    check(&settings, &claims(json!({"aud": "mail"})), Err(message));
    check(&settings, &claims(json!({"aud": null})), Err("the token has no claim `aud`"));
    let message = "the token's issuer (`iss`) is not believed here";
    check(&settings, &claims(json!({"iss": "https://evil.example.com"})), Err(message));
    check(&settings, &claims(json!({"iss": null})), Err("the token has no claim `iss`"));
    check(&settings, &claims(json!({"exp": now() - 20})), Ok("alice"));
    check(&settings, &claims(json!({"exp": now() - 40})), Err("the token expired"));
    check(&settings, &claims(json!({"exp": now() as f64 + 0.5})), Ok("alice"));
    check(
        &settings,
        &claims(json!({"exp": "soon"})),
        Err("the token's claim `exp` is not a number"),
    );
    // Times before 1970 and beyond any calendar are times.
    check(&settings, &claims(json!({"exp": -1})), Err("the token expired"));
    check(&settings, &claims(json!({"exp": 1e30, "nbf": -1})), Ok("alice"));
    check(
        &settings,
        &claims(json!({"iss": ["https://id.example.com"]})),
        Err("the token's claim `iss` is not one string"),
    );
    check(&settings, &claims(json!({"exp": null})), Err("the token has no claim `exp`"));
    check(&settings, &claims(json!({"nbf": now() + 20})), Ok("alice"));
    let message = "the token does not hold yet (`nbf`)";
    check(&settings, &claims(json!({"nbf": now() + 90})), Err(message));
    let lax = secret(json!({"required_claims": []}));
    let found = check(&lax, &good(json!({"exp": null, "aud": "any"})), Ok("alice"));
    assert_eq!(found.unwrap().grant.ends, None);
}

/// RFC 7519, 4.1. Whatever the settings ask about.
#[test]
fn registered_claims_have_the_types_of_the_standard() {
    let issuers = secret(json!({"issuers": ["https://id.example.com"]}));
    for settings in [secret(json!({})), issuers] {
        let check = |claims: Value, message: &str| {
            let mut all = json!({"iss": "https://id.example.com"});
            all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
            check(&settings, &good(all), Err(message));
        };
        let message = "the token's claim `iss` is not one string";
        check(json!({"iss": ["https://id.example.com"]}), message);
        check(json!({"iss": ["https://evil.example.com", "https://id.example.com"]}), message);
        for sub in [json!(1.5), json!(true)] {
            let message = "the token's claim `sub` is not one string or whole number";
            check(json!({"sub": sub}), message);
        }
        // The first check that fails determines the message.
        for claims in [
            json!({"sub": ["alice"]}),
            json!({"sub": {"a": 1}}),
            json!({"aud": 7}),
            json!({"aud": [7]}),
            json!({"aud": ["chat", null]}),
            json!({"aud": {"chat": 1}}),
        ] {
            let mut all = json!({"iss": "https://id.example.com"});
            all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
            let found = settings.verifier.verify(&good(all));
            assert!(
                found.as_ref().is_err_and(|refused| refused.code == "NOAUTH"),
                "{claims}: {found:?}"
            );
        }
        check(json!({"iat": "now"}), "the token's claim `iat` is not a number");
    }
    let all = good(json!({"iss": "a", "aud": ["b"], "iat": 1, "nbf": 1.5, "sub": 7}));
    check(&secret(json!({})), &all, Ok("7"));
}

/// RFC 7517, 5: a provider may publish keys that are of no use here.
#[test]
fn one_useless_key_does_not_spoil_a_jwks() {
    let jwk = |key: DecodingKey, algorithm, kid: &str| {
        let mut jwk = Jwk::from_decoding_key(&key, Some(algorithm)).unwrap();
        jwk.common.key_id = Some(kid.to_owned());
        serde_json::to_value(jwk).unwrap()
    };
    let weak = DecodingKey::from_rsa_pem(RSA_1024_PUBLIC.as_bytes()).unwrap();
    let weak = jwk(weak, Algorithm::RS256, "weak");
    let good = DecodingKey::from_ec_pem(P256_PUBLIC.as_bytes()).unwrap();
    let good = jwk(good, Algorithm::ES256, "good");
    let with = |more: Value| {
        let mut all = good.clone();
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all
    };
    let claims = json!({"sub": "alice", "exp": now() + 60});
    let cases = [
        (
            weak.clone(),
            Some(
                "jwks: key 1 (weak) cannot be used: the RSA key has 1024 bits; it takes 2048 to 4096",
            ),
        ),
        (json!({"kty": "AKP", "alg": "ML-DSA-44"}), None),
        (json!({"kty": "EC", "crv": "P-512", "kid": "a", "x": "", "y": ""}), None),
        (json!({"kty": "EC"}), None),
        (json!({"kty": "RSA", "n": "%", "e": "AQAB"}), Some("jwks: key 1 cannot be used: ")),
        (
            json!({"kty": "oct", "k": "c2hvcnQ"}),
            Some("jwks: key 1 cannot be used: the secret has 5 bytes"),
        ),
        (json!("a key"), None),
        (json!({}), None),
        (with(json!({"use": "enc"})), None),
        (with(json!({"key_ops": ["sign"]})), None),
        (with(json!({"alg": "ES1024", "kid": "b"})), None),
        (
            with(json!({"x": "AAAA", "kid": "b"})),
            Some("jwks: key 1 (b) cannot be used: `x` and `y`"),
        ),
    ];
    for (other, warning) in cases {
        let jwks = json!({"jwks": {"keys": [other, good]}});
        let settings = read(&jwks);
        check(&settings, &token(Algorithm::ES256, Some("good"), &claims), Ok("alice"));
        match (settings.warnings.as_slice(), warning) {
            ([], None) => {}
            ([found], Some(start)) => assert!(found.starts_with(start), "{found}"),
            (found, _) => panic!("{jwks}: {found:?}"),
        }
    }
    // Of two that a token cannot distinguish the first counts.
    let settings = read(&json!({"jwks": {"keys": [good, good]}}));
    assert_eq!(settings.warnings.len(), 1, "{:?}", settings.warnings);
    check(&settings, &token(Algorithm::ES256, Some("good"), &claims), Ok("alice"));
    // Where nothing is left, the reason is said.
    let error = settings::read(&json!({"jwks": {"keys": [weak]}}).to_string()).unwrap_err();
    assert!(error.starts_with("jwks: holds no usable key") && error.contains("1024"), "{error}");
}

#[test]
fn claims_become_what_the_settings_say() {
    let settings = secret(json!({
        "user_claim": "email", "roles_claim": "/realm/roles",
        "attributes": {"tenant": "org", "plan": "/billing/plan", "level": "level"},
        "required_claims": ["exp", "org"],
    }));
    let exp = now() + 60;
    let found = check(
        &settings,
        &good(json!({
            "email": "a@b.c", "realm": {"roles": ["x y", "z"]}, "org": "acme", "level": 3,
            "exp": exp, "subscribe": ["news.*"], "publish": "a b",
        })),
        Ok("a@b.c"),
    );
    let found = found.unwrap();
    assert_eq!(found.roles, Some(vec!["x y".to_owned(), "z".to_owned()]));
    let own = |text: &str| Some(text.to_owned());
    let attributes = [("level", own("3")), ("plan", None), ("tenant", own("acme"))];
    assert_eq!(found.attributes, attributes.map(|(key, value)| (key.to_owned(), value)));
    assert_eq!(found.grant.ends, Some(exp));
    assert_eq!(found.grant.subscribe, Some(vec!["news.*".to_owned()]));
    assert_eq!(found.grant.publish, Some(vec!["a".to_owned(), "b".to_owned()]));

    let odd = |claims: Value, message| check(&settings, &good(claims), Err(message));
    odd(json!({"email": "a"}), "the token has no claim `org`");
    odd(json!({"org": "a"}), "the token has no claim `email`");
    odd(json!({"org": "a", "email": ""}), "the token's claim `email` is not the name of a user");
    odd(json!({"org": "a", "email": {}}), "the token's claim `email` is not the name of a user");
    let claims = json!({"org": "a", "email": "a", "subscribe": [1]});
    odd(claims, "the token's claim `subscribe` is not a list of strings");
    // It would allow everything.
    let claims = json!({"org": "a", "email": "a", "exp": exp, "publish": null});
    let problem = "the token's claim `publish` is not a list of strings";
    check(&settings, &token(Algorithm::HS256, None, &claims), Err(problem));
    let claims = json!({"org": "a", "email": "a", "publish": vec!["a"; 65]});
    odd(claims, "the token's claim `publish` has 65 patterns; 64 are the most");
}

#[test]
fn what_is_no_token_is_left_to_others() {
    for other in ["", "s3cret", "a.b", "a.b.c.d", "..", ".a.b", "a..b"] {
        assert!(!is_token(other), "{other}");
    }
    let settings = secret(json!({}));
    check(&settings, "a.b.c", Err("the token's header cannot be read"));
    let long = format!("{}.b.c", "a".repeat(10_000));
    check(&settings, &long, Err("the token is longer than 8192 bytes"));
    let critical = Header { crit: Some(vec!["x".to_owned()]), ..Header::default() };
    let critical = jsonwebtoken::encode(&critical, &json!({}), &signing_key(Algorithm::HS256));
    check(&settings, &critical.unwrap(), Err("the token insists on an extension (`crit`)"));
}

#[test]
fn a_token_is_found_where_it_may_be() {
    let headers = [
        ("authorization".to_owned(), b"Bearer header".to_vec()),
        ("sec-websocket-protocol".to_owned(), b"switchyard.v1.json, bearer.list".to_vec()),
    ];
    let check = |more: Value, expected: Option<&str>| {
        let found = secret(more.clone()).token_of("/ws?token=query&jwt=other", &headers);
        assert_eq!(found.as_deref(), expected, "{more}");
    };
    check(json!({}), Some("header"));
    check(json!({"from": ["query", "header"]}), Some("query"));
    check(json!({"from": ["query"], "query_parameter": "jwt"}), Some("other"));
    check(json!({"from": ["subprotocol"]}), Some("list"));
    check(json!({"from": ["subprotocol", "query"], "subprotocol_prefix": "jwt."}), Some("query"));
    check(json!({"from": ["auth"]}), None);
    assert!(!secret(json!({"from": ["query"]})).takes_auth);
    assert_eq!(secret(json!({})).without_token, WithoutToken::Wait);
}

#[test]
fn settings_that_do_not_say_where_and_what_would_be_right() {
    let check = |settings: Value, expected: &str| match settings::read(&settings.to_string()) {
        Ok(_) => panic!("accepted {settings}"),
        Err(error) => assert!(error.starts_with(expected), "{settings}: {error}"),
    };
    let check_key = |key: Value, expected: &str| {
        let good = json!({"algorithm": "HS256", "secret": SECRET});
        check(json!({"keys": [good, key]}), &format!("key 2: {expected}"));
    };
    check(json!({}), "names no key; give it `keys` or `jwks`");
    check(json!({"key": []}), "unknown field `key`, expected one of `keys`, `jwks`, ");
    check_key(
        json!({"algorithm": "none"}),
        "unknown variant `none`, expected one of `HS256`, `RS256`, `ES256`, `EdDSA`",
    );
    check_key(
        json!({"algorithm": "HS256", "secret": "short"}),
        "the secret has 5 bytes; HS256 takes 32 at least",
    );
    check_key(
        json!({"algorithm": "HS256", "pem": RSA_PUBLIC}),
        "HS256 takes either a `secret` or a `secret_base64`",
    );
    check_key(
        json!({"algorithm": "RS256", "secret": SECRET}),
        "RS256, ES256 and EdDSA take a `pem`, a public key",
    );
    check_key(
        json!({"algorithm": "RS256", "pem": RSA}),
        "the `pem` is a private key; give it the public one",
    );
    check_key(
        json!({"algorithm": "RS256", "pem": P256_PUBLIC}),
        "the `pem` is not an RSA public key (-----BEGIN PUBLIC KEY-----)",
    );
    check_key(json!({"algorithm": "ES256", "pem": P384_PUBLIC}), "no key for ES256");
    check_key(
        json!({"algorithm": "RS256", "pem": RSA_1024_PUBLIC}),
        "the RSA key has 1024 bits; it takes 2048 to 4096",
    );
    check_key(json!({"algorithm": "HS256", "secret_base64": "%"}), "`secret_base64` is not Base64");
    let key = json!({"algorithm": "HS256", "secret": SECRET});
    check(json!({"keys": [key, key]}), "two keys for HS256 have no `kid`");
    check(json!({"jwks": {"keys": []}}), "jwks: holds no key for HS256, RS256, ES256 or EdDSA");
    check(json!({"jwks": "{"}), "jwks: EOF while parsing");
    check(json!({"jwks": {}}), "jwks: has no array `keys`");
    check(json!({"jwks": {"keys": {}}}), "jwks: has no array `keys`");
    let with = |more: Value| {
        let mut all = json!({"keys": [key]});
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all
    };
    check(with(json!({"leeway_s": 601})), "`leeway_s` is 601; it goes from 0 to 600");
    check(with(json!({"from": []})), "`from` is empty; places are");
    check(with(json!({"from": ["cookie"]})), "unknown variant `cookie`, expected one of `header`");
    check(with(json!({"user_claim": ""})), "`user_claim` is empty; it takes the name of a claim");
    check(
        with(json!({"attributes": {"user": "sub"}})),
        "attributes: `user` is set otherwise, or no name; choose another",
    );
}
